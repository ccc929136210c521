"""The hashes that tie one round together, and the reading of one signed message from each of several members.

Every mask is derived under the cohort hash, so two participants that were shown different cohorts, rounds or
sessions get unrelated masks, and their sum is noise instead of an update.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hansa import labels
from hansa.errors import DuplicateMember, Error, StaleRound, StateRollback
from hansa.secure_agg.derivation import framed, labelled_hash
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.messages import Body, RoundBody, open_signed

B = TypeVar("B", bound=Body)


def counter_bytes(value: int) -> bytes:
    """Return a round or attempt number as 8 bytes, big-endian."""
    return value.to_bytes(8, "big")


def verify_round(body: RoundBody, round_index: int, attempt: int) -> None:
    """Check that a message belongs to this round and attempt.

    Raises:
        StateRollback: It belongs to a later round: its sender is further than this participant knows.
        StaleRound: It belongs to another round or attempt.
    """
    if body.round > round_index:
        raise StateRollback(
            f"the {body.TYPE} of {body.sender!r} is of round {body.round}, this is {round_index}"
        )
    if (body.round, body.attempt) != (round_index, attempt):
        raise StaleRound(
            f"the {body.TYPE} of {body.sender!r} is for round {body.round} attempt {body.attempt},"
            f" this is round {round_index} attempt {attempt}"
        )


def open_each(
    signed: Iterable[bytes],
    kind: type[B],
    roster: Roster,
    epoch: int,
    duplicate: type[Error] = DuplicateMember,
) -> dict[str, tuple[B, bytes]]:
    """Read signed messages of different senders.

    Args:
        signed: Untrusted messages, in any order; read no further than one beyond the roster's size.
        kind: The message type expected.
        roster: The pinned roster.
        epoch: The running epoch.
        duplicate: Error for a second message of one sender.

    Returns:
        participant id -> (message, its bytes), sorted by id.

    Raises:
        MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch: See `messages.open_signed`.
        DuplicateMember: Or `duplicate`: two messages of one sender.
    """
    found: dict[str, tuple[B, bytes]] = {}
    for data in signed:
        body = open_signed(data, kind, roster, epoch)
        if body.sender in found:
            raise duplicate(f"{body.sender!r} appears twice with a {kind.TYPE}")
        found[body.sender] = (body, data)
    return dict(sorted(found.items()))


def _hashed_members(signed: Mapping[str, bytes]) -> list[bytes]:
    parts = []
    for participant in sorted(signed):
        parts += [participant.encode(), labelled_hash(labels.SIGNED_MESSAGE, signed[participant])]
    return parts


def cohort_hash(
    manifest: bytes, round_index: int, attempt: int, packages: Mapping[str, bytes], transcript: bytes
) -> bytes:
    """Return the hash of manifest, round, attempt, signed packages by sorted id and the last transcript link.

    The manifest stands for session, study, epoch, terms, members and keys.
    """
    head = (manifest, counter_bytes(round_index), counter_bytes(attempt), transcript)
    return labelled_hash(labels.COHORT, *head, *_hashed_members(packages))


class CiphertextListHash:
    """The hash of a list of ciphertexts of which one at a time is there.

    Guarantees:
        - After each ciphertext `digest` is `ciphertext_list_hash` of those so far.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256(framed(labels.CIPHERTEXT_LIST))

    def update(self, ciphertext: bytes) -> None:
        """Take the next ciphertext."""
        self._hash.update(framed(labelled_hash(labels.CIPHERTEXT, ciphertext)))

    def digest(self) -> bytes:
        """Return the hash, 32 bytes."""
        return self._hash.digest()


def ciphertext_list_hash(ciphertexts: Iterable[bytes]) -> bytes:
    """Return the hash of a list of ciphertexts in their order."""
    running = CiphertextListHash()
    for ciphertext in ciphertexts:
        running.update(ciphertext)
    return running.digest()


def roster_hash(cohort: bytes, headers: Mapping[str, bytes], aggregate_hash: bytes) -> bytes:
    """Return the hash of the cohort hash, the signed headers by sorted id and the aggregate's hash."""
    return labelled_hash(labels.ROSTER, cohort, aggregate_hash, *_hashed_members(headers))


def transcript_link(
    group_key: bytes, previous: bytes, roster: bytes, aggregate_hash: bytes, total: NDArray[np.int64]
) -> bytes:
    """Return the next link of the chain: HMAC over previous link, roster hash, aggregate hash, decoded sum.

    The sum enters as little-endian int64, whatever the machine.

    Guarantees:
        - Without the group key nobody can confirm a guess of the sum by its link.
    """
    digest = hashlib.sha256(total.astype("<i8", copy=False).data).digest()
    return hmac.digest(
        group_key, framed(labels.TRANSCRIPT, previous, roster, aggregate_hash, digest), "sha256"
    )


def void_link(group_key: bytes, previous: bytes, roster: bytes) -> bytes:
    """Return the link of a round whose sum could not be opened: HMAC over previous link and roster hash."""
    return hmac.digest(group_key, framed(labels.VOID_LINK, previous, roster), "sha256")


def state_tag(group_key: bytes, model_hash: bytes) -> bytes:
    """Return the tag of a model state that the coordinator may see, 32 bytes.

    Guarantees:
        - Without the group key the tag tells whether two states are equal and nothing else (HMAC-SHA256 as a PRF).
    """
    return hmac.digest(group_key, labels.STATE_TAG + model_hash, "sha256")
