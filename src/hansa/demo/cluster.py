"""A whole consortium on one machine, as its people would set it up: every party a process of its own, TLS on, every step a command.

1 found     consortium, keys, coordinator's daemon
2 join      invitation, keys, fingerprints compared, approval; each participant in a home of its own
3 data      deal out the bank example, register a data set with its policy
4 agents    one process each
5 study     base, proposal, approvals, start
6 watch     until it is over
7 check     all agents hold the same model; ledgers verify

What people do by telephone, comparing fingerprints, this module does by reading both sides' screens. That is the one thing here
that a real consortium must not do.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hansa.errors import CommandFailed, WorkerFailed

Say = Callable[[str], None]
Command = Callable[[list[str]], tuple[int, str, str]]
_COMMAND_SECONDS = 300.0
_STOP_SECONDS = 30.0


@dataclass
class Cluster:
    """Processes of one consortium; use as a context manager, which ends them.

    Args:
        folder: Where all homes lie.
        names: The participants.
        port: First of five ports on loopback: four doors and the status page.
        say: Receives a line about each step.
        command: Runs a command line without the word `hansa`; gives status, stdout and stderr.

    Guarantees:
        - After the `with` block no process of the cluster is left.
    """

    folder: Path
    names: tuple[str, ...]
    port: int
    say: Say
    command: Command = field(default_factory=lambda: in_a_process)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def coordinator(self) -> Path:
        """The coordinator's home."""
        return self.folder / "coordinator"

    def home(self, name: str) -> Path:
        """A participant's home."""
        return self.folder / name

    def hansa(self, *arguments: str) -> dict[str, Any]:
        """Run a command with `--json` and give its result.

        Raises:
            CommandFailed: It ended with another status than 0, or not in time.
        """
        found: dict[str, Any] = json.loads(self.words(*arguments, "--json"))
        return found

    def words(self, *arguments: str) -> str:
        """Run a command and give what it prints; raises as `hansa`."""
        status, out, words = self.command(list(arguments))
        if status:
            raise CommandFailed(
                f"hansa {' '.join(arguments[:3])} ended with {status}: {words.strip()[-2000:]}"
            )
        return out

    def spawn(self, name: str, *arguments: str) -> None:
        """Start a daemon; its log goes to a file beside its home."""
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603 - our own command line
                [*hansa_command(), *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment(),
            )

    def run_coordinator(self, seconds: float = 120.0) -> None:
        """Start the coordinator's daemon and wait until it is ready.

        Raises:
            WorkerFailed: It ends, or is not ready in time.
        """
        self.spawn("coordinator", "coordinator", "run", "--home", str(self.coordinator))
        self.await_that(lambda: self.log_has("coordinator", "coordinator_ready"), "the coordinator", seconds)

    def run_agent(self, name: str) -> None:
        """Start a participant's agent."""
        self.spawn(name, "participant", "run", "--home", str(self.home(name)))

    def kill(self, name: str) -> None:
        """End a process the hard way."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def log_has(self, name: str, event: str) -> bool:
        """Whether a daemon has logged an event since it was started last."""
        path = self.folder / f"{name}.log"
        return path.exists() and f'"event": "{event}"' in path.read_text(errors="replace")

    def await_that(self, is_so: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait for something; WorkerFailed if a process ends meanwhile, or the time does."""
        end = time.monotonic() + seconds
        while not is_so():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise WorkerFailed(f"{name} ended with {process.returncode}; see {name}.log")
            if time.monotonic() > end:
                raise WorkerFailed(f"{what} was not ready within {seconds:g} s")
            time.sleep(0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            if process.poll() is None:
                process.kill()
                process.wait()

    # -- steps -------------------------------------------------------------------------------------------

    def found(self, settings: Mapping[str, str] | None = None) -> None:
        """Step 1."""
        self.say("founding the consortium")
        self.hansa(
            "consortium", "init", "demo-banks", "--home", str(self.coordinator), "--address", "127.0.0.1",
            "--port", str(self.port),
        )  # fmt: skip
        path = self.coordinator / "coordinator.toml"
        text = path.read_text().replace('"0.0.0.0:', '"127.0.0.1:')
        text = text.replace("127.0.0.1:9447", f"127.0.0.1:{self.port + 4}")
        for old, new in (settings or {}).items():
            text = text.replace(old, new)
        path.write_text(text)
        self.run_coordinator()

    def join(self, name: str) -> None:
        """Step 2 for one participant."""
        self.say(f"enrolling {name}")
        invitation, home = self.folder / f"{name}.invitation.json", str(self.home(name))
        invited = self.hansa(
            "participant", "invite", name, "--home", str(self.coordinator), "--output", str(invitation)
        )
        asked = self.hansa(
            "participant", "join", str(invitation), "--home", home, "--fingerprint", invited["fingerprint"]
        )
        self.hansa(
            "participant", "approve", name, "--home", str(self.coordinator),
            "--fingerprint", asked["fingerprint"],
        )  # fmt: skip
        self.hansa("participant", "join", "--resume", "--home", home)

    def add_data(self, name: str, table: Path, policy: str) -> None:
        """Step 3 for one participant."""
        home = self.home(name)
        (home / "policy.toml").write_text(policy)
        self.hansa(
            "participant", "dataset", "add", "credit-cards", "--kind", "parquet", "--path", str(table),
            "--policy", "policy.toml", "--home", str(home),
        )  # fmt: skip

    def propose(self, study: Path, base: Path) -> str:
        """Step 5: propose a study to all participants; give its session."""
        self.say("proposing the study")
        proposed = self.hansa(
            "study", "propose", str(study), "--base", str(base), "--home", str(self.coordinator)
        )
        return str(proposed["session"])

    def approve(self, name: str, session: str, seconds: float = 120.0) -> None:
        """Step 5: approve as soon as the agent has fetched the proposal."""
        place = self.home(name) / "studies" / session / "proposal.json"
        self.await_that(place.exists, f"the proposal at {name}", seconds)
        self.hansa("study", "approve", session, "--home", str(self.home(name)), "--yes")

    def view(self, session: str) -> dict[str, Any]:
        """Show the study at the coordinator."""
        return self.hansa("study", "show", session, "--home", str(self.coordinator))

    def start(self, session: str, seconds: float = 120.0) -> None:
        """Step 5: start the study when enough have approved."""
        end = time.monotonic() + seconds
        while len((view := self.view(session))["approved"]) < view["needed"] and time.monotonic() < end:
            time.sleep(0.5)
        self.hansa("study", "start", session, "--home", str(self.coordinator))

    def watch(self, session: str, seconds: float, each: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Step 6: follow the study until it is over; WorkerFailed if it is not in time."""
        end = time.monotonic() + seconds
        while (view := self.view(session))["state"] not in ("finished", "failed", "stopped"):
            each(view)
            if time.monotonic() > end:
                raise WorkerFailed(f"the study is not over within {seconds:g} s: {view['progress']}")
            time.sleep(0.5)
        each(view)
        return view

    def models(self, session: str, seconds: float = 60.0) -> dict[str, str]:
        """Step 7: wait for every participant's model; give the hash of its state by name."""
        found: dict[str, str] = {}
        for name in self.names:
            config = self.home(name) / "studies" / session / "model" / "config.json"
            self.await_that(config.exists, f"the model of {name}", seconds)
            found[name] = str(json.loads(config.read_bytes())["training"]["state"])
        return found

    def report(self, folder: Path) -> None:
        """Step 7: every participant signs its statement, and an auditor makes the privacy report of all of them."""
        for name in self.names:
            home = self.home(name)
            for ledger in sorted(home.glob("ledger-*.jsonl")):
                self.words(
                    "audit", "statement", str(ledger), "--home", str(home), "--policy", str(home / "policy.toml"),
                    "--output", str(home / f"statement-{name}.json"),
                )  # fmt: skip
        self.words(
            "audit",
            "report",
            str(self.folder),
            "--output",
            str(folder),
            "--format",
            "html",
            "--format",
            "json",
        )


def in_a_process(arguments: list[str]) -> tuple[int, str, str]:
    """Run a command as people do: in a process of its own."""
    try:
        done = subprocess.run(  # noqa: S603 - our own command line
            [*hansa_command(), *arguments],
            capture_output=True,
            timeout=_COMMAND_SECONDS,
            env=environment(),
            check=False,
            text=True,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(
            f"hansa {' '.join(arguments[:3])} took longer than {_COMMAND_SECONDS:g} s"
        ) from error
    return done.returncode, done.stdout, done.stderr


def hansa_command() -> list[str]:
    """The command line of this installation."""
    return [sys.executable, "-P", "-m", "hansa"]


def environment() -> dict[str, str]:
    """The environment of commands and daemons: this one's, one thread a library, no telemetry."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HANSA_")}
    return kept | threads | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1"}
