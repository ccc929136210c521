"""Invitations: how an admin lets one institution ask for membership, once.

The invitation carries a one-time code of 128 random bits. From it a key is derived that signs the request for enrolment; the
coordinator keeps only its public half, so neither its database nor a copy of it can make a request. An invitation is a secret
until it is used: whoever has it can ask in the participant's place, and only the comparison of fingerprints at the approval
would show it.
"""

import base64
import hmac
import os
import re
from datetime import datetime
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from hansa import labels
from hansa.errors import DocumentRejected, InvitationExpired
from hansa.federation.consortium import Consortium
from hansa.federation.documents import Body, Document
from hansa.federation.fields import Address, Bytes32, Der, ParticipantName, Slug, UtcTime, utc_text
from hansa.secure_agg.certificates import CLOCK_SKEW
from hansa.secure_agg.derivation import derive_key, framed
from hansa.secure_agg.identity import Identity, RandomBytes

CODE_BYTES = 16
_CODE = re.compile(r"[A-Z2-7]{26}", re.ASCII)


def new_code(random_bytes: RandomBytes = os.urandom) -> str:
    """Make a one-time code: 128 random bits in base32 (RFC 4648), 26 characters."""
    return base64.b32encode(random_bytes(CODE_BYTES)).decode().rstrip("=")


def _code(value: Any) -> str:
    if not isinstance(value, str) or not _CODE.fullmatch(value):
        raise ValueError("is not a code of 26 characters")
    if base64.b32encode(base64.b32decode(value + "======")).decode().rstrip("=") != value:
        raise ValueError("is not a code in its one spelling")
    return value


def proof_identity(code: str, *, consortium: bytes, participant: str) -> Identity:
    """Derive the key that proves that somebody holds an invitation.

    Args:
        code: The one-time code.
        consortium: Fingerprint of the consortium, 32 bytes.
        participant: Whom the invitation is for.

    Guarantees:
        - Another code, consortium or name gives another key.
    """
    secret = base64.b32decode(code + "======")
    info = framed(labels.INVITATION_PROOF, participant.encode())
    return Identity.load(derive_key(secret, salt=consortium, info=info))


class Addresses(BaseModel):
    """Where the coordinator's services are, as participants reach them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    fleet: Address = Field(description="host:port of Flower's fleet API, behind the TLS front")
    aggregator: Address = Field(description="host:port of the aggregator")
    consortium: Address = Field(description="host:port of the consortium's service")
    enrolment: Address = Field(description="host:port of the enrolment service")


class Invitation(Body):
    """What an admin hands to the institution that it invites; a secret until it is used. repr() does not show the code."""

    SCHEMA: ClassVar[str] = "hansa/invitation/v1"

    name: Slug = Field(description="short name of the consortium")
    fingerprint: Bytes32 = Field(description="fingerprint of the consortium")
    authority: Der = Field(description="certificate of its authority")
    addresses: Addresses = Field(description="where the coordinator is")
    participant: ParticipantName = Field(description="whom it is for")
    code: Annotated[str, PlainValidator(_code)] = Field(description="one-time code", repr=False)
    expires: UtcTime = Field(description="when it ends")

    def consortium(self) -> Consortium:
        """What a party pins once the fingerprint was compared."""
        return Consortium(name=self.name, authority=self.authority)

    def proof_identity(self) -> Identity:
        """The key that signs the request under this invitation."""
        return proof_identity(self.code, consortium=self.fingerprint, participant=self.participant)


def verify_invitation(document: Document[Invitation], now: datetime) -> None:
    """Check an invitation as far as it can be checked alone; the fingerprint in it is for people to compare.

    Args:
        document: The invitation.
        now: The time, with its zone.

    Raises:
        DocumentRejected: The fingerprint is not that of name and certificate, or the authority has not signed it.
        InvitationExpired: It has ended.
        CertificateRejected, MessageTooLarge: The certificate is not one of an authority.

    Guarantees:
        - Every field is bound: none can be changed without another fingerprint or a signature of the authority.
    """
    found = document.body.consortium()
    if not hmac.compare_digest(found.fingerprint, document.body.fingerprint):
        raise DocumentRejected("the fingerprint in the invitation is not that of its name and certificate")
    document.verify_signed_by(found.authority_key, f"the authority of {found.name!r}")
    if now > document.body.expires + CLOCK_SKEW:
        raise InvitationExpired(
            f"the invitation of {document.body.participant!r} ended at {utc_text(document.body.expires)},"
            f" it is {utc_text(now)}"
        )
