"""What is left to do when a study is over: members that were away get its last state, and its ciphertexts are removed."""

import json
import shutil
import time
from collections.abc import Callable, Sequence

from hansa.coordinator.study_desk import ProposedStudy
from hansa.coordinator.study_run import RunnerParts, StudyRun
from hansa.coordinator.study_states import name_of, session_of
from hansa.errors import Error, Interrupted, StoreNotWritable
from hansa.federation.logs import log

SCOPE = "homecoming"
_FIRST_PAUSE_SECONDS = 1.0
_DAY_SECONDS = 86_400.0


class Homecoming:
    """Looks after studies that are over, one at a time.

    A member that was away when the last round ended can open that round itself: the certificate and the sum, which is a
    ciphertext, are all that it needs, and the coordinator has both.

    Args:
        parts: What studies are run with.
        now: Wall clock, seconds.

    Guarantees:
        - A member that comes back within `absent_days` after the end of a finished study gets the state of its last round; one
          that is more than `results.KEPT_ROUNDS` rounds behind, or behind a change of keys, does not.
        - After that, and at once where nobody is behind or the study was stopped, no ciphertext of it is left here.
        - Those of a study that failed are kept for `absent_days`: with their signed headers they show who said what.
        - Killed at any moment, another one on the same journal and folders goes on.
    """

    def __init__(self, parts: RunnerParts, *, now: Callable[[], float] = time.time) -> None:
        self._parts, self._now, self._log = parts, now, log("coordinator")
        self._settled = {
            session for session, raw in parts.journal.items(SCOPE).items() if json.loads(raw)["settled"]
        }
        self._due: dict[str, float] = {}
        self._pauses: dict[str, float] = {}

    def look(
        self,
        finished: Sequence[ProposedStudy],
        stopped: Sequence[ProposedStudy],
        gave_up: Callable[[], bool],
        *,
        failed: Sequence[ProposedStudy] = (),
    ) -> None:
        """Look after every study once, as far as something is due.

        Args:
            finished: Studies whose rounds are all over.
            stopped: Studies that were started, and that their author ended before that.
            gave_up: Whether something else is to be done by now.
            failed: Studies that were started and failed.
        """
        for study in stopped:
            self._look_at(study, lambda study=study: self._settle(study, []))  # type: ignore[misc]
        for study in failed:
            self._look_at(study, lambda study=study: self._keep_for_a_while(study))  # type: ignore[misc]
        for study in finished:
            if gave_up():
                return
            self._look_at(study, lambda study=study: self._bring_home(study, gave_up))  # type: ignore[misc]

    def _look_at(self, study: ProposedStudy, step: Callable[[], None]) -> None:
        """Do what is due for one study; what goes wrong is logged, and tried again after a pause."""
        session = session_of(study)
        if session in self._settled or self._due.get(session, 0.0) > time.monotonic():
            return
        try:
            step()
        except Interrupted:
            pass
        except Exception as error:  # also of a disk: one study keeps no other one from what is due
            self._wait(session)
            code = error.code if isinstance(error, Error) else type(error).__name__
            self._log.warning(
                "homecoming_waits", study=name_of(study), error_code=code, message=str(error)[:1000]
            )

    def _bring_home(self, study: ProposedStudy, gave_up: Callable[[], bool]) -> None:
        session = session_of(study)
        run = StudyRun(study, self._parts, may_go_on=lambda: True, gave_up=gave_up)
        if run.behind and self._now() < self._kept_until(session):
            try:
                run.bring_home()
            finally:
                self._say(run)
            if run.behind:
                self._wait(session)
                return
        self._settle(study, run.behind)

    def _keep_for_a_while(self, study: ProposedStudy) -> None:
        session = session_of(study)
        if self._now() < self._kept_until(session):
            self._wait(session)
        else:
            self._settle(study, [])

    def _kept_until(self, session: str) -> float:
        return self._ended_at(session) + self._parts.absent_days * _DAY_SECONDS

    def _say(self, run: StudyRun) -> None:
        """Leave word for whoever looks at the study."""
        if run.behind:
            run.progress.has_problem(
                f"the last state is kept for {', '.join(run.behind)}, away when the study ended"
            )
        else:
            run.progress.ended()

    def _wait(self, session: str) -> None:
        pause = self._pauses.get(session, _FIRST_PAUSE_SECONDS)
        self._due[session] = time.monotonic() + pause
        self._pauses[session] = min(1.5 * pause, self._parts.longest_pause_seconds)

    def _ended_at(self, session: str) -> float:
        """When it was first seen to be over."""
        raw = self._parts.journal.get(SCOPE, session)
        if raw is None:
            raw = json.dumps({"ended": self._now(), "settled": False}).encode()
            self._parts.journal.put(SCOPE, {session: raw})
        return float(json.loads(raw)["ended"])

    def _settle(self, study: ProposedStudy, left_behind: Sequence[str]) -> None:
        """Remove the ciphertexts, then say that it is done; killed in between, it is done again."""
        session = session_of(study)
        ended = self._ended_at(session)
        try:
            shutil.rmtree(self._parts.results / session)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreNotWritable(
                f"ciphertexts of a study that is over cannot be removed: {error.strerror}",
                hint="give the coordinator's user the right to write into the folder 'results' of its home",
            ) from error
        record = json.dumps({"ended": ended, "settled": True}).encode()
        self._parts.journal.put(SCOPE, {session: record})
        self._settled.add(session)
        self._parts.journal.event(
            "study_settled", study=name_of(study), session=session, left_behind=list(left_behind)
        )
        if left_behind:
            self._log.warning("members_left_behind", study=name_of(study), members=list(left_behind))
