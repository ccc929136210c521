"""A coordinator's SuperLink, front and grid, and nodes, all on the loopback interface, with certificates of an own authority."""

import datetime as dt
import ipaddress
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from hansa.coordinator.doorbell import Doorbell
from hansa.coordinator.exchange import Exchange
from hansa.coordinator.front import serve_front
from hansa.coordinator.superlink import SuperLink
from hansa.coordinator.superlink_grid import open_grid
from hansa.federation.fleet_messages import SessionGrid, node_number
from hansa.participant.fleet import FleetConnection
from hansa.participant.session_apps import session_handler
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import RevocationList

SESSION = "5e" * 16
HOUR = dt.timedelta(hours=1)
NODE_PROGRAM = Path(__file__).with_name("fleet_node.py")


class Authority:
    """An Ed25519 authority that issues P-256 certificates for TLS."""

    def __init__(self, folder: Path, name: str = "consortium") -> None:
        self.folder, self.now = folder, dt.datetime.now(dt.UTC)
        folder.mkdir(parents=True, exist_ok=True)
        self._made = CertificateAuthority.create(
            name, not_before=self.now - 24 * HOUR, not_after=self.now + 24 * HOUR
        )
        self._secret = self._made._private
        self._lists = 0
        self.der = self._made.certificate

    def issue(self, name: str, begin: int = -1, end: int = 12, server: bool = False) -> bytes:
        """Write NAME.pem and NAME.key; give the certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.load_der_x509_certificate(self.der)
        use = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now + begin * HOUR)
            .not_valid_after(self.now + end * HOUR)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        )
        if server:
            local = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([local]), critical=False)
        made = builder.sign(self._secret, None)
        self.pem(name).write_bytes(made.public_bytes(Encoding.PEM))
        self.key(name).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return made.public_bytes(Encoding.DER)

    def pem(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def revoke(self, *certificates: bytes) -> bytes:
        self._lists += 1
        return self._made.revocation_list(
            certificates, number=self._lists, this_update=self.now - HOUR, next_update=self.now + 12 * HOUR
        )


def ping_app(name: str, log: list[str] | None = None, seconds: float = 0.0) -> ClientApp:
    """Answer every join with the name and the round, as a member's node would, form for form."""
    app = ClientApp()

    @app.query("join")
    def join(message: Message, _: Any) -> Message:
        number = message.content.config_records["request"]["round"]
        if log is not None:
            log.append(f"{name} {number} {sorted(message.content)}")
        time.sleep(seconds)
        return Message(
            RecordDict({"reply": ConfigRecord({"join": f"{name} {number}".encode()})}), reply_to=message
        )

    return app


class NodeThread:
    """A participant's connection in a thread."""

    def __init__(self, cluster: "Cluster", name: str, app: ClientApp, **changes: Any) -> None:
        self.errors: list[Any] = []
        handler = session_handler({SESSION: app}.get, report=self.errors.append)
        self.stop_event = threading.Event()
        self.connection = cluster.connection(name, report=self.errors.append, **changes)
        self.thread = threading.Thread(
            target=self.connection.run, args=(handler, self.stop_event), daemon=True
        )
        self.thread.start()

    def codes(self) -> list[str]:
        return [error.code for error in self.errors]

    def stop(self) -> None:
        self.stop_event.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


class Cluster:
    """SuperLink, front and grid of a coordinator, and the files of its members."""

    def __init__(self, folder: Path, names: tuple[str, ...], **front: Any) -> None:
        self.folder, self.names = folder, names
        self.authority = Authority(folder / "authority")
        self.authority.issue("coordinator", server=True)
        self.certificates = {name: self.authority.issue(name) for name in names}
        self.node_keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in names}
        self.public = {
            name: key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            for name, key in self.node_keys.items()
        }
        self.nodes = {name: node_number(key) for name, key in self.public.items()}
        self.doorbell = Doorbell()
        self.superlink = SuperLink(folder / "superlink")
        self.superlink.set_members(self.public)
        self.superlink.start()
        self._front = front
        self.front = self.start_front(0)
        self.grid = open_grid(self.superlink, doorbell=self.doorbell)
        self.running: list[Any] = []

    def start_front(self, port: int) -> Any:
        self.revoked = RevocationList(self.authority.der, self.authority.revoke())
        arguments = {"members": self.public, "revoked": self.revoked, "doorbell": self.doorbell}
        return serve_front(
            superlink=self.superlink.address,
            certificate=self.authority.pem("coordinator"),
            key=self.authority.key("coordinator"),
            authority=self.authority.der,
            port=port,
            **(arguments | self._front),
        )

    @property
    def url(self) -> str:
        return "https://{}:{}".format(*self.front.address)

    def connection(self, name: str, **changes: Any) -> FleetConnection:
        arguments: dict[str, Any] = {
            "certificate": self.authority.pem(name),
            "key": self.authority.key(name),
            "authority": self.authority.der,
            "node_key": self.node_keys[name],
            "folder": self.folder / f"node-{name}",
        }
        return FleetConnection(changes.pop("url", self.url), **(arguments | changes))

    def thread(self, name: str, app: ClientApp | None = None, **changes: Any) -> NodeThread:
        self.running.append(NodeThread(self, name, app or ping_app(name), **changes))
        return self.running[-1]

    def process(self, name: str, seconds: float = 0.0) -> "subprocess.Popen[bytes]":
        """Start a node as a program of its own, its files in its folder."""
        folder = self.folder / f"files-{name}"
        folder.mkdir(exist_ok=True)
        (folder / "authority.der").write_bytes(self.authority.der)
        (folder / "node.key").write_bytes(
            self.node_keys[name].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        command = [sys.executable, "-P", str(NODE_PROGRAM), name, self.url, str(self.authority.folder)]
        process = subprocess.Popen([*command, str(folder), str(seconds)])
        self.running.append(process)
        return process

    def exchange(self, deadline_seconds: float = 20.0) -> Exchange:
        return Exchange(SessionGrid(self.grid, SESSION), self.nodes, deadline_seconds)

    def ask(self, round_index: int, names: tuple[str, ...] | None = None, **arguments: Any) -> Any:
        requests = {name: {"round": round_index, "attempt": 0} for name in names or self.names}
        return self.exchange(**arguments).ask("query.join", requests, ("join",))

    def ready(self, names: tuple[str, ...] | None = None) -> None:
        wanted = [self.nodes[name] for name in names or self.names]
        assert self.grid.wait_for_nodes(wanted, 60.0) == set()

    def kill_superlink(self) -> None:
        pid = self.superlink.process_id
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for node in self.running:
            if isinstance(node, subprocess.Popen):
                node.kill()
                node.wait()
            else:
                node.stop_event.set()
        for node in self.running:
            if isinstance(node, NodeThread):
                node.stop()
        self.grid.close()
        self.front.stop()
        self.superlink.close()
