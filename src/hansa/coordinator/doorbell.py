"""Who waits for what: lets nodes and round loops wait for messages instead of asking again and again.

Flower's interface has no way to wait; its own nodes ask every three seconds. Here the grid rings when it has put
messages into the SuperLink, and the TLS front, which keeps a node waiting that long, rings when a node has put its
reply there. Both are in one process. Nothing depends on a ring: who waits asks the SuperLink anyway when its time is
over.
"""

import threading
from collections.abc import Callable


class Doorbell:
    """Counts what is on its way to each node, and replies that came; any thread may use it.

    Guarantees:
        - A message that is announced before, while or after somebody begins to wait wakes it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._announced: dict[int, int] = {}
        self._fetched: dict[int, int] = {}
        self._releases: dict[int, int] = {}
        self._listeners: dict[int, set[Callable[[], None]]] = {}
        self._replies = threading.Condition()
        self._reply_count = 0

    # -- messages to nodes -------------------------------------------------------------------------------

    def ring(self, node: int) -> None:
        """Say that one more message may lie ready for a node."""
        with self._lock:
            self._announced[node] = self._announced.get(node, 0) + 1
            listeners = list(self._listeners.get(node, ()))
        for wake in listeners:
            wake()

    def release(self, node: int) -> None:
        """Say that whoever waits for this node need not wait any longer: it leaves, or has come anew."""
        with self._lock:
            self._releases[node] = self._releases.get(node, 0) + 1
        self.ring(node)

    def releases(self, node: int) -> int:
        """Count the calls of `release`."""
        with self._lock:
            return self._releases.get(node, 0)

    def announced(self, node: int) -> int:
        """Count the messages that were announced so far; asked for before the SuperLink is."""
        with self._lock:
            return self._announced.get(node, 0)

    def expects(self, node: int) -> bool:
        """Tell whether messages may lie ready for a node; at first, they may."""
        with self._lock:
            return self._fetched.get(node, -1) < self._announced.get(node, 0)

    def fetched(self, node: int, announced: int, *, message: bool) -> None:
        """Say what the SuperLink gave a node: a message, or none although so many were announced."""
        with self._lock:
            fetched = self._fetched.get(node, 0)
            most = self._announced.get(node, 0)
            self._fetched[node] = min(fetched + 1, most) if message else max(fetched, announced)

    def listen(self, node: int, wake: Callable[[], None]) -> None:
        """Have `wake` called at every ring for a node; from any thread."""
        with self._lock:
            self._listeners.setdefault(node, set()).add(wake)

    def stop_listening(self, node: int, wake: Callable[[], None]) -> None:
        """End `listen`."""
        with self._lock:
            self._listeners.get(node, set()).discard(wake)

    # -- replies -----------------------------------------------------------------------------------------

    def reply_came(self) -> None:
        """Say that a node has sent a reply."""
        with self._replies:
            self._reply_count += 1
            self._replies.notify_all()

    def wait_for_reply(self, seen: int, timeout_seconds: float) -> int:
        """Wait until there are more replies than `seen`, or the time is over; give their number."""
        with self._replies:
            self._replies.wait_for(lambda: self._reply_count != seen, timeout_seconds)
            return self._reply_count
