"""Keys and certificates in PEM files, read again when they change, and the credentials that gRPC makes of them."""

import os
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from hansa.errors import ConfigurationError, Error, KeyFileUnsafe
from hansa.federation.tls_authority import from_pem, load_tls_key

_MOST_BYTES = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where a party's TLS material lies.

    Args:
        authority: Certificate of the consortium's authority, PEM.
        certificate: The party's own certificate, PEM.
        key: Its key, PKCS #8 in PEM; only its owner may read the file.
    """

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """What stands in the files, in PEM, read at one moment.

    Guarantees:
        - repr() shows no key.
    """

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)

    @property
    def authority_der(self) -> bytes:
        """The authority's certificate, DER."""
        return from_pem(self.authority)

    @property
    def certificate_der(self) -> bytes:
        """The party's own certificate, DER."""
        return from_pem(self.certificate)


def read_tls(files: TlsFiles) -> TlsMaterial:
    """Read and check the files.

    Raises:
        ConfigurationError: A file cannot be read, or the key is not the certificate's.
        KeyFileUnsafe: The key's file is not one that only its owner can read.
        CertificateRejected: A file does not hold exactly one certificate.
        InvalidValue: The key is no P-256 key.

    Guarantees:
        - A certificate and a key that do not belong together, as in the middle of a renewal, are never used.
    """
    found = TlsMaterial(
        authority=_read(files.authority), certificate=_read(files.certificate), key=_read_private(files.key)
    )
    public = load_tls_key(found.key).public_key()
    if x509.load_der_x509_certificate(found.certificate_der).public_key() != public:
        raise ConfigurationError(
            f"{files.key.name} does not hold the key of {files.certificate.name}",
            hint="put both files of one renewal in place",
        )
    from_pem(found.authority)
    return found


class TlsSource:
    """The material of a party that runs for longer than a certificate: the files are looked at again at every use.

    Args:
        files: Where it lies.

    Raises:
        ConfigurationError, KeyFileUnsafe, CertificateRejected, InvalidValue: See `read_tls`.

    Guarantees:
        - Renewed files are used from the next connection on. While they do not fit together, what was read last is.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files, self._lock = files, threading.Lock()
        self._marks = self._stat()
        self._material = read_tls(files)

    def material(self) -> TlsMaterial:
        """Return what stands in the files; the same object while they are the same."""
        with self._lock:
            marks = self._stat()
            if marks != self._marks:
                try:
                    self._material, self._marks = read_tls(self._files), marks
                except Error:
                    return self._material  # half of a renewal; the next use looks again
            return self._material

    def _stat(self) -> list[tuple[int, int, int] | None]:
        return [_mark(path) for path in (self._files.authority, self._files.certificate, self._files.key)]


def channel_credentials(material: TlsMaterial) -> Any:
    """Return gRPC's credentials of a client that trusts the authority alone and shows its own certificate."""
    return grpc.ssl_channel_credentials(material.authority, material.key, material.certificate)


def server_credentials(source: TlsSource, *, ask_clients: bool = True) -> Any:
    """Return gRPC's credentials of a server that asks every client for a certificate of the authority.

    Args:
        source: The server's material.
        ask_clients: False for a service of those who have no certificate yet.

    Guarantees:
        - A handshake after a renewal shows the renewed certificate, without a restart.
        - While the files are the same, gRPC is given nothing new: connections that come at the same time share one TLS context.

    gRPC replaces its context whenever it is given one, and a handshake that begins on another thread in that moment may use the
    one that was freed: given a new one for every connection, some thousand connections end the process.
    """
    given = source.material()

    def configured(material: TlsMaterial) -> Any:
        return grpc.ssl_server_certificate_configuration(
            [(material.key, material.certificate)], material.authority if ask_clients else None
        )

    def renewed() -> Any:
        nonlocal given
        material = source.material()
        if material is given:
            return None  # as it was
        given = material
        return configured(material)

    return grpc.dynamic_ssl_server_credentials(
        configured(given), renewed, require_client_authentication=ask_clients
    )


# -- inside ----------------------------------------------------------------------------------------------


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            found = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path.name} cannot be read: {error.strerror}",
            hint="give the files of the authority's certificate, the own certificate and its key",
        ) from error
    if len(found) > _MOST_BYTES:
        raise ConfigurationError(
            f"{path.name} is larger than {_MOST_BYTES} bytes", hint="it is no certificate"
        )
    return found


def _read_private(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise KeyFileUnsafe(f"{path.name} cannot be opened as a file: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.geteuid(), 0):
            raise KeyFileUnsafe(f"{path.name} is not a file of this user")
        if status.st_mode & 0o077:
            raise KeyFileUnsafe(
                f"{path.name} has mode {stat.S_IMODE(status.st_mode):04o}, 0600 is the widest allowed"
            )
        return os.read(descriptor, _MOST_BYTES)
    finally:
        os.close(descriptor)
