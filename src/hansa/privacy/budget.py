"""A participant's privacy budget for one data set: an append-only file that is written before data is read.

    1 reserve  the steps of a round, fsynced, before the first record is read
    2 commit   after the update has left

What is reserved counts as spent, committed or not: after a crash nothing is under-counted. Each line holds the hash of the line
before it, so a changed line shows, and a removed one if another follows. Not protected against: somebody who rewrites the file or
cuts off its end; signatures and the binding to the identity of the data come with the audit ledger.
"""

import fcntl
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from hansa import labels
from hansa.errors import BudgetExhausted, LedgerDamaged, StoreNotWritable
from hansa.privacy.accounting import epsilon_of

_START = "0" * 64
_KINDS = ("reserve", "commit")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spending:
    """What a round asks for: equal Poisson-subsampled Gaussian steps."""

    study: str
    round: int
    attempt: int
    noise_multiplier: float
    sample_rate: float
    steps: int


class Budget:
    """The budget of one data set.

    Args:
        path: The ledger file; made if it does not exist.
        epsilon_limit: ε that this data set may ever spend.
        delta: δ at which ε is stated.

    Raises:
        LedgerDamaged: A line is not readable or the chain is broken.

    Guarantees:
        - A reservation is on the disk before `reserve` returns.
        - A refused reservation leaves the file as it was, and so does one for which the disk has no room.
        - ε counts every reservation, committed or not.
        - A reservation that another writer of the same file has overtaken is refused.
    """

    def __init__(self, path: Path, *, epsilon_limit: float, delta: float) -> None:
        self._path, self.epsilon_limit, self.delta = path, epsilon_limit, delta
        self._last = _START
        self._steps: dict[tuple[float, float], int] = {}
        self._committed: set[tuple[str, int, int]] = set()
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        for number, line in enumerate(lines, start=1):
            self._take(line, number)
        self._ledger_bytes = sum(map(len, lines))

    def epsilon(self, further: Spending | None = None) -> float:
        """Compute ε spent, and with a further round on top where one is given."""
        steps = dict(self._steps)
        if further is not None:
            key = (further.noise_multiplier, further.sample_rate)
            steps[key] = steps.get(key, 0) + further.steps
        # Basic composition over unlike mechanisms: one study uses one mechanism, so the sum has one term there.
        delta = self.delta / max(len(steps), 1)
        return sum(
            epsilon_of(noise_multiplier=sigma, sample_rate=rate, steps=count, delta=delta)
            for (sigma, rate), count in steps.items()
        )

    def reserve(self, spending: Spending) -> float:
        """Step 1: reserve a round.

        Returns:
            ε after it.

        Raises:
            BudgetExhausted: The round would pass the limit.
            StoreNotWritable: The disk is full.
            LedgerDamaged: Somebody else has written to the ledger since it was read.
        """
        after = self.epsilon(spending)
        if not after <= self.epsilon_limit:  # a limit that is NaN allows nothing
            raise BudgetExhausted(
                f"round {spending.round} would spend epsilon {after:.3f}, above the limit {self.epsilon_limit:g}"
            )
        self._append("reserve", asdict(spending))
        return after

    def commit(self, spending: Spending) -> None:
        """Step 2: note that the round's update has left; once, however often it is called."""
        if (spending.study, spending.round, spending.attempt) not in self._committed:
            self._append("commit", asdict(spending))

    def _append(self, kind: str, entry: dict[str, Any]) -> None:
        body = json.dumps({"kind": kind, **entry}, sort_keys=True)
        line = json.dumps({"body": body, "hash": _link(self._last, body)}, sort_keys=True).encode() + b"\n"
        with self._path.open("ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_size != self._ledger_bytes:
                raise LedgerDamaged(f"{self._path.name} was changed by somebody else while it was in use")
            self._write(file, line)
            os.fsync(file.fileno())
        if not self._ledger_bytes:  # a new file is on the disk once its name is
            _sync_directory(self._path.parent)
        self._ledger_bytes += len(line)
        self._take(line, 0)

    def _write(self, file: FileIO, line: bytes) -> None:
        try:
            if file.write(line) < len(line):
                raise OSError("no room for the whole line")
        except OSError as error:
            file.truncate(
                self._ledger_bytes
            )  # a part of a line would be taken for damage when it is read again
            raise StoreNotWritable(f"{self._path.name} cannot be written: {error}") from error

    def _take(self, line: bytes, number: int) -> None:
        """Check a line's link and count its reservation."""
        try:
            parsed = json.loads(line)
            body, link = parsed["body"], parsed["hash"]
            entry = json.loads(body)
            kind, steps = entry["kind"], int(entry["steps"])
            key = (float(entry["noise_multiplier"]), float(entry["sample_rate"]))
            paid = (str(entry["study"]), int(entry["round"]), int(entry["attempt"]))
            complete = line.endswith(b"\n") and kind in _KINDS and steps >= 0
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise LedgerDamaged(f"line {number} of {self._path.name} cannot be read") from error
        if not complete:
            raise LedgerDamaged(f"line {number} of {self._path.name} is not a whole entry")
        if link != _link(self._last, body):
            raise LedgerDamaged(f"line {number} of {self._path.name} does not continue the line before it")
        self._last = link
        if kind == "commit":
            self._committed.add(paid)
        else:
            self._steps[key] = self._steps.get(key, 0) + steps


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(previous: str, body: str) -> str:
    return hashlib.sha256(labels.LEDGER_ENTRY + bytes.fromhex(previous) + body.encode()).hexdigest()
