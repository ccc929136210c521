"""Who may propose studies and command them: the consortium's authors, in the journal."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hansa.coordinator.issuing import verify_name, window
from hansa.coordinator.journal import Journal
from hansa.coordinator.members import not_ended
from hansa.errors import DocumentRejected, InvalidValue, StoreDamaged, UsageError
from hansa.federation.authors import issue_author_certificate
from hansa.federation.fields import Bytes32, Der, ParticipantName, UtcTime
from hansa.secure_agg.certificate_authority import CertificateAuthority, requested_key
from hansa.secure_agg.certificates import CLOCK_SKEW, utc_now

SCOPE = "authors"


class AuthorRecord(BaseModel):
    """What the coordinator knows of an author."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: ParticipantName
    key: Bytes32
    certificates: Annotated[tuple[Der, ...], Field(min_length=1)]
    ends: UtcTime
    revoked: UtcTime | None = None
    reason: str = Field(default="", max_length=1000)

    @property
    def certificate(self) -> bytes:
        """The latest certificate, DER."""
        return self.certificates[-1]

    def encode(self) -> bytes:
        """Return the record as it is stored."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @classmethod
    def decode(cls, raw: bytes) -> "AuthorRecord":
        """Read a stored record; StoreDamaged if it is none."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError:
            problem = StoreDamaged("a record of an author in the journal is damaged")
        raise problem


class AuthorRegister:
    """The authors of a consortium.

    Args:
        journal: Where the records are.
        days: How long an author's certificate lasts.
        now: Clock.

    Guarantees:
        - A name stands for one key: another one needs another name.
    """

    def __init__(self, journal: Journal, *, days: int, now: Callable[[], datetime] = utc_now) -> None:
        self._journal, self._days, self._now = journal, days, now

    def all(self) -> list[AuthorRecord]:
        """Return all records, by name."""
        found = [AuthorRecord.decode(raw) for raw in self._journal.items(SCOPE).values()]
        return sorted(found, key=lambda record: record.name)

    def get(self, name: str) -> AuthorRecord:
        """Return a record, or raise UsageError."""
        raw = self._journal.get(SCOPE, name)
        if raw is None:
            raise UsageError(
                f"there is no author {name[:80]!r}", hint="`hansa consortium author list` shows them"
            )
        return AuthorRecord.decode(raw)

    def add(self, name: str, request: bytes, authority: CertificateAuthority) -> AuthorRecord:
        """Certify an author's key, or certify it again.

        Args:
            name: Its name.
            request: PKCS #10 request of the author's Ed25519 key, DER.
            authority: Issues the certificate.

        Raises:
            DocumentRejected: The name stands for another key, or was revoked.
            InvalidValue: The name is none.
            CertificateRejected, MessageTooLarge: The request is not one of an Ed25519 key under this name.
        """
        verify_name(name)
        key = requested_key(request, name).public_bytes_raw()
        raw = self._journal.get(SCOPE, name)
        earlier: tuple[bytes, ...] = ()
        if raw is not None:
            known = AuthorRecord.decode(raw)
            if known.revoked is not None or known.key != key:
                raise DocumentRejected(
                    f"the author {name!r} has another key or is revoked",
                    hint="add the new key under another name",
                )
            earlier = not_ended(known.certificates, self._now() - 2 * CLOCK_SKEW)
        valid = window(authority, self._now(), self._days)
        certificate = issue_author_certificate(authority, request, author=name, **valid)
        record = AuthorRecord(
            name=name, key=key, certificates=(*earlier, certificate), ends=valid["not_after"]
        )
        self._write(name, raw, record)
        self._journal.event("author_added", author=name)
        return record

    def revoke(self, name: str, reason: str) -> AuthorRecord:
        """End an author's right. `revocations.publish` then tells everybody; earlier certificates of the key end with it."""
        known = self.get(name)
        if known.revoked is not None:
            raise DocumentRejected(f"the author {name!r} is revoked already")
        record = known.model_copy(update={"revoked": self._now(), "reason": reason})
        self._write(name, known.encode(), AuthorRecord.decode(record.encode()))
        self._journal.event("author_revoked", author=name, reason=reason)
        return record

    def _write(self, name: str, raw: bytes | None, record: AuthorRecord) -> None:
        if not self._journal.compare_and_put(SCOPE, name, raw, record.encode()):
            raise InvalidValue(
                f"the author {name!r} was changed in the meantime", hint="run the command again"
            )
