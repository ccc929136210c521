"""Runs the studies that were started, one after another, in a thread of the coordinator's process.

What can be outlived is outlived: members that are away, a SuperLink that is started again, a full disk. The study waits, says why,
and goes on where it was. What cannot, such as members that hold different states, ends it as failed, with the error's code.
"""

import threading
import time

from hansa.coordinator.homecoming import Homecoming
from hansa.coordinator.study_desk import ProposedStudy, StudyDesk
from hansa.coordinator.study_run import RunnerParts, StudyRun
from hansa.coordinator.study_states import Outcomes, State, state_of
from hansa.errors import (
    ConfigurationError,
    Error,
    InternalFailure,
    Interrupted,
    ModelDivergence,
    StoreDamaged,
    StoreNotWritable,
    TranscriptDivergence,
)
from hansa.federation.logs import log
from hansa.secure_agg.certificates import utc_now

_LOOK_SECONDS = 0.5
_FIRST_PAUSE_SECONDS = 1.0
_SAY_AGAIN_SECONDS = 60.0
IDLE = "no study runs"
# Whatever a member or the network does wrong is waited for; of these, waiting mends nothing.
_FATAL = (ModelDivergence, TranscriptDivergence, StoreDamaged, InternalFailure, ConfigurationError)


class StudyRunner:
    """Runs studies.

    Args:
        desk: The documents of studies.
        parts: What studies are run with.

    Attributes:
        doing: A line about what it does.

    Guarantees:
        - A study that a killed process left running goes on when another one is made on the same journal and folders.
        - Nothing but signed documents decides what is run.
        - A study that is over, paused or stopped is not run; of several that were started, the first one is.
        - What is left to do for studies that are over waits until none runs; see `Homecoming`.
    """

    def __init__(self, desk: StudyDesk, parts: RunnerParts) -> None:
        self._desk, self._parts, self._outcomes = desk, parts, Outcomes(parts.journal)
        self._stopping, self._log = threading.Event(), log("coordinator")
        self._thread = threading.Thread(target=self._run, name="study-runner", daemon=True)
        self._home = Homecoming(parts)
        self._looked_at, self._stopped = 0.0, False  # see `_is_stopped`
        self._wanted_at, self._wanted = 0.0, False  # see `_is_wanted`
        self._said = ""  # why a study waits, as it was noted last
        self._told: dict[str, float] = {}  # which error of the runner itself was told when
        self.doing = IDLE

    def start(self) -> None:
        """Begin to run studies."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Leave the study where it is, and wait so long for the thread to end."""
        self._stopping.set()
        self._thread.join(seconds)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    # -- inside ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.doing = IDLE
            try:
                study = self._next()
                if study is not None:
                    self._run_study(study)
                else:
                    self._look_after_the_ended()
            except Error as error:  # the journal itself does not answer
                if self._is_news(error.code):
                    self._log.error("runner_failed", error_code=error.code, message=error.message)
            except Exception as error:
                if self._is_news(type(error).__name__):
                    self._log.exception("runner_failed", kind=type(error).__name__)
            self._stopping.wait(_LOOK_SECONDS)

    def _is_news(self, what: str) -> bool:
        """Whether an error was not told in the last minute: a journal may be away for a week."""
        now = time.monotonic()
        if now - self._told.get(what, -_SAY_AGAIN_SECONDS) < _SAY_AGAIN_SECONDS:
            return False
        self._told[what] = now
        return True

    def _next(self) -> ProposedStudy | None:
        """Give the study that runs, or the one that was started first of those that wait."""
        found = [(study, self._state(study)) for study in self._desk.all()]
        states = [state for _, state in found]
        self._parts.metrics.studies({state: states.count(state) for state in set(states)})
        running = [study for study, state in found if state == "running"]
        queued = [study for study, state in found if state == "queued"]
        queued.sort(key=lambda study: study.start.body.created if study.start else utc_now())
        return next(iter([*running, *queued]), None)

    def _look_after_the_ended(self) -> None:
        found = [(study, self._state(study)) for study in self._desk.all() if study.start is not None]
        finished, stopped, failed = (
            [study for study, state in found if state == wanted]
            for wanted in ("finished", "stopped", "failed")
        )
        self._home.look(finished, stopped, self._is_wanted, failed=failed)

    def _run_study(self, study: ProposedStudy) -> None:
        """Run one study until it is over, paused or stopped, or this process is to end."""
        self._outcomes.note(study, "running")
        digest = study.digest
        run = StudyRun(
            study,
            self._parts,
            may_go_on=lambda: self._may_go_on(digest),
            gave_up=lambda: self._stopping.is_set() or self._is_stopped(digest),
        )
        pause = _FIRST_PAUSE_SECONDS
        while self._may_go_on(digest):
            before = run.rounds_done
            try:
                run.run(self._does)
            except Interrupted:
                break
            except _FATAL as error:
                self._failed(study, run, error)
                break
            except (
                Error,
                OSError,
            ) as error:  # of the latter it is the disk's, or there are no descriptors left
                known = (
                    error if isinstance(error, Error) else StoreNotWritable(f"a file of the study: {error}")
                )
                pause = _FIRST_PAUSE_SECONDS if run.rounds_done > before else pause
                self._waits(run, known, pause)
                pause = min(1.5 * pause, self._parts.longest_pause_seconds)
            except Exception as error:
                self._log.exception("study_failed", study=run.name, kind=type(error).__name__)
                self._failed(study, run, InternalFailure(f"{type(error).__name__} in the round loop"))
                break
            else:
                self._ended(study, run)
                break
        run.progress.ended()

    def _does(self, words: str) -> None:
        self.doing = words

    def _waits(self, run: StudyRun, error: Error, pause: float) -> None:
        detail = {"session": run.session, "error_code": error.code, "message": error.message[:1000]}
        words = f"{run.session} {error.code} {error.message}"
        self._parts.metrics.study_failed(run.name)
        if words != self._said:  # a member that is away for a week fills neither log nor journal
            self._said = words
            self._log.warning("study_waits", study=run.name, **detail)
            self._parts.journal.event("study_waits", study=run.name, **detail)
        run.progress.has_problem(f"{error.message} [{error.code}]")
        self.doing = f"{run.name}: waits, {error.code}"
        self._stopping.wait(pause)

    def _failed(self, study: ProposedStudy, run: StudyRun, error: Error) -> None:
        self._log.error("study_failed", study=run.name, error_code=error.code, message=error.message)
        self._outcomes.note(study, "failed", error)

    def _ended(self, study: ProposedStudy, run: StudyRun) -> None:
        """The loop has returned: all rounds are over, or the author has paused or stopped it."""
        if run.rounds_done >= run.rounds:
            self._outcomes.note(study, "finished")
            self._log.info("study_finished", study=run.name, rounds=run.rounds)

    def _state(self, study: ProposedStudy) -> State:
        return state_of(study, self._outcomes.get(study), utc_now())

    def _may_go_on(self, digest: bytes) -> bool:
        return not self._stopping.is_set() and self._state(self._desk.get(digest)) == "running"

    def _is_stopped(self, digest: bytes) -> bool:
        """Whether the author has ended the study; looked up at most twice a second, for it is asked all the time."""
        now = time.monotonic()
        if now - self._looked_at > _LOOK_SECONDS:
            self._looked_at = now
            self._stopped = self._state(self._desk.get(digest)) == "stopped"
        return self._stopped

    def _is_wanted(self) -> bool:
        """Whether a study waits to be run, or the process is to end; looked up at most twice a second."""
        now = time.monotonic()
        if now - self._wanted_at > _LOOK_SECONDS:
            self._wanted_at = now
            self._wanted = self._next() is not None
        return self._wanted or self._stopping.is_set()
