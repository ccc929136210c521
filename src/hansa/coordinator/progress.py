"""How far a running study is, for whoever watches it from another process: one record in the journal, written now and then."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hansa.coordinator.exchange import Waiting
from hansa.coordinator.journal import Journal
from hansa.coordinator.rounds import RoundSummary

SCOPE = "progress"
_LEAST_SECONDS = 0.25  # between two writes of who has answered
STAGES = {
    "query.join": "joining an epoch",
    "query.deal": "dealing keys",
    "query.vote": "voting for the manifest",
    "query.enter": "entering the epoch",
    "query.packages": "making packages",
    "train": "training and uploading",
    "query.answer": "checking the roster",
    "query.consents": "consenting to the roster",
    "query.unmask": "opening the sum",
    "query.open": "opening the sum",
    "query.void": "asking whether the sum fails",
    "query.skip": "leaving the round behind",
    "query.close": "comparing states",
    "query.catch_up": "catching up",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a study is.

    Attributes:
        round: Round that is over, from 0.
        rounds: Rounds of the study.
        stage: What members are asked for, in words.
        waiting: Members that have not answered.
        since: Wall clock when they were asked.
        problem: Why the loop waits before it tries again; empty if it does not.
        round_seconds: Wall seconds of the last rounds.
        up_bytes: Bytes from members so far, in this process.
        down_bytes: Bytes to members so far, in this process.
    """

    round: int
    rounds: int
    stage: str = ""
    waiting: tuple[str, ...] = ()
    since: float = 0.0
    problem: str = ""
    round_seconds: tuple[float, ...] = ()
    up_bytes: int = 0
    down_bytes: int = 0

    @property
    def seconds_left(self) -> float | None:
        """Guess of the wall seconds until the end; None before the first round."""
        if not self.round_seconds:
            return None
        return sum(self.round_seconds) / len(self.round_seconds) * (self.rounds - self.round)


def read_progress(journal: Journal, session: str) -> Progress | None:
    """Read how far a study is; None if it never ran."""
    raw = journal.get(SCOPE, session)
    if raw is None:
        return None
    values: dict[str, Any] = json.loads(raw)
    return Progress(
        **{**values, "waiting": tuple(values["waiting"]), "round_seconds": tuple(values["round_seconds"])}
    )


class ProgressWriter:
    """Keeps the record of one study.

    Args:
        journal: Where it is.
        session: Whose.
        rounds: Rounds of the study.
        now: Wall clock, seconds.

    Guarantees:
        - What stands in the record is at most 0.25 s older than what the loop said last, as long as it says it again.
    """

    def __init__(
        self, journal: Journal, session: str, *, rounds: int, now: Callable[[], float] = time.time
    ) -> None:
        self._journal, self._session, self._now = journal, session, now
        known = read_progress(journal, session)
        self._values: dict[str, Any] = {
            "round": 0, "rounds": rounds, "stage": "", "waiting": [], "since": 0.0, "problem": "",
            "round_seconds": list(known.round_seconds) if known else [], "up_bytes": 0, "down_bytes": 0,
        }  # fmt: skip
        self._written, self._noted = 0.0, dict[str, Any]()

    def waits(self, waiting: Waiting) -> None:
        """Note whom the loop waits for; what comes too soon after the last note is written when it is said again."""
        stage = STAGES.get(waiting.kind, waiting.kind)
        is_new = stage != self._values["stage"]
        if is_new:
            self._values["since"] = self._now()
        self._values |= {"stage": stage, "waiting": list(waiting.members), "problem": ""}
        is_other = self._values != self._noted
        if is_new or (is_other and self._now() - self._written >= _LEAST_SECONDS):
            self._write()

    def round_ended(self, summary: RoundSummary, *, up_bytes: int, down_bytes: int) -> None:
        """Note a round that is over."""
        seconds = [*self._values["round_seconds"], round(summary.seconds, 3)][-10:]
        self._values |= {"round": summary.round, "round_seconds": seconds}
        self._values |= {"up_bytes": up_bytes, "down_bytes": down_bytes, "stage": "", "waiting": []}
        self._write()

    def begins(self, done: int) -> None:
        """Note that the loop begins, with so many rounds that are over."""
        self._values |= {"round": done}
        self._write()

    def has_problem(self, problem: str) -> None:
        """Note why the loop waits before it tries again."""
        self._values |= {"problem": problem[:500], "stage": "", "waiting": []}
        self._write()

    def ended(self) -> None:
        """Note that nobody is asked for anything any more."""
        self._values |= {"stage": "", "waiting": [], "problem": ""}
        self._write()

    def _write(self) -> None:
        self._written, self._noted = self._now(), dict(self._values)
        self._journal.put(SCOPE, {self._session: json.dumps(self._values).encode()})
