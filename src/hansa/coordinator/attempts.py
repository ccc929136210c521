"""One attempt of a round at the coordinator, from the cohort to the confirmations.

R0, R1     cohort, packages, uploads          `begin`
R2 to R5   answers, consents, releases        `finish`; after a restart again, from the sum on the disk
R5         voids, where the sum fails
R6         confirmations
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.catching_up import Members
from hansa.coordinator.epochs import Epochs
from hansa.coordinator.exchange import Reply, one
from hansa.coordinator.expectations import Expectations
from hansa.coordinator.loop_state import At, Certificate, Closed, LoopState
from hansa.errors import (
    Error,
    MalformedMessage,
    ParticipantLost,
    ParticipantRefused,
    ProtocolError,
    ResultExpired,
    RosterTooSmall,
    StaleRound,
    StoreDamaged,
)
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.attempt import verify_results
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.messages import RoundResult, Void, open_signed
from hansa.secure_agg.parameters import Terms

MOST_ATTEMPTS = 3
_OPENED = ("packages", "shares", "result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How an attempt ended.

    Attributes:
        contributors: Members whose update is in the sum.
        finished: Members that confirmed the new state within it.
        void: Whether the sum could not be opened and was left behind.
    """

    contributors: tuple[str, ...]
    finished: Collection[str]
    void: bool = False


class TooFew(Exception):
    """An attempt fell below the threshold."""

    def __init__(self, lost: ParticipantLost, *, may_try_again: bool) -> None:
        self.lost, self.may_try_again = lost, may_try_again


