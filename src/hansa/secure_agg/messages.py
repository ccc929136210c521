"""The signed messages of the protocol, in deterministic CBOR (RFC 8949 section 4.2.1).

A signed message is a map {type, sender, body, signature}; the body is itself the deterministic encoding of
one of the records below, a flat map. Lists of hashes or seals of one length are one byte string. Decoding is
strict: whatever would not be encoded to exactly the same bytes again is refused.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, TypeVar

import cbor2

from hansa.errors import MalformedMessage, MessageTooLarge, WrongEpoch, WrongSession
from hansa.secure_agg.certificates import MAXIMUM_CERTIFICATE_BYTES
from hansa.secure_agg.ciphertext_format import KEY_BYTES
from hansa.secure_agg.identity import Identity, Roster, verify_participant_id, verify_signature
from hansa.secure_agg.parameters import MAXIMUM_PARTICIPANTS
from hansa.secure_agg.sealing import MEMBER_KEY_BYTES, MEMBER_SEAL_BYTES, SEAL_TAG_BYTES

GROUP_KEY_BYTES = 32
LEDGER_HEAD_BYTES = 40
ENVELOPE_BYTES = 256  # an envelope without its body is shorter
_ENVELOPED_KEY_BYTES = MEMBER_SEAL_BYTES + GROUP_KEY_BYTES

_BYTE_LENGTHS = {
    "session": 16,
    "study": 32,
    "package_id": 16,
    "kem_key": MEMBER_KEY_BYTES,
    "channel_key": 32,
    "group_commitment": 32,
    "sealed_he_key": KEY_BYTES + SEAL_TAG_BYTES,
    "manifest_hash": 32,
    "mask_key": 32,
    "cohort_hash": 32,
    "he_key_id": 32,
    "state_tag": 32,
    "previous_transcript": 32,
    "transcript": 32,
    "ciphertext_list_hash": 32,
    "ledger_head": LEDGER_HEAD_BYTES,
    "roster_hash": 32,
    "signature": 64,
}
# Byte strings of several items of one length, at most one item a member.
_ITEM_LENGTHS = {
    "envelopes": _ENVELOPED_KEY_BYTES,
}
# Byte strings that are empty in strict mode.
_QUORUM_LENGTHS = {"seed_commitment": 32, "leaf_root": 32}
_COUNTER_BOUNDS = {
    "epoch": (0, 2**32 - 1),
    "round": (0, 2**32 - 1),
    "attempt": (0, 2**16 - 1),
    "number": (1, 2**32 - 1),
    "ciphertext_count": (1, 2**16),
}
_NAMES: dict[type, tuple[str, ...]] = {}
MAXIMUM_DEAL_BYTES = 512 + KEY_BYTES + _ENVELOPED_KEY_BYTES * MAXIMUM_PARTICIPANTS
MAXIMUM_RELEASE_BYTES = 512 + 32 * MAXIMUM_PARTICIPANTS
_LENGTH_BOUNDS = {
    "certificate": (0, MAXIMUM_CERTIFICATE_BYTES),
    "sealed_shares": (SEAL_TAG_BYTES + 1, SEAL_TAG_BYTES + 32 * MAXIMUM_PARTICIPANTS),
    "body": (0, MAXIMUM_DEAL_BYTES),
}
_BYTE_FIELDS = {*_BYTE_LENGTHS, *_ITEM_LENGTHS, *_QUORUM_LENGTHS, *_LENGTH_BOUNDS}


def _is_bytes(name: str, value: Any) -> bool:
    if type(value) is not bytes:
        return False
    if name in _BYTE_LENGTHS:
        return len(value) == _BYTE_LENGTHS[name]
    if name in _QUORUM_LENGTHS:
        return len(value) in (0, _QUORUM_LENGTHS[name])
    if name in _ITEM_LENGTHS:
        items, rest = divmod(len(value), _ITEM_LENGTHS[name])
        return rest == 0 and items <= MAXIMUM_PARTICIPANTS
    lowest, highest = _LENGTH_BOUNDS[name]
    return lowest <= len(value) <= highest


def _verify_field(name: str, value: Any) -> None:
    if name in _BYTE_FIELDS:
        if not _is_bytes(name, value):
            raise MalformedMessage(f"{name} is not bytes of its length")
    elif name in _COUNTER_BOUNDS:
        lowest, highest = _COUNTER_BOUNDS[name]
        if type(value) is not int or not lowest <= value <= highest:  # bool is an int to isinstance
            raise MalformedMessage(f"{name} is not an integer in {lowest}..{highest}")
    elif type(value) is not str:
        raise MalformedMessage(f"{name} is not text")
    else:
        verify_participant_id(value)  # a message type has the same character set


def _load_map(data: bytes, maximum_bytes: int) -> dict[str, Any]:
    """Decode one flat CBOR map; max_depth=1 refuses nested items and tags before they are looked at."""
    if len(data) > maximum_bytes:
        raise MessageTooLarge(f"a message has {len(data)} bytes, the bound is {maximum_bytes}")
    if not data or data[0] >> 5 != 5:
        raise MalformedMessage("a message is not a CBOR map")
    try:
        decoded: dict[str, Any] = cbor2.loads(
            data, max_depth=1, allow_indefinite=False, allow_duplicate_keys=False, strict_hashable_types=True
        )
    except Exception as error:  # whatever a decoder raises on hostile bytes is the same to us
        raise MalformedMessage("a message is not well-formed CBOR") from error
    return decoded


def _names(kind: type["Record"]) -> tuple[str, ...]:
    """Return the keys of a record; they are looked up some hundred times a round."""
    if kind not in _NAMES:
        _NAMES[kind] = tuple(field.name for field in fields(kind))
    return _NAMES[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A flat map with fixed keys; base of the envelope and of all bodies.

    Raises:
        MalformedMessage: A field has the wrong type, length or range.

    Guarantees:
        - decode(encode(m)) == m, and decode(b) succeeds only where encode(decode(b)) == b.
        - decode raises MalformedMessage on any other bytes (MessageTooLarge is one), and nothing else.
    """

    MAXIMUM_BYTES: ClassVar[int] = 1024

    def __post_init__(self) -> None:
        for name in _names(type(self)):
            _verify_field(name, getattr(self, name))

    def encode(self) -> bytes:
        """Return the only encoding of this record."""
        # Keys are shorter than 24 characters, so cbor2's order (shorter first) is that of RFC 8949 section
        # 4.2.1.
        return cbor2.dumps({name: getattr(self, name) for name in _names(type(self))}, canonical=True)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a record from untrusted bytes."""
        decoded = _load_map(data, cls.MAXIMUM_BYTES)
        if decoded.keys() != set(_names(cls)):
            raise MalformedMessage(
                f"{cls.__name__} has not exactly the keys {', '.join(sorted(_names(cls)))}"
            )
        record = cls(**decoded)
        if record.encode() != data:
            raise MalformedMessage(f"{cls.__name__} is not in its deterministic encoding")
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope(Record):
    """What travels: the type, the sender, the encoded body and the sender's signature (64 bytes)."""

    MAXIMUM_BYTES: ClassVar[int] = ENVELOPE_BYTES + MAXIMUM_DEAL_BYTES

    type: str
    sender: str
    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Body(Record):
    """What every signed body holds: whose session, which study and epoch, and who says so."""

    TYPE: ClassVar[str]

    session: bytes
    study: bytes
    epoch: int
    sender: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Join(Body):
    """E1: the keys of one member for one epoch, and its certificate; none in a consortium without an authority."""

    TYPE: ClassVar[str] = "join"
    MAXIMUM_BYTES: ClassVar[int] = 512 + MEMBER_KEY_BYTES + MAXIMUM_CERTIFICATE_BYTES

    kem_key: bytes
    channel_key: bytes
    certificate: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal(Body):
    """E2: the group key sealed to every member in roster order, and the HE key sealed under the group key."""

    TYPE: ClassVar[str] = "deal"
    MAXIMUM_BYTES: ClassVar[int] = MAXIMUM_DEAL_BYTES

    he_key_id: bytes
    group_commitment: bytes
    envelopes: bytes
    sealed_he_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote(Body):
    """E3: the manifest that this member computed."""

    TYPE: ClassVar[str] = "vote"

    manifest_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Package(Body):
    """E4: a one-time round key, and commitments to its self-mask seed and to the shares of both secrets.

    `round` is the latest round that the sender had entered when it made the package. `leaf_root` is the root of the
    tree over the share hashes of all members (`packages.leaf_tree`).
    """

    TYPE: ClassVar[str] = "package"

    round: int
    number: int
    package_id: bytes
    mask_key: bytes
    seed_commitment: bytes
    leaf_root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundBody(Body):
    """What every message of a round holds."""

    round: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadHeader(RoundBody):
    """R1: what an upload is, signed before the coordinator adds it to anything, and what its sender has spent by now."""

    TYPE: ClassVar[str] = "upload-header"

    cohort_hash: bytes
    he_key_id: bytes
    state_tag: bytes
    previous_transcript: bytes
    ciphertext_count: int
    ciphertext_list_hash: bytes
    ledger_head: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent(RoundBody):
    """R3: this member was shown this roster and aggregate, and no other."""

    TYPE: ClassVar[str] = "consent"

    cohort_hash: bytes
    roster_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(RoundBody):
    """R4: one share for each member of the cohort, sealed to the group."""

    TYPE: ClassVar[str] = "release"
    MAXIMUM_BYTES: ClassVar[int] = MAXIMUM_RELEASE_BYTES

    cohort_hash: bytes
    roster_hash: bytes
    sealed_shares: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult(RoundBody):
    """R6: what a participant holds after the round; `transcript` is the link that the next cohort hash takes up."""

    TYPE: ClassVar[str] = "round-result"

    cohort_hash: bytes
    roster_hash: bytes
    state_tag: bytes
    transcript: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Void(RoundBody):
    """R5: the sum of this roster could not be opened, and the history goes on without it. It never says why."""

    TYPE: ClassVar[str] = "void"

    cohort_hash: bytes
    roster_hash: bytes
    transcript: bytes


