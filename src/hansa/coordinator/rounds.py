"""The coordinator's loop: an epoch, then round after round, with whoever answers.

    E1-E4 epoch    join, deal, vote, enter: every member must answer
    R1 train       the cohort: members with an unused package that hold the last round's state
    R2 answer      those whose upload came
    R3 consents    only if somebody of the cohort is missing
    R5 unmask      relay T releases; members confirm their new state
    R6 close       relay the confirmations
    catch up       before the next round, members that missed the end of the last one

Strict mode has R1, one exchange for R2 to R5, and R6; there every member must answer. The loop relays signed messages and checks
signatures; it holds no model, no key and no update.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from flwr.serverapp import Grid

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.exchange import Exchange, Reply, one, several
from hansa.coordinator.expectations import Expectations
from hansa.errors import Error, MalformedMessage, ParticipantLost, ProtocolError
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.attempt import verify_results
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.messages import RoundResult, open_signed
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.relay import EpochRelay, PackageBoard

EPOCH = 1
_ATTEMPT = 0  # a round that falls below the threshold ends the study
_OPENED = ("packages", "shares", "result")


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSummary:
    """What the coordinator knows of a finished round.

    Attributes:
        round: Number, from 1.
        seconds: Wall seconds.
        contributors: Members whose update is in the sum.
        finished: Members that confirmed the new state within the round.
    """

    round: int
    seconds: float
    contributors: tuple[str, ...]
    finished: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Certificate:
    """What a member that missed a round needs beside headers and aggregate."""

    packages: list[bytes]
    releases: list[bytes]


class RoundLoop:
    """Runs the rounds of one study.

    Args:
        grid: Flower's way to the nodes.
        roster: Members.
        terms: Mode and threshold.
        nodes: Node id of each member.
        aggregation: Where members upload to.
        rounds: Rounds of the study.
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
        deadline_seconds: float,
        on_round: Callable[[RoundSummary], None],
        ciphertext_count: int | None = None,
    ) -> None:
        self._exchange = Exchange(grid, nodes, deadline_seconds)
        self._roster, self._terms, self._aggregation = roster, terms, aggregation
        self._rounds, self._on_round = rounds, on_round
        self._expectations = Expectations(roster, terms, ciphertext_count=ciphertext_count)
        self._board = PackageBoard(roster, terms, EPOCH)
        self._at = dict.fromkeys(roster.participants, 0)
        self._certificates: dict[int, _Certificate] = {}

    def run(self) -> None:
        """Enter the epoch and run all rounds.

        Raises:
            ParticipantLost: Fewer members than the threshold are left in a round, or one is missing where all must answer.
            ProtocolError: The members' answers do not fit together.
        """
        self._enter_epoch()
        for round_index in range(1, self._rounds + 1):
            started = time.monotonic()
            self._catch_up(round_index - 1)
            aggregator, finished = self._round(round_index)
            self._on_round(
                RoundSummary(
                    round=round_index,
                    seconds=time.monotonic() - started,
                    contributors=aggregator.contributors,
                    finished=tuple(sorted(finished)),
                )
            )
        self._catch_up(self._rounds)

    # -- the epoch ---------------------------------------------------------------------------------------

    def _enter_epoch(self) -> None:
        relay, everybody = EpochRelay(self._roster, EPOCH), self._roster.participants
        for reply in self._all("query.join", everybody, ("join",), number=EPOCH).values():
            relay.accept_join(one(reply, "join"))
        dealt = self._all("query.deal", (relay.dealer,), ("deal",), number=EPOCH, joins=relay.joins())
        relay.accept_deal(one(dealt[relay.dealer], "deal"))
        setup = {"joins": relay.joins(), "deal": [relay.deal()]}
        for reply in self._all("query.vote", everybody, ("vote",), number=EPOCH, **setup).values():
            relay.accept_vote(one(reply, "vote"))
        entered = self._all(
            "query.enter", everybody, ("packages", "shares"), number=EPOCH, votes=relay.votes()
        )
        for reply in entered.values():
            self._post(reply)
        self._expectations.epoch_entered(EPOCH, relay.deal(), relay.votes())

    # -- a round -----------------------------------------------------------------------------------------

    def _round(self, round_index: int) -> tuple[RoundAggregator, set[str]]:
        cohort = [name for name in self._board.available() if self._at[name] == round_index - 1]
        self._enough(cohort, round_index, {})
        packages, shares = self._board.take(cohort)
        expected = self._expectations.of(round_index, _ATTEMPT, packages)
        aggregator = self._aggregation.begin(EPOCH, round_index, _ATTEMPT, cohort, expected)
        # R1
        requests = {
            name: self._request(round_index, packages=packages, shares=shares[name]) for name in cohort
        }
        _, lost = self._exchange.ask("train", requests, ("header",))
        lost |= aggregator.refused
        alive = [name for name in aggregator.contributors if name not in lost]
        self._enough(alive, round_index, lost)
        self._aggregation.close()
        # R2 to R5
        opened = self._open_strictly if self._terms.strict else self._open
        replies = opened(round_index, aggregator, alive, packages)
        # R6
        results: dict[str, bytes] = {}
        for name, reply in replies.items():
            try:
                results[name] = self._confirmation(name, reply)
                self._post(reply)
                self._at[name] = round_index
            except ProtocolError as error:
                lost[name] = error
                results.pop(name, None)
        self._enough(results, round_index, lost)
        shown = list(results.values())
        verify_results(shown, self._roster, EPOCH, round_index, _ATTEMPT, self._terms.threshold)
        self._expectations.round_confirmed(shown)
        closed = {name: self._request(round_index, results=shown) for name in results}
        answers, lost = self._exchange.ask("query.close", closed, ("closed",))
        if self._terms.strict:
            self._enough(answers, round_index, lost)
        for name in lost:  # it has applied the round but not closed it; catching up closes it
            self._at[name] = round_index - 1
        return aggregator, set(answers)

    def _open(
        self, round_index: int, aggregator: RoundAggregator, alive: Collection[str], packages: list[bytes]
    ) -> dict[str, Reply]:
        """Steps R2 to R5 in quorum mode."""
        answers, lost = self._ask("query.answer", alive, ("answer",), round_index)
        self._take(aggregator, answers, lost)
        if aggregator.needs_consents:
            self._enough([name for name in answers if name not in lost], round_index, lost)
            consents = aggregator.consents()
            standing = [name for name in answers if name not in lost]
            answers, more = self._ask("query.consents", standing, ("answer",), round_index, consents=consents)
            lost |= more
            self._take(aggregator, answers, lost)
        releasing = [name for name in answers if name not in lost]
        self._enough(releasing, round_index, lost)
        releases = aggregator.releases()
        self._certificates[round_index] = _Certificate(packages=packages, releases=releases)
        replies, lost = self._ask("query.unmask", releasing, _OPENED, round_index, releases=releases)
        self._enough(replies, round_index, lost)
        return replies

    def _open_strictly(
        self, round_index: int, _aggregator: RoundAggregator, alive: Collection[str], _packages: list[bytes]
    ) -> dict[str, Reply]:
        """Steps R2 to R5 in strict mode."""
        replies, lost = self._ask("query.open", alive, _OPENED, round_index)
        self._enough(replies, round_index, lost)
        return replies

    def _catch_up(self, last_round: int) -> None:
        """Bring members that missed the end of a round to the state of the last one, as far as they answer."""
        for round_index in range(min(self._at.values()) + 1, last_round + 1):
            behind = [name for name, at in self._at.items() if at == round_index - 1]
            if round_index not in self._certificates or not behind:
                continue
            known = self._certificates[round_index]
            replies, _ = self._ask(
                "query.catch_up",
                behind,
                ("packages", "shares"),
                round_index,
                packages=known.packages,
                releases=known.releases,
            )
            for name, reply in replies.items():
                with contextlib.suppress(
                    ProtocolError
                ):  # it stays behind, and is asked again before the next round
                    self._post(reply)
                    self._at[name] = round_index
        slowest = min(self._at.values())
        self._certificates = {r: c for r, c in self._certificates.items() if r > slowest}
        self._aggregation.forget(slowest + 1)

    def _confirmation(self, name: str, reply: Reply) -> bytes:
        """Take a member's own signed RoundResult out of its reply."""
        signed = one(reply, "result")
        sender = open_signed(signed, RoundResult, self._roster, EPOCH).sender
        if sender != name:
            raise MalformedMessage(f"{name} passed on the result of {sender}")
        return signed

    # -- inside ------------------------------------------------------------------------------------------

    def _request(self, number: int, **signed: list[bytes]) -> Reply:
        return {"round": number, "attempt": _ATTEMPT, **signed}

    def _ask(
        self,
        kind: str,
        members: Collection[str],
        expected: tuple[str, ...],
        number: int,
        **signed: list[bytes],
    ) -> tuple[dict[str, Reply], dict[str, Error]]:
        return self._exchange.ask(kind, {name: self._request(number, **signed) for name in members}, expected)

    def _all(
        self,
        kind: str,
        members: Collection[str],
        expected: tuple[str, ...],
        *,
        number: int,
        **signed: list[bytes],
    ) -> dict[str, Reply]:
        """Ask members that must all answer."""
        replies, lost = self._ask(kind, members, expected, number, **signed)
        for error in lost.values():
            raise error
        return replies

    def _enough(self, members: Collection[str], round_index: int, lost: Mapping[str, Error]) -> None:
        if len(members) < self._terms.threshold:
            why = "; ".join(error.message for error in lost.values())
            raise ParticipantLost(
                f"round {round_index} has {len(members)} members left, below the threshold {self._terms.threshold}"
                + (f": {why}" if why else "")
            )

    def _take(
        self, aggregator: RoundAggregator, answers: Mapping[str, Reply], lost: dict[str, Error]
    ) -> None:
        """Take consents and releases; a member whose answer is not accepted counts as lost."""
        for name, reply in answers.items():
            try:
                if aggregator.accept_answer(one(reply, "answer")) != name:
                    raise MalformedMessage(f"{name} passed on the answer of another member")
            except ProtocolError as error:
                lost[name] = error

    def _post(self, reply: Reply) -> None:
        """Put a member's unused packages on the board."""
        packages, shares = several(reply, "packages"), several(reply, "shares")
        members = len(self._roster.members)
        if len(shares) != members * len(packages):
            raise MalformedMessage(f"{len(packages)} packages came with {len(shares)} sealed shares")
        for place, package in enumerate(packages):
            self._board.accept(package, shares[members * place : members * (place + 1)])
