"""The signed messages of a round, in deterministic CBOR (RFC 8949 section 4.2.1).

A signed message is a map {type, sender, body, signature}; the body is itself the deterministic encoding of
one of the three records below. Decoding is strict: whatever would not be encoded to exactly the same bytes
again is refused.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, TypeVar

import cbor2

from hansa.errors import MalformedMessage, WrongSession
from hansa.secure_agg.identity import Identity, Roster, verify_participant_id, verify_signature

MAXIMUM_BODY_BYTES = 1024
MAXIMUM_MESSAGE_BYTES = 2048

_BYTE_LENGTHS = {
    "session": 16,
    "study": 32,
    "public_key": 32,
    "cohort_hash": 32,
    "he_key_id": 32,
    "state_tag": 32,
    "previous_transcript": 32,
    "ciphertext_list_hash": 32,
    "roster_hash": 32,
    "signature": 64,
}
_COUNTER_BOUNDS = {"round": (0, 2**32 - 1), "attempt": (0, 2**16 - 1), "ciphertext_count": (1, 2**16)}


def _verify_field(name: str, value: Any) -> None:
    if name in _BYTE_LENGTHS:
        if type(value) is not bytes or len(value) != _BYTE_LENGTHS[name]:
            raise MalformedMessage(f"{name} is not {_BYTE_LENGTHS[name]} bytes")
    elif name in _COUNTER_BOUNDS:
        lowest, highest = _COUNTER_BOUNDS[name]
        if type(value) is not int or not lowest <= value <= highest:  # bool is an int to isinstance
            raise MalformedMessage(f"{name} is not an integer in {lowest}..{highest}")
    elif name == "body":
        if type(value) is not bytes or len(value) > MAXIMUM_BODY_BYTES:
            raise MalformedMessage(f"body is not at most {MAXIMUM_BODY_BYTES} bytes")
    elif type(value) is not str:
        raise MalformedMessage(f"{name} is not text")
    else:
        verify_participant_id(value)  # a message type has the same character set


def _load_map(data: bytes) -> dict[str, Any]:
    """Decode one flat CBOR map; max_depth=1 refuses nested items and tags before they are looked at."""
    if not 1 <= len(data) <= MAXIMUM_MESSAGE_BYTES:
        raise MalformedMessage(f"a message has {len(data)} bytes, the bound is {MAXIMUM_MESSAGE_BYTES}")
    if data[0] >> 5 != 5:
        raise MalformedMessage("a message is not a CBOR map")
    try:
        decoded: dict[str, Any] = cbor2.loads(
            data, max_depth=1, allow_indefinite=False, allow_duplicate_keys=False, strict_hashable_types=True
        )
    except Exception as error:  # whatever a decoder raises on hostile bytes is the same to us
        raise MalformedMessage("a message is not well-formed CBOR") from error
    return decoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A flat map with fixed keys; base of the envelope and of the three bodies.

    Raises:
        MalformedMessage: A field has the wrong type, length or range.

    Guarantees:
        - decode(encode(m)) == m, and decode(b) succeeds only where encode(decode(b)) == b.
        - decode raises MalformedMessage on any other bytes, and nothing else.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            _verify_field(field.name, getattr(self, field.name))

    def encode(self) -> bytes:
        """Return the only encoding of this record."""
        # Keys are shorter than 24 characters, so cbor2's order (shorter first) is that of RFC 8949 section
        # 4.2.1.
        return cbor2.dumps({field.name: getattr(self, field.name) for field in fields(self)}, canonical=True)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a record from untrusted bytes."""
        decoded = _load_map(data)
        expected = {field.name for field in fields(cls)}
        if decoded.keys() != expected:
            raise MalformedMessage(f"{cls.__name__} has not exactly the keys {', '.join(sorted(expected))}")
        record = cls(**decoded)
        if record.encode() != data:
            raise MalformedMessage(f"{cls.__name__} is not in its deterministic encoding")
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope(Record):
    """What travels: the type, the sender, the encoded body and the sender's signature (64 bytes)."""

    type: str
    sender: str
    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Body(Record):
    """What every signed body holds: whose session, which study, round and attempt, and who says so."""

    TYPE: ClassVar[str]

    session: bytes
    study: bytes
    round: int
    attempt: int
    sender: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundKey(Body):
    """Step 1: a one-time X25519 public key for one round and attempt."""

    TYPE: ClassVar[str] = "round-key"

    public_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadHeader(Body):
    """Step 3: what an upload is, signed before the coordinator adds it to anything."""

    TYPE: ClassVar[str] = "upload-header"

    cohort_hash: bytes
    he_key_id: bytes
    state_tag: bytes
    previous_transcript: bytes
    ciphertext_count: int
    ciphertext_list_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult(Body):
    """Step 6: what a participant holds after the round."""

    TYPE: ClassVar[str] = "round-result"

    cohort_hash: bytes
    roster_hash: bytes
    state_tag: bytes


B = TypeVar("B", bound=Body)


def sign_message(identity: Identity, body: Body) -> bytes:
    """Return the encoded envelope of a body, signed."""
    encoded = body.encode()
    signature = identity.sign(body.TYPE, encoded)
    return Envelope(type=body.TYPE, sender=body.sender, body=encoded, signature=signature).encode()


def open_signed(data: bytes, kind: type[B], roster: Roster) -> B:
    """Read a signed message of one kind from untrusted bytes.

    Raises:
        MalformedMessage: Not the deterministic encoding of an envelope and body of this kind.
        UnknownSender: The sender is not in the roster.
        BadSignature: The signature does not verify under the sender's pinned key.
        WrongSession: The message belongs to another session or study.

    Guarantees:
        - The body is not decoded before its signature is verified.
    """
    envelope = Envelope.decode(data)
    if envelope.type != kind.TYPE:
        raise MalformedMessage(f"a message of type {envelope.type!r} stands where {kind.TYPE!r} is expected")
    verify_signature(roster, envelope.sender, envelope.type, envelope.body, envelope.signature)
    body = kind.decode(envelope.body)
    if body.sender != envelope.sender:
        raise MalformedMessage(f"{envelope.sender!r} signed a body that names {body.sender!r} as its sender")
    if (body.session, body.study) != (roster.session_id, roster.study_id):
        raise WrongSession(f"the {kind.TYPE} of {body.sender!r} belongs to another session or study")
    return body
