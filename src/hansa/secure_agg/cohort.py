"""The hashes that tie one round together, and the rule that a set of signed messages is the whole roster's.

Every mask is derived under the cohort hash, so two participants that were shown different cohorts, rounds or
sessions get unrelated masks, and their sum is noise instead of an update.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hansa import labels
from hansa.errors import CohortMismatch, DuplicateMember, StaleRound
from hansa.secure_agg.derivation import labelled_hash
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.messages import Body, open_signed

B = TypeVar("B", bound=Body)


def counter_bytes(value: int) -> bytes:
    """Return a round or attempt number as 8 bytes, big-endian."""
    return value.to_bytes(8, "big")


def verify_round(body: Body, round_index: int, attempt: int) -> None:
    """Raise StaleRound unless a message belongs to this round and attempt."""
    if (body.round, body.attempt) != (round_index, attempt):
        raise StaleRound(
            f"the {body.TYPE} of {body.sender!r} is for round {body.round} attempt {body.attempt},"
            f" this is round {round_index} attempt {attempt}"
        )


def open_whole_roster(
    signed: Iterable[bytes], kind: type[B], roster: Roster, round_index: int, attempt: int
) -> dict[str, tuple[B, bytes]]:
    """Read one signed message of each member.

    Args:
        signed: Untrusted messages, in any order.
        kind: The message type expected.
        roster: The pinned roster.
        round_index: The round that is running.
        attempt: Its attempt.

    Returns:
        participant id -> (message, its bytes), in the order of the roster.

    Raises:
        MalformedMessage, UnknownSender, BadSignature, WrongSession: See `messages.open_signed`.
        StaleRound: A message of another round or attempt.
        DuplicateMember: Two messages of one sender.
        CohortMismatch: A member of the roster is missing.
    """
    found: dict[str, tuple[B, bytes]] = {}
    for data in signed:
        body = open_signed(data, kind, roster)
        if body.sender in found:
            raise DuplicateMember(f"{body.sender!r} appears twice with a {kind.TYPE}")
        verify_round(body, round_index, attempt)
        found[body.sender] = (body, data)
    missing = [participant for participant in roster.participants if participant not in found]
    if missing:
        raise CohortMismatch(f"no {kind.TYPE} of {', '.join(missing)}; strict mode needs the whole roster")
    return {participant: found[participant] for participant in roster.participants}


def _hashed_members(signed: Mapping[str, bytes]) -> list[bytes]:
    parts = []
    for participant in sorted(signed):
        parts += [participant.encode(), labelled_hash(labels.SIGNED_MESSAGE, signed[participant])]
    return parts


def cohort_hash(roster: Roster, round_index: int, attempt: int, round_keys: Mapping[str, bytes]) -> bytes:
    """Return the hash of session, study, round, attempt and the signed round keys by sorted id."""
    head = (roster.session_id, roster.study_id, counter_bytes(round_index), counter_bytes(attempt))
    return labelled_hash(labels.COHORT, *head, *_hashed_members(round_keys))


def ciphertext_list_hash(ciphertexts: Sequence[bytes]) -> bytes:
    """Return the hash of a list of ciphertexts in their order."""
    return labelled_hash(
        labels.CIPHERTEXT_LIST, *(labelled_hash(labels.CIPHERTEXT, ciphertext) for ciphertext in ciphertexts)
    )


def roster_hash(cohort: bytes, headers: Mapping[str, bytes], aggregate_hash: bytes) -> bytes:
    """Return the hash of the cohort hash, the signed headers by sorted id and the aggregate's hash."""
    return labelled_hash(labels.ROSTER, cohort, aggregate_hash, *_hashed_members(headers))


def transcript_hash(previous: bytes, roster: bytes, aggregate_hash: bytes, total: NDArray[np.int64]) -> bytes:
    """Return the next link of the chain: previous link, roster hash, hash of the aggregate, the decoded sum.

    The sum enters as little-endian int64, whatever the machine.
    """
    return labelled_hash(labels.TRANSCRIPT, previous, roster, aggregate_hash, total.astype("<i8").tobytes())
