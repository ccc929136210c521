"""The round loop in strict mode: every member answers in every exchange, or the study stops.

    1 advertise  members make and sign their one-time keys of the round
    2 train      relay all round keys; members train and upload to the aggregator
    3 open       members fetch and open the sum and confirm their new state
    4 close      relay all confirmations; members check each other

The loop relays signed messages and checks signatures; it holds no model, no key and no update.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, ConfigRecordValues, Message, RecordDict
from flwr.serverapp import Grid

from hansa.coordinator.aggregator import AggregationService
from hansa.errors import MalformedMessage, ParticipantLost
from hansa.secure_agg.agreement import verify_results
from hansa.secure_agg.identity import Roster

_ATTEMPT = 0  # strict mode has one attempt a round
_PULL_SECONDS = 0.002


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSummary:
    """What the coordinator knows of a finished round.

    Attributes:
        round: Number, from 1.
        seconds: Wall seconds.
    """

    round: int
    seconds: float


class RoundLoop:
    """Runs the rounds of one study.

    Args:
        grid: Flower's way to the nodes.
        roster: Members; the id of node k on the grid is given by `nodes`.
        nodes: Node id of each member.
        aggregation: Where members upload to.
        rounds: Rounds of the study.
        deadline_seconds: Longest wait for the answers of one exchange.
        on_round: Called after each round.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        roster: Roster,
        nodes: Mapping[str, int],
        aggregation: AggregationService,
        rounds: int,
        deadline_seconds: float,
        on_round: Callable[[RoundSummary], None],
    ) -> None:
        self._grid, self._roster, self._nodes = grid, roster, dict(nodes)
        self._aggregation, self._rounds = aggregation, rounds
        self._deadline_seconds, self._on_round = deadline_seconds, on_round

    def run(self) -> None:
        """Run all rounds.

        Raises:
            ParticipantLost: A member did not answer in time, or answered with an error code.
            ProtocolError: A member's answer is not what the protocol allows.
        """
        for round_index in range(1, self._rounds + 1):
            started = time.monotonic()
            self._aggregation.begin(round_index, _ATTEMPT)
            round_keys = self._exchange("query.advertise", round_index, "round_key")
            self._exchange("train", round_index, "header", round_keys=round_keys)
            results = self._exchange("query.open", round_index, "result")
            verify_results(results, self._roster, round_index, _ATTEMPT)
            self._exchange("query.close", round_index, "closed", results=results)
            self._on_round(RoundSummary(round=round_index, seconds=time.monotonic() - started))

    def _exchange(self, kind: str, round_index: int, expected: str, **signed: list[bytes]) -> list[bytes]:
        """Ask every member and wait for every answer; give the signed messages in roster order."""
        request: dict[str, ConfigRecordValues] = {"round": round_index, "attempt": _ATTEMPT, **signed}
        asked = {node: member for member, node in self._nodes.items()}
        messages = [
            Message(
                RecordDict({"request": ConfigRecord(request)}),
                dst_node_id=node,
                message_type=kind,
                ttl=self._deadline_seconds,
                group_id=str(round_index),
            )
            for node in asked
        ]
        pending = dict(zip(self._grid.push_messages(messages), asked, strict=True))
        answers: dict[str, bytes] = {}
        deadline = time.monotonic() + self._deadline_seconds
        while pending:
            for reply in self._grid.pull_messages(list(pending)):
                # The sender is the node that the grid took the answer of this message from; what the reply says of
                # its sender is not looked at.
                node = pending.pop(reply.metadata.reply_to_message_id, None)
                if node is None:
                    raise MalformedMessage(f"the grid gave an answer to {kind} that was not asked for")
                answers[asked[node]] = _answer(reply, asked[node], expected)
            if pending and time.monotonic() > deadline:
                late = ", ".join(sorted(asked[node] for node in pending.values()))
                raise ParticipantLost(f"no answer to {kind} within {self._deadline_seconds:g} s from {late}")
            if pending:
                time.sleep(_PULL_SECONDS)
        return [answers[member] for member in self._roster.participants]


def _answer(reply: Message, member: str, expected: str) -> bytes:
    """Take the one expected value out of a reply."""
    if reply.has_error():
        raise ParticipantLost(f"{member} failed with Flower error {reply.error.code}")
    record = reply.content.config_records.get("reply")
    if record is None:
        raise MalformedMessage(f"the reply of {member} holds no record 'reply'")
    if "error" in record:
        raise ParticipantLost(f"{member} refused: {str(record['error'])[:64]}")
    value = record.get(expected)
    if len(record) == 1 and expected == "closed" and value is True:
        return b""
    if len(record) != 1 or not isinstance(value, bytes):
        raise MalformedMessage(f"the reply of {member} does not hold {expected} alone")
    return value
