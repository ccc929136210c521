"""The coordinator's home folder.

coordinator.toml              settings
ca/authority.crt              certificate of the authority, PEM
ca/authority.key              its key, 32 bytes, mode 0600; it may be kept on another machine or medium
ca/authority.crl              the latest revocation list, DER
tls/server.crt, server.key    the services' TLS certificate (PEM) and P-256 key; tls/next while a new key takes its place
authors/NAME.key              keys of authors who sign here, 32 bytes, mode 0600
journal.sqlite                members, authors, studies, events (where no other database is named)
database-password             password of another database, mode 0600; coordinator.toml names the file
models/SHA256                 base models of studies
spool/                        uploads while they arrive
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from hansa.coordinator.settings import FILE_NAME, CoordinatorSettings, load_coordinator_settings
from hansa.errors import AuthorityAbsent, CertificateRejected, HomeMissing
from hansa.federation.consortium import Consortium
from hansa.federation.files import read_file, read_private_file
from hansa.federation.tls_authority import from_pem
from hansa.federation.tls_files import TlsFiles
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.identity import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorHome:
    """Where the coordinator's files are, and what is pinned there.

    Attributes:
        folder: The home.
        settings: coordinator.toml.
        consortium: Name and authority.
    """

    folder: Path
    settings: CoordinatorSettings
    consortium: Consortium

    @classmethod
    def open(cls, folder: Path) -> "CoordinatorHome":
        """Read a home that `hansa consortium init` made.

        Raises:
            HomeMissing: The folder is no home of a coordinator.
            ConfigurationError: coordinator.toml is wrong; see `load_coordinator_settings`.
            CertificateRejected: The authority's certificate is not one.
        """
        if not (folder / FILE_NAME).exists() and not (folder / "ca").exists():
            raise HomeMissing(f"{str(folder)!r} is not the home of a coordinator")
        settings = load_coordinator_settings(folder)
        authority = from_pem(read_file(folder / "ca" / "authority.crt"))
        return cls(
            folder=folder, settings=settings, consortium=Consortium(name=settings.name, authority=authority)
        )

    def authority(self, keys: Path | None = None) -> CertificateAuthority:
        """Read the authority's key.

        Args:
            keys: Folder that holds `authority.key`; the home's own `ca` where it is not given.

        Raises:
            AuthorityAbsent: There is no such key.
            KeyFileUnsafe: Others can read it.
            CertificateRejected: It is not the key of the authority's certificate.
        """
        path = (keys or self.folder / "ca") / "authority.key"
        try:
            secret = read_private_file(path)
        except HomeMissing as error:
            raise AuthorityAbsent(f"the authority's key is not at {str(path)!r}") from error
        if len(secret) != 32:
            raise CertificateRejected(f"{path.name} does not hold exactly 32 bytes")
        return CertificateAuthority.load(secret, self.consortium.authority)

    def author(self, name: str) -> Identity:
        """Read the key of an author who signs here; raises HomeMissing or KeyFileUnsafe."""
        return Identity.load(read_private_file(self.author_key_file(name)))

    def author_key_file(self, name: str) -> Path:
        """Where the key of an author lies, if it is one of this machine."""
        return self.folder / "authors" / f"{name}.key"

    @property
    def tls_files(self) -> TlsFiles:
        """The TLS material of the coordinator's services."""
        return TlsFiles(
            authority=self.folder / "ca" / "authority.crt",
            certificate=self.folder / "tls" / "server.crt",
            key=self.folder / "tls" / "server.key",
        )

    @property
    def revocation_list_file(self) -> Path:
        """The latest revocation list, DER."""
        return self.folder / "ca" / "authority.crl"

    @property
    def models(self) -> Path:
        """Folder of base models, each under its SHA-256."""
        return self.folder / "models"

    def server_certificate_ends(self) -> datetime:
        """When the certificate of the services ends."""
        found = from_pem(read_file(self.tls_files.certificate))
        return x509.load_der_x509_certificate(found).not_valid_after_utc
