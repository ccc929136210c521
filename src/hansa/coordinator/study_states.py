"""Where studies stand: what their documents say, and one word of the loop that runs them.

proposed ──start──> queued ──> running <──> paused
    │                            │  └─────> stopped
    └──(time is over) expired    └──> finished, failed
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from hansa.coordinator.journal import Journal
from hansa.coordinator.study_desk import ProposedStudy, StudyDesk
from hansa.errors import Error, StudyUnknown, UsageError
from hansa.secure_agg.certificates import CLOCK_SKEW

SCOPE = "outcomes"
State = Literal["proposed", "expired", "queued", "running", "paused", "stopped", "finished", "failed"]
Word = Literal["", "running", "finished", "failed"]
OVER = frozenset({"expired", "stopped", "finished", "failed"})
_LEAST_SESSION_DIGITS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the loop says of a study.

    Attributes:
        word: Whether it runs, or how it ended; empty before the loop has seen it.
        error: Code of the error that ended it.
        message: What was wrong.
    """

    word: Word = ""
    error: str = ""
    message: str = ""


class Outcomes:
    """What the loop said of each study, in the journal.

    Guarantees:
        - An end stands: nothing that is said later changes it.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def get(self, study: ProposedStudy) -> Outcome:
        """Give what the loop said last."""
        raw = self._journal.get(SCOPE, session_of(study))
        return Outcome() if raw is None else Outcome(**json.loads(raw))

    def note(self, study: ProposedStudy, word: Word, error: Error | None = None) -> None:
        """Say what becomes of a study."""
        before = self.get(study)
        if before.word in ("finished", "failed"):
            return
        after = Outcome(
            word=word,
            error="" if error is None else error.code,
            message="" if error is None else error.message[:1000],
        )
        values = {"word": after.word, "error": after.error, "message": after.message}
        self._journal.put(SCOPE, {session_of(study): json.dumps(values).encode()})
        if before.word != word:
            detail = {"error": after.error, "message": after.message} if error else {}
            self._journal.event(f"study_{word}", study=name_of(study), session=session_of(study), **detail)


def name_of(study: ProposedStudy) -> str:
    """Short name of a study."""
    return str(study.proposal.body.study.get("name", ""))


def session_of(study: ProposedStudy) -> str:
    """Session id of a study, 32 hexadecimal digits."""
    return study.proposal.body.session_id.hex()


def state_of(study: ProposedStudy, outcome: Outcome, now: datetime) -> State:
    """Say where a study stands."""
    if outcome.word in ("finished", "failed"):
        return outcome.word
    action = study.commands[-1].body.action if study.commands else "resume"
    if action != "resume":
        return "stopped" if action == "stop" else "paused"
    if study.start is not None:
        return "running" if outcome.word == "running" else "queued"
    return "expired" if now > study.proposal.body.expires + CLOCK_SKEW else "proposed"


def find_study(desk: StudyDesk, outcomes: Outcomes, name: str, now: datetime) -> ProposedStudy:
    """Return the study that somebody means by its name, or by the begin of its session.

    Of several with one name it is the only one that is not over, otherwise the latest.

    Raises:
        StudyUnknown: There is none.
        UsageError: Several that are not over have this name.
    """
    studies = desk.all()
    found = [study for study in studies if name_of(study) == name] or [
        study
        for study in studies
        if len(name) >= _LEAST_SESSION_DIGITS and session_of(study).startswith(name)
    ]
    if not found:
        raise StudyUnknown(f"there is no study {name[:80]!r}")
    standing = [study for study in found if state_of(study, outcomes.get(study), now) not in OVER]
    if len(standing) > 1:
        sessions = ", ".join(session_of(study)[:8] for study in standing)
        raise UsageError(
            f"{len(standing)} studies of the name {name!r} are not over", hint=f"name a session: {sessions}"
        )
    return (standing or found)[-1]
