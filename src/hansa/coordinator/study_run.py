"""One study that was started, as the coordinator's process runs it: from its documents to its rounds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from hansa.coordinator.study_desk import ProposedStudy
from hansa.coordinator.study_states import name_of, session_of
from hansa.coordinator.upload_server import AggregatorServicer
from hansa.errors import OutOfOrder
from hansa.federation.agreements import roster_of, terms_of
from hansa.federation.fleet_messages import SessionGrid
from hansa.federation.logs import log
from hansa.secure_agg.certificates import RevocationList


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerParts:
    """What every study of a coordinator is run with.

    Attributes:
        journal: The coordinator's.
        grid: Way to all nodes.
        node_of: Gives the grid's number of a member's node.
        data_plane: Where members upload to.
        adder: Parses and adds ciphertexts.
        results: Folder for results of rounds, one below it for each session.
        authority: Certificate (DER) of the consortium's authority.
        revoked: Gives the latest revocation list.
        exchange_seconds: Longest wait for the answers of one exchange.
        upload_seconds: Longest time of an upload.
        longest_pause_seconds: Longest pause before a study that waits is tried again.
        absent_days: How long a finished study's last state is kept for members that were away, and what is left of a failed one.
        metrics: What is counted.
    """

    journal: Journal
    grid: Grid
    node_of: Callable[[str], int]
    data_plane: AggregatorServicer
    adder: CiphertextAdder
    results: Path
    authority: bytes
    revoked: Callable[[], RevocationList | None]
    exchange_seconds: float
    upload_seconds: float
    longest_pause_seconds: float
    absent_days: float
    metrics: CoordinatorMetrics


class StudyRun:
    """One study with a start.

    Args:
        study: Its documents.
        parts: What it is run with.
        may_go_on: Asked before every round.
        gave_up: Whether nobody waits for answers any more.

    Raises:
        OutOfOrder: It was not started.

    Attributes:
        name: Short name of the study.
        session: Session id, 32 hexadecimal digits.
        rounds: Rounds of the study.
        progress: How far it is, for whoever watches.
    """

    def __init__(
        self,
        study: ProposedStudy,
        parts: RunnerParts,
        *,
        may_go_on: Callable[[], bool],
        gave_up: Callable[[], bool],
    ) -> None:
        if study.start is None:
            raise OutOfOrder(f"the study {name_of(study)!r} was not started")
        self.name, self.session = name_of(study), session_of(study)
        self._parts, self._may_go_on, self._gave_up = parts, may_go_on, gave_up
        self._study = study.proposal.body.agreement()
        self._members = [(member.name, member.identity) for member in study.start.body.roster]
        self.rounds = self._study.training.rounds
        self.progress = ProgressWriter(parts.journal, self.session, rounds=self.rounds)

    @property
    def rounds_done(self) -> int:
        """Rounds that are over."""
        return self._state().done

    @property
    def behind(self) -> list[str]:
        """Members that have not applied and closed the last round, as far as is known, sorted."""
        return sorted(name for name, reached in self._state().at.items() if reached < self.rounds)

    def run(self, doing: Callable[[str], None]) -> None:
        """Run the rounds that are left, or those until it may not go on; as `RoundLoop.run`.

        Args:
            doing: Called with a line about where it is.
        """
        self._begins(doing)
        with self._loop(doing) as loop:
            loop.run()

    def bring_home(self) -> None:
        """Bring members that were away when the rounds ended to the last one, as far as they answer; as `RoundLoop.bring_home`."""
        self.progress.begins(self.rounds_done)
        with self._loop(lambda _: None) as loop:
            loop.bring_home()

    def _state(self) -> LoopState:
        names = [name for name, _ in self._members]
        return LoopState(names, self._parts.journal.records(f"loop/{self.session}"))

    @contextmanager
    def _loop(self, doing: Callable[[str], None]) -> Iterator[RoundLoop]:
        """Give the loop of rounds, while its members can reach what it needs."""
        parts, study = self._parts, self._study
        terms = terms_of(study)
        roster = roster_of(study, bytes.fromhex(self.session), self._members, parts.authority)
        service = AggregationService(
            roster,
            terms,
            new_sums=parts.adder.begin,
            results_folder=parts.results / self.session,
            upload_seconds=parts.upload_seconds,
        )
        parts.data_plane.open_session(service, roster)
        try:
            yield RoundLoop(
                SessionGrid(parts.grid, self.session),
                roster=roster,
                terms=terms,
                nodes={name: parts.node_of(name) for name, _ in self._members},
                aggregation=service,
                rounds=self.rounds,
                rounds_per_epoch=study.aggregation.rounds_per_epoch,
                deadline_seconds=parts.exchange_seconds,
                on_round=self._on_round(service, doing),
                records=parts.journal.records(f"loop/{self.session}"),
                revoked=parts.revoked,
                may_go_on=self._may_go_on,
                observe=self.progress.waits,
                gave_up=self._gave_up,
            )
        finally:
            parts.data_plane.close_session(roster.session_id)

    def _begins(self, doing: Callable[[str], None]) -> None:
        done = self.rounds_done
        self.progress.begins(done)
        self._parts.metrics.study_begins(self.name, planned=self.rounds, done=done)
        doing(f"{self.name}: round {done}/{self.rounds}")

    def _on_round(
        self, service: AggregationService, doing: Callable[[str], None]
    ) -> Callable[[RoundSummary], None]:
        metrics, seen = self._parts.metrics, [0, 0]

        def on_round(summary: RoundSummary) -> None:
            up, down = service.uplink_bytes, service.downlink_bytes
            metrics.round_ended(self.name, summary, participants=len(self._members), now=time.time())
            metrics.traffic(up_bytes=up - seen[0], down_bytes=down - seen[1])
            seen[:] = [up, down]
            self.progress.round_ended(summary, up_bytes=up, down_bytes=down)
            detail = _detail_of(summary, up, down)
            self._parts.journal.event("round_ended", study=self.name, session=self.session, **detail)
            log("coordinator").info("round_ended", study=self.name, session=self.session, **detail)
            doing(f"{self.name}: round {summary.round}/{self.rounds}")

        return on_round


def _detail_of(summary: RoundSummary, up_bytes: int, down_bytes: int) -> dict[str, Any]:
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
