"""The coordinator's loop: an epoch, then round after round, with whoever answers.

    E1-E4 epoch    join, deal, vote, enter: every member must answer; again where its keys are due
    R1 train       the cohort: members with an unused package that hold the last round's state
    R2 answer      those whose upload came
    R3 consents    only if somebody of the cohort is missing
    R5 unmask      relay T releases; members confirm their new state
       void, skip  T members cannot open the sum: all of them leave the round behind
    R6 close       relay the confirmations
    catch up       before the next round, members that missed the end of the last one

Strict mode has R1, one exchange for R2 to R5, and R6; there every member must answer. Below T before T have released,
the round gets another attempt with new packages; members send the update that they have. The loop relays signed
messages and checks signatures; it holds no model, no key and no update. What it must know after a crash is in its state
(`loop_state.py`): made anew on it, the loop goes on with the round that was in flight.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.serverapp import Grid

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.attempts import MOST_ATTEMPTS, Attempts, Ended, TooFew
from hansa.coordinator.catching_up import Members
from hansa.coordinator.epochs import Epochs
from hansa.coordinator.exchange import Exchange, Waiting
from hansa.coordinator.expectations import Expectations
from hansa.coordinator.loop_state import Closed, LoopState, Records
from hansa.errors import ParticipantLost
from hansa.secure_agg.certificates import RevocationList
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.voiding import MOST_FAILURES


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSummary:
    """What the coordinator knows of a finished round.

    Attributes:
        round: Number, from 1.
        attempt: Number of the attempt that ended it, from 0.
        epoch: Epoch whose keys it used.
        seconds: Wall seconds.
        contributors: Members whose update is in the sum.
        finished: Members that confirmed the new state within the round.
        void: Whether the sum could not be opened and was left behind.
    """

    round: int
    attempt: int
    epoch: int
    seconds: float
    contributors: tuple[str, ...]
    finished: tuple[str, ...]
    void: bool = False


class RoundLoop:
    """Runs the rounds of one study.

    Args:
        grid: Flower's way to the nodes.
        roster: Members.
        terms: Mode and threshold.
        nodes: Node id of each member.
        aggregation: Where members upload to.
        rounds: Rounds of the study.
        rounds_per_epoch: Rounds that one set of keys serves; 0 for all of them.
        deadline_seconds: Longest wait for the answers of one exchange.
        on_round: Called after each round.
        ciphertext_count: Ciphertexts of an upload, where whoever starts the coordinator knows.
        records: Where its state is kept; in memory if not given, and then nothing survives the process.
        revoked: Gives the authority's revocation list, where the consortium uses one.
        may_go_on: Asked before every round; the loop ends early, and can be resumed, when it says no.
        observe: Told who is asked for what; see `Exchange`.
        gave_up: Whether nobody waits for answers any more; see `Exchange`.

    Raises:
        StoreDamaged: The records are not those of such a loop.

    Guarantees:
        - Made anew on records and results of a process that died at any moment, it ends the study as that one would have:
          the round in flight is completed where members may have released for it, and tried again otherwise.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        roster: Roster,
        terms: Terms,
        nodes: Mapping[str, int],
        aggregation: AggregationService,
        rounds: int,
        rounds_per_epoch: int = 0,
        deadline_seconds: float,
        on_round: Callable[[RoundSummary], None],
        ciphertext_count: int | None = None,
        records: Records | None = None,
        revoked: Callable[[], RevocationList | None] = lambda: None,
        may_go_on: Callable[[], bool] = lambda: True,
        observe: Callable[[Waiting], None] = lambda _: None,
        gave_up: Callable[[], bool] = lambda: False,
    ) -> None:
        exchange = Exchange(grid, nodes, deadline_seconds, observe=observe, gave_up=gave_up)
        self._rounds, self._rounds_per_epoch, self._threshold = rounds, rounds_per_epoch, terms.threshold
        self._on_round, self._may_go_on, self._aggregation = on_round, may_go_on, aggregation
        self._state = LoopState(roster.participants, records)
        self._expectations = Expectations(roster, terms, ciphertext_count=ciphertext_count)
        self._epochs = Epochs(
            exchange,
            roster,
            terms,
            on_entered=self._epoch_entered,
            on_setup=self._state.begin_setup,
            revoked=revoked,
        )
        self._members = Members(exchange, self._epochs, aggregation, self._state)
        self._attempts = Attempts(
            members=self._members,
            epochs=self._epochs,
            expectations=self._expectations,
            aggregation=aggregation,
            state=self._state,
            roster=roster,
            terms=terms,
        )

    def run(self) -> None:
        """Enter the epoch and run all rounds, or those that are left.

        Raises:
            ParticipantLost: Fewer members than the threshold are left in a round, or one is missing where all must answer.
            ProtocolError: The members' answers do not fit together.
        """
        self._resume()
        for round_index in range(self._state.done + 1, self._rounds + 1):
            if not self._may_go_on():
                return
            started = time.monotonic()
            attempt, ended = self._round(round_index)
            self._state.end_round(round_index)
            self._on_round(
                RoundSummary(
                    round=round_index,
                    attempt=attempt,
                    epoch=self._epochs.number,
                    seconds=time.monotonic() - started,
                    contributors=ended.contributors,
                    finished=tuple(sorted(ended.finished)),
                    void=ended.void,
                )
            )
        self._members.catch_up(self._rounds)

    def bring_home(self) -> None:
        """Bring members that missed the end of the last rounds to it, as far as they answer; begins neither round nor epoch.

        Raises:
            Interrupted: Nobody waits any more.
        """
        self._restore()
        self._members.catch_up(self._state.done)

    def _resume(self) -> None:
        """Stand where the state says; enter an epoch where none was entered, or another one was begun."""
        self._restore()
        known = self._state.epoch
        if known.number == 0 or known.tried != known.number:
            self._epochs.enter(before=lambda: self._members.catch_up(self._state.done))

    def _restore(self) -> None:
        """Stand where the state says."""
        known = self._state.epoch
        self._aggregation.restore_heads(self._state.heads)
        self._epochs.resume(known.number, known.tried, known.handed_out)
        if known.number:
            self._expectations.epoch_entered(known.number, known.deal, known.votes)
            self._expectations.history_unknown()
        for round_index, certificate in self._state.certificates.items():
            self._aggregation.keep_leaves(round_index, certificate.attempt, certificate.leaves)

    def _epoch_entered(self, number: int, deal: bytes, votes: list[bytes]) -> None:
        self._state.epoch_entered(number, deal, votes)
        self._expectations.epoch_entered(number, deal, votes)

    def _round(self, round_index: int) -> tuple[int, Ended]:
        """Run a round, with another attempt where too few members went through with one."""
        first: ParticipantLost | None = None
        begun_round, begun = self._state.begun
        next_attempt = begun + 1 if begun_round == round_index else 0
        closed = self._state.closed
        for attempt in range(next_attempt, next_attempt + MOST_ATTEMPTS):
            try:
                if closed is not None and closed.round == round_index:
                    in_flight, closed = closed, None
                    ended = self._resumed(in_flight)
                    if ended is not None:
                        return in_flight.attempt, ended
                self._members.catch_up(round_index - 1)
                self._renew_keys(round_index - 1)
                return attempt, self._attempts.begin((round_index, attempt))
            except TooFew as failed:
                first = first or failed.lost
                if not failed.may_try_again:
                    break
        raise first or ParticipantLost("no attempt was made")

    def _resumed(self, closed: Closed) -> Ended | None:
        """Go on with the attempt that was in flight; one that has its certificate is caught up by all."""
        at, reached = (closed.round, closed.attempt), self._members.at(closed.round)
        certificate = self._state.certificates.get(closed.round)
        if len(reached) >= self._threshold:  # it was over, but for a line
            return Ended(contributors=closed.cohort, finished=reached)
        if certificate is None:
            return self._attempts.resume(closed)
        reached = self._members.catch_up(closed.round)
        self._attempts.enough(reached, at, {})
        self._expectations.history_unknown()
        return Ended(contributors=closed.cohort, finished=reached, void=bool(certificate.voids))

    def _renew_keys(self, last_round: int) -> None:
        """Enter another epoch where the keys of this one have served their rounds or failed twice.

        A round is caught up under the keys of its own epoch or never, so members that are back are asked first.
        """
        known = self._state.epoch
        served = bool(self._rounds_per_epoch) and known.rounds >= self._rounds_per_epoch
        if served or known.failures >= MOST_FAILURES:
            self._epochs.enter(before=lambda: self._members.catch_up(last_round))
