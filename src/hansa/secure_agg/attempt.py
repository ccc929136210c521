"""What a participant keeps of the running attempt, and what it may be shown about its roster.

The records here are on the store before the acts that they guard:

    attempt     before anything is derived from a package       I1: a package serves one cohort
    upload      before the upload is sent                       I3: masks serve one upload
    upload-ciphertexts   before `upload`, which is read often and stands for both
    lock        before consent or release                       one roster an attempt
    release/... before the release is sent, by model hash       I2: one release a model state
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import cbor2

from hansa.errors import (
    CiphertextSizeMismatch,
    CohortMismatch,
    CohortTooSmall,
    DuplicateMessage,
    HeParameterMismatch,
    ModelDivergence,
    OwnUploadAltered,
    OwnUploadMissing,
    RosterNotSubset,
    RosterTooSmall,
    StateRollback,
    TooLittleNoise,
    TranscriptDivergence,
)
from hansa.secure_agg.ciphertext_format import EXPANDED_BYTES, verify_wire_length
from hansa.secure_agg.cohort import ciphertext_list_hash, open_each, roster_hash, state_tag, verify_round
from hansa.secure_agg.epoch import Epoch
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.messages import Envelope, Package, RoundResult, UploadHeader
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.store import Store

ATTEMPT, UPLOAD, UPLOAD_CIPHERTEXTS, LOCK = "attempt", "upload", "upload-ciphertexts", "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of one round, as one member sees it.

    Attributes:
        epoch: Number of the epoch.
        round: Round number.
        attempt: Attempt number.
        cohort_hash: 32 bytes.
        model_hash: 32 bytes, hash of the model state that the update is for; secret.
        transcript: Last link of the transcript, 32 bytes.
        packages: Signed package of each member of the cohort.
        shares: Seed share and mask share that each dealt to this member, 64 bytes; secret. Empty after the release.
        used: Largest package number that each member has used in this epoch.
        closed: Whether the attempt is over for this member.
        bodies: What `packages` say, where they were read already; not stored.
    """

    epoch: int
    round: int
    attempt: int
    cohort_hash: bytes
    model_hash: bytes
    transcript: bytes
    packages: Mapping[str, bytes]
    shares: Mapping[str, bytes]
    used: Mapping[str, int]
    closed: bool = False
    bodies: Mapping[str, Package] = field(default_factory=dict)

    @property
    def cohort(self) -> tuple[str, ...]:
        """The ids of the cohort, sorted."""
        return tuple(sorted(self.packages))

    def opened_packages(self) -> Mapping[str, Package]:
        """Return the packages; their signatures were checked before the attempt was made."""
        return self.bodies or {
            name: Package.decode(Envelope.decode(data).body) for name, data in self.packages.items()
        }

    def __repr__(self) -> str:
        return f"Attempt(round {self.round}, attempt {self.attempt}, {len(self.packages)} members)"


def save(store: Store, key: str, **values: Any) -> None:
    """Write one record in one step."""
    store.put(key, cbor2.dumps(values))


def load(store: Store, key: str) -> dict[str, Any] | None:
    """Read a record that `save` wrote."""
    data = store.get(key)
    return None if data is None else cbor2.loads(data)


def save_attempt(store: Store, attempt: Attempt) -> None:
    """Write the attempt."""
    values = {item.name: getattr(attempt, item.name) for item in fields(attempt) if item.name != "bodies"}
    save(store, ATTEMPT, **values)


def load_attempt(store: Store) -> Attempt | None:
    """Read the attempt."""
    values = load(store, ATTEMPT)
    return None if values is None else Attempt(**values)


def release_record(model_hash: bytes) -> str:
    """Return the key of the release for a model state, whatever the epoch."""
    return f"release/{model_hash.hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RosterView:
    """A roster and its aggregate, checked against an attempt but not yet acted on.

    Attributes:
        headers: Signed upload header of each member of the roster, by sorted id.
        aggregate: Ciphertexts in expanded form.
        aggregate_hash: Their hash.
        roster_hash: 32 bytes over cohort, headers and aggregate.
        full: Whether the roster is the whole cohort.
    """

    headers: Mapping[str, bytes]
    aggregate: Sequence[bytes] = field(repr=False)
    aggregate_hash: bytes
    roster_hash: bytes
    full: bool