class Attempts:
    """Runs attempts of rounds; arguments as for `rounds.RoundLoop`, and what the loop is made of."""

    def __init__(
        self,
        *,
        members: Members,
        epochs: Epochs,
        expectations: Expectations,
        aggregation: AggregationService,
        state: LoopState,
        roster: Roster,
        terms: Terms,
    ) -> None:
        self._members, self._epochs, self._expectations = members, epochs, expectations
        self._aggregation, self._state, self._roster, self._terms = aggregation, state, roster, terms

    def begin(self, at: At) -> Ended:
        """Run an attempt from its begin."""
        epochs, standing = self._epochs, self._members.at(at[0] - 1)
        lost = epochs.refill(standing)
        cohort = [name for name in epochs.board.available() if name in standing]
        self.enough(cohort, at, lost, self._terms.least_roster)
        packages, shares = epochs.board.take(cohort)
        self._state.begin_attempt(
            at, {name: epochs.board.handed_out(name) for name in self._roster.participants}
        )
        expected = self._expectations.of(*at, packages)
        aggregator = self._aggregation.begin(epochs.number, *at, cohort, expected)
        leaves = epochs.board.leaves(cohort)
        self._aggregation.keep_leaves(*at, leaves)
        # R1
        requests: dict[str, Reply] = {name: {"packages": packages, "shares": shares[name]} for name in cohort}
        _, lost = self._members.ask_each("train", requests, ("header",), at)
        lost |= aggregator.refused
        alive = [name for name in aggregator.contributors if name not in lost]
        self.enough(alive, at, lost, self._terms.least_roster)
        self._close(at)
        closed = Closed(round=at[0], attempt=at[1], cohort=tuple(cohort), packages=packages, leaves=leaves)
        self._state.close_attempt(closed, self._aggregation.ledger_heads())
        return self._finish(closed, aggregator, alive)

    def resume(self, closed: Closed) -> Ended | None:
        """Go on with an attempt whose sum a process before this one kept; members may have released for it.

        Returns:
            How it ended, or None if the sum is not there any more.
        """
        at = (closed.round, closed.attempt)
        try:
            aggregator = self._aggregation.resume(self._epochs.number, *at, closed.cohort)
        except (StaleRound, ResultExpired, StoreDamaged):
            return None
        self._aggregation.keep_leaves(*at, closed.leaves)
        return self._finish(closed, aggregator, aggregator.contributors)

    def _finish(self, closed: Closed, aggregator: RoundAggregator, alive: Collection[str]) -> Ended:
        """Steps R2 to R6."""
        at = (closed.round, closed.attempt)
        if self._terms.strict:
            replies, lost = self._open_strictly(at, alive)
        else:
            replies, lost = self._open(closed, aggregator, alive)
            if len(replies) < self._terms.threshold and self._void(at):
                left = self._members.catch_up(at[0])
                return Ended(contributors=aggregator.contributors, finished=left, void=True)
        return Ended(contributors=aggregator.contributors, finished=self._confirm(at, replies, lost))

    def _close(self, at: At) -> None:
        """Close the roster. Uploads may have come from T members and agree among fewer."""
        try:
            self._aggregation.close()
        except RosterTooSmall as error:
            lost = ParticipantLost(f"round {at[0]} has no roster: {error.message}")
            raise TooFew(lost, may_try_again=True) from error

    def _open(
        self, closed: Closed, aggregator: RoundAggregator, alive: Collection[str]
    ) -> tuple[dict[str, Reply], dict[str, Error]]:
        """Steps R2 to R5 in quorum mode. From the certificate on the round has a result: nothing undoes it."""
        at = (closed.round, closed.attempt)
        answered, lost = self._answers(aggregator, "query.answer", alive, at)
        if aggregator.needs_consents:
            self.enough(answered, at, lost)
            consents = aggregator.consents()
            answered, more = self._answers(aggregator, "query.consents", answered, at, consents=consents)
            lost |= more
        self.enough(answered, at, lost)
        releases = aggregator.releases()
        certificate = Certificate(
            attempt=at[1], packages=closed.packages, releases=releases, voids=[], leaves=closed.leaves
        )
        self._state.certify(at[0], certificate)
        return self._members.ask("query.unmask", answered, _OPENED, at, releases=releases)

    def _open_strictly(self, at: At, alive: Collection[str]) -> tuple[dict[str, Reply], dict[str, Error]]:
        """Steps R2 to R5 in strict mode."""
        replies, lost = self._members.ask("query.open", alive, _OPENED, at)
        if replies:
            self._state.note_opened(at[0])
        if lost:
            self._state.note_failure()  # or a member was lost: new keys do no harm
        self.enough(replies, at, lost)
        return replies, lost

    def _void(self, at: At) -> bool:
        """Step R5: ask those that did not open the sum whether it cannot be opened; T of them end the round."""
        self._members.catch_up(at[0])  # who was away may open it, or find out as well
        replies, _ = self._members.ask("query.void", self._members.at(at[0] - 1), ("void",), at)
        said: dict[tuple[int, int, bytes, bytes, bytes], list[bytes]] = {}
        for name, reply in replies.items():
            with suppress(ProtocolError):
                signed = self._own(name, reply, "void", Void)
                body = open_signed(signed, Void, self._roster, self._epochs.number)
                what = (body.round, body.attempt, body.cohort_hash, body.roster_hash, body.transcript)
                said.setdefault(what, []).append(signed)
        # Members take voids only if all say the same: one that says something else would keep the round for everybody.
        voids = max(said.values(), key=len, default=[])
        if len(voids) < self._terms.threshold:
            return False
        self._expectations.round_void(voids)
        certificate = Certificate(attempt=at[1], packages=[], releases=[], voids=voids, leaves={})
        self._state.certify(at[0], certificate, void=True)
        return True

    def _confirm(self, at: At, replies: Mapping[str, Reply], lost: dict[str, Error]) -> set[str]:
        """Step R6: compare the confirmations and relay them; who missed something catches up later."""
        results: dict[str, bytes] = {}
        for name, reply in replies.items():
            try:
                signed = self._own(name, reply, "result", RoundResult)
                self._epochs.post(reply)
                results[name] = signed
            except ProtocolError as error:
                lost[name] = error
        if not self._terms.strict and len(results) < self._terms.threshold:
            # T have released, so the round has a result; who does not know it yet is brought to it.
            self.enough(self._members.catch_up(at[0]), at, lost)
            return set()
        self.enough(results, at, lost)
        shown = list(results.values())
        verify_results(shown, self._roster, self._epochs.number, *at, self._terms.threshold)
        self._expectations.round_confirmed(shown)
        answers, lost = self._members.ask("query.close", results, ("closed",), at, results=shown)
        if self._terms.strict:
            self.enough(answers, at, lost)
        # Who has applied the round but not closed it closes it by catching up.
        self._state.reached(dict.fromkeys(answers, at[0]))
        return set(answers)

    def _own(self, name: str, reply: Reply, field: str, kind: type[RoundResult | Void]) -> bytes:
        """Take a member's own signed message out of its reply."""
        signed = one(reply, field)
        sender = open_signed(signed, kind, self._roster, self._epochs.number).sender
        if sender != name:
            raise MalformedMessage(f"{name} passed on the {kind.TYPE} of {sender}")
        return signed

    def enough(
        self, members: Collection[str], at: At, lost: Mapping[str, Error], least: int | None = None
    ) -> None:
        """Raise TooFew if fewer members are left than the threshold, or than `least` where it is given."""
        least = self._terms.threshold if least is None else least
        if len(members) < least:
            why = "; ".join(error.message for error in lost.values())
            refused = sum(isinstance(error, ParticipantRefused) for error in lost.values())
            raise TooFew(
                ParticipantLost(
                    f"round {at[0]} has {len(members)} members left, below the threshold {least}"
                    + (f": {why}" if why else "")
                ),
                may_try_again=not self.has_result(at[0]) and len(self._state.at) - refused >= least,
            )

    def has_result(self, round_index: int) -> bool:
        """Whether somebody may have applied the round: then no other attempt can be its result."""
        return round_index in self._state.certificates or round_index == self._state.opened

    def _answers(
        self,
        aggregator: RoundAggregator,
        kind: str,
        members: Collection[str],
        at: At,
        **signed: list[bytes],
    ) -> tuple[list[str], dict[str, Error]]:
        """Collect consents or releases; a member whose answer is not accepted counts as lost.

        Whoever has released for a model state serves no other attempt at it (I2), also where its release was lost. So below T the
        others are asked again, before this attempt is given up.
        """
        answered: list[str] = []
        lost: dict[str, Error] = {}
        for _ in range(MOST_ATTEMPTS):
            asked = [name for name in members if name not in answered]
            answers, lost = self._members.ask(kind, asked, ("answer",), at, **signed)
            for name, reply in answers.items():
                try:
                    if aggregator.accept_answer(one(reply, "answer")) != name:
                        raise MalformedMessage(f"{name} passed on the answer of another member")
                    answered.append(name)
                except ProtocolError as error:
                    lost[name] = error
            if len(answered) >= self._terms.threshold:
                break
        return answered, lost
