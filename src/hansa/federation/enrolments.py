"""Enrolments: the authority's statement that a participant is a member, with its certificates and its Flower key."""

import hmac
from datetime import datetime
from typing import Annotated, ClassVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import Field

from hansa.errors import DocumentRejected
from hansa.federation.consortium import Consortium
from hansa.federation.documents import Body, Document
from hansa.federation.fields import Bytes32, Der, ParticipantName, UtcTime
from hansa.federation.requests import FlowerKey, MemberKeys
from hansa.federation.tls_authority import verify_client_certificate
from hansa.secure_agg.certificates import RevocationList, verify_certificate

Serial = Annotated[str, Field(pattern=r"^[1-9a-f][0-9a-f]{0,39}$")]


class Enrolment(Body):
    """What the authority signs when an admin approved a request, and again at each renewal."""

    SCHEMA: ClassVar[str] = "hansa/enrolment/v1"

    consortium: Bytes32 = Field(description="fingerprint of the consortium")
    participant: ParticipantName = Field(description="the member")
    number: int = Field(ge=1, le=2**31, description="1 for the first, one more with each renewal")
    identity_certificate: Der = Field(description="certificate of the Ed25519 identity key")
    identity_serial: Serial = Field(description="its serial number, hexadecimal")
    tls_certificate: Der = Field(description="certificate of the P-256 TLS key")
    tls_serial: Serial = Field(description="its serial number, hexadecimal")
    flower_key: FlowerKey = Field(description="P-384 public key of the Flower node, PEM")
    not_before: UtcTime = Field(description="begin of both certificates")
    not_after: UtcTime = Field(description="end of both certificates")


def make_enrolment(
    *,
    consortium: bytes,
    participant: str,
    number: int,
    identity_certificate: bytes,
    tls_certificate: bytes,
    flower_key: str,
) -> Enrolment:
    """Put an enrolment together; serial numbers and times are those of its certificates."""
    identity = x509.load_der_x509_certificate(identity_certificate)
    tls = x509.load_der_x509_certificate(tls_certificate)
    return Enrolment(
        consortium=consortium,
        participant=participant,
        number=number,
        identity_certificate=identity_certificate,
        identity_serial=f"{identity.serial_number:x}",
        tls_certificate=tls_certificate,
        tls_serial=f"{tls.serial_number:x}",
        flower_key=flower_key,
        not_before=identity.not_valid_before_utc,
        not_after=identity.not_valid_after_utc,
    )


def verify_enrolment(
    document: Document[Enrolment],
    *,
    consortium: Consortium,
    participant: str,
    keys: MemberKeys,
    number: int,
    now: datetime,
    revoked: RevocationList | None = None,
) -> None:
    """Check an enrolment before it is stored.

    Args:
        document: The enrolment, untrusted.
        consortium: The pinned consortium.
        participant: Own name.
        keys: Own public keys.
        number: Number that it must have: 1 for the first, one above the known one for a renewal.
        now: The time, with its zone.
        revoked: The latest revocation list, where one is known.

    Raises:
        DocumentRejected: The authority has not signed it, or it is for another consortium, name, number or key.
        CertificateRejected, MessageTooLarge: A certificate in it is not a valid one of the authority.

    Guarantees:
        - Every field is bound: to the pinned consortium, the own name and keys, the expected number, or the certificates.
    """
    body, authority = document.body, consortium.authority
    document.verify_signed_by(consortium.authority_key, f"the authority of {consortium.name!r}")
    consortium.verify_own(body.consortium, body.title())
    if body.participant != participant or body.number != number:
        raise DocumentRejected(
            f"the enrolment is number {body.number} of {body.participant!r}, not number {number} of {participant!r}"
        )
    verify_certificate(
        body.identity_certificate,
        authority=authority,
        participant=participant,
        identity_key=keys.identity,
        now=now,
        revoked=revoked,
    )
    named = verify_client_certificate(body.tls_certificate, authority=authority, now=now, revoked=revoked)
    identity = x509.load_der_x509_certificate(body.identity_certificate)
    tls = x509.load_der_x509_certificate(body.tls_certificate)
    tls_key = tls.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if named != participant or not hmac.compare_digest(tls_key, keys.tls):
        raise DocumentRejected("the TLS certificate in the enrolment is for another participant or key")
    if body.flower_key != keys.flower:
        raise DocumentRejected("the Flower key in the enrolment is another one than the own")
    stated = (body.identity_serial, body.tls_serial)
    if stated != (f"{identity.serial_number:x}", f"{tls.serial_number:x}"):
        raise DocumentRejected("the serial numbers in the enrolment are not those of its certificates")
    for certificate in (identity, tls):
        window = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        if window != (body.not_before, body.not_after):
            raise DocumentRejected("the validity in the enrolment is not that of its certificates")
