"""The coordinator's process: every service of it, put together, and what has to be looked after while it runs.

    fleet door        TLS, `/v1/fleet/*` only (`front.py`) -> flower-superlink, a child on loopback (`superlink.py`)
    aggregator door   gRPC, mutual TLS: uploads and downloads (`data_plane.py`)
    consortium door   gRPC, mutual TLS: documents, revocation lists, base models (`consortium_server.py`)
    enrolment door    gRPC, TLS of the server alone: requests under an invitation (`enrolment_server.py`)
    status page       HTTP on loopback: /livez, /readyz, /metrics
    study runner      Flower's grid and the round loop (`study_runner.py`)

It holds no key that opens anything. Whoever is killed here is made anew on the journal and the folders, and goes on.
"""

import threading
import time
from contextlib import ExitStack
from importlib.metadata import version

from hansa.coordinator.callers import Callers
from hansa.coordinator.ciphertext_adder import CiphertextAdder
from hansa.coordinator.consortium_server import SERVICE_NAME as CONSORTIUM
from hansa.coordinator.consortium_server import ConsortiumServicer
from hansa.coordinator.data_plane import DataPlane, DataPlaneLimits
from hansa.coordinator.enrolment_server import SERVICE_NAME as ENROLMENT
from hansa.coordinator.enrolment_server import EnrolmentServicer
from hansa.coordinator.fleet_door import FleetDoor, Nodes
from hansa.coordinator.grpc_server import GrpcServer
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.metrics import CoordinatorMetrics
from hansa.coordinator.office import Office, open_office, settle_services
from hansa.coordinator.sole_server import SoleServer
from hansa.coordinator.study_desk import StudyDesk
from hansa.coordinator.study_run import RunnerParts
from hansa.coordinator.study_runner import StudyRunner
from hansa.coordinator.tending import Tending, flower_keys
from hansa.errors import AuthorityAbsent, Error, StoreInUse
from hansa.federation.consortium_pb2_grpc import add_ConsortiumServicer_to_server
from hansa.federation.enrolment_pb2_grpc import add_EnrolmentServicer_to_server
from hansa.federation.fields import host_and_port
from hansa.federation.files import holding, make_folder
from hansa.federation.fleet_messages import canonical_node_key, node_number
from hansa.federation.logs import log
from hansa.federation.revocation_file import RevocationFile
from hansa.federation.service_manager import ServiceManager
from hansa.federation.status_page import StatusPage
from hansa.federation.tls_files import TlsSource
from hansa.secure_agg.certificate_authority import CertificateAuthority

_TEND_SECONDS = 0.5
_STOP_SECONDS = 10.0
_SAY_AGAIN_SECONDS = 60.0
_NOBODYS_NODE = 0
LOCK = "coordinator.lock"


