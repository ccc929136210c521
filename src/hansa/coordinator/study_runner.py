"""Runs the studies that were started, one after another, in a thread of the coordinator's process.

What can be outlived is outlived: members that are away, a SuperLink that is started again, a full disk. The study waits, says why,
and goes on where it was. What cannot, such as members that hold different states, ends it as failed, with the error's code.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.ciphertext_adder import CiphertextAdder
from hansa.coordinator.journal import Journal
from hansa.coordinator.loop_state import LoopState
from hansa.coordinator.metrics import CoordinatorMetrics
from hansa.coordinator.progress import ProgressWriter
from hansa.coordinator.rounds import RoundLoop, RoundSummary
from hansa.coordinator.study_book import StudyBook, StudyRecord
from hansa.coordinator.upload_server import AggregatorServicer
from hansa.errors import (
    ConfigurationError,
    Error,
    InternalFailure,
    Interrupted,
    ModelDivergence,
    StoreDamaged,
    TranscriptDivergence,
)
from hansa.federation.agreements import roster_of, terms_of
from hansa.federation.fleet_messages import SessionGrid
from hansa.federation.logs import log
from hansa.secure_agg.certificates import RevocationList, utc_now

_LOOK_SECONDS = 0.5
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2.0, 60.0
# Whatever a member or the network does wrong is waited for; of these, waiting mends nothing.
_FATAL = (ModelDivergence, TranscriptDivergence, StoreDamaged, InternalFailure, ConfigurationError)


class StudyRunner:
    """Runs studies.

    Args:
        journal: The coordinator's.
        book: The studies.
        grid: Way to all nodes.
        node_of: Gives the grid's number of a member's node.
        data_plane: Where members upload to.
        adder: Parses and adds ciphertexts.
        results: Folder for results of rounds, one below it for each session.
        authority: Certificate (DER) of the consortium's authority.
        revoked: Gives the latest revocation list.
        exchange_seconds: Longest wait for the answers of one exchange.
        upload_seconds: Longest time of an upload.
        metrics: What is counted.

    Guarantees:
        - A study that a killed process left running goes on when another one is made on the same journal and folders.
        - Nothing but signed documents decides what is run.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        book: StudyBook,
        grid: Grid,
        node_of: Callable[[str], int],
        data_plane: AggregatorServicer,
        adder: CiphertextAdder,
        results: Path,
        authority: bytes,
        revoked: Callable[[], RevocationList | None],
        exchange_seconds: float,
        upload_seconds: float,
        metrics: CoordinatorMetrics,
    ) -> None:
        self._journal, self._book, self._grid, self._node_of = journal, book, grid, node_of
        self._data_plane, self._adder, self._results = data_plane, adder, results
        self._authority, self._revoked, self._metrics = authority, revoked, metrics
        self._exchange_seconds, self._upload_seconds = exchange_seconds, upload_seconds
        self._stopping, self._log = threading.Event(), log("coordinator")
        self._thread = threading.Thread(target=self._run, name="study-runner", daemon=True)
        self.doing = "no study runs"
        self._looked_at, self._stopped = 0.0, False  # see `_is_stopped`

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
            try:
                record = self._next()
                if record is not None:
                    self._run_study(record)
                else:
                    self.doing = "no study runs"
            except Error as error:  # the journal itself does not answer
                self._log.error("runner_failed", error_code=error.code, message=error.message)
            except Exception as error:
                self._log.exception(
                    "runner_failed", error_code=InternalFailure.code, kind=type(error).__name__
                )
            self._stopping.wait(_LOOK_SECONDS)

    def _next(self) -> StudyRecord | None:
        """Give the study that runs, or the one that was started first of those that wait."""
        now, found = utc_now(), self._book.all()
        states = {record.session: record.state(now) for record in found}
        self._metrics.studies({state: list(states.values()).count(state) for state in set(states.values())})
        running = [record for record in found if states[record.session] == "running"]
        queued = [record for record in found if states[record.session] == "queued"]
        queued.sort(key=_created)
        return next(iter([*running, *queued]), None)

    def _run_study(self, record: StudyRecord) -> None:
        """Run one study until it is over, paused or stopped, or this process is to end."""
        session, pause = record.session, _FIRST_PAUSE_SECONDS
        self._book.note(session, "running")
        study = record.proposed.body.agreement()
        progress = ProgressWriter(self._journal, session, rounds=study.training.rounds)
        while self._may_go_on(session):
            before = self._rounds_done(record)
            try:
                self._run_loop(record, progress)
            except Interrupted:
                break
            except _FATAL as error:
                self._failed(session, error)
                break
            except Error as error:
                if self._rounds_done(record) > before:
                    pause = _FIRST_PAUSE_SECONDS
                self._waits(record, progress, error, pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            except Exception as error:
                self._log.exception("study_failed", study=session, kind=type(error).__name__)
                self._failed(session, InternalFailure(f"{type(error).__name__} in the round loop"))
                break
            else:
                if self._rounds_done(record) >= study.training.rounds:
                    self._book.note(session, "finished")
                    self._log.info("study_finished", study=session, rounds=study.training.rounds)
                break
        progress.ended()

    def _run_loop(self, record: StudyRecord, progress: ProgressWriter) -> None:
        study, session = record.proposed.body.agreement(), record.session
        start = record.started()
        if start is None:
            raise InternalFailure(f"the study {session} was never started")
        members = [(member.name, member.identity) for member in start.body.roster]
        terms = terms_of(study)
        roster = roster_of(study, bytes.fromhex(session), members, self._authority)
        service = AggregationService(
            roster,
            terms,
            new_sums=self._adder.begin,
            results_folder=self._results / session,
            upload_seconds=self._upload_seconds,
        )
        seen = [0, 0]

        def on_round(summary: RoundSummary) -> None:
            up, down = service.uplink_bytes, service.downlink_bytes
            self._metrics.round_ended(record.name, summary, participants=len(members), now=time.time())
            self._metrics.traffic(up_bytes=up - seen[0], down_bytes=down - seen[1])
            seen[:] = [up, down]
            progress.round_ended(summary, up_bytes=up, down_bytes=down)
            self._journal.event("round_ended", study=session, **_as_detail(summary, up, down))
            self._log.info("round_ended", study=session, **_as_detail(summary, up, down))
            self.doing = f"{record.name}: round {summary.round}/{study.training.rounds}"

        done = self._rounds_done(record)
        progress.begins(done)
        self._metrics.study_begins(record.name, planned=study.training.rounds, done=done)
        self.doing = f"{record.name}: round {done}/{study.training.rounds}"
        self._data_plane.open_session(service, roster)
        try:
            RoundLoop(
                SessionGrid(self._grid, session),
                roster=roster,
                terms=terms,
                nodes={name: self._node_of(name) for name, _ in members},
                aggregation=service,
                rounds=study.training.rounds,
                rounds_per_epoch=study.aggregation.rounds_per_epoch,
                deadline_seconds=self._exchange_seconds,
                on_round=on_round,
                records=self._journal.records(f"loop/{session}"),
                revoked=self._revoked,
                may_go_on=lambda: self._may_go_on(session),
                observe=progress.waits,
                gave_up=lambda: self._stopping.is_set() or self._is_stopped(session),
            ).run()
        finally:
            self._data_plane.close_session(roster.session_id)

    def _waits(self, record: StudyRecord, progress: ProgressWriter, error: Error, pause: float) -> None:
        self._metrics.study_failed(record.name)
        problem = f"{error.message} [{error.code}]"
        self._log.warning("study_waits", study=record.session, error_code=error.code, message=error.message)
        self._journal.event("study_waits", study=record.session, error=error.code, message=error.message)
        progress.has_problem(problem)
        self.doing = f"{record.name}: waits: {error.code}"
        self._stopping.wait(pause)

    def _failed(self, session: str, error: Error) -> None:
        self._log.error("study_failed", study=session, error_code=error.code, message=error.message)
        self._book.note(session, "failed", error)

    def _rounds_done(self, record: StudyRecord) -> int:
        start = record.started()
        names = [member.name for member in start.body.roster] if start else []
        return LoopState(names, self._journal.records(f"loop/{record.session}")).done

    def _may_go_on(self, session: str) -> bool:
        return not self._stopping.is_set() and self._book.get(session).state(utc_now()) == "running"

    def _is_stopped(self, session: str) -> bool:
        """Whether the author has ended the study; looked up at most twice a second, for it is asked all the time."""
        now = time.monotonic()
        if now - self._looked_at > _LOOK_SECONDS:
            self._looked_at = now
            self._stopped = self._book.get(session).state(utc_now()) == "stopped"
        return self._stopped


def _created(record: StudyRecord) -> Any:
    start = record.started()
    return start.body.created if start else record.proposed.body.created


def _as_detail(summary: RoundSummary, up_bytes: int, down_bytes: int) -> dict[str, Any]:
    return {
        "round": summary.round,
        "attempt": summary.attempt,
        "epoch": summary.epoch,
        "seconds": round(summary.seconds, 3),
        "contributors": list(summary.contributors),
        "finished": list(summary.finished),
        "void": summary.void,
        "up_bytes": up_bytes,
        "down_bytes": down_bytes,
    }
