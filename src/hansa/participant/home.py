"""A participant's home folder.

    participant.toml              settings, and the pinned fingerprint of the consortium
    authority.crt                 the consortium's authority, PEM; it must fit the fingerprint
    identity.store, identity.key  the Ed25519 identity, sealed; the store's key, mode 0600
    flower.key                    P-384 key of the Flower node, OpenSSH form, mode 0600
    request/                      the request for enrolment and its TLS key, until the enrolment is here
    renewal/                      the same for a renewal
    enrolments/0001, 0002, ...    enrolment.json, identity.crt, tls.crt, tls.key (mode 0600)
    current                       link to the enrolment that is in use; replaced at once
    revocations.crl               the latest revocation list that was seen, DER

Other parts of a participant keep their own files beside these (datasets.toml, policies, ledgers, the node's store).
"""

import shutil
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hansa.errors import DocumentRejected, HomeMissing, NotAMember, StoreDamaged, StoreInUse
from hansa.federation.consortium import Consortium
from hansa.federation.documents import Document, read_document
from hansa.federation.enrolments import Enrolment
from hansa.federation.files import (
    PRIVATE,
    make_folder,
    point_to,
    read_file,
    read_private_file,
    sync_folder,
    write_file,
)
from hansa.federation.tls_authority import from_pem, to_pem
from hansa.federation.tls_files import TlsFiles
from hansa.participant.settings import FILE_NAME, ParticipantSettings, load_participant_settings
from hansa.participant.store import SealedStore, open_or_make_key
from hansa.secure_agg.certificates import RevocationList
from hansa.secure_agg.identity import Identity

