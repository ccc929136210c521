"""Injected dropouts: in every round some members vanish, each at a random stage, and come back before the next one.

A member that has vanished answers nothing until it is asked to catch up, and it comes back as a new process would. At the
stage where it vanishes the request is lost, or it is served and the answer is lost, which for the member is the harder
case: it has acted and nobody told it what became of it.
"""

import secrets
import threading
from collections.abc import Callable, Sequence

from hansa.errors import ParticipantLost
from hansa.local_grid import from_bytes

_STAGES = ("train", "query.answer", "query.consents", "query.unmask", "query.close")
_RETURNS = ("query.catch_up", "query.skip")


class Dropouts:
    """Decides who vanishes, and where.

    Args:
        names: The members.
        count: Members that vanish in every round.
        on_return: Called with the id of a member that comes back, before it is asked anything.
    """

    def __init__(
        self, names: Sequence[str], count: int, *, on_return: Callable[[str], None] = lambda _: None
    ) -> None:
        self._names, self._count, self._on_return = tuple(names), count, on_return
        self._random = secrets.SystemRandom()
        self._lock = threading.Lock()
        self._round = ""
        self._vanishing: dict[str, tuple[str, bool]] = {}
        self._gone: set[str] = set()
        self.happened = 0

    def around(self, name: str, handler: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        """Wrap a member's handler."""

        def handle(message: bytes) -> bytes:
            metadata = from_bytes(message).metadata
            stage = metadata.message_type
            if self._is_gone(name, stage, metadata.group_id):
                raise ParticipantLost(f"{name} has vanished")
            at = self._vanishing.get(name)
            if stage not in _STAGES or at is None or at[0] != stage:
                return handler(message)
            with self._lock:
                self._gone.add(name)
                self.happened += 1
            if at[1]:
                handler(message)
            raise ParticipantLost(f"{name} vanishes at {stage}")

        return handle

    def _is_gone(self, name: str, stage: str, round_name: str) -> bool:
        with self._lock:
            if stage == "train" and round_name != self._round:
                self._round, self._gone = round_name, set()
                chosen = self._random.sample(self._names, self._count)
                self._vanishing = {
                    member: (self._random.choice(_STAGES), self._random.random() < 0.5) for member in chosen
                }
            returns = stage in _RETURNS and name in self._gone
            if stage in _RETURNS:
                self._gone.discard(name)
                self._vanishing.pop(name, None)
            gone = name in self._gone
        if returns:
            self._on_return(name)
        return gone
