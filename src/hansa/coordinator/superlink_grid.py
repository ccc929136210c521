"""Flower's `Grid` over a SuperLink, for a ServerApp inside this process; it outlives SuperLink and nodes.

A SuperLink delivers each message once and keeps no promise after that: a message that a node had fetched when it
died is never given to it again, and a SuperLink that dies takes all runs with it. This grid keeps every request
until it is answered or over. It sends it again when its node has come back since, and when there is another
SuperLink; a participant answers the same request with the same reply, so nothing is done twice. What a node said
comes back under the id that the request was first given, whichever copy it answered.
"""

import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from secrets import token_hex

from flwr.app import Error as FlowerError
from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.serverapp import Grid
from flwr.supercore.constant import NodeStatus
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from hansa.coordinator.doorbell import Doorbell
from hansa.coordinator.superlink import SuperLink
from hansa.coordinator.superlink_run import HEARTBEAT_SECONDS, SuperLinkRun
from hansa.errors import CohortMismatch, Error, MalformedMessage, MessageTooLarge, TransportError
from hansa.federation.fleet_messages import MOST_MESSAGE_BYTES, node_number, to_proto
from hansa.federation.flower_api import FlowerApi

PATIENCE_SECONDS = 150.0
_SHORTEST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.02, 0.1
_RUNG_POLL_SECONDS = 0.5  # where replies are announced
_LOOK_SECONDS = 1.0  # between two looks at which nodes are there
_MESSAGES_OF_A_RUN = 1000
_ANSWERS = 64  # of the largest kind, in one answer of the SuperLink
_UNDELIVERED = {
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
}

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Asked:
    """A request that has no reply yet.

    Attributes:
        message: The request, its content whole.
        node: Number of its node; see `node_number`.
        over_at: Unix time at which nobody wants a reply any more.
        copies: Ids under which the SuperLink has it.
        sent_at: Unix time at which the last copy was sent.
        is_due: Whether it must be sent again as soon as the node is there.
    """

    message: Message
    node: int
    over_at: float
    copies: list[str] = field(default_factory=list)
    sent_at: float = 0.0
    is_due: bool = True