_IDENTITY = "identity"
_STORE_SECONDS = 10.0  # another command may have the store open for a moment
_KEPT_ENROLMENTS = 2  # the one in use, and the one before it for whoever reads its files right now


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantHome:
    """Where a participant's files are, and what it pins.

    Attributes:
        folder: The home.
        settings: participant.toml.
        consortium: Name and authority; they fit the pinned fingerprint.
    """

    folder: Path
    settings: ParticipantSettings
    consortium: Consortium

    @classmethod
    def open(cls, folder: Path) -> "ParticipantHome":
        """Read a home that `hansa participant join` made.

        Raises:
            HomeMissing: The folder is no home of a participant.
            ConfigurationError: participant.toml is wrong; see `load_participant_settings`.
            DocumentRejected: authority.crt is not the certificate whose fingerprint is pinned.
            CertificateRejected: It is no certificate of an authority.
        """
        if not (folder / FILE_NAME).exists():
            raise HomeMissing(f"{str(folder)!r} is not the home of a participant")
        settings = load_participant_settings(folder)
        authority = from_pem(read_file(folder / "authority.crt"))
        consortium = Consortium(name=settings.consortium.name, authority=authority)
        if consortium.fingerprint.hex() != settings.consortium.fingerprint:
            raise DocumentRejected(
                "authority.crt does not fit the fingerprint that is pinned in participant.toml",
                hint="restore both files from a backup; do not change either",
            )
        return cls(folder=folder, settings=settings, consortium=consortium)

    @property
    def name(self) -> str:
        """The participant's name."""
        return self.settings.name

    @property
    def flower_key_file(self) -> Path:
        """Private key of the Flower node, OpenSSH form."""
        return self.folder / "flower.key"

    @property
    def request_folder(self) -> Path:
        """Where a request for enrolment waits."""
        return self.folder / "request"

    @property
    def renewal_folder(self) -> Path:
        """Where a request for renewal waits."""
        return self.folder / "renewal"

    @property
    def is_enrolled(self) -> bool:
        """Whether there is an enrolment."""
        return (self.folder / "current" / "enrolment.json").exists()

    def identity(self) -> Identity:
        """Read the identity; see `open_identity`."""
        return open_identity(self.folder)

    def enrolment(self) -> Document[Enrolment]:
        """Return the enrolment in use.

        Raises:
            NotAMember: There is none yet.
            DocumentMalformed, DocumentRejected: The file was altered.
        """
        if not self.is_enrolled:
            raise NotAMember(
                f"{self.name!r} is not enrolled yet",
                hint="read the fingerprint to the admin, then run `hansa participant join --resume`",
            )
        raw = read_file(self.folder / "current" / "enrolment.json", Enrolment.BYTES_MOST)
        document = read_document(raw, Enrolment)
        document.verify_signed_by(self.consortium.authority_key, f"the authority of {self.consortium.name!r}")
        return document

    @property
    def tls_files(self) -> TlsFiles:
        """The TLS material in use. Through the link, so that a renewal is seen; `TlsSource` never pairs two enrolments."""
        current = self.folder / "current"
        return TlsFiles(
            authority=self.folder / "authority.crt",
            certificate=current / "tls.crt",
            key=current / "tls.key",
        )

    def install(self, document: Document[Enrolment], tls_key: bytes) -> None:
        """Put an enrolment into use, after it was verified.

        Args:
            document: The enrolment.
            tls_key: The TLS key that it certifies, PEM.

        Guarantees:
            - Whoever reads through `current` finds the old enrolment or the new one, never a mixture.
            - TLS keys of enrolments before the last two are removed.
        """
        body, folder = document.body, self.folder / "enrolments"
        place, unfinished = folder / f"{body.number:04d}", folder / f".{body.number:04d}"
        if self.is_enrolled and self.enrolment() == document:
            return  # of a crash right after this
        shutil.rmtree(unfinished, ignore_errors=True)
        make_folder(folder)
        make_folder(unfinished)
        write_file(unfinished / "tls.key", tls_key, mode=PRIVATE)
        write_file(unfinished / "tls.crt", to_pem(body.tls_certificate))
        write_file(unfinished / "identity.crt", to_pem(body.identity_certificate))
        write_file(unfinished / "enrolment.json", document.encode() + b"\n")
        shutil.rmtree(place, ignore_errors=True)  # of a crash before the link below
        unfinished.rename(place)
        sync_folder(folder)
        point_to(self.folder / "current", f"enrolments/{body.number:04d}")
        for old in sorted(folder.glob("[0-9]*"))[:-_KEPT_ENROLMENTS]:
            shutil.rmtree(old, ignore_errors=True)

    def revocations(self) -> RevocationList:
        """Return the latest revocation list that was seen; before the first one no certificate passes."""
        path = self.folder / "revocations.crl"
        return RevocationList(self.consortium.authority, read_file(path) if path.exists() else b"")

    def take_revocations(self, encoded: bytes, now: datetime) -> RevocationList:
        """Take a revocation list that came from anywhere, and keep it if it is a later one; raises as `RevocationList.update`."""
        known = self.revocations()
        before = known.encoded
        known.update(encoded, now)
        if known.encoded != before:  # an agent asks every few seconds
            write_file(self.folder / "revocations.crl", known.encoded)
        return known

    def key_files(self) -> list[Path]:
        """All files that hold a secret of this participant and are there."""
        found = [self.folder / "identity.key", self.folder / "identity.store", self.flower_key_file]
        folders = (self.request_folder, self.renewal_folder, *(self.folder / "enrolments").glob("[0-9]*"))
        found += [folder / "tls.key" for folder in folders]
        return [path for path in found if path.exists()]

    def verify_key_files(self) -> None:
        """Raise KeyFileUnsafe, which names the file, if somebody else can read or write a secret."""
        for path in self.key_files():
            read_private_file(path)


def open_identity(folder: Path, *, sleep: Callable[[float], None] = time.sleep) -> Identity:
    """Read the identity of a home. The store is closed again, so that agent and commands can both sign.

    Raises:
        HomeMissing: There is none.
        KeyFileUnsafe: Others can read the store's key.
        StoreDamaged, StoreInUse: The store was altered, or another process keeps it open.
    """
    if not (folder / "identity.store").exists():
        raise HomeMissing(f"there is no identity in {str(folder)!r}")
    with closing(_opened(folder, sleep)) as store:
        secret = store.get(_IDENTITY)
    if secret is None:
        raise StoreDamaged("identity.store holds no identity")
    return Identity.load(secret)


def make_identity(folder: Path) -> Identity:
    """Make the identity of a home, or read the one that is there."""
    with closing(_opened(folder, time.sleep)) as store:
        secret = store.get(_IDENTITY)
        if secret is None:
            secret = Identity.generate().export()
            store.put(_IDENTITY, secret)
    return Identity.load(secret)


def _opened(folder: Path, sleep: Callable[[float], None]) -> SealedStore:
    key = open_or_make_key(folder / "identity.key")
    end = time.monotonic() + _STORE_SECONDS
    while time.monotonic() < end:
        with suppress(StoreInUse):
            return SealedStore(folder / "identity.store", key)
        sleep(0.1)
    raise StoreInUse("identity.store is open in another process")
