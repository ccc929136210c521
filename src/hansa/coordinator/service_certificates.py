"""Certificates of the coordinator's services that another one has followed, and how a new key takes the place of the old one.

A renewal certifies the same key again; only `--new-key` makes another, for a key that somebody else may have. Then every earlier
certificate that was noted goes on the revocation list, for whoever has the key can use each of them.

Key and certificate are two files, so both are made ready beside them, in `tls/next`, before either is moved. A process that dies
between leaves what the next one finishes.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography import x509

from hansa.coordinator.journal import Journal
from hansa.errors import StoreNotWritable
from hansa.federation.files import PRIVATE, holding, make_folder, read_file, sync_folder, write_file
from hansa.federation.tls_authority import from_pem, to_pem
from hansa.federation.tls_files import TlsFiles

FOLLOWED, REVOKED = (
    "services/followed",
    "services/revoked",
)  # scopes in the journal: serial number -> certificate, DER


class ServiceCertificates:
    """Remembers the certificates of the services that another one has followed.

    Args:
        journal: Where they are noted.

    Guarantees:
        - A certificate that was revoked stays so, whatever is noted later.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def followed(self, certificate: bytes) -> None:
        """Note that another certificate for the same key follows this one."""
        self._journal.put(FOLLOWED, {_serial(certificate): certificate})

    def revoke(self, certificate: bytes) -> None:
        """Revoke a certificate, with all that it has followed: they are of one key. Twice does no more than once."""
        known = self._journal.items(FOLLOWED)
        self._journal.put(REVOKED, {**known, _serial(certificate): certificate})
        self._journal.put(FOLLOWED, dict.fromkeys(known))

    def revoked(self) -> tuple[bytes, ...]:
        """Give all that were revoked, also those that have ended."""
        return tuple(self._journal.items(REVOKED).values())


@contextmanager
def changing(files: TlsFiles) -> Iterator[None]:
    """Keep other processes from changing key and certificate of the services while the block runs."""
    with holding(files.key.with_name(".lock")):
        yield


def make_ready(files: TlsFiles, key: bytes, certificate: bytes) -> None:
    """Put a new key and its certificate beside those in use; `take_next` moves them.

    Args:
        files: Those in use.
        key: Of `new_tls_key`.
        certificate: Its certificate, DER.

    Raises:
        StoreNotWritable: The disk is full.

    Guarantees:
        - The key is at no moment in a file that others can read.
        - Until the certificate is there, which is written last, nothing has happened.
    """
    folder = _next(files)
    make_folder(folder)
    sync_folder(folder.parent)
    write_file(folder / files.key.name, key, mode=PRIVATE)
    write_file(folder / files.certificate.name, to_pem(certificate))


def take_next(files: TlsFiles, register: ServiceCertificates) -> bool:
    """Move a key and its certificate into place that were made ready, now or before a crash, and revoke what they follow.

    Args:
        files: Those in use. The caller holds them by `changing`.
        register: Remembers what is revoked.

    Returns:
        Whether there were some.

    Raises:
        StoreNotWritable, JournalNotWritable: Nothing more was done; another call goes on.

    Guarantees:
        - Killed at any moment, another call ends with the old pair of files or the new one, never with a mixed one.
        - The old certificate is noted as revoked before it is gone.
    """
    folder = _next(files)
    key, certificate = folder / files.key.name, folder / files.certificate.name
    try:
        if not folder.exists():
            return False
        if not certificate.exists():  # made ready by half, or moved already
            shutil.rmtree(folder)
            return False
        register.revoke(from_pem(read_file(files.certificate)))
        with suppress(FileNotFoundError):  # moved before a crash
            key.rename(files.key)
            sync_folder(files.key.parent)
        certificate.rename(files.certificate)
        sync_folder(files.certificate.parent)
        shutil.rmtree(folder)
    except OSError as error:
        raise StoreNotWritable(f"{files.key.name} cannot be replaced: {error.strerror}") from error
    return True


def _next(files: TlsFiles) -> Path:
    return files.key.with_name("next")


def _serial(certificate: bytes) -> str:
    return f"{x509.load_der_x509_certificate(certificate).serial_number:040x}"