class SuperLinkGrid(Grid):
    """See the module. Any thread may use it; several studies share one through `SessionGrid`.

    Args:
        superlink: A SuperLink that was started.
        doorbell: Where the front of the same process announces replies; without it the grid asks every 20 to 100 ms.
        patience_seconds: How long a node may be away before its requests count as lost. A node counts as away from
            20 s after its last sign of life on.
        most_bytes: Most bytes of one message.

    Guarantees:
        - A request whose node or SuperLink dies, comes back and lives is answered, without the round loop asking again.
        - A request whose node stays away longer than `patience_seconds` is answered with Flower's error for that; at
          once if the node was away that long before, or is no member's any more.
        - A reply is given once, under the id that `push_messages` gave.
        - What the SuperLink keeps for requests that are over is bounded: after 1000 messages it gets another run.
    """

    def __init__(
        self,
        superlink: SuperLink,
        *,
        doorbell: Doorbell | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        most_bytes: int = MOST_MESSAGE_BYTES,
    ) -> None:
        # Flower's messages take their sender from the process's task.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
        self._superlink, self._doorbell = superlink, doorbell
        self._patience_seconds, self._most_bytes = patience_seconds, most_bytes
        self._api = FlowerApi(f"http://{superlink.address}", most_bytes=most_bytes * _ANSWERS)
        self._lock = threading.RLock()  # of the attributes below
        self._run: SuperLinkRun | None = None
        self._asked: dict[str, _Asked] = {}
        self._nodes: dict[int, NodeInfo] = {}
        self._looked_at = 0.0
        self._local = threading.local()
        self._closed = threading.Event()
        threading.Thread(target=self._keep_alive, name="grid-heartbeat", daemon=True).start()

    def set_run(self, run: Run) -> None:
        """Refuse: the grid makes its runs itself."""
        raise NotImplementedError("this grid makes its own runs")

    @property
    def run(self) -> Run:
        """Describe the run of the moment; there is another one after every loss."""
        with self._lock:
            return Run.create_empty(self._running().run_id)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message (deprecated in Flower; `Message` does the same)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """List the numbers of the members' nodes that are there; see `node_number`."""
        with self._lock:
            with self._surviving():
                self._running()
                self._look()
            return [number for number, node in self._nodes.items() if node.status == NodeStatus.ONLINE]

    def wait_for_nodes(self, numbers: Collection[int], timeout_seconds: float) -> set[int]:
        """Wait until these nodes are there, and give those that are not when the time is over."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            absent = set(numbers) - set(self.get_node_ids())
            if not absent or time.monotonic() > deadline:
                return absent
            self._closed.wait(0.2)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages to the nodes with these numbers; give their ids.

        Raises:
            CohortMismatch: A node is not a member's.
            MessageTooLarge: A message is above the bound.
        """
        members = {node_number(key) for key in self._superlink.members().values()}
        asked = {}
        for message in messages:
            if message.metadata.dst_node_id not in members:
                raise CohortMismatch(f"node {message.metadata.dst_node_id} is not one of a member")
            size = to_proto(message, "0" * 64).ByteSize()
            if size > self._most_bytes:
                raise MessageTooLarge(f"a message has {size} bytes, the bound is {self._most_bytes}")
            over_at = message.metadata.created_at + message.metadata.ttl
            asked[token_hex(32)] = _Asked(message, message.metadata.dst_node_id, over_at)
        self._local.seconds = _SHORTEST_POLL_SECONDS
        with self._lock:
            now = time.time()
            self._asked = {name: known for name, known in self._asked.items() if known.over_at > now} | asked
            with self._surviving():
                self._send(self._running(), asked.values())
        return list(asked)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait a moment for replies to these ids, and give those that have come, each once."""
        self._wait()
        with self._lock:
            asked = {name: self._asked[name] for name in message_ids if name in self._asked}
            found: list[Message] = []
            with self._surviving():
                run = self._running()
                self._collect(run, asked, found)
                if time.monotonic() - self._looked_at > _LOOK_SECONDS:
                    self._look()
                    self._send(run, [known for known in asked.values() if self._is_due(known)])
            for reply in found:
                del self._asked[reply.metadata.reply_to_message_id]
            return found + self._given_up(asked)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for their replies, for those that come from Flower's own strategies."""
        waiting = set(self.push_messages(messages))
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        found: list[Message] = []
        while waiting and time.monotonic() < deadline:
            replies = list(self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in replies}
            found += replies
        return found

    def close(self) -> None:
        """End the run."""
        self._closed.set()
        with self._lock:
            if self._run is not None:
                with suppress(Error):
                    self._run.stop()
            self._run = None
        self._api.close()

    # -- the run -----------------------------------------------------------------------------------------

    def _running(self) -> SuperLinkRun:
        """Give the run; another one if the SuperLink is another one, or it has grown long and nobody waits for it."""
        generation = self._superlink.ensure_running()
        if self._run is not None and self._run.generation != generation:
            self._run = None
        if self._run is not None and self._run.sent > _MESSAGES_OF_A_RUN and not self._is_awaited():
            self._run.stop()
            self._run = None
        if self._run is None:
            self._run = SuperLinkRun(self._api, self._superlink.secret, generation)
            for known in self._asked.values():
                known.copies, known.is_due = [], True
            self._nodes, self._looked_at = {}, 0.0
        return self._run

    def _is_awaited(self) -> bool:
        now = time.time()
        return any(known.copies and known.over_at > now for known in self._asked.values())

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Let a SuperLink that fails cost nothing but its run."""
        try:
            yield
        except (TransportError, MalformedMessage) as error:
            logger.warning("%s: %s", error.code, error.message)
            self._run, self._nodes = None, {}

    def _keep_alive(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            run = self._run
            if run is not None:
                with suppress(Error):  # whoever uses it next finds out
                    run.keep_alive()

    # -- requests and replies ----------------------------------------------------------------------------

    def _send(self, run: SuperLinkRun, asked: Iterable[_Asked]) -> None:
        """Send a copy of each request; those that the SuperLink does not take stay due."""
        now = time.time()
        copies: dict[str, _Asked] = {
            token_hex(32): known
            for known in asked
            if known.over_at > now and self._node_id(known.node) is not None
        }
        if not copies:
            return
        request = PushAppMessagesRequest(
            messages_list=[self._copy(run, name, known, now) for name, known in copies.items()],
            message_object_trees=[ObjectTree(object_id=name) for name in copies],
        )
        taken = run.call("push-messages", request, PushAppMessagesResponse).message_ids
        run.sent += len(copies)
        for (name, known), found in zip(copies.items(), taken, strict=True):
            if found == name:
                known.copies.append(name)
                known.is_due, known.sent_at = False, now
                if self._doorbell is not None:
                    self._doorbell.ring(known.node)

    def _copy(self, run: SuperLinkRun, name: str, known: _Asked, now: float) -> ProtoMessage:
        proto = to_proto(known.message, name)
        metadata = proto.metadata
        metadata.run_id, metadata.src_node_id = run.run_id, SUPERLINK_NODE_ID
        metadata.dst_node_id = self._nodes[known.node].node_id
        metadata.created_at, metadata.ttl = now, known.over_at - now
        return proto

    def _collect(self, run: SuperLinkRun, asked: Mapping[str, _Asked], found: list[Message]) -> None:
        """Fetch replies to any copy of these requests."""
        copies = {copy: name for name, known in asked.items() for copy in known.copies}
        if not copies:
            return
        request = PullAppMessagesRequest(message_ids=list(copies))
        for proto in run.call("pull-messages", request, PullAppMessagesResponse).messages_list:
            copy = proto.metadata.reply_to_message_id
            name = copies.pop(copy, None)
            if name is None or any(reply.metadata.reply_to_message_id == name for reply in found):
                continue  # two copies were answered
            known = asked[name]
            reply = self._reply(proto, known)
            if reply.has_error() and reply.error.code in _UNDELIVERED:
                known.copies.remove(copy)
                known.is_due = known.is_due or not known.copies
                continue
            reply.metadata.__dict__["_reply_to_message_id"] = name
            found.append(reply)

    def _reply(self, proto: ProtoMessage, known: _Asked) -> Message:
        try:
            return message_from_proto(proto)
        except (
            Exception
        ) as error:  # whatever Flower's parser raises on a participant's bytes is the same to us
            name = type(error).__name__
            return Message(FlowerError(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, name), reply_to=known.message)

    def _wait(self) -> None:
        """Wait until a reply is announced, or for a while that grows with every wait that brought nothing."""
        seconds: float = getattr(self._local, "seconds", _SHORTEST_POLL_SECONDS)
        if self._doorbell is None:
            self._closed.wait(seconds)
            self._local.seconds = min(seconds * 1.2, _LONGEST_POLL_SECONDS)
        else:
            seen = getattr(self._local, "seen", -1)
            self._local.seen = self._doorbell.wait_for_reply(seen, _RUNG_POLL_SECONDS)

    # -- nodes -------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Find out which nodes are there."""
        self._nodes = {node_number(key): node for key, node in self._superlink.nodes().items()}
        self._looked_at = time.monotonic()

    def _node_id(self, number: int) -> int | None:
        if number not in self._nodes:
            self._look()
        node = self._nodes.get(number)
        return None if node is None else node.node_id

    def _is_due(self, known: _Asked) -> bool:
        """Tell whether a request must be sent (again): its node is there, and has none of it or came back since."""
        node = self._nodes.get(known.node)
        if node is None or node.status != NodeStatus.ONLINE:
            return False
        return known.is_due or _unix(node.last_activated_at) > known.sent_at

    def _given_up(self, asked: Mapping[str, _Asked]) -> list[Message]:
        """Answer requests for nodes that have been away for too long."""
        now, given_up = time.time(), []
        members = {node_number(key) for key in self._superlink.members().values()}
        for name, known in asked.items():
            if name not in self._asked:
                continue
            why = "no member any more" if known.node not in members else self._away(known.node, now)
            if why:
                reply = Message(FlowerError(ErrorCode.NODE_UNAVAILABLE, why), reply_to=known.message)
                reply.metadata.__dict__["_reply_to_message_id"] = name
                del self._asked[name]
                given_up.append(reply)
        return given_up

    def _away(self, number: int, now: float) -> str:
        """Say for how long a node has been away, where that is too long; empty otherwise."""
        node = self._nodes.get(number)
        if node is None or node.status == NodeStatus.ONLINE:
            return ""
        away_seconds = now - max(node.online_until, _unix(node.registered_at))
        return f"away for {away_seconds:.0f} s" if away_seconds > self._patience_seconds else ""


def open_grid(
    superlink: SuperLink, *, doorbell: Doorbell | None = None, patience_seconds: float = PATIENCE_SECONDS
) -> SuperLinkGrid:
    """Give a grid on a SuperLink that runs; see `SuperLinkGrid`."""
    return SuperLinkGrid(superlink, doorbell=doorbell, patience_seconds=patience_seconds)


def _unix(moment: str) -> float:
    """Read one of the SuperLink's times; 0 for none."""
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0
