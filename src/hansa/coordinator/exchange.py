"""One exchange with members over Flower's grid: ask some, wait, take what came in the form that was asked for."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, ConfigRecordValues, Message, RecordDict
from flwr.serverapp import Grid

from hansa.errors import (
    CohortMismatch,
    Error,
    Interrupted,
    MalformedMessage,
    ParticipantLost,
    ParticipantRefused,
)
from hansa.federation.fleet_messages import ABORTED

Reply = dict[str, ConfigRecordValues]
_PULL_SECONDS = 0.002
_CODE = re.compile(r"[a-z][a-z_]{0,63}", re.ASCII)
_TELL_SECONDS = 0.5
_LISTS, _CLOSED = ("packages", "shares"), "closed"  # all other fields are one signed message


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """Who is asked for what.

    Attributes:
        kind: Flower message type of the exchange.
        round: Round, or the epoch's number while one is set up.
        members: Those that have not answered yet, sorted.
    """

    kind: str
    round: int
    members: tuple[str, ...]


class Exchange:
    """Asks members and collects their answers.

    Args:
        grid: Flower's way to the nodes.
        nodes: Node id of each member.
        deadline_seconds: Longest wait for the answers of one exchange.
        observe: Called when members are asked, whenever one of them has answered, and now and then while the others have not.
        gave_up: Whether nobody waits for answers any more: the process is to end.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[str, int],
        deadline_seconds: float,
        *,
        observe: Callable[["Waiting"], None] = lambda _: None,
        gave_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._grid, self._nodes, self._deadline_seconds = grid, dict(nodes), deadline_seconds
        self._observe, self._gave_up = observe, gave_up

    def ask(
        self, kind: str, requests: Mapping[str, Reply], expected: Iterable[str]
    ) -> tuple[dict[str, Reply], dict[str, Error]]:
        """Ask each member its own request; one whose node fails is asked once more.

        Args:
            kind: Flower message type.
            requests: Request of each member that is asked.
            expected: Exactly the fields of a good answer.

        Returns:
            The good answers by member, and for every other member why it counts as lost.

        Raises:
            Interrupted: Nobody waits any more.
        """
        fields = frozenset(expected)
        asked_again: set[str] = set()
        pending, lost = self._push_known(kind, requests)
        answers: dict[str, Reply] = {}
        deadline = time.monotonic() + self._deadline_seconds
        told_at = self._tell(kind, requests, pending)
        while pending and time.monotonic() <= deadline:
            if self._gave_up():
                raise Interrupted(f"stopped while {len(pending)} members were asked for {kind}")
            before = len(pending)
            for reply in self._grid.pull_messages(list(pending)):
                # The sender is the node that the grid took this answer from; what the reply says of its sender is not
                # looked at.
                member = pending.pop(reply.metadata.reply_to_message_id, None)
                if member is None:
                    raise MalformedMessage(f"the grid gave an answer to {kind} that was not asked for")
                if reply.has_error() and member not in asked_again:
                    asked_again.add(
                        member
                    )  # a node that crashed may be back: it answers with what it had stored
                    again, gone = self._push_known(kind, {member: requests[member]})
                    pending, lost = pending | again, lost | gone
                    continue
                try:
                    answers[member] = _answer(reply, member, fields)
                except (ParticipantLost, MalformedMessage) as error:
                    lost[member] = error
            if len(pending) != before or time.monotonic() - told_at > _TELL_SECONDS:
                told_at = self._tell(kind, requests, pending)
            if pending:
                time.sleep(_PULL_SECONDS)
        for member in pending.values():
            lost[member] = ParticipantLost(
                f"no answer to {kind} within {self._deadline_seconds:g} s from {member}"
            )
        return answers, lost

    def _tell(self, kind: str, requests: Mapping[str, Reply], pending: Mapping[str, str]) -> float:
        at = next(iter(requests.values()), {}).get("round", 0)
        number = at if isinstance(at, int) else 0
        self._observe(Waiting(kind=kind, round=number, members=tuple(sorted(pending.values()))))
        return time.monotonic()

    def _push_known(
        self, kind: str, requests: Mapping[str, Reply]
    ) -> tuple[dict[str, str], dict[str, Error]]:
        """Send each member its request; one that is no member of the consortium any more counts as lost."""
        try:
            return self._push(kind, requests), {}
        except CohortMismatch:  # before anything was sent
            pending: dict[str, str] = {}
            lost: dict[str, Error] = {}
            for member, request in requests.items():
                try:
                    pending |= self._push(kind, {member: request})
                except CohortMismatch:
                    lost[member] = ParticipantLost(f"{member} is no member of the consortium any more")
            return pending, lost

    def _push(self, kind: str, requests: Mapping[str, Reply]) -> dict[str, str]:
        """Send each member its request; give the members by message id."""
        members = sorted(requests)
        messages = [
            Message(
                RecordDict({"request": ConfigRecord(requests[member])}),
                dst_node_id=self._nodes[member],
                message_type=kind,
                ttl=self._deadline_seconds,
                group_id=str(requests[member]["round"]),
            )
            for member in members
        ]
        return dict(zip(self._grid.push_messages(messages), members, strict=True))


def _answer(reply: Message, member: str, fields: frozenset[str]) -> Reply:
    """Take exactly the expected fields out of a reply."""
    if reply.has_error():
        raise ParticipantLost(f"{member} failed with Flower error {reply.error.code}")
    record = reply.content.config_records.get("reply")
    if record is None:
        raise MalformedMessage(f"the reply of {member} holds no record 'reply'")
    if "error" in record:
        code = str(record["error"])[:64]
        code = code if _CODE.fullmatch(code) else "a code that is none"
        kind = ParticipantLost if code == ABORTED else ParticipantRefused
        raise kind(f"{member} refused: {code}")
    if set(record) != fields:
        raise MalformedMessage(f"the reply of {member} does not hold {', '.join(sorted(fields))} alone")
    wrong = [field for field in sorted(fields) if not _is_well_formed(field, record[field])]
    if wrong:
        raise MalformedMessage(f"{', '.join(wrong)} in the reply of {member} is not of its type")
    return dict(record)


def _is_well_formed(field: str, value: ConfigRecordValues) -> bool:
    if field in _LISTS:
        return isinstance(value, list) and all(isinstance(item, bytes) for item in value)
    return value is True if field == _CLOSED else isinstance(value, bytes)


def one(reply: Reply, field: str) -> bytes:
    """Take a signed message out of a reply, or raise MalformedMessage."""
    value = reply[field]
    if not isinstance(value, bytes):
        raise MalformedMessage(f"{field} of a reply is not bytes")
    return value


def several(reply: Reply, field: str) -> list[bytes]:
    """Take a list of byte strings out of a reply, or raise MalformedMessage."""
    value = reply[field]
    if not isinstance(value, list):
        raise MalformedMessage(f"{field} of a reply is not a list")
    found = [item for item in value if isinstance(item, bytes)]
    if len(found) != len(value):
        raise MalformedMessage(f"{field} of a reply holds something that is not bytes")
    return found
