"""What one run of one system gives, and the vectors that all systems add up."""

import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LEVELS = 127  # 8 bits: every vector holds whole levels in [-127, 127], or the same as floats in [-1, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One aggregation of one system.

    Attributes:
        participant_seconds: Processor seconds of each participant that was measured, for the whole aggregation.
        coordinator_seconds: Processor seconds of the coordinator for each participant.
        up_bytes: Sent by one participant.
        down_bytes: Received by one participant.
        largest_error: Of the sum, in levels of one participant; None where it was not checked.
        steps: Processor seconds of one participant by step.
    """

    participant_seconds: list[float]
    coordinator_seconds: float
    up_bytes: float
    down_bytes: float
    largest_error: float | None
    steps: dict[str, float] = field(default_factory=dict)


def levels_of(member: int, entries: int) -> NDArray[np.int64]:
    """The vector of a participant: (entries,) int64."""
    return np.random.default_rng([20261122, member]).integers(-LEVELS, LEVELS + 1, entries)


def floats_of(member: int, entries: int) -> NDArray[np.float32]:
    """The same vector as numbers in [-1, 1]."""
    return (levels_of(member, entries) / LEVELS).astype(np.float32)


class Stopwatch:
    """Processor seconds by who and what."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)

    @contextmanager
    def __call__(self, who: str, what: str) -> Iterator[None]:
        """Count what runs inside."""
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[who, what] += time.process_time() - start

    def of(self, who: str) -> float:
        """Everything of one party."""
        return sum(seconds for (name, _), seconds in self.seconds.items() if name == who)

    def steps(self, who: list[str]) -> dict[str, float]:
        """Mean of each step over some parties, without those that took no time worth a line."""
        found: dict[str, list[float]] = defaultdict(list)
        for (name, what), seconds in self.seconds.items():
            if name in who:
                found[what].append(seconds)
        means = {what: sum(values) / len(who) for what, values in found.items()}
        return {what: seconds for what, seconds in means.items() if seconds >= 0.0005}


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Keep what a native library prints out of the table."""
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def mean_sd(values: list[float]) -> dict[str, float | int | None]:
    """The form that a number has in a row."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": spread, "n": len(values)}


def processor_seconds_of(process_id: int) -> float:
    """User and system time of another process so far, to a hundredth of a second."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