B = TypeVar("B", bound=Body)


def sign_message(identity: Identity, body: Body) -> bytes:
    """Return the encoded envelope of a body, signed."""
    encoded = body.encode()
    signature = identity.sign(body.TYPE, encoded)
    return Envelope(type=body.TYPE, sender=body.sender, body=encoded, signature=signature).encode()


def open_signed(data: bytes, kind: type[B], roster: Roster, epoch: int) -> B:
    """Read a signed message of one kind from untrusted bytes.

    Raises:
        MessageTooLarge: Longer than any message of this kind.
        MalformedMessage: Not the deterministic encoding of an envelope and body of this kind.
        UnknownSender: The sender is not in the roster.
        BadSignature: The signature does not verify under the sender's pinned key.
        WrongSession: The message belongs to another session or study.
        WrongEpoch: The message belongs to another epoch.

    Guarantees:
        - The body is not decoded before its signature is verified.
    """
    if len(data) > ENVELOPE_BYTES + kind.MAXIMUM_BYTES:
        raise MessageTooLarge(
            f"a {kind.TYPE} has {len(data)} bytes, the bound is {ENVELOPE_BYTES + kind.MAXIMUM_BYTES}"
        )
    envelope = Envelope.decode(data)
    if envelope.type != kind.TYPE:
        raise MalformedMessage(f"a message of type {envelope.type!r} stands where {kind.TYPE!r} is expected")
    verify_signature(roster, envelope.sender, envelope.type, envelope.body, envelope.signature)
    body = kind.decode(envelope.body)
    if body.sender != envelope.sender:
        raise MalformedMessage(f"{envelope.sender!r} signed a body that names {body.sender!r} as its sender")
    if (body.session, body.study) != (roster.session_id, roster.study_id):
        raise WrongSession(f"the {kind.TYPE} of {body.sender!r} belongs to another session or study")
    if body.epoch != epoch:
        raise WrongEpoch(
            f"the {kind.TYPE} of {body.sender!r} is of epoch {body.epoch}, this is epoch {epoch}"
        )
    return body


def message_type(data: bytes) -> str:
    """Return the type that an untrusted envelope claims; MalformedMessage if it is none."""
    return Envelope.decode(data).type
