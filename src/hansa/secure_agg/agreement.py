"""Whether the signed words of all members describe the same round: before its sum is opened, and after."""

import hmac
from collections.abc import Sequence

from hansa.errors import CiphertextSizeMismatch, CohortMismatch, HeParameterMismatch, ModelDivergence
from hansa.secure_agg.cohort import open_whole_roster
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.messages import RoundResult, UploadHeader


def verify_agreement(header: UploadHeader, own: UploadHeader) -> None:
    """Check that another member's header describes the same round as the own one.

    Raises:
        CohortMismatch: Another cohort hash.
        HeParameterMismatch: Another encryption key.
        ModelDivergence: Another model state or another history.
        CiphertextSizeMismatch: Another number of ciphertexts.
    """
    who = f"the header of {header.sender!r}"
    if not hmac.compare_digest(header.cohort_hash, own.cohort_hash):
        raise CohortMismatch(f"{who} is for another cohort")
    if not hmac.compare_digest(header.he_key_id, own.he_key_id):
        raise HeParameterMismatch(f"{who} names another encryption key")
    if not hmac.compare_digest(header.state_tag, own.state_tag):
        raise ModelDivergence(f"{who} belongs to another model state")
    if not hmac.compare_digest(header.previous_transcript, own.previous_transcript):
        raise ModelDivergence(f"{who} continues another history")
    if header.ciphertext_count != own.ciphertext_count:
        raise CiphertextSizeMismatch(
            f"{who} has {header.ciphertext_count} ciphertexts, not {own.ciphertext_count}"
        )


def verify_results(results: Sequence[bytes], roster: Roster, round_index: int, attempt: int) -> None:
    """Check that all members hold the same state after a round. It needs no secret.

    Args:
        results: The signed RoundResult of every member, untrusted.
        roster: The pinned roster.
        round_index: Round number.
        attempt: Attempt number.

    Raises:
        ModelDivergence: Two members differ in cohort, roster or state.
        MalformedMessage, UnknownSender, BadSignature, WrongSession, StaleRound, DuplicateMember,
        CohortMismatch:
            See `cohort.open_whole_roster`.
    """
    found = open_whole_roster(results, RoundResult, roster, round_index, attempt)
    bodies = [body for body, _ in found.values()]
    first = bodies[0]
    for body in bodies[1:]:
        if (body.cohort_hash, body.roster_hash, body.state_tag) != (
            first.cohort_hash,
            first.roster_hash,
            first.state_tag,
        ):
            raise ModelDivergence(
                f"{body.sender!r} and {first.sender!r} hold different results of round {round_index}"
            )
