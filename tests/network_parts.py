"""Certificates of a consortium in files, and a proxy on loopback that cuts, stalls and counts."""

import os
import socket
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hansa.federation.tls_authority import (
    issue_client_certificate,
    issue_server_certificate,
    new_tls_key,
    request_tls_certificate,
    to_pem,
)
from hansa.federation.tls_files import TlsFiles, TlsSource
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import RevocationList

DAY = timedelta(days=1)


class Pki:
    """A consortium's authority; what it issues lies in a folder."""

    def __init__(self, folder: Path, name: str = "consortium") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.now = folder, datetime.now(UTC)
        self.authority = CertificateAuthority.create(
            name, not_before=self.now - 9 * DAY, not_after=self.now + 99 * DAY
        )
        self.certificates: dict[str, bytes] = {}
        (folder / "authority.pem").write_bytes(to_pem(self.authority.certificate))

    def files(self, name: str, *, hosts: Any = None, begin: Any = -DAY, end: Any = DAY) -> TlsFiles:
        """Issue a certificate, for a server where hosts are given, and say where it lies."""
        key = new_tls_key()
        window = {"not_before": self.now + begin, "not_after": self.now + end}
        request = request_tls_certificate(key, name)
        if hosts:
            made = issue_server_certificate(self.authority, request, name=name, hosts=hosts, **window)
        else:
            made = issue_client_certificate(self.authority, request, participant=name, **window)
        self.certificates[name] = made
        return self.write(name, made, key)

    def write(self, name: str, certificate: bytes, key: bytes) -> TlsFiles:
        """Put a certificate and its key in place, as a renewal does: each file at once."""
        for file, data in ((f"{name}.pem", to_pem(certificate)), (f"{name}-key.pem", key)):
            new = self.folder / f"{file}.new"
            new.write_bytes(data)
            new.chmod(0o600)
            os.replace(new, self.folder / file)
        return TlsFiles(
            authority=self.folder / "authority.pem",
            certificate=self.folder / f"{name}.pem",
            key=self.folder / f"{name}-key.pem",
        )

    def source(self, name: str, **options: Any) -> TlsSource:
        """Issue a certificate and read it."""
        return TlsSource(self.files(name, **options))

    def revoked(self, *names: str, number: int = 1) -> RevocationList:
        """Give a list on which the latest certificates of these stand."""
        found = RevocationList(self.authority.certificate)
        listed = [self.certificates[name] for name in names]
        now = datetime.now(UTC)
        encoded = self.authority.revocation_list(
            listed, number=number, this_update=now - DAY, next_update=now + DAY
        )
        found.update(encoded, now)
        return found


class Proxy:
    """Passes connections to a port on. It counts bytes, cuts one connection after so many, and stalls when told to.

    Attributes:
        up: Bytes that each connection sent to the server, in the order of connections.
        down: Bytes that each received.
        goes_on: While it is not set nothing is passed on.
    """

    def __init__(
        self, port: int, *, cut_up_after: int | None = None, cut_down_after: int | None = None
    ) -> None:
        self.to = port
        self.cuts = {"up": cut_up_after, "down": cut_down_after}
        self.up: list[int] = []
        self.down: list[int] = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.was_cut = threading.Event()
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.to), timeout=5)
                    server.settimeout(None)
                except OSError:
                    client.close()
                    continue
                self._ends += [client, server]
                self.up.append(0)
                self.down.append(0)
                number = len(self.up) - 1
                for source, sink, way in ((client, server, "up"), (server, client, "down")):
                    thread = threading.Thread(
                        target=self._pass, args=(source, sink, way, number), daemon=True
                    )
                    self._threads.append(thread)
                    thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket, way: str, number: int) -> None:
        counts = getattr(self, way)
        with suppress(OSError):
            while data := source.recv(1 << 14):
                self.goes_on.wait()
                sink.sendall(data)
                counts[number] += len(data)
                bound = self.cuts[way]
                if bound is not None and counts[number] >= bound:
                    self.cuts[way] = None  # the next connection passes
                    self.was_cut.set()
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything."""
        self.goes_on.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for end in [self._listener, *self._ends]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(5)
