"""How far each member is, and how those that missed the end of a round are brought to it."""

from collections.abc import Collection, Mapping
from contextlib import suppress

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.epochs import Epochs
from hansa.coordinator.exchange import Exchange, Reply
from hansa.coordinator.loop_state import At, LoopState
from hansa.coordinator.results import KEPT_ROUNDS
from hansa.errors import Error, ProtocolError

PACKAGES = ("packages", "shares")


class Members:
    """The members of a study as its round loop sees them.

    Args:
        exchange: Way to them.
        epochs: The running epoch.
        aggregation: Serves the results of past rounds.
        state: What is known of them, kept.
    """

    def __init__(
        self, exchange: Exchange, epochs: Epochs, aggregation: AggregationService, state: LoopState
    ) -> None:
        self._exchange, self._epochs, self._aggregation, self._state = exchange, epochs, aggregation, state

    def at(self, round_index: int) -> list[str]:
        """Give the members whose last round is this one."""
        return [name for name, reached in self._state.at.items() if reached == round_index]

    def ask(
        self, kind: str, members: Collection[str], expected: tuple[str, ...], at: At, **signed: list[bytes]
    ) -> tuple[dict[str, Reply], dict[str, Error]]:
        """Ask members the same about an attempt; as `Exchange.ask`."""
        request: Reply = {"round": at[0], "attempt": at[1], **signed}
        return self._exchange.ask(kind, {name: dict(request) for name in members}, expected)

    def ask_each(
        self, kind: str, requests: Mapping[str, Reply], expected: tuple[str, ...], at: At
    ) -> tuple[dict[str, Reply], dict[str, Error]]:
        """Ask members each its own about an attempt; as `Exchange.ask`."""
        named: dict[str, Reply] = {
            name: {"round": at[0], "attempt": at[1], **request} for name, request in requests.items()
        }
        return self._exchange.ask(kind, named, expected)

    def catch_up(self, last_round: int) -> list[str]:
        """Bring members that missed the end of a round to the state of the last one, as far as they answer.

        Returns:
            The members that have reached it.
        """
        state = self._state
        for round_index in range(min(state.at.values()) + 1, last_round + 1):
            behind = self.at(round_index - 1)
            if round_index not in state.certificates or not behind:
                continue
            known = state.certificates[round_index]
            at = (round_index, known.attempt)
            if known.voids:
                replies, _ = self.ask("query.skip", behind, PACKAGES, at, voids=known.voids)
            else:
                shown = {"packages": known.packages, "releases": known.releases}
                replies, _ = self.ask("query.catch_up", behind, PACKAGES, at, **shown)
            reached: dict[str, int] = {}
            for name, reply in replies.items():
                with suppress(ProtocolError):  # it stays behind, and is asked again before the next round
                    self._epochs.post(reply)
                    reached[name] = round_index
            if reached:
                state.reached(reached)
        # A member that stays away longer than results are kept is out of this study: nobody else gives it the state.
        slowest = max(min(state.at.values()), last_round - KEPT_ROUNDS)
        state.forget_before(slowest)
        self._aggregation.forget(slowest + 1)
        return [name for name, reached_round in state.at.items() if reached_round >= last_round]
