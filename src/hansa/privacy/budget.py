"""A participant's privacy budget for one data set: an append-only file that is written before data is read.

    1 reserve  the steps of a round, fsynced, before the first record is read
    2 commit   after the update has left

What is reserved counts as spent, committed or not: after a crash nothing is under-counted. Each line holds the hash of the line
before it, so a removed or changed line shows. Not protected against: somebody who rewrites the whole file; signatures and the
binding to the identity of the data come with the audit ledger.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hansa import labels
from hansa.errors import BudgetExhausted, LedgerDamaged
from hansa.privacy.accounting import epsilon_of

_START = "0" * 64


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
        - A refused reservation leaves the file as it was.
        - ε counts every reservation, committed or not.
    """

    def __init__(self, path: Path, *, epsilon_limit: float, delta: float) -> None:
        self._path, self.epsilon_limit, self.delta = path, epsilon_limit, delta
        self._last = _START
        self._steps: dict[tuple[float, float], int] = {}
        if path.exists():
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                self._take(line, number)

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
        """
        after = self.epsilon(spending)
        if after > self.epsilon_limit:
            raise BudgetExhausted(
                f"round {spending.round} would spend epsilon {after:.3f}, above the limit {self.epsilon_limit:g}"
            )
        self._append("reserve", asdict(spending))
        return after

    def commit(self, spending: Spending) -> None:
        """Step 2: note that the round's update has left."""
        self._append("commit", asdict(spending))

    def _append(self, kind: str, entry: dict[str, Any]) -> None:
        body = json.dumps({"kind": kind, **entry}, sort_keys=True)
        line = json.dumps({"body": body, "hash": _link(self._last, body)}, sort_keys=True)
        with self._path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(line, 0)

    def _take(self, line: str, number: int) -> None:
        """Check a line's link and count its reservation."""
        try:
            parsed = json.loads(line)
            body, link = parsed["body"], parsed["hash"]
            entry = json.loads(body)
            kind = entry["kind"]
            key, steps = (float(entry["noise_multiplier"]), float(entry["sample_rate"])), int(entry["steps"])
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerDamaged(f"line {number} of {self._path.name} cannot be read") from error
        if link != _link(self._last, body):
            raise LedgerDamaged(f"line {number} of {self._path.name} does not continue the line before it")
        self._last = link
        if kind == "reserve":
            self._steps[key] = self._steps.get(key, 0) + steps


def _link(previous: str, body: str) -> str:
    return hashlib.sha256(labels.LEDGER_ENTRY + bytes.fromhex(previous) + body.encode()).hexdigest()