def view_roster(
    epoch: Epoch,
    attempt: Attempt,
    own_header: bytes | None,
    count: int,
    headers: Sequence[bytes],
    aggregate: Sequence[bytes],
    *,
    must_contain_own: bool,
) -> RosterView:
    """Step R2: check a roster and its aggregate.

    Args:
        epoch: The running epoch.
        attempt: The attempt.
        own_header: The header that this member signed, or None if it did not upload.
        count: Entries of an update.
        headers: Signed UploadHeader of each member of the roster; untrusted.
        aggregate: Ciphertexts; untrusted.
        must_contain_own: Whether a roster without this member is refused.

    Raises:
        MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch: See `messages.open_signed`.
        DuplicateMessage: Two headers of one member.
        StateRollback: A header of a later round, or one of this member that its store does not know.
        StaleRound: A header of another round or attempt.
        RosterNotSubset: A header of a member outside the cohort.
        RosterTooSmall: Fewer headers than the threshold.
        TooLittleNoise: Enough headers to open the sum, and not enough shares of noise in it.
        OwnUploadMissing, OwnUploadAltered: The own header is not there, or is another one.
        CohortMismatch, HeParameterMismatch, ModelDivergence, TranscriptDivergence, CiphertextSizeMismatch: A header
            is for another cohort, key, model state, history or length; the last also for a wrong aggregate.
    """
    found = open_each(headers, UploadHeader, epoch.roster, epoch.number, DuplicateMessage)
    for header, _ in found.values():
        verify_round(header, attempt.round, attempt.attempt)
    strangers = sorted(set(found) - set(attempt.cohort))
    if strangers:
        raise RosterNotSubset(f"{', '.join(strangers)} in the roster, but not in the cohort")
    if len(found) < epoch.terms.threshold:
        raise RosterTooSmall(f"{len(found)} uploads are fewer than the threshold {epoch.terms.threshold}")
    verify_noise(epoch.terms, len(found))
    _verify_own(epoch.participant, found, own_header, must_contain_own=must_contain_own)
    expected_ciphertexts = epoch.terms.layout.ciphertexts_for(count)
    for header, _ in found.values():
        _verify_agreement(header, epoch, attempt, expected_ciphertexts)
    if len(aggregate) != expected_ciphertexts:
        raise CiphertextSizeMismatch(f"{len(aggregate)} ciphertexts, the headers say {expected_ciphertexts}")
    for ciphertext in aggregate:
        verify_wire_length(ciphertext, EXPANDED_BYTES)
    signed = {name: data for name, (_, data) in found.items()}
    aggregate_hash = ciphertext_list_hash(aggregate)
    return RosterView(
        headers=signed,
        aggregate=list(aggregate),
        aggregate_hash=aggregate_hash,
        roster_hash=roster_hash(attempt.cohort_hash, signed, aggregate_hash),
        full=len(found) == len(attempt.cohort),
    )


def verify_cohort_size(terms: Terms, members: int) -> None:
    """Check that a cohort can become a sum that may be opened; before anything is spent.

    Raises:
        CohortTooSmall: Fewer members than the threshold.
        TooLittleNoise: As `verify_noise`.
    """
    if members < terms.threshold:
        raise CohortTooSmall(f"a cohort of {members} is below the threshold {terms.threshold}")
    verify_noise(terms, members)


def verify_noise(terms: Terms, members: int) -> None:
    """Check that so many members have enough shares of noise among them; before anything is opened or released.

    Raises:
        TooLittleNoise: They have not.
    """
    if members < terms.noise_contributors:
        raise TooLittleNoise(
            f"a sum of {members} updates has too little noise: the study counts on {terms.noise_contributors} members"
        )


def _verify_own(
    name: str,
    found: Mapping[str, tuple[UploadHeader, bytes]],
    own_header: bytes | None,
    *,
    must_contain_own: bool,
) -> None:
    if name not in found:
        if must_contain_own:
            raise OwnUploadMissing(f"{name!r} has uploaded, and the roster leaves it out")
        return
    if own_header is None:
        raise StateRollback(f"a header signed by {name!r} is shown that its store does not know")
    if not hmac.compare_digest(found[name][1], own_header):
        raise OwnUploadAltered(f"the header shown for {name!r} is not the one that it signed")


def _verify_agreement(header: UploadHeader, epoch: Epoch, attempt: Attempt, ciphertexts: int) -> None:
    who = f"the header of {header.sender!r}"
    if not hmac.compare_digest(header.cohort_hash, attempt.cohort_hash):
        raise CohortMismatch(f"{who} is for another cohort")
    if not hmac.compare_digest(header.he_key_id, epoch.he_key.key_id):
        raise HeParameterMismatch(f"{who} names another encryption key")
    if not hmac.compare_digest(header.previous_transcript, attempt.transcript):
        raise TranscriptDivergence(f"{who} continues another history")
    if not hmac.compare_digest(header.state_tag, state_tag(epoch.group_key, attempt.model_hash)):
        raise ModelDivergence(f"{who} belongs to another model state")
    if header.ciphertext_count != ciphertexts:
        raise CiphertextSizeMismatch(f"{who} has {header.ciphertext_count} ciphertexts, not {ciphertexts}")


def verify_results(
    results: Sequence[bytes], roster: Roster, epoch: int, round_index: int, attempt: int, minimum: int
) -> None:
    """Step R6: check that members hold the same state after a round. It needs no secret.

    Args:
        results: Signed RoundResult of at least `minimum` members, untrusted.
        roster: The members.
        epoch: Number of the running epoch.
        round_index: Round number.
        attempt: Attempt number.
        minimum: Results needed.

    Raises:
        ModelDivergence: Two members differ in cohort, roster, state or transcript.
        CohortMismatch: Too few results.
        DuplicateMessage, StaleRound, StateRollback: Twice from one member, or of another round.
        MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch: See `messages.open_signed`.
    """
    found = open_each(results, RoundResult, roster, epoch, DuplicateMessage)
    bodies = [body for body, _ in found.values()]
    for body in bodies:
        verify_round(body, round_index, attempt)
    if len(bodies) < minimum:
        raise CohortMismatch(f"{len(bodies)} results of round {round_index} are fewer than {minimum}")
    for body in bodies[1:]:
        first = bodies[0]
        if (body.cohort_hash, body.roster_hash, body.state_tag, body.transcript) != (
            first.cohort_hash,
            first.roster_hash,
            first.state_tag,
            first.transcript,
        ):
            raise ModelDivergence(
                f"{body.sender!r} and {first.sender!r} hold different results of round {round_index}"
            )
