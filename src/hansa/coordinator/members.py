"""One record for each participant of a consortium, from its invitation to its revocation. A record changes by compare-and-put only.

    invited ──request──> requested ──approve──> enrolled ──┐ renew
       │                     │                     └───────┘
       └───────revoke────────┴──────────> revoked ──invite──> invited

A record holds no secret: of an invitation's code it keeps the public key that was derived from it.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Literal

import rfc8785
from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hansa.coordinator.journal import Journal
from hansa.errors import InternalFailure, ParticipantUnknown, StoreDamaged
from hansa.federation.documents import Document, read_document
from hansa.federation.enrolments import Enrolment
from hansa.federation.fields import Bytes32, Der, ParticipantName, UtcTime
from hansa.federation.requests import EnrolmentRequest, MemberKeys, RenewalRequest, keys_of_request
from hansa.secure_agg.certificates import CLOCK_SKEW

SCOPE = "members"
State = Literal["invited", "requested", "enrolled", "revoked"]
_TRIES = 20  # of a change that others change under its hands


class MemberRecord(BaseModel):
    """What the coordinator knows of a participant. Documents are kept as they were signed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: ParticipantName
    state: State
    proof_key: Bytes32 = Field(description="public key of the invitation's code")
    invited: UtcTime
    expires: UtcTime = Field(description="end of the invitation")
    attempts: int = Field(default=0, ge=0, description="wrong requests under this invitation")
    request: str = Field(default="", description="the request for enrolment")
    renewal: str = Field(default="", description="the latest request for renewal")
    enrolment: str = Field(default="", description="the latest enrolment")
    certificates: tuple[Der, ...] = Field(
        default=(), description="all that were issued and may not have ended"
    )
    revoked_certificates: tuple[Der, ...] = Field(default=(), description="those that were revoked")
    revoked: UtcTime | None = None
    reason: str = Field(default="", max_length=1000, description="why it was revoked")

    def encode(self) -> bytes:
        """Return the record as it is stored."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @classmethod
    def decode(cls, raw: bytes) -> "MemberRecord":
        """Read a stored record; StoreDamaged if it is none."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError:
            problem = StoreDamaged("a record of a member in the journal is damaged")
        raise problem

    def changed(self, **changes: object) -> "MemberRecord":
        """Make the record that differs in some fields, checked."""
        return MemberRecord.model_validate(
            {**{k: getattr(self, k) for k in type(self).model_fields}, **changes}
        )

    @property
    def request_document(self) -> Document[EnrolmentRequest]:
        """The request for enrolment."""
        return read_document(self.request.encode(), EnrolmentRequest)

    @property
    def renewal_document(self) -> Document[RenewalRequest]:
        """The latest request for renewal."""
        return read_document(self.renewal.encode(), RenewalRequest)

    @property
    def enrolment_document(self) -> Document[Enrolment]:
        """The latest enrolment."""
        return read_document(self.enrolment.encode(), Enrolment)

    @property
    def keys(self) -> MemberKeys | None:
        """The public keys in the request, if there is one."""
        return keys_of_request(self.request_document) if self.request else None

    @property
    def renewal_is_pending(self) -> bool:
        """Whether a request for renewal waits for the authority."""
        return bool(self.renewal) and self.renewal_document.body.number == self.enrolment_document.body.number


class Members:
    """The records of all participants, in the journal.

    Args:
        journal: Where they are.

    Guarantees:
        - Of two changes of one record at the same time, the second sees what the first made of it.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def find(self, name: str) -> MemberRecord | None:
        """Return a record, or None."""
        raw = self._journal.get(SCOPE, name)
        return None if raw is None else MemberRecord.decode(raw)

    def get(self, name: str) -> MemberRecord:
        """Return a record, or raise ParticipantUnknown."""
        found = self.find(name)
        if found is None:
            raise ParticipantUnknown(f"there is no participant {name[:80]!r}")
        return found

    def all(self) -> list[MemberRecord]:
        """Return all records, by name."""
        found = [MemberRecord.decode(raw) for raw in self._journal.items(SCOPE).values()]
        return sorted(found, key=lambda record: record.name)

    def enrolled(self) -> dict[str, MemberKeys]:
        """Return identity and Flower key of everybody who is a member now. The TLS key is that of the first enrolment."""
        found = {record.name: record.keys for record in self.all() if record.state == "enrolled"}
        return {name: keys for name, keys in found.items() if keys is not None}

    def change(self, name: str, decide: Callable[[MemberRecord | None], MemberRecord]) -> MemberRecord:
        """Change a record.

        Args:
            name: Whose.
            decide: Makes the new record of the present one, or raises; it may be called again with another one.

        Returns:
            The record that was written.
        """
        for _ in range(_TRIES):
            raw = self._journal.get(SCOPE, name)
            found = decide(None if raw is None else MemberRecord.decode(raw))
            encoded = found.encode()
            if encoded == raw or self._journal.compare_and_put(SCOPE, name, raw, encoded):
                return found
        raise InternalFailure(f"the record of {name!r} changed {_TRIES} times while it was to be changed")


def not_ended(certificates: tuple[bytes, ...], now: datetime) -> tuple[bytes, ...]:
    """Keep those certificates that may still be accepted somewhere."""
    return tuple(
        found for found in certificates if x509.load_der_x509_certificate(found).not_valid_after_utc >= now
    )


def with_enrolment(record: MemberRecord, issued: Document[Enrolment], now: datetime) -> MemberRecord:
    """Make the record of a member that was enrolled, or enrolled again."""
    new = (issued.body.identity_certificate, issued.body.tls_certificate)
    kept = not_ended(record.certificates, now - 2 * CLOCK_SKEW)
    return record.changed(state="enrolled", enrolment=issued.encode().decode(), certificates=(*kept, *new))
