"""Streams that stand still: whoever sends or reads nothing for a while loses its stream, and may go on with another one."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STALL_SECONDS = 60.0


class Progress:
    """When a stream moved last."""

    __slots__ = ("_clock", "at")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.at: float | None = clock()

    def moved(self) -> None:
        """Say that the peer did something."""
        self.at = self._clock()

    def waits_for_us(self) -> None:
        """Say that it is not the peer's turn until `moved`."""
        self.at = None


class StallWatch:
    """Cancels the calls of streams that stand still; a thread of its own looks at them.

    Args:
        stall_seconds: How long a stream may stand still.
        clock: Seconds, never going back.
    """

    def __init__(
        self, stall_seconds: float = STALL_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stall_seconds, self._clock = stall_seconds, clock
        self._lock, self._over = threading.Lock(), threading.Event()
        self._streams: dict[int, tuple[Any, Progress]] = {}
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, context: Any) -> Iterator[Progress]:
        """Watch a call for as long as the block runs."""
        progress = Progress(self._clock)
        with self._lock:
            self._streams[id(progress)] = (context, progress)
        try:
            yield progress
        finally:
            with self._lock:
                del self._streams[id(progress)]

    def start(self) -> None:
        """Begin to look."""
        self._thread = threading.Thread(target=self._look, name="stalls", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(min(1.0, self._stall_seconds / 4)):
            with self._lock:
                streams = list(self._streams.values())
            for context, progress in streams:
                at = progress.at
                if at is not None and self._clock() - at > self._stall_seconds:
                    context.cancel()