class CoordinatorDaemon:
    """A coordinator.

    Args:
        home: Its home.
        manager: Its service manager.

    Raises:
        StoreInUse: Another coordinator runs on this home, or on its database.

    Guarantees:
        - It serves only while no other coordinator does on the same database; see `SoleServer`.
        - SuperLink and adding worker end with this process, whatever way it ends.
        - A revocation is in force at every door within a second, and a membership.
    """

    def __init__(self, home: CoordinatorHome, manager: ServiceManager | None = None) -> None:
        self._home, self._manager = home, manager or ServiceManager()
        self._log = log("coordinator")
        self._runner: StudyRunner | None = None
        self._members: frozenset[str] = frozenset()  # at the last look
        self._said: dict[str, float] = {}  # when what was said last

    def serve(self, stop: threading.Event) -> None:
        """Serve until `stop` is set.

        Raises:
            StoreInUse: Another coordinator runs on this home, or on its database, or has taken that over.
            PortInUse, ConfigurationError: A door cannot be opened.
            SuperLinkFailed: Flower's SuperLink does not start.
            CertificateRejected: The services' own certificate is none, or has ended.
        """
        with ExitStack() as stack:
            in_use = StoreInUse(
                f"another coordinator runs on {str(self._home.folder)!r}",
                hint="stop it, or give another --home; two coordinators never share one",
            )
            stack.enter_context(holding(self._home.folder / LOCK, in_use=in_use))
            office = stack.enter_context(open_office(self._home))
            sole = stack.enter_context(SoleServer(office.journal))
            tending = self._open(stack, office)
            self._manager.ready("no study runs")
            self._log.info("coordinator_ready", consortium=self._home.consortium.name)
            wait = min(_TEND_SECONDS, self._manager.watchdog_seconds or _TEND_SECONDS)
            while not stop.wait(wait):
                sole.verify()
                self._tend(tending)
            self._manager.stopping()
            self._log.info("coordinator_stopping")

    def _open(self, stack: ExitStack, office: Office) -> Tending:
        """Open everything; it is closed in the other order when the stack is."""
        home, listen = self._home, self._home.settings.listen
        settle_services(office)
        tls = TlsSource(home.tls_files)
        revoked = RevocationFile(home.consortium.authority, home.revocation_list_file)
        office.revocations.put_into_file()
        metrics = CoordinatorMetrics(version("hansa"))
        host, port = host_and_port(listen.metrics)
        stack.enter_context(StatusPage(metrics.registry, ready=self._why_not_ready, host=host, port=port))
        desk = StudyDesk(office.journal, consortium=home.consortium, revoked=revoked)
        keys = flower_keys(office.registry.members)
        self._members = frozenset(keys)
        nodes = self._reach_nodes(stack, office, keys, revoked)
        plane = self._open_doors(stack, office, desk, tls, revoked)
        self._run_studies(stack, office, desk, nodes, plane, revoked, metrics)
        return Tending(
            home=home,
            office=office,
            authority=self._authority,
            revoked=revoked,
            door=nodes.door,
            metrics=metrics,
            members=keys,
        )

    def _run_studies(
        self,
        stack: ExitStack,
        office: Office,
        desk: StudyDesk,
        nodes: Nodes,
        plane: DataPlane,
        revoked: RevocationFile,
        metrics: CoordinatorMetrics,
    ) -> None:
        """Start the runner of studies, with the worker that adds ciphertexts."""
        home, settings = self._home, self._home.settings
        spool, results = home.folder / settings.spool.folder, home.folder / "results"
        make_folder(spool)
        make_folder(results)
        adder = CiphertextAdder(spool_folder=spool, spool_bytes=settings.spool.quota_bytes)
        stack.callback(adder.close)
        parts = RunnerParts(
            journal=office.journal,
            grid=nodes.grid,
            node_of=nodes.node_of,
            data_plane=plane.aggregator,
            adder=adder,
            results=results,
            authority=home.consortium.authority,
            revoked=revoked,
            exchange_seconds=settings.deadlines.exchange_seconds,
            upload_seconds=settings.deadlines.upload_seconds,
            longest_pause_seconds=settings.deadlines.longest_pause_seconds,
            absent_days=settings.deadlines.absent_days,
            metrics=metrics,
        )
        self._runner = runner = StudyRunner(desk, parts)
        runner.start()
        stack.callback(runner.stop, _STOP_SECONDS)

    def _reach_nodes(
        self, stack: ExitStack, office: Office, keys: dict[str, bytes], revoked: RevocationFile
    ) -> Nodes:
        """Open the way to the nodes of members, whose Flower keys these are."""
        door = FleetDoor(stack, self._home, keys, revoked())
        return Nodes(grid=door.grid, node_of=lambda name: node_of(office, name), door=door)

    def _open_doors(
        self, stack: ExitStack, office: Office, desk: StudyDesk, tls: TlsSource, revoked: RevocationFile
    ) -> DataPlane:
        """Open the three gRPC doors."""
        home, listen = self._home, self._home.settings.listen
        host, port = host_and_port(listen.aggregator)
        limits = DataPlaneLimits(total_bytes=home.settings.spool.quota_bytes)
        plane = DataPlane(
            host=host,
            port=port,
            tls=tls,
            revoked=revoked,
            report=self._unforeseen,
            limits=limits,
            is_member=lambda name: name in self._members,
        )
        stack.enter_context(plane)
        host, port = host_and_port(listen.consortium)
        consortium = GrpcServer(host=host, port=port, tls=tls)
        servicer = ConsortiumServicer(
            Callers(home.consortium.authority, revoked),
            members=office.registry.members,
            renewals=office.renewals,
            revocations=office.revocations,
            desk=desk,
            models=home.models,
            authority=self._authority,
            report=self._unforeseen,
        )
        consortium.add(CONSORTIUM, add_ConsortiumServicer_to_server, servicer)
        stack.enter_context(consortium)
        host, port = host_and_port(listen.enrolment)
        enrolment = GrpcServer(host=host, port=port, tls=tls, ask_clients=False)
        enrolment.add(
            ENROLMENT,
            add_EnrolmentServicer_to_server,
            EnrolmentServicer(
                office.registry, office.renewals, authority=self._authority, report=self._unforeseen
            ),
        )
        stack.enter_context(enrolment)
        return plane

    def _tend(self, tending: Tending) -> None:
        try:
            tending.tend()
        except (
            Exception
        ) as error:  # a disk that is full, a journal that is gone: the next look may find them back
            self._say("tending_failed", error)
        self._members = tending.members
        runner = self._runner
        if runner is not None and runner.is_alive:
            self._manager.status(runner.doing)
            self._manager.alive()

    def _authority(self) -> CertificateAuthority | None:
        """Read the authority where its key is at hand; it is kept nowhere in this process."""
        try:
            return self._home.authority()
        except AuthorityAbsent:
            return None

    def _why_not_ready(self) -> str:
        runner = self._runner
        if runner is None:
            return "starting"
        return "" if runner.is_alive else "the study runner has ended"

    def _unforeseen(self, error: Exception) -> None:
        """Log what went wrong in a call."""
        self._say("service_failed", error)

    def _say(self, event: str, error: Exception) -> None:
        """Log an error; what goes on, as a full disk does, is said once a minute, but each unforeseen end of a call is."""
        known, now = isinstance(error, Error), time.monotonic()
        code = error.code if isinstance(error, Error) else type(error).__name__
        seldom, what = known or event == "tending_failed", f"{event} {code}"
        if seldom and now - self._said.get(what, -_SAY_AGAIN_SECONDS) < _SAY_AGAIN_SECONDS:
            return
        self._said[what] = now
        self._log.error(event, error_code=code, message=str(error)[:1000], foreseen=known)


def node_of(office: Office, name: str) -> int:
    """Give the grid's number of a member's node; one that nobody has where it was invited anew and has none yet."""
    record = office.registry.members.get(name)
    if not record.enrolment:
        return _NOBODYS_NODE
    return node_number(canonical_node_key(record.enrolment_document.body.flower_key.encode()))
