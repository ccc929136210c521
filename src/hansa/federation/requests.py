"""Requests for certificates: what a participant asks of the authority, when it joins and when its certificates come to an end.

A participant makes three keys, each where it is used: its Ed25519 identity, which signs every payload; a P-256 key for TLS
(BoringSSL offers no Ed25519 in a handshake); and the P-384 key by which Flower's SuperLink knows its node. Only their public halves
leave the machine. The member fingerprint covers all three: it is what the admin compares by telephone.
"""

import hmac
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from pydantic import AfterValidator, Field

from hansa import labels
from hansa.errors import CertificateRejected, DocumentRejected, Error, InvitationUnknown, RequestForeign
from hansa.federation.consortium import Consortium
from hansa.federation.documents import Body, Document, Signer
from hansa.federation.fields import Bytes32, Bytes64, Der, ParticipantName, UtcTime
from hansa.federation.tls_authority import requested_tls_key
from hansa.secure_agg.certificate_authority import requested_key
from hansa.secure_agg.derivation import labelled_hash
from hansa.secure_agg.identity import verify_signed_by

_PROOF = "hansa/enrolment-proof/v1"


def _flower_key(value: str) -> str:
    verify_flower_key(value)
    return value


def verify_flower_key(pem: str) -> None:
    """Raise ValueError unless a text is a P-384 public key in PEM, in the one spelling that Flower compares."""
    try:
        key = load_pem_public_key(pem.encode("ascii"))
    except Exception as error:  # whatever a parser raises on hostile bytes is the same to us
        raise ValueError("is not a public key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("is not a P-384 key")
    if key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() != pem:
        raise ValueError("is not a public key in its one spelling")


FlowerKey = Annotated[str, Field(max_length=512), AfterValidator(_flower_key)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberKeys:
    """The public keys of a participant.

    Attributes:
        identity: Ed25519 key, 32 bytes.
        tls: P-256 key, SubjectPublicKeyInfo, DER.
        flower: P-384 key, PEM.
    """

    identity: bytes
    tls: bytes
    flower: str

    def fingerprint(self, consortium: bytes, participant: str) -> bytes:
        """SHA-256 over label, consortium, name and the three keys, 32 bytes."""
        parts = (consortium, participant.encode(), self.identity, self.tls, self.flower.encode())
        return labelled_hash(labels.MEMBER_KEYS, *parts)


class EnrolmentRequest(Body):
    """A participant asks for membership."""

    SCHEMA: ClassVar[str] = "hansa/enrolment-request/v1"

    consortium: Bytes32 = Field(description="fingerprint of the consortium")
    participant: ParticipantName = Field(description="name in the invitation")
    identity_request: Der = Field(description="PKCS #10 request of the Ed25519 identity key")
    tls_request: Der = Field(description="PKCS #10 request of the P-256 TLS key")
    flower_key: FlowerKey = Field(description="P-384 public key of the Flower node, PEM")
    created: UtcTime = Field(description="when it was made")
    proof: Bytes64 = Field(description="signature over all of the above by the key of the invitation's code")

    def proven(self) -> bytes:
        """What the proof covers: the canonical form with a proof of zeros."""
        return self.model_copy(update={"proof": bytes(64)}).canonical()

    def with_proof(self, sign: Signer) -> Self:
        """Prove that the sender holds the invitation."""
        return self.model_copy(update={"proof": sign(_PROOF, self.proven())})


class RenewalRequest(Body):
    """A member asks for new certificates: the same identity, a new TLS key."""

    SCHEMA: ClassVar[str] = "hansa/renewal-request/v1"

    consortium: Bytes32 = Field(description="fingerprint of the consortium")
    participant: ParticipantName = Field(description="name of the member")
    number: int = Field(ge=1, le=2**31, description="number of the enrolment that it continues")
    identity_request: Der = Field(description="PKCS #10 request of the same identity key")
    tls_request: Der = Field(description="PKCS #10 request of the new TLS key")
    created: UtcTime = Field(description="when it was made")


class CollectRequest(Body):
    """Who has sent a request asks for its enrolment."""

    SCHEMA: ClassVar[str] = "hansa/collect-request/v1"

    consortium: Bytes32 = Field(description="fingerprint of the consortium")
    participant: ParticipantName = Field(description="name in the request")
    created: UtcTime = Field(description="when it was made")


def keys_of_request(document: Document[EnrolmentRequest]) -> MemberKeys:
    """Read the keys of a request.

    Raises:
        DocumentRejected: One of its two certificate requests is not one for this name and its kind of key, signed by the key.
    """
    body = document.body
    identity = _requested(document, body.identity_request)
    return MemberKeys(identity=identity, tls=tls_key_of(document), flower=body.flower_key)


def verify_enrolment_request(
    document: Document[EnrolmentRequest], *, consortium: Consortium, participant: str, proof_key: bytes
) -> None:
    """Check a request for enrolment against the invitation that it answers.

    Args:
        document: The request, untrusted.
        consortium: The consortium that is asked.
        participant: Name in the invitation.
        proof_key: Public key that was derived from the invitation's code, 32 bytes.

    Raises:
        RequestForeign: It is for another consortium or another participant.
        InvitationUnknown: Its sender does not hold the invitation's code.
        DocumentRejected: A certificate request in it is wrong, or the identity key has not signed it.

    Guarantees:
        - Every field is bound: none can be changed without the invitation's code and the identity key.
    """
    body = document.body
    if not hmac.compare_digest(body.consortium, consortium.fingerprint):
        raise RequestForeign(f"the request of {body.participant!r} is for another consortium")
    if body.participant != participant:
        raise RequestForeign(f"the request is one of {body.participant!r}, not of {participant!r}")
    try:
        verify_signed_by(proof_key, _PROOF, body.proven(), body.proof, signer=participant)
    except Error as error:
        raise InvitationUnknown(
            f"the request of {participant!r} does not prove that its sender holds the invitation"
        ) from error
    document.verify_signed_by(keys_of_request(document).identity, f"the identity key of {participant!r}")


def verify_renewal_request(
    document: Document[RenewalRequest],
    *,
    consortium: Consortium,
    participant: str,
    identity: bytes,
    number: int,
) -> None:
    """Check a request for renewal against what is known of the member.

    Args:
        document: The request, untrusted.
        consortium: The consortium that is asked.
        participant: The member that asks.
        identity: Its Ed25519 key, 32 bytes.
        number: Number of its latest enrolment.

    Raises:
        RequestForeign: It is for another consortium or another participant.
        DocumentRejected: It holds another identity key, continues another enrolment, or the identity key has not signed it.

    Guarantees:
        - Every field is bound, and a request serves once: the next enrolment has another number.
    """
    body = document.body
    if not hmac.compare_digest(body.consortium, consortium.fingerprint) or body.participant != participant:
        raise RequestForeign(
            f"the renewal is not one of {participant!r} in the consortium {consortium.name!r}"
        )
    document.verify_signed_by(identity, f"the identity key of {participant!r}")
    if not hmac.compare_digest(_requested(document, body.identity_request), identity):
        raise DocumentRejected(f"the renewal of {participant!r} is for another identity key")
    if body.number != number:
        raise DocumentRejected(
            f"the renewal of {participant!r} continues enrolment {body.number}, not {number}"
        )
    tls_key_of(document)


def _requested(document: Document[EnrolmentRequest] | Document[RenewalRequest], request: bytes) -> bytes:
    try:
        return requested_key(request, document.body.participant).public_bytes_raw()
    except CertificateRejected as error:
        raise DocumentRejected(error.message) from error


def tls_key_of(document: Document[EnrolmentRequest] | Document[RenewalRequest]) -> bytes:
    """Return the TLS key that is to be certified, SubjectPublicKeyInfo; raises as `keys_of_request`."""
    try:
        key = requested_tls_key(document.body.tls_request, document.body.participant)
    except CertificateRejected as error:
        raise DocumentRejected(error.message) from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
