"""The node agent: the one long-lived process of a participant. It calls the coordinator and is never called.

    main thread     news of the consortium, decisions, seats (`agent_work.py`), service manager
    fleet thread    requests of the rounds, answered by the seat of their session (`fleet.py`)
    status page     health and metrics on loopback, where participant.toml asks for it

SIGTERM: the request that is being answered is answered, its reply is sent or kept, the node takes its leave. One that takes
longer is abandoned without a reply: the next process is asked again, and goes on from what is on disk. SIGHUP: policies are
read again. Code that arrives is refused (`code_bundle_refused`).
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from importlib.metadata import version
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, Message

from hansa.errors import Error, InternalFailure, InvalidValue, StoreInUse
from hansa.federation.fields import host_and_port
from hansa.federation.files import holding, read_private_file, write_file
from hansa.federation.logs import log
from hansa.federation.service_manager import ServiceManager
from hansa.federation.status_page import StatusPage
from hansa.participant.agent_work import AgentWork, open_work
from hansa.participant.fleet import FleetConnection
from hansa.participant.home import ParticipantHome
from hansa.participant.metrics import ParticipantMetrics
from hansa.participant.session_apps import session_handler
from hansa.secure_agg.certificates import utc_now

STATUS_FILE, LOCK = "agent-status.json", "agent.lock"
_SOON_SECONDS, _LATER_SECONDS = 2.0, 10.0  # between two looks: something is awaited, or not
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 1.0, 30.0
_MEASURE_SECONDS = 5.0
_SAY_AGAIN_SECONDS = 600.0
_FINISH_SECONDS, _ABANDON_SECONDS = 15.0, 10.0  # after SIGTERM; service managers kill after 90
_SEAT_SECONDS = 30.0  # how long a request waits for a seat that is about to be taken


class Agent:
    """A participant's node agent.

    Args:
        home: The home of a member.
        manager: Its service manager.
        now: Clock.

    Raises:
        NotAMember: The participant is not enrolled.
        KeyFileUnsafe: Somebody else can read a key.

    Attributes:
        is_abandoned: Whether it ended in the middle of a request that it could not break off. Its thread still computes, so the
            process has to end without waiting for it; whatever it does from then on is the same as if it had been killed.

    Guarantees:
        - It opens no port, but for a status page on loopback where participant.toml asks for one.
        - It ends within a minute of being told to, whatever it does and whether the coordinator is there or not.
        - What goes wrong is logged here and tried again; it ends only when it is told to.
    """

    def __init__(
        self,
        home: ParticipantHome,
        *,
        manager: ServiceManager | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        home.verify_key_files()
        home.enrolment()
        self._home, self._manager, self._now = home, manager or ServiceManager(), now
        self._log = log("participant")
        self._said: dict[str, tuple[str, float]] = {}
        self._reload = threading.Event()
        self._looked_at: float | None = None
        self._problem = ""
        self._metrics: ParticipantMetrics | None = None
        self._measured_at = float("-inf")
        self._breaks_off = threading.Event()
        self.is_abandoned = False

    def reload(self) -> None:
        """Read policies again at the next moment; for a handler of SIGHUP."""
        self._reload.set()

    def serve(self, stop: threading.Event) -> None:
        """Serve until `stop` is set.

        Raises:
            StoreInUse: Another agent serves this home.
            StoreNotWritable: The home cannot be written.
            CertificateRejected, InvalidValue, ConfigurationError: Keys or certificates cannot be used.
            PortInUse: Somebody else listens where the status page should.
        """
        in_use = StoreInUse(f"another agent serves {str(self._home.folder)!r}")
        with ExitStack() as stack:
            stack.enter_context(holding(self._home.folder / LOCK, in_use=in_use))
            work = open_work(stack, self._home, now=self._now, report=self._report, note=self._note)
            work.resume()  # before the coordinator can ask for what this participant was in the middle of
            fleet = self._fleet()
            self._open_page(stack, fleet)
            failures: list[BaseException] = []
            thread = threading.Thread(
                target=self._answer, args=(fleet, work, stop, failures), name="fleet", daemon=True
            )
            thread.start()
            ending = threading.Thread(target=self._end, args=(thread, work, stop), name="ending", daemon=True)
            ending.start()
            stack.callback(ending.join)
            stack.callback(stop.set)
            self._manager.ready("looking for the coordinator")
            self._log.info("agent_ready", participant=self._home.name)
            self._run(work, fleet, stop, failures)
            self._manager.stopping()
            self._log.info("agent_stopping")
            stop.set()
            ending.join()
            if thread.is_alive():
                self._log.warning("request_abandoned")
                self.is_abandoned = True
                stack.pop_all()  # its store is open in that thread
        for failure in failures:
            raise failure

    # -- inside ------------------------------------------------------------------------------------------

    def _end(self, fleet: threading.Thread, work: AgentWork, stop: threading.Event) -> None:
        """When it is told to stop, see that everything ends: what waits for the coordinator, and then what is being answered."""
        stop.wait()
        work.stop_looking()
        fleet.join(_FINISH_SECONDS)
        self._breaks_off.set()
        work.give_up()
        fleet.join(_ABANDON_SECONDS)

    def _run(
        self, work: AgentWork, fleet: FleetConnection, stop: threading.Event, failures: list[BaseException]
    ) -> None:
        due, retry = 0.0, _FIRST_RETRY_SECONDS
        beat = min(1.0, self._manager.watchdog_seconds or 1.0)
        self._tell(work, fleet)  # a first look may wait for a coordinator that is away
        while not stop.is_set() and not failures:
            if self._reload.is_set():
                self._reload.clear()
                self._manager.reloading()
                work.reload()
                self._manager.ready(self._status(work, fleet))
                self._log.info("policies_reloaded")
            if time.monotonic() >= due or work.is_asked_for.is_set():
                work.is_asked_for.clear()
                try:
                    awaited = work.look()
                    pause, retry = (_SOON_SECONDS if awaited else _LATER_SECONDS), _FIRST_RETRY_SECONDS
                    self._looked_at, self._problem = time.time(), ""
                except Error as error:
                    self._report("coordinator", error)
                    pause, retry = retry, min(2 * retry, _LAST_RETRY_SECONDS)
                    self._problem = error.code
                due = time.monotonic() + pause
            self._manager.status(self._status(work, fleet))
            self._manager.alive()
            self._tell(work, fleet)
            self._rest(beat, work, stop)

    def _tell(self, work: AgentWork, fleet: FleetConnection) -> None:
        """Bring metrics and status file up to date."""
        try:
            self._measure(work, fleet)
            self._write_status(work, fleet)
        except Error as error:  # a disk that is full: rounds go on, or say themselves what they lack
            self._report("status", error)

    def _rest(self, seconds: float, work: AgentWork, stop: threading.Event) -> None:
        """Do nothing for a moment, or until something has to be done."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not stop.wait(0.2):
            if work.is_asked_for.is_set() or self._reload.is_set():
                return

    def _open_page(self, stack: ExitStack, fleet: FleetConnection) -> None:
        asked = self._home.settings.metrics
        if asked is None:
            return
        host, port = host_and_port(asked.listen)
        self._metrics = ParticipantMetrics(version("hansa"))

        def ready() -> str:
            state = fleet.state
            return (
                "" if state.connected else f"not connected: {state.error.code if state.error else 'starting'}"
            )

        page = stack.enter_context(StatusPage(self._metrics.registry, ready=ready, host=host, port=port))
        self._log.info("status_page_open", port=page.port)

    def _measure(self, work: AgentWork, fleet: FleetConnection) -> None:
        metrics, now = self._metrics, time.monotonic()
        if metrics is None:
            return
        metrics.connected(fleet.state.connected)
        if now - self._measured_at < _MEASURE_SECONDS:
            return
        self._measured_at = now
        metrics.certificates_end(self._home.enrolment().body.not_after.timestamp())
        if self._looked_at is not None:
            metrics.looked(self._looked_at)
        for seat in work.seats.values():
            planned = seat.study.proposal.body.agreement().training.rounds
            metrics.rounds(seat.study.name, planned=planned, done=seat.rounds_done)
            metrics.epsilon(seat.study.name, seat.epsilon())

    def _fleet(self) -> FleetConnection:
        home, files = self._home, self._home.tls_files
        key = load_ssh_private_key(read_private_file(home.flower_key_file), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidValue("flower.key holds no key on an elliptic curve")
        return FleetConnection(
            f"https://{home.settings.addresses.fleet}",
            certificate=files.certificate,
            key=files.key,
            authority=home.consortium.authority,
            node_key=key,
            folder=home.folder / "fleet",
            report=lambda error: self._report("fleet", error),
        )

    def _answer(
        self,
        fleet: FleetConnection,
        work: AgentWork,
        stop: threading.Event,
        failures: list[BaseException],
    ) -> None:
        def find(session: str) -> Callable[[Message, Context], Message] | None:
            return work.seat_for(session, _SEAT_SECONDS, stop)

        try:
            handler = session_handler(find, report=lambda error: self._report("request", error))
            fleet.run(handler, stop, self._breaks_off.is_set)
        except BaseException as error:
            failures.append(error)

    def _status(self, work: AgentWork, fleet: FleetConnection) -> str:
        state = fleet.state
        link = (
            "connected"
            if state.connected
            else f"not connected: {state.error.code if state.error else 'starting'}"
        )
        seats = ", ".join(
            f"{seat.study.name} round {seat.rounds_done}/{seat.study.proposal.body.agreement().training.rounds}"
            for seat in work.seats.values()
        )
        return f"{link}; {seats or 'no study runs'}" + (f"; {self._problem}" if self._problem else "")

    def _write_status(self, work: AgentWork, fleet: FleetConnection) -> None:
        """Leave the status where `hansa participant status` and doctor read it; when it has changed only."""
        found: dict[str, Any] = {
            "process": os.getpid(),
            "status": self._status(work, fleet),
            "connected": fleet.state.connected,
            "seats": {session: seat.rounds_done for session, seat in work.seats.items()},
        }
        if found != getattr(self, "_written", None):
            whole = {**found, "changed": int(time.time())}
            write_file(self._home.folder / STATUS_FILE, json.dumps(whole).encode())
            self._written = found

    def _note(self, event: str, **values: Any) -> None:
        self._log.info(event, **values)

    def _report(self, where: str, error: Error) -> None:
        """Log an error; one that goes on is said again every ten minutes only."""
        words, now = f"{error.code}: {error.message}", time.monotonic()
        known = self._said.get(where)
        if known is not None and known[0] == words and now - known[1] < _SAY_AGAIN_SECONDS:
            return
        self._said[where] = (words, now)
        message = "see the traceback" if isinstance(error, InternalFailure) else error.message
        detail = {"traceback": error.message} if isinstance(error, InternalFailure) else {}
        self._log.warning(
            f"{where}_failed", error_code=error.code, message=message, hint=error.hint, **detail
        )
