"""The list of everything that may leave a participant, and the check that nothing else does.

Every reply and every upload passes here on its way out: exact fields, exact forms. Lengths follow from the study and the roster.
What is not in these tables does not leave: no loss, no count of records, no expert's load, no time that training took.

    REPLIES    what each request is answered with
    ANSWERS    what a field of a reply is, and why it may leave
    MESSAGES   the fields of the signed messages inside, and why each may leave
    CIPHERTEXT what an upload carries beside its header
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hansa.errors import Error, InternalFailure, PolicyRefusal, ProtocolError
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES
from hansa.secure_agg.leaves import BLOB_BYTES, LEAF_BYTES
from hansa.secure_agg.messages import (
    Body,
    Consent,
    Deal,
    Envelope,
    Join,
    Package,
    Release,
    RoundResult,
    UploadHeader,
    Void,
    Vote,
)

ABORTED = "aborted"
PUBLIC = "known to the coordinator before, or the same for any records"
FRESH = "drawn at random by the system, or a key made of that; no record is near"
HIDDEN = (
    "a hash under a key or of a secret: shows nothing of what it is of, and changes with the opened sums only"
)
SEALED = "sealed to members; the coordinator relays it"
SPENT = "counts rounds and charges, not records; the root hides the ledger behind the data commitment, which stays here"
PAID = "noised, reserved in the ledger before a record was read, rounded, masked and encrypted"
NAMED = "the code of a refusal by the owner's own rules, or one word for everything else"

_SIGNED = dict.fromkeys(("session", "study", "epoch", "sender"), PUBLIC)
_IN_ROUND = _SIGNED | dict.fromkeys(("round", "attempt"), PUBLIC)
_AGREED = _IN_ROUND | {"cohort_hash": HIDDEN, "roster_hash": HIDDEN}

MESSAGES: Mapping[type[Body], Mapping[str, str]] = {
    Join: _SIGNED | {"kem_key": FRESH, "channel_key": FRESH, "certificate": PUBLIC},
    Deal: _SIGNED
    | {"he_key_id": HIDDEN, "group_commitment": HIDDEN, "envelopes": SEALED, "sealed_he_key": SEALED},
    Vote: _SIGNED | {"manifest_hash": PUBLIC},
    Package: _SIGNED
    | {"round": PUBLIC, "number": PUBLIC, "package_id": FRESH, "mask_key": FRESH}
    | {"seed_commitment": HIDDEN, "leaf_root": HIDDEN},
    UploadHeader: _IN_ROUND
    | {"cohort_hash": HIDDEN, "he_key_id": HIDDEN, "state_tag": HIDDEN, "previous_transcript": HIDDEN}
    | {"ciphertext_count": PUBLIC, "ciphertext_list_hash": PAID, "ledger_head": SPENT},
    Consent: _AGREED,
    Release: _AGREED | {"sealed_shares": SEALED},
    RoundResult: _AGREED | {"state_tag": HIDDEN, "transcript": HIDDEN},
    Void: _AGREED | {"transcript": HIDDEN},
}
ANSWERS: Mapping[str, tuple[tuple[type[Body], ...], str]] = {
    "join": ((Join,), "see MESSAGES"),
    "deal": ((Deal,), "see MESSAGES"),
    "vote": ((Vote,), "see MESSAGES"),
    "header": ((UploadHeader,), "see MESSAGES"),
    "answer": ((Consent, Release), "see MESSAGES"),
    "result": ((RoundResult,), "see MESSAGES"),
    "void": ((Void,), "see MESSAGES"),
    "packages": ((Package,), "a list; see MESSAGES"),
    "shares": ((), SEALED),
    "closed": ((), PUBLIC),
    "error": ((), NAMED),
}
CIPHERTEXT = PAID
_PACKAGES = frozenset({"packages", "shares"})
REPLIES: Mapping[str, frozenset[str]] = {
    "query.join": frozenset({"join"}),
    "query.deal": frozenset({"deal"}),
    "query.vote": frozenset({"vote"}),
    "query.enter": _PACKAGES,
    "query.packages": _PACKAGES,
    "train": frozenset({"header"}),
    "query.answer": frozenset({"answer"}),
    "query.consents": frozenset({"answer"}),
    "query.unmask": _PACKAGES | {"result"},
    "query.void": frozenset({"void"}),
    "query.skip": _PACKAGES,
    "query.open": _PACKAGES | {"result"},
    "query.catch_up": _PACKAGES,
    "query.close": frozenset({"closed"}),
}


def verify_reply(kind: str, reply: Mapping[str, Any]) -> None:
    """Check that a reply holds what its kind of request is answered with, and nothing else.

    Args:
        kind: Message type of the request.
        reply: The fields of the reply.

    Raises:
        InternalFailure: It does not; it must not leave.
    """
    if frozenset(reply) != REPLIES.get(kind):
        raise InternalFailure(f"the reply to {kind} has fields that may not leave: {sorted(reply)}")
    for field, value in reply.items():
        if not _is_right(field, value):
            raise InternalFailure(f"{field} of the reply to {kind} is not what may leave under this name")


def code_of(error: Error) -> str:
    """Give what may leave of an error: the code of a refusal by the owner's rules, or one word."""
    return error.code if isinstance(error, PolicyRefusal) else ABORTED


def verify_upload(header: bytes, ciphertexts: Sequence[bytes]) -> None:
    """Check that an upload is a signed header and as many ciphertexts in seeded form as it says.

    Raises:
        InternalFailure: It is not; it must not leave.
    """
    if not _is_message(header, (UploadHeader,)):
        raise InternalFailure("the header of an upload is not one")
    count = UploadHeader.decode(Envelope.decode(header).body).ciphertext_count
    if len(ciphertexts) != count or any(len(one) != SEEDED_BYTES for one in ciphertexts):
        raise InternalFailure(f"an upload holds something else than {count} ciphertexts in seeded form")


def _is_right(field: str, value: Any) -> bool:
    if field == "closed":
        return value is True
    if field == "packages":
        return type(value) is list and all(_is_message(item, (Package,)) for item in value)
    if field == "shares":
        lengths = (0, LEAF_BYTES, BLOB_BYTES + LEAF_BYTES)  # strict mode has no shares
        return type(value) is list and all(type(item) is bytes and len(item) in lengths for item in value)
    return _is_message(value, ANSWERS[field][0])


def _is_message(value: Any, kinds: tuple[type[Body], ...]) -> bool:
    """Tell whether a value is the only encoding of a signed message of one of some kinds; its records are strict."""
    if type(value) is not bytes:
        return False
    try:
        envelope = Envelope.decode(value)
        (kind,) = [kind for kind in kinds if envelope.type == kind.TYPE]
        kind.decode(envelope.body)
    except (ProtocolError, ValueError):
        return False
    return True
