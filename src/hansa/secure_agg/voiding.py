"""Rounds whose sum cannot be opened after its shares were released (step R5).

Whoever released for a roster never releases for that model state again (I2), so a sum that fails its tag would end
the study. Instead T members that failed to open it sign a Void, and all of them go on from a new state: the same
model, the next round, another link of the transcript. The update of the next round is trained and noised anew.

A failure tells the coordinator one bit about the HE key, which a sum with crafted noise can probe. So failures are
counted on the store before anybody learns of them, and after two of them the keys of the epoch are not used again.
"""

from collections.abc import Sequence

from hansa.errors import (
    AggregateRangeViolation,
    AggregateTagMismatch,
    DuplicateMessage,
    Error,
    MalformedCiphertext,
    NotEnoughConsents,
    RosterEquivocation,
    ShareCommitmentMismatch,
)
from hansa.secure_agg.attempt import Attempt, load, save
from hansa.secure_agg.cohort import open_each, verify_round
from hansa.secure_agg.epoch import Epoch
from hansa.secure_agg.messages import Void
from hansa.secure_agg.store import Store

FAILED = "failed"
MOST_FAILURES = 2  # sums that could not be opened under one HE key
# The same whoever tries: what every member finds once its roster, aggregate and releases are fixed.
UNOPENABLE: tuple[type[Error], ...] = (
    AggregateTagMismatch,
    AggregateRangeViolation,
    MalformedCiphertext,
    ShareCommitmentMismatch,
)


def note_failure(store: Store, attempt: Attempt, roster: bytes) -> None:
    """Keep that the sum of a roster could not be opened; the same roster counts once."""
    rosters = _failed_rosters(store, attempt.epoch)
    if roster not in rosters:
        rosters.append(roster)
    at = {"epoch": attempt.epoch, "round": attempt.round, "attempt": attempt.attempt}
    save(store, FAILED, **at, cohort=attempt.cohort_hash, rosters=rosters)


def failures(store: Store, epoch: int) -> int:
    """Return how many sums of an epoch could not be opened."""
    return len(_failed_rosters(store, epoch))


def _failed_rosters(store: Store, epoch: int) -> list[bytes]:
    record = load(store, FAILED)
    return list(record["rosters"]) if record is not None and record["epoch"] == epoch else []


def failed_sum(store: Store, epoch: int, round_index: int, attempt: int) -> tuple[bytes, bytes] | None:
    """Return cohort hash and roster hash of the sum that could not be opened last, if it was of this attempt."""
    record = load(store, FAILED)
    if record is None or (record["epoch"], record["round"], record["attempt"]) != (
        epoch,
        round_index,
        attempt,
    ):
        return None
    return record["cohort"], record["rosters"][-1]


def verify_voids(epoch: Epoch, round_index: int, attempt: int, voids: Sequence[bytes]) -> Void:
    """Check that T members declare one round void.

    Args:
        epoch: The running epoch.
        round_index: Round number.
        attempt: Attempt number.
        voids: Signed Void messages; untrusted.

    Returns:
        One of them; all say the same.

    Raises:
        NotEnoughConsents: Fewer than T.
        RosterEquivocation: Two members declare different rosters or histories void.
        DuplicateMessage, StaleRound, StateRollback: Twice from one member, or of another round.
        MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch: See `messages.open_signed`.
    """
    found = open_each(voids, Void, epoch.roster, epoch.number, DuplicateMessage)
    bodies = [body for body, _ in found.values()]
    for body in bodies:
        verify_round(body, round_index, attempt)
    if len(bodies) < epoch.terms.threshold:
        raise NotEnoughConsents(
            f"{len(bodies)} members declare round {round_index} void, the threshold is {epoch.terms.threshold}"
        )
    for body in bodies[1:]:
        if (body.cohort_hash, body.roster_hash, body.transcript) != (
            bodies[0].cohort_hash,
            bodies[0].roster_hash,
            bodies[0].transcript,
        ):
            raise RosterEquivocation(
                f"{body.sender!r} and {bodies[0].sender!r} declare different rosters of round {round_index} void"
            )
    return bodies[0]
