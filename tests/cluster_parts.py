"""A whole consortium for tests of faults: homes and documents are made in this process, daemons run as processes of their own.

Every agent reaches the doors through proxies of its own, which cut, stall and let go. What happens is read where the parties
write it down: the coordinator's journal, the agents' status files, the members' ledgers and stores.
"""

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hansa.coordinator.authoring import Authoring, ProposalPlan
from hansa.coordinator.founding import FoundingPlan, found_consortium
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.journal import Journal
from hansa.coordinator.office import open_office
from hansa.coordinator.progress import read_progress
from hansa.coordinator.study_states import Outcomes, session_of, state_of
from hansa.demo.cluster import environment, hansa_command
from hansa.federation.answers import approve
from hansa.federation.documents import Document
from hansa.participant.agent_status import read_status
from hansa.participant.enrolling import begin_enrolment, finish_enrolment
from hansa.participant.home import ParticipantHome
from hansa.participant.study_desk import StudyDesk
from hansa.privacy.audit import audit_folder
from hansa.secure_agg.certificates import utc_now
from hansa.study import Study, parse_study

NAMES = ("bank-1", "bank-2", "bank-3", "bank-4")
DOORS = ("fleet", "aggregator", "consortium", "enrolment")
PATIENCE = 120.0  # seconds; a busy machine is slow, and what takes that long has failed
LOG_LINES = 40


class Door:
    """A proxy to one door: it passes on, and when it is told to, it cuts, refuses, stalls or notices how much was sent.

    Args:
        port: The door's.

    Attributes:
        port: Its own.
        up: Bytes that were sent to the door so far.
    """

    def __init__(self, port: int) -> None:
        self._to, self.up = port, 0
        self._open, self._flows = threading.Event(), threading.Event()
        self._open.set()
        self._flows.set()
        self._mark, self._reached = 0, threading.Event()
        self._ends: set[socket.socket] = set()
        self._lock, self._over = threading.Lock(), False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections and take no others until `mend`."""
        self._open.clear()
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Pass on again."""
        self._open.set()
        self._flows.set()

    def lead_to(self, port: int) -> None:
        """Pass on to another port, and end the connections to the one before."""
        self._to = port
        self.cut()
        self.mend()

    def stall(self) -> None:
        """Keep connections and pass nothing on."""
        self._flows.clear()

    @contextmanager
    def stalls_after(self, more: int) -> Iterator[threading.Event]:
        """Stall as soon as so many further bytes were sent; the event tells that they were. Goes on after the block."""
        self._reached = threading.Event()
        self._mark = self.up + more
        try:
            yield self._reached
        finally:
            self._mark = 0
            self.mend()

    def close(self) -> None:
        """End everything."""
        self._over = True
        self.mend()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._over:
                client, _ = self._listener.accept()
                try:
                    if not self._open.is_set():
                        raise OSError
                    server = socket.create_connection(("127.0.0.1", self._to), timeout=5)
                    server.settimeout(None)
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self._ends |= {client, server}
                for source, sink, is_up in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass, args=(source, sink, is_up), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, is_up: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                if is_up:
                    self.up += len(data)
                    if self._mark and self.up >= self._mark:
                        self._flows.clear()
                        self._reached.set()
                while not self._flows.wait(0.2) and not self._over:
                    if source.fileno() < 0:
                        return
                if not self._open.is_set():
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._ends.discard(end)
            with suppress(OSError):
                if end is source:
                    end.close()


