"""Who is who: Ed25519 identities (RFC 8032) and the roster that every party pins before the first round.

The roster is local configuration of each participant. It is never taken from the coordinator.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hansa import labels
from hansa.errors import BadSignature, CohortTooSmall, DuplicateMember, MalformedMessage, UnknownSender
from hansa.secure_agg.certificates import RevocationList, verify_authority, verify_certificate
from hansa.secure_agg.parameters import MINIMUM_PARTICIPANTS

RandomBytes = Callable[[int], bytes]

SESSION_BYTES = 16
STUDY_BYTES = 32
PUBLIC_KEY_BYTES = 32
_PARTICIPANT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def verify_participant_id(participant: str) -> None:
    """Raise MalformedMessage unless an id is 1 to 64 of A-Z a-z 0-9 . _ - and begins with none of . _ -"""
    if not _PARTICIPANT_ID.fullmatch(participant):
        raise MalformedMessage(f"participant id {participant[:80]!r} is not 1 to 64 of A-Z a-z 0-9 . _ -")


def _signed_bytes(message_type: str, body: bytes) -> bytes:
    # The type stands inside what is signed: a signature over one kind of message is never one over another
    # kind.
    return labels.SIGNATURE + message_type.encode() + b"\x00" + hashlib.sha256(body).digest()


class Identity:
    """The signing key of one participant.

    Guarantees:
        - Neither repr() nor str() shows the secret.
        - The same body signed as another message type has another signature.
    """

    __slots__ = ("_private", "public")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, random_bytes: RandomBytes = os.urandom) -> Self:
        """Make a new identity from 32 random bytes."""
        return cls(Ed25519PrivateKey.from_private_bytes(random_bytes(32)))

    @classmethod
    def load(cls, secret: bytes) -> Self:
        """Read an identity that `export` wrote."""
        if len(secret) != 32:
            raise MalformedMessage(f"an identity secret has {len(secret)} bytes, not 32")
        return cls(Ed25519PrivateKey.from_private_bytes(secret))

    def export(self) -> bytes:
        """Return the 32 secret bytes, for the owner's own encrypted store only."""
        return self._private.private_bytes_raw()

    def sign(self, message_type: str, body: bytes) -> bytes:
        """Return the 64-byte signature of a body as a message of the given type."""
        return self._private.sign(_signed_bytes(message_type, body))

    def request_certificate(self, participant: str) -> bytes:
        """Return a certificate signing request (PKCS #10, DER) for this key under a participant's id."""
        verify_participant_id(participant)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, participant)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(self._private, None)
        # What is signed begins with 0x30, messages with "hansa/": neither signature is one over the other.
        return request.public_bytes(Encoding.DER)

    def __repr__(self) -> str:
        return f"Identity(public={self.public.hex()[:16]}...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """The members of one session of one study, with their identity keys.

    Args:
        session_id: 16 random bytes, one value per run.
        study_id: 32 bytes, hash of the study that all members agreed on.
        members: (participant id, Ed25519 public key of 32 bytes), sorted by id.
        authority: Certificate (DER) of the consortium's authority, empty for one that pins raw keys only.

    Raises:
        CertificateRejected: The authority's certificate is not one.
        MalformedMessage: A length is wrong, an id has other characters, or the members are not sorted.
        DuplicateMember: An id or a key stands there twice.
        CohortTooSmall: Fewer than three members.
    """

    session_id: bytes
    study_id: bytes
    members: tuple[tuple[str, bytes], ...]
    authority: bytes = b""
    _places: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.session_id) != SESSION_BYTES or len(self.study_id) != STUDY_BYTES:
            raise MalformedMessage(
                f"session and study ids of {len(self.session_id)} and {len(self.study_id)} bytes"
                f" are not {SESSION_BYTES} and {STUDY_BYTES}"
            )
        for participant, public_key in self.members:
            verify_participant_id(participant)
            if len(public_key) != PUBLIC_KEY_BYTES:
                raise MalformedMessage(f"identity key of {participant!r} has {len(public_key)} bytes, not 32")
        ids, keys = zip(*self.members, strict=True) if self.members else ((), ())
        for what, values in (("id", ids), ("key", keys)):
            if len(set(values)) != len(values):
                raise DuplicateMember(f"an {what} stands twice in the roster")
        if list(ids) != sorted(ids):
            raise MalformedMessage("the members of a roster are not sorted by id")
        if len(self.members) < MINIMUM_PARTICIPANTS:
            raise CohortTooSmall(f"{len(self.members)} participants are fewer than {MINIMUM_PARTICIPANTS}")
        if self.authority:
            verify_authority(self.authority)
        object.__setattr__(self, "_places", {participant: place for place, participant in enumerate(ids)})

    @property
    def participants(self) -> tuple[str, ...]:
        """The ids, sorted."""
        return tuple(self._places)

    def index(self, participant: str) -> int:
        """Return the place of a member, from 0, or raise UnknownSender."""
        place = self._places.get(participant)
        if place is None:
            raise UnknownSender(
                f"{participant!r} is not one of the {len(self.members)} members of the roster"
            )
        return place

    def public_key(self, participant: str) -> bytes:
        """Return the identity key of a member, or raise UnknownSender."""
        return self.members[self.index(participant)][1]

    def verify_certificate(
        self, participant: str, certificate: bytes, now: datetime, revoked: RevocationList | None
    ) -> None:
        """Check a member's certificate, or that there is none without an authority; see `certificates.verify_certificate`.

        Raises:
            UnknownSender: The participant is not in the roster, whatever certificate it has.
            CertificateRejected, MessageTooLarge: See there.
        """
        verify_certificate(
            certificate,
            authority=self.authority,
            participant=participant,
            identity_key=self.public_key(participant),
            now=now,
            revoked=revoked,
        )


def verify_signature(roster: Roster, sender: str, message_type: str, body: bytes, signature: bytes) -> None:
    """Check a signature against the pinned key of its sender.

    Raises:
        UnknownSender: The sender is not in the roster.
        BadSignature: The signature is not one of this sender over this body and type.
    """
    verify_signed_by(roster.public_key(sender), message_type, body, signature, signer=sender)


def verify_signed_by(
    public_key: bytes, message_type: str, body: bytes, signature: bytes, *, signer: str
) -> None:
    """Check a signature of `Identity.sign` against a key of 32 bytes; raise BadSignature, which names the signer."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _signed_bytes(message_type, body))
    except (InvalidSignature, ValueError) as error:
        raise BadSignature(f"the {message_type} of {signer!r} is not signed by its pinned key") from error
