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
messages and checks signatures; it holds no model, no key and no update.
"""

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

from flwr.serverapp import Grid

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.epochs import Epochs
from hansa.coordinator.exchange import Exchange, Reply, one
from hansa.coordinator.expectations import Expectations
from hansa.coordinator.results import KEPT_ROUNDS
from hansa.errors import (
    Error,
    MalformedMessage,
    ParticipantLost,
    ParticipantRefused,
    ProtocolError,
    RosterTooSmall,
)
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.attempt import verify_results
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.messages import RoundResult, Void, open_signed
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.voiding import MOST_FAILURES

MOST_ATTEMPTS = 3
_OPENED = ("packages", "shares", "result")
_PACKAGES = ("packages", "shares")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Certificate:
    """What a member that missed a round needs beside headers and aggregate; voids alone if it was left behind."""

    attempt: int
    packages: list[bytes]
    releases: list[bytes]
    voids: list[bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ended:
    """How an attempt ended."""

    contributors: tuple[str, ...]
    finished: Collection[str]
    void: bool = False


class _TooFew(Exception):
    """An attempt fell below the threshold."""

    def __init__(self, lost: ParticipantLost, *, may_try_again: bool) -> None:
        self.lost, self.may_try_again = lost, may_try_again


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
    ) -> None:
        self._exchange = Exchange(grid, nodes, deadline_seconds)
        self._roster, self._terms, self._aggregation = roster, terms, aggregation
        self._rounds, self._rounds_per_epoch, self._on_round = rounds, rounds_per_epoch, on_round
        self._expectations = Expectations(roster, terms, ciphertext_count=ciphertext_count)
        self._epochs = Epochs(self._exchange, roster, terms, on_entered=self._expectations.epoch_entered)
        self._epoch_rounds = self._failures = 0  # under the keys of the running epoch
        self._at = dict.fromkeys(roster.participants, 0)
        self._certificates: dict[int, _Certificate] = {}
        self._opened: set[int] = set()  # in strict mode

    def run(self) -> None:
        """Enter the epoch and run all rounds.

        Raises:
            ParticipantLost: Fewer members than the threshold are left in a round, or one is missing where all must answer.
            ProtocolError: The members' answers do not fit together.
        """
        self._epochs.enter()
        for round_index in range(1, self._rounds + 1):
            started = time.monotonic()
            attempt, ended = self._round(round_index)
            self._epoch_rounds += 1
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
        self._catch_up(self._rounds)

    def _round(self, round_index: int) -> tuple[int, _Ended]:
        """Run a round, with another attempt where too few members went through with one."""
        first: ParticipantLost | None = None
        for attempt in range(MOST_ATTEMPTS):
            self._catch_up(round_index - 1)
            self._renew_keys(round_index - 1)
            try:
                return attempt, self._attempt(round_index, attempt)
            except _TooFew as failed:
                first = first or failed.lost
                if not failed.may_try_again:
                    break
        raise first or ParticipantLost("no attempt was made")

    def _renew_keys(self, last_round: int) -> None:
        """Enter another epoch where the keys of this one have served their rounds or failed twice.

        A round is caught up under the keys of its own epoch or never, so members that are back are asked first.
        """
        served = bool(self._rounds_per_epoch) and self._epoch_rounds >= self._rounds_per_epoch
        if served or self._failures >= MOST_FAILURES:
            self._epochs.enter(before=lambda: self._catch_up(last_round))
            self._epoch_rounds = self._failures = 0

    # -- an attempt --------------------------------------------------------------------------------------

    def _attempt(self, round_index: int, attempt: int) -> _Ended:
        epochs, at = self._epochs, (round_index, attempt)
        standing = [name for name, reached in self._at.items() if reached == round_index - 1]
        lost = epochs.refill(standing)
        cohort = [name for name in epochs.board.available() if name in standing]
        self._enough(cohort, at, lost, self._terms.least_roster)
        packages, shares = epochs.board.take(cohort)
        expected = self._expectations.of(*at, packages)
        aggregator = self._aggregation.begin(epochs.number, *at, cohort, expected)
        self._aggregation.keep_leaves(*at, epochs.board.leaves(cohort))
        # R1
        requests = {name: self._request(at, packages=packages, shares=shares[name]) for name in cohort}
        _, lost = self._exchange.ask("train", requests, ("header",))
        lost |= aggregator.refused
        alive = [name for name in aggregator.contributors if name not in lost]
        self._enough(alive, at, lost, self._terms.least_roster)
        self._close(at)
        # R2 to R5
        opened = self._open_strictly if self._terms.strict else self._open
        replies, lost = opened(at, aggregator, alive, packages)
        if not self._terms.strict and len(replies) < self._terms.threshold and self._void(at):
            left = self._catch_up(round_index)
            return _Ended(contributors=aggregator.contributors, finished=left, void=True)
        return _Ended(contributors=aggregator.contributors, finished=self._confirm(at, replies, lost))

    def _close(self, at: tuple[int, int]) -> None:
        """Close the roster. Uploads may have come from T members and agree among fewer."""
        try:
            self._aggregation.close()
        except RosterTooSmall as error:
            lost = ParticipantLost(f"round {at[0]} has no roster: {error.message}")
            raise _TooFew(lost, may_try_again=True) from error

    def _open(
        self,
        at: tuple[int, int],
        aggregator: RoundAggregator,
        alive: Collection[str],
        packages: list[bytes],
    ) -> tuple[dict[str, Reply], dict[str, Error]]:
        """Steps R2 to R5 in quorum mode. From the certificate on the round has a result: nothing undoes it."""
        answered, lost = self._answers(aggregator, "query.answer", alive, at)
        if aggregator.needs_consents:
            self._enough(answered, at, lost)
            consents = aggregator.consents()
            answered, more = self._answers(aggregator, "query.consents", answered, at, consents=consents)
            lost |= more
        self._enough(answered, at, lost)
        releases = aggregator.releases()
        self._certificates[at[0]] = _Certificate(
            attempt=at[1], packages=packages, releases=releases, voids=[]
        )
        return self._ask("query.unmask", answered, _OPENED, at, releases=releases)

    def _open_strictly(
        self,
        at: tuple[int, int],
        _aggregator: RoundAggregator,
        alive: Collection[str],
        _packages: list[bytes],
    ) -> tuple[dict[str, Reply], dict[str, Error]]:
        """Steps R2 to R5 in strict mode."""
        replies, lost = self._ask("query.open", alive, _OPENED, at)
        if replies:
            self._opened.add(at[0])
        if lost:
            self._failures += 1  # or a member was lost: new keys do no harm
        self._enough(replies, at, lost)
        return replies, lost

    def _void(self, at: tuple[int, int]) -> bool:
        """Step R5: ask those that did not open the sum whether it cannot be opened; T of them end the round."""
        self._catch_up(at[0])  # who was away may open it, or find out as well
        failed = [name for name, reached in self._at.items() if reached == at[0] - 1]
        replies, _ = self._ask("query.void", failed, ("void",), at)
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
        self._failures += 1
        self._expectations.round_void(voids)
        self._certificates[at[0]] = _Certificate(attempt=at[1], packages=[], releases=[], voids=voids)
        return True

    def _confirm(self, at: tuple[int, int], replies: Mapping[str, Reply], lost: dict[str, Error]) -> set[str]:
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
            self._enough(self._catch_up(at[0]), at, lost)
            return set()
        self._enough(results, at, lost)
        shown = list(results.values())
        verify_results(shown, self._roster, self._epochs.number, *at, self._terms.threshold)
        self._expectations.round_confirmed(shown)
        closed = {name: self._request(at, results=shown) for name in results}
        answers, lost = self._exchange.ask("query.close", closed, ("closed",))
        if self._terms.strict:
            self._enough(answers, at, lost)
        for name in answers:  # who has applied the round but not closed it closes it by catching up
            self._at[name] = at[0]
        return set(answers)

    def _catch_up(self, last_round: int) -> list[str]:
        """Bring members that missed the end of a round to the state of the last one, as far as they answer.

        Returns:
            The members that have reached it.
        """
        for round_index in range(min(self._at.values()) + 1, last_round + 1):
            behind = [name for name, at in self._at.items() if at == round_index - 1]
            if round_index not in self._certificates or not behind:
                continue
            known = self._certificates[round_index]
            at = (round_index, known.attempt)
            if known.voids:
                replies, _ = self._ask("query.skip", behind, _PACKAGES, at, voids=known.voids)
            else:
                shown = {"packages": known.packages, "releases": known.releases}
                replies, _ = self._ask("query.catch_up", behind, _PACKAGES, at, **shown)
            for name, reply in replies.items():
                with suppress(ProtocolError):  # it stays behind, and is asked again before the next round
                    self._epochs.post(reply)
                    self._at[name] = round_index
        # A member that stays away longer than results are kept is out of this study: nobody else gives it the state.
        slowest = max(min(self._at.values()), last_round - KEPT_ROUNDS)
        self._certificates = {r: c for r, c in self._certificates.items() if r > slowest}
        self._aggregation.forget(slowest + 1)
        return [name for name, at in self._at.items() if at >= last_round]

    # -- inside ------------------------------------------------------------------------------------------

    def _own(self, name: str, reply: Reply, field: str, kind: type[RoundResult | Void]) -> bytes:
        """Take a member's own signed message out of its reply."""
        signed = one(reply, field)
        sender = open_signed(signed, kind, self._roster, self._epochs.number).sender
        if sender != name:
            raise MalformedMessage(f"{name} passed on the {kind.TYPE} of {sender}")
        return signed

    def _request(self, at: tuple[int, int], **signed: list[bytes]) -> Reply:
        return {"round": at[0], "attempt": at[1], **signed}

    def _ask(
        self,
        kind: str,
        members: Collection[str],
        expected: tuple[str, ...],
        at: tuple[int, int],
        **signed: list[bytes],
    ) -> tuple[dict[str, Reply], dict[str, Error]]:
        return self._exchange.ask(kind, {name: self._request(at, **signed) for name in members}, expected)

    def _enough(
        self, members: Collection[str], at: tuple[int, int], lost: Mapping[str, Error], least: int = 0
    ) -> None:
        least = max(least, self._terms.threshold)
        if len(members) < least:
            why = "; ".join(error.message for error in lost.values())
            refused = sum(isinstance(error, ParticipantRefused) for error in lost.values())
            left = f"round {at[0]} has {len(members)} members left, below the threshold {least}"
            raise _TooFew(
                ParticipantLost(left + (f": {why}" if why else "")),
                may_try_again=not self._has_result(at[0]) and len(self._at) - refused >= least,
            )

    def _has_result(self, round_index: int) -> bool:
        """Whether somebody may have applied the round: then no other attempt can be its result."""
        return round_index in self._certificates or round_index in self._opened

    def _answers(
        self,
        aggregator: RoundAggregator,
        kind: str,
        members: Collection[str],
        at: tuple[int, int],
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
            answers, lost = self._ask(kind, asked, ("answer",), at, **signed)
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