class Daemons:
    """Processes by name, each with a log file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, {}  # type: tuple[Path, dict[str, subprocess.Popen[bytes]]]

    def spawn(self, name: str, *arguments: str) -> None:
        with open(self.log_file(name), "ab") as log:
            self.running[name] = subprocess.Popen(
                [*hansa_command(), *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment(),
            )

    def log_file(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def events(self, name: str) -> list[dict[str, Any]]:
        """What a daemon has logged, in order."""
        path, found = self.log_file(name), []
        for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def codes(self, name: str) -> list[str]:
        """Codes of the errors that a daemon has logged, in order."""
        return [event["error_code"] for event in self.events(name) if "error_code" in event]

    def kill(self, name: str) -> None:
        """End a process the hard way."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def signal(self, name: str, number: int) -> None:
        self.running[name].send_signal(number)

    def end(self, name: str, seconds: float = 60.0) -> int:
        """End a process with SIGTERM and give its exit status."""
        process = self.running.pop(name)
        process.terminate()
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{name} did not end within {seconds} s of SIGTERM") from None

    def tail(self) -> str:
        """The ends of all logs, for whoever looks why a test failed."""
        parts = []
        for path in sorted(self.folder.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
            parts.append("\n".join([f"--- {path.name}", *(line[:600] for line in lines)]))
        return "\n".join(parts)

    def close(self) -> None:
        for process in self.running.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
        for process in self.running.values():
            process.wait()


class Consortium:
    """A coordinator and its members, homes and processes.

    Args:
        folder: Where all of it lies.
        base: File of the base model.
        table: Gives numeric rows, categories and labels of a member.
        study: Text of study.toml.
        settings: Lines of coordinator.toml by section, in place of the defaults.
        names: Members.
    """

    def __init__(
        self,
        folder: Path,
        *,
        base: Path,
        table: Callable[[str], Any],
        study: str,
        settings: dict[str, dict[str, Any]] | None = None,
        names: tuple[str, ...] = NAMES,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.base, self.names = folder, base, names
        self.study: Study = parse_study(study)
        self.daemons = Daemons(folder)
        self.ports = dict(zip((*DOORS, "metrics"), free_ports(5), strict=True))
        self.doors: dict[str, dict[str, Door]] = {}
        deadlines = {"exchange_seconds": 20.0, "upload_seconds": 20.0}
        self.home = self._found({"deadlines": deadlines, **(settings or {})})
        self.places = {name: self._enrol(name, table(name)) for name in names}
        self.session = self.propose(self.study)

    # -- setting up --------------------------------------------------------------------------------------

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    def place(self, name: str) -> Path:
        """A member's home."""
        return self.folder / name

    def _found(self, settings: dict[str, dict[str, Any]]) -> CoordinatorHome:
        plan = FoundingPlan(
            name="northern-banks", folder=self.coordinator, hosts=("127.0.0.1",), port=1, author="admin"
        )
        found_consortium(plan, utc_now())
        lines = ['schema = "hansa/coordinator/v1"', 'name = "northern-banks"']
        for section in ("addresses", "listen"):
            lines += ["", f"[{section}]"]
            lines += [
                f'{door} = "127.0.0.1:{port}"'
                for door, port in self.ports.items()
                if (section, door) != ("addresses", "metrics")
            ]
        for section, values in settings.items():
            lines += ["", f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        (self.coordinator / "coordinator.toml").write_text("\n".join(lines) + "\n")
        return CoordinatorHome.open(self.coordinator)

    def _enrol(self, name: str, table: Any) -> ParticipantHome:
        with open_office(self.home) as office:
            invitation = office.registry.invite(name, self.home.authority())
            place, request = begin_enrolment(invitation, self.place(name), utc_now())
            office.registry.submit(request)
            fingerprint = office.registry.fingerprint(office.registry.members.get(name))
            assert fingerprint is not None
            enrolment = office.registry.approve(
                name, fingerprint=fingerprint, authority=self.home.authority()
            )
        finish_enrolment(place, enrolment, utc_now())
        self.doors[name] = {door: Door(self.ports[door]) for door in DOORS[:3]}
        path = place.folder / "participant.toml"
        text = path.read_text()
        for door, proxy in self.doors[name].items():
            text = text.replace(
                f'{door} = "127.0.0.1:{self.ports[door]}"', f'{door} = "127.0.0.1:{proxy.port}"'
            )
        path.write_text(text)
        self.write_policy(name)
        write_table(place.folder / "table.csv", table)
        (place.folder / "datasets.toml").write_text(DATASETS)
        return ParticipantHome.open(place.folder)

    def write_policy(self, name: str, *, epsilon: float = 8.0) -> None:
        (self.place(name) / "policy.toml").write_text(POLICY.format(epsilon=epsilon))

    def propose(self, study: Study, author: str = "admin") -> str:
        """Propose a study to everybody; every member approves it by hand; give its session."""
        with open_office(self.home) as office:
            plan = ProposalPlan(study=study, base=self.base, invited=(), days=1)
            proposed = Authoring(office, author).propose(plan)
        return session_of(proposed)

    def approve(self, *names: str, session: str = "") -> None:
        """Approve the study at members' desks, and let the coordinator know, as their agents would."""
        with open_office(self.home) as office:
            authoring = Authoring(office, "admin")
            proposed = next(s for s in authoring.desk.all() if session_of(s) == (session or self.session))
            for name in names or self.names:
                desk = self.desk(name)
                desk.propose(proposed.proposal)
                answer = desk.approve(
                    desk.find(session or self.session),
                    "loans",
                    by="hand",
                    identity=self.places[name].identity(),
                )
                authoring.desk.answer(answer)

    def start_study(self, session: str = "") -> None:
        with open_office(self.home) as office:
            Authoring(office, "admin").start(session or self.session)

    def command(self, action: Any) -> None:
        with open_office(self.home) as office:
            Authoring(office, "admin").command(self.session, action)

    def desk(self, name: str) -> StudyDesk:
        return StudyDesk(self.place(name), participant=name, now=utc_now)

    def revoke(self, name: str) -> None:
        with open_office(self.home) as office:
            office.registry.revoke(name, "key stolen")
            office.revocations.publish(self.home.authority())

    # -- running -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Approve and start the study, and run everybody."""
        self.run_coordinator(wait=False)
        for name in self.names:
            self.run_agent(name)
        self.approve()
        self.start_study()

    def run_coordinator(self, *, wait: bool = True) -> None:
        ready = self.count("coordinator", "coordinator_ready")
        self.daemons.spawn("coordinator", "coordinator", "run", "--home", str(self.coordinator))
        if wait:
            self.until(lambda: self.count("coordinator", "coordinator_ready") > ready, "the coordinator")

    def run_agent(self, name: str) -> None:
        self.daemons.spawn(name, "participant", "run", "--home", str(self.place(name)))

    def restart_agent(self, name: str) -> None:
        """Kill an agent and start it again."""
        self.daemons.kill(name)
        self.run_agent(name)

    def restart_coordinator(self) -> None:
        """Kill the coordinator and start it again."""
        children = self.children()
        self.daemons.kill("coordinator")
        self.until(lambda: not any(alive(process) for process in children.values()), "the children's end")
        self.run_coordinator()

    @contextmanager
    def stopped(self, *names: str) -> Iterator[None]:
        """Let agents stand still, as if their machines had, while the block runs."""
        try:
            for name in names:
                self.daemons.signal(name, signal.SIGSTOP)
            yield
        finally:
            for name in names:
                if name in self.daemons.running:
                    self.daemons.signal(name, signal.SIGCONT)

    @contextmanager
    def stopped_at(self, name: str, stage: str) -> Iterator[None]:
        """Let an agent stand still from the begin of a stage on, before it has answered there.

        An agent that was faster than the stop has answered: then the next round is taken.
        """
        for _ in range(20):
            self.until(lambda: name in self.waiting(stage), f"{name} at {stage!r}")
            self.daemons.signal(name, signal.SIGSTOP)
            time.sleep(0.3)  # an answer that was on its way has arrived
            if name in self.waiting(stage):
                break
            self.daemons.signal(name, signal.SIGCONT)
        else:
            raise AssertionError(f"{name} was never met at {stage!r}")
        try:
            yield
        finally:
            if name in self.daemons.running:
                self.daemons.signal(name, signal.SIGCONT)

    @contextmanager
    def cut(self, *names: str, doors: Sequence[str] = DOORS[:3]) -> Iterator[None]:
        """Part members from the coordinator while the block runs."""
        chosen = [self.doors[name][door] for name in names for door in doors]
        for door in chosen:
            door.cut()
        try:
            yield
        finally:
            for door in chosen:
                door.mend()

    def holds_for(self, seconds: float) -> None:
        """Let time pass; no daemon ends in it."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end, "time", seconds + 1)

    def count(self, name: str, event: str) -> int:
        """How often a daemon has logged an event."""
        return sum(one.get("event") == event for one in self.daemons.events(name))

    def children(self, of: str = "coordinator") -> dict[str, int]:
        """Process ids of the coordinator's children, by what they are."""
        parent, found = self.daemons.running[of].pid, {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError, IndexError):
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == parent:
                    words = (path / "cmdline").read_bytes().split(b"\0")
                    module = words[words.index(b"-m") + 1].decode().rpartition(".")[2]
                    found[module] = int(path.name)
        return found

    def kill_child(self, module: str) -> int:
        """End a child of the coordinator the hard way, and give its process id."""
        process = int(self.until(lambda: self.children().get(module), f"the child {module}"))
        os.kill(process, signal.SIGKILL)
        return process

    def until(self, is_so: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """Wait until something holds and give it; a daemon that ends meanwhile fails the test."""
        end = time.monotonic() + seconds
        while not (found := is_so()):
            for name, process in self.daemons.running.items():
                if process.poll() is not None:
                    raise AssertionError(
                        f"{name} ended with {process.returncode} while waiting for {what}\n{self.daemons.tail()}"
                    )
            if time.monotonic() > end:
                raise AssertionError(
                    f"{what}: not within {seconds:g} s; {self.where()}\n{self.daemons.tail()}"
                )
            time.sleep(0.02)
        return found

    # -- looking -----------------------------------------------------------------------------------------

    def journal(self) -> Journal:
        """The coordinator's journal, opened once."""
        if not hasattr(self, "_journal"):
            self._journal = Journal(self.home.settings.database_url(self.coordinator))
        return self._journal

    def progress(self) -> Any:
        return read_progress(self.journal(), self.session)

    def where(self) -> str:
        return f"{self.state()}, {self.progress()}"

    def state(self, session: str = "") -> str:
        with open_office(self.home) as office:
            studies = Authoring(office, "admin").desk.all()
            study = next(study for study in studies if session_of(study) == (session or self.session))
            return state_of(study, Outcomes(office.journal).get(study), utc_now())

    def rounds_done(self) -> int:
        progress = self.progress()
        return 0 if progress is None else progress.round

    def stage(self) -> str:
        progress = self.progress()
        return "" if progress is None else progress.stage

    def waiting(self, stage: str) -> tuple[str, ...]:
        """Whom the loop waits for at a stage; nobody if it is at another one."""
        progress = self.progress()
        return progress.waiting if progress is not None and progress.stage == stage else ()

    def contributors(self, number: int) -> list[str]:
        """Whose updates are in a round's sum, once it is over."""
        ended = lambda: [one for one in self.events("round_ended") if one["round"] == number]  # noqa: E731
        return list(self.until(ended, f"round {number}")[-1]["contributors"])

    def waits_for(self, stage: str, *names: str) -> bool:
        """Whether the loop is at a stage and waits for exactly these members."""
        progress = self.progress()
        return progress is not None and (progress.stage, progress.waiting) == (stage, names)

    def round_reached(self, number: int) -> None:
        self.until(lambda: self.rounds_done() >= number, f"round {number}")

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Details of the journal's events of one kind, in order."""
        return [dict(event.detail) for event in self.journal().events() if event.kind == kind]

    def status(self, name: str) -> dict[str, Any]:
        return read_status(self.place(name))

    def entries(self, name: str) -> list[dict[str, Any]]:
        """Entries of a member's ledger after its opening."""
        lines = [
            line for path in self.place(name).glob("ledger-*.jsonl") for line in path.read_text().splitlines()
        ]
        return [json.loads(line)["entry"] for line in lines[1:]]

    def reserved(self, name: str) -> list[int]:
        """Rounds that a member has reserved, in the order of its ledger."""
        return [entry["round"] for entry in self.entries(name) if entry["kind"] == "reserve"]

    def model(self, name: str) -> dict[str, Any] | None:
        """What a member's saved model says of its training, once it is there."""
        path = self.place(name) / "studies" / self.session / "model" / "config.json"
        return dict(json.loads(path.read_bytes())["training"]) if path.exists() else None

    def model_state(self, name: str) -> int:
        """Rounds that a member has applied, as its agent wrote them down."""
        return int(self.status(name)["seats"][self.session])

    # -- what must hold in the end -----------------------------------------------------------------------

    def finishes(self, names: Sequence[str] = (), seconds: float = 2 * PATIENCE) -> None:
        """Wait for the end, and check everything that must hold then, for the members that are named or all."""
        names = names or self.names
        self.until(lambda: self.state() == "finished", "the end of the study", seconds)
        self.until(lambda: all(self.model(name) for name in names), "the models")
        rounds = self.study.training.rounds
        trained = {name: self.model(name) for name in names}
        assert all(found is not None and found["rounds"] == rounds for found in trained.values()), trained
        assert len({found["state"] for found in trained.values() if found is not None}) == 1, trained
        contributed = dict.fromkeys(self.names, 0)
        ends = {event["round"]: event for event in self.events("round_ended")}
        assert set(ends) == set(range(1, rounds + 1))
        for event in ends.values():
            for name in event["contributors"]:
                contributed[name] += 1
        for name in names:
            self.ledger_holds(name, contributed[name])

    def ledger_holds(self, name: str, contributed: int = 0) -> None:
        """A member's ledger passes the audit, counts every round that it trained, and none of them twice."""
        findings = audit_folder(self.place(name))
        assert [finding.error for finding in findings] == [None]
        reserved = self.reserved(name)
        assert len(set(reserved)) == len(reserved), f"{name} was charged twice: {reserved}"
        assert len(reserved) >= contributed, (
            f"{name} has trained {contributed} rounds, its ledger has {reserved}"
        )

    def close(self) -> None:
        for name in self.daemons.running:
            with suppress(ProcessLookupError):
                self.daemons.signal(name, signal.SIGCONT)
        self.daemons.close()
        for doors in self.doors.values():
            for door in doors.values():
                door.close()
        if hasattr(self, "_journal"):
            self._journal.close()


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and was not fetched does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Find ports on loopback that nobody listens on, below those that the system gives away itself."""
    found: list[int] = []
    draw = random.Random(os.urandom(8))
    while len(found) < count:
        port = draw.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def write_table(path: Path, table: Any) -> None:
    """Write a member's rows as CSV, under the names of the tiny study."""
    lines = ["a,b,c,d,e,f,late"]
    for numeric, category, label in zip(table.numeric, table.categorical, table.labels, strict=True):
        cells = [*(f"{value:.6f}" for value in numeric), str(1 + int(category[0]) % 3), str(int(label))]
        lines.append(",".join(cells))
    path.write_text("\n".join(lines) + "\n")


def signed_answer(place: ParticipantHome, proposal: Any, make: Any = approve) -> Any:
    """A member's answer, made without its desk."""
    return Document.sign(make(proposal, place.name, by="hand", at=utc_now()), place.identity().sign)


DATASETS = """
schema = "hansa/datasets/v1"

[[dataset]]
name = "loans"
kind = "csv"
path = "table.csv"
label = "late"
policy = "policy.toml"
"""

POLICY = """
schema = "hansa/policy/v1"
data_set = "loans"
studies = []
delta_limit = 1e-5
smallest_cohort = 3

[epsilon]
for_ever = {epsilon}
"""
