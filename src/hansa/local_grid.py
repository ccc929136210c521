"""A Flower `Grid` inside one machine: messages are serialised, handed to a node's handler, and the reply is kept until pulled.

No network, no database, no SuperLink. Every message crosses as the bytes that Flower's own serialisation gives, so nothing can
pass between the two sides that would not pass a wire. Nodes of one lane are served one after another, lanes side by side.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import cast
from uuid import uuid4

from flwr.app import Error as FlowerError
from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from hansa.errors import MalformedMessage

Handler = Callable[[bytes], bytes]
Tap = Callable[[str, bytes], None]

RUN_ID = 1
_CLIENT_APP_RAISED = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION
_CLOSE_SECONDS = 5.0


def to_bytes(message: Message) -> bytes:
    """Serialise a message as Flower does."""
    return cast(bytes, message_to_proto(message).SerializeToString())


def from_bytes(data: bytes) -> Message:
    """Read a message that `to_bytes` wrote."""
    return message_from_proto(ProtoMessage.FromString(data))


class LocalGrid(Grid):
    """Flower's public Grid over handlers in this machine.

    Args:
        handlers: How each node id answers a serialised message.
        lanes: Lane of each node id; one thread a lane.
        tap: Sees the direction ("to node", "from node") and bytes of every message; for tests.

    Guarantees:
        - Only serialised Flower messages pass between the sides.
        - A node answers the message that it was asked; anything else that it sends counts as a failure of that node.
        - `close` drops what is still waiting, and ends every thread as soon as its handler returns.
    """

    def __init__(
        self, handlers: Mapping[int, Handler], lanes: Mapping[int, int], *, tap: Tap | None = None
    ) -> None:
        # Flower's messages take their sender from the process's task; a SuperLink would set it.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SUPERLINK_NODE_ID
        self._handlers, self._lanes, self._tap = dict(handlers), dict(lanes), tap
        self._replies: dict[str, Message] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._queues: dict[int, queue.SimpleQueue[Message | None]] = {
            lane: queue.SimpleQueue() for lane in set(lanes.values())
        }
        self._threads = [
            threading.Thread(target=self._serve, args=(waiting,), daemon=True)
            for waiting in self._queues.values()
        ]
        for thread in self._threads:
            thread.start()

    def set_run(self, run: Run) -> None:
        """Refuse: a local grid has one run."""
        raise NotImplementedError("a local grid serves one run, made with it")

    @property
    def run(self) -> Run:
        """Refuse: there is no run record without a SuperLink."""
        raise NotImplementedError("a local grid keeps no run record")

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
        """List the nodes."""
        return list(self._handlers)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to their nodes' lanes; give their ids."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid4().hex
            ids.append(message.metadata.message_id)
            self._queues[self._lanes[message.metadata.dst_node_id]].put(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Give the replies that have come for these ids, each once."""
        with self._lock:
            return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Refuse: hansa's round loop has its own quorum and deadline."""
        raise NotImplementedError("use push_messages and pull_messages")

    def close(self) -> None:
        """Drop the messages that wait and end the threads; one that is stuck in its handler is not waited for longer than 5 s."""
        self._closed = True
        for waiting in self._queues.values():
            waiting.put(None)
        for thread in self._threads:
            thread.join(timeout=_CLOSE_SECONDS)

    def _serve(self, waiting: "queue.SimpleQueue[Message | None]") -> None:
        while (message := waiting.get()) is not None and not self._closed:
            reply = self._ask(message)
            with self._lock:
                self._replies[message.metadata.message_id] = reply

    def _ask(self, message: Message) -> Message:
        try:
            request = to_bytes(message)
            self._see("to node", request)
            answer = self._handlers[message.metadata.dst_node_id](request)
            self._see("from node", answer)
            reply = from_bytes(answer)
            if reply.metadata.reply_to_message_id != message.metadata.message_id:
                raise MalformedMessage("a node answered a message that it was not asked")
        except Exception as error:  # whatever a node's process does, the grid answers as Flower would
            name = type(error).__name__
            return Message(FlowerError(_CLIENT_APP_RAISED, name), reply_to=message)
        return reply

    def _see(self, direction: str, data: bytes) -> None:
        if self._tap is not None:
            self._tap(direction, data)
