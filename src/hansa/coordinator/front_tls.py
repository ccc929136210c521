"""TLS of the front: its settings, and a connection that tells a client why it is refused.

asyncio's own TLS closes a connection whose handshake fails without sending the alert that says why, and cannot bound
the handshakes that go on.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from hansa.errors import CertificateRejected

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python gives no name
_READ_BYTES = 65536
_LINGER_SECONDS = 1.0
T = TypeVar("T")


def server_tls(*, certificate: Path, key: Path, authority: bytes) -> ssl.SSLContext:
    """Make TLS settings for a server that wants clients of one authority: TLS 1.3, no session is resumed.

    TLS checks a client's chain and purpose. Whether its certificate is valid *now* it does not check: that is for
    whoever reads the certificate, at the handshake and at every request after it, with an error that has a name.

    Args:
        certificate: PEM file with the server's certificate.
        key: PEM file with its key.
        authority: DER of the pinned authority.

    Raises:
        CertificateRejected: A file cannot be read, or certificate and key do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= _NO_CHECK_TIME
    context.num_tickets = 0  # a resumed session would skip the check of the certificate
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata=authority)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise CertificateRejected(f"the front's certificate or key cannot be used: {certificate}") from error
    return context


class TlsStream:
    """The server's end of a TLS connection, for one task at a time.

    Args:
        connection: Accepted, not blocking.
        context: See `server_tls`.
    """

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self._socket, self._loop = connection, asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._early = b""  # what came while nobody read

    async def shake_hands(self) -> bytes | None:
        """Do the handshake; give the client's certificate, DER.

        Raises:
            OSError: It failed; where the fault is the client's, it was told.
        """
        await self._do(self._tls.do_handshake)
        return self._tls.getpeercert(binary_form=True)

    async def read(self) -> bytes:
        """Read what comes; nothing at the end."""
        found, self._early = self._early, b""
        if found:
            return found
        try:
            return await self._do(lambda: self._tls.read(_READ_BYTES))
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""

    async def write(self, data: bytes) -> None:
        """Write all of it."""
        rest = memoryview(data)
        while rest:
            written = await self._do(lambda part=rest: self._tls.write(part))  # type: ignore[misc]
            rest = rest[written:]

    def is_gone(self) -> bool:
        """Tell, without waiting, whether the client has ended the connection."""
        try:
            received = self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            if not received:
                return True
            self._incoming.write(received)
        except BlockingIOError:
            pass
        except OSError:
            return True
        try:
            found = self._tls.read(_READ_BYTES)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            return True
        self._early += found
        return not found or len(self._early) > _READ_BYTES

    async def close(self) -> None:
        """End the connection so that the client gets what was written last, if it takes it soon."""
        try:
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            await self._flush()
            self._socket.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(_LINGER_SECONDS):
                while await self._loop.sock_recv(self._socket, _READ_BYTES):
                    pass
        except OSError:
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """Cut the connection at once."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    async def _do(self, operation: Callable[[], T]) -> T:
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                await self._flush()
                received = await self._loop.sock_recv(self._socket, _READ_BYTES)
                if received:
                    self._incoming.write(received)
                else:
                    self._incoming.write_eof()
            except ssl.SSLError:
                with suppress(OSError):
                    await self._flush()  # the alert that says why
                raise
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._loop.sock_sendall(self._socket, self._outgoing.read())
