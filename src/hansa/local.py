"""The embedded consortium: coordinator and participants on one machine, without a network.

The same ServerApp and ClientApps that run between institutions run here on a `LocalGrid`. Participants are separate objects with
separate state folders, spread over worker processes; nothing but Flower messages and the aggregation service passes between the
two sides. What a consortium sets up by other means before a study - its certificate authority, the roster of identity keys, the
public base model - is installed here through each worker's own pipe. Common keys are dealt by a member and sealed to each of the
others.

This module also gives the *evaluator's view* that only a demonstration has: it reads participants' states, which no study can.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.app import make_server_app
from hansa.coordinator.ciphertext_adder import CiphertextAdder
from hansa.coordinator.rounds import RoundSummary
from hansa.errors import DuplicateMember, Error, ModelDivergence, OutOfOrder, ParticipantLost
from hansa.federation.agreements import terms_of
from hansa.local_dropouts import Dropouts
from hansa.local_grid import LocalGrid, Tap
from hansa.local_host import Host, Parent, Service, error_of, peak_memory_bytes, peak_memory_of
from hansa.local_seats import Member, Seats, context_of_run, open_sealed_store, roster_of
from hansa.local_uplink import UploadServices
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.participant.store import SealedStore
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import utc_now
from hansa.secure_agg.codec import kept_entries
from hansa.secure_agg.identity import Roster, verify_participant_id
from hansa.study import Study

DEADLINE_SECONDS = 600.0
_CERTIFICATE_VALIDITY = timedelta(days=30)  # longer than any run
_FIRST_NODE = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """The evaluator's view of a participant.

    Attributes:
        digest: Hash of its state.
        values: (P,) its trained vector.
        epsilon: ε it has spent.
        noise_multiplier: σ it used.
        seconds: Wall seconds by step.
    """

    digest: bytes
    values: NDArray[np.float64]
    epsilon: float
    noise_multiplier: float
    seconds: Mapping[str, float]


class LocalConsortium:
    """A consortium in worker processes; use as a context manager, which ends them and removes all state.

    Args:
        study: The agreement.
        members: Participants, three or more.
        make_model: Makes a copy of the public base model.
        layout: Order of the trained part.
        workers: Worker processes.
        jobs: Further operations for the workers, by name, for a demonstration's comparison arms.
        tap: Sees every message on the grid; for tests.
        drop: Members that vanish in every round, each at a random stage; who comes back is made anew from its store.
        open_store: Opens a member's store in its folder.

    Raises:
        DuplicateMember: Two members have one name.

    Guarantees:
        - Keys, noise and sampling come from the operating system in each worker; no argument reaches them.
        - A worker process that dies is replaced; its members go on from their encrypted stores.
        - After the `with` block no worker and no file of the consortium is left, whatever happened in it.
    """

    def __init__(
        self,
        study: Study,
        members: Sequence[Member],
        *,
        make_model: Callable[[], FeatureTransformer],
        layout: TrainableLayout,
        workers: int,
        jobs: Mapping[str, Service] | None = None,
        tap: Tap | None = None,
        drop: int = 0,
        open_store: Callable[[Path], SealedStore] | None = None,
    ) -> None:
        self._study, self._members, self._tap = study, tuple(members), tap
        self._open_store = open_store or open_sealed_store
        self.dropouts = Dropouts([member.name for member in members], drop, on_return=self._restart)
        self._pinned: tuple[bytes, list[list[Any]], bytes] | None = None
        self._certificates: dict[str, bytes] = {}
        self._replacing = threading.Lock()
        self.replaced_workers = 0
        self._make_model, self._layout, self._jobs = make_model, layout, dict(jobs or {})
        self._worker_count = max(1, min(workers, len(members)))
        self._directory: Path | None = None
        self._hosts: list[Host] = []
        self._service: AggregationService | None = None
        self._adder_peak_bytes = 0
        self._errors: list[Error] = []  # of participants and workers, in the order in which they happened
        if len({member.name for member in members}) != len(members):
            raise DuplicateMember("two members of the consortium have one name")
        # A longest-first deal keeps the workers equally busy.
        order = sorted(range(len(members)), key=lambda i: -len(members[i].rows.labels))
        self._worker_of = {self._members[i].name: k % self._worker_count for k, i in enumerate(order)}

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="hansa-consortium-"))
        try:
            for worker in range(self._worker_count):
                self._hosts.append(self._start(worker, self._directory))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _start(self, worker: int, directory: Path) -> Host:
        services: dict[str, Service] = {
            "download": self._download,
            "package_leaves": self._package_leaves,
            "report": lambda *values: self._errors.append(error_of(*values)),
        }
        uploads = UploadServices(self._aggregation).services()
        return Host(self._builder(worker, directory), {**services, **uploads})

    def _end(self) -> None:
        with self._replacing:  # from here no worker is started any more
            self._pinned = None
        try:
            for host in self._hosts:
                host.stop()
        finally:
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)

    # -- the study ---------------------------------------------------------------------------------------

    def run(self, on_round: Callable[[RoundSummary], None]) -> None:
        """Install the members and run every round of the study.

        Raises:
            Error: What the participant or coordinator that failed first raised.
        """
        roster = self._install()
        terms = terms_of(self._study)
        adder = CiphertextAdder(spool_folder=self._directory)
        self._service = AggregationService(
            roster, terms, new_sums=adder.begin, results_folder=self._directory
        )
        nodes = {name: _FIRST_NODE + i for i, name in enumerate(roster.participants)}
        names = {node: name for name, node in nodes.items()}
        handlers = {node: self.dropouts.around(name, self._handler(name)) for node, name in names.items()}
        lanes = {node: self._worker_of[name] for node, name in names.items()}
        app = make_server_app(
            roster=roster,
            terms=terms,
            nodes=nodes,
            aggregation=self._service,
            rounds=self._study.training.rounds,
            rounds_per_epoch=self._study.aggregation.rounds_per_epoch,
            deadline_seconds=DEADLINE_SECONDS,
            on_round=lambda summary: self._ended(summary, on_round),
            ciphertext_count=terms.layout.ciphertexts_for(
                kept_entries(self._layout.size, self._study.compression.kept_share, terms.layout)
            ),
        )
        grid = LocalGrid(handlers, lanes, tap=self._tap)
        context = context_of_run()
        try:
            app(grid, context)
        except ParticipantLost as lost:
            # The coordinator knows an error code only; on one machine the participant's own words can be shown.
            if self._errors:
                raise self._errors[0] from lost
            raise
        finally:
            grid.close()
            self._adder_peak_bytes = peak_memory_of(adder.process_id)
            adder.close()

    def _ended(self, summary: RoundSummary, on_round: Callable[[RoundSummary], None]) -> None:
        self._errors.clear()  # whatever members met in this round, the round went on without it
        on_round(summary)

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes (up, down) of all members together so far at the aggregation service."""
        return (0, 0) if self._service is None else (self._service.uplink_bytes, self._service.downlink_bytes)

    # -- the evaluator's view ----------------------------------------------------------------------------

    def inspect(self, name: str) -> Inspection:
        """Look into a participant. No study can do this."""
        found = self._host(name).call("inspect", name)
        return Inspection(
            digest=found["digest"],
            values=np.frombuffer(found["values"], dtype="<f8"),
            epsilon=found["epsilon"],
            noise_multiplier=found["noise_multiplier"],
            seconds=found["seconds"],
        )

    def inspect_all(self) -> dict[str, Inspection]:
        """Look into every participant.

        Raises:
            ModelDivergence: Two participants hold different states.
        """
        found = {member.name: self.inspect(member.name) for member in self._members}
        if len({inspection.digest for inspection in found.values()}) != 1:
            raise ModelDivergence("participants hold different states")
        return found

    def job(self, worker: int, name: str, *values: Any) -> Any:
        """Run one of the demonstration's jobs in a worker."""
        return self._hosts[worker].call(name, *values)

    @property
    def workers(self) -> int:
        """Number of worker processes."""
        return self._worker_count

    def peak_memory_bytes(self) -> int:
        """Sum of the largest resident memories of all processes; pages that they share count for each."""
        workers = sum(int(host.call("peak_memory_bytes")) for host in self._hosts)
        return peak_memory_bytes() + self._adder_peak_bytes + workers

    # -- inside ------------------------------------------------------------------------------------------

    def _install(self) -> Roster:
        """Let every participant make its identity, certify it, and pin roster and authority at each.

        All other keys come over the grid. The authority's key is gone when this returns.
        """
        for member in self._members:
            verify_participant_id(member.name)  # folders are called by it
        begin = utc_now()
        end = begin + _CERTIFICATE_VALIDITY
        authority = CertificateAuthority.create("local consortium", not_before=begin, not_after=end)
        enrolled = {m.name: self._host(m.name).call("enrol", m.name) for m in self._members}
        members = sorted((name, public) for name, (public, _) in enrolled.items())
        self._certificates = {
            name: authority.issue(request, participant=name, not_before=begin, not_after=end)
            for name, (_, request) in enrolled.items()
        }
        session_id = os.urandom(16)
        roster = roster_of(self._study, session_id, members, authority.certificate)
        self._pinned = pinned = (session_id, [list(member) for member in members], authority.certificate)
        for name, certificate in self._certificates.items():
            self._host(name).call("install", name, *pinned, certificate)
        return roster

    def _restart(self, name: str) -> None:
        """Make a member anew from what is on its disk, as if its process had ended and begun again."""
        pinned = self._pinned
        if pinned is not None:
            self._host(name).call("restart", name, *pinned, self._certificates[name])

    def _replace(self, worker: int) -> None:
        """Start a worker anew in place of one that died, with its members as their stores have them."""
        with self._replacing:
            if self._directory is None or self._pinned is None or self._hosts[worker].is_alive:
                return
            self._hosts[worker].stop()
            self._hosts[worker] = self._start(worker, self._directory)
            self.replaced_workers += 1
        for member in self._members:
            if self._worker_of[member.name] == worker:
                self._restart(member.name)

    def _host(self, name: str) -> Host:
        return self._hosts[self._worker_of[name]]

    def _handler(self, name: str) -> Callable[[bytes], bytes]:
        def handle(message: bytes) -> bytes:
            try:
                answer: bytes = self._host(name).call("message", name, message)
            except Error as error:
                self._errors.append(error)
                self._replace(self._worker_of[name])
                raise
            return answer

        return handle

    def _aggregation(self) -> AggregationService:
        if self._service is None:
            raise OutOfOrder("the study has not begun")
        return self._service

    def _download(self, round_index: int, attempt: int) -> list[list[bytes]]:
        return list(self._aggregation().download(round_index, attempt))

    def _package_leaves(self, round_index: int, attempt: int, dealer: str) -> bytes:
        return self._aggregation().package_leaves(round_index, attempt, dealer)

    def _builder(self, worker: int, directory: Path) -> Callable[[Parent], Mapping[str, Service]]:
        members = [m for m in self._members if self._worker_of[m.name] == worker]

        def build(parent: Parent) -> Mapping[str, Service]:
            torch.set_num_threads(1)  # the workers share the cores; a thread pool does not survive the fork
            seats = Seats(
                self._study, members, self._make_model, self._layout, directory, parent, self._open_store
            )
            return {**seats.operations(), **self._jobs}

        return build
