"""Flower's own processes on loopback: a SuperLink, SuperNodes, an app that is run. Nothing of hansa's daemons."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAMS = Path(sys.executable).parent
_PASSED = ("PYTHONPATH", "LANG", "TMPDIR", "VIRTUAL_ENV")


def environment(home: Path) -> dict[str, str]:
    """What a stock process gets: folders of its own, no telemetry, no question for updates, one thread a library."""
    home.mkdir(exist_ok=True)
    return {key: os.environ[key] for key in _PASSED if key in os.environ} | {
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
    }


class StockFlower:
    """Stock processes; use as a context manager, which ends them.

    Args:
        folder: Where their logs and homes lie.
        port: First of as many ports on loopback as there are SuperNodes, and one.
        nodes: The configuration of each SuperNode by name, as its command line takes it.
    """

    def __init__(self, folder: Path, port: int, nodes: Mapping[str, str]) -> None:
        self.folder, self.port, self.nodes = folder, port, nodes
        self.superlink = f"127.0.0.1:{port}"
        self.running: list[subprocess.Popen[bytes]] = []

    def environment(self, name: str) -> dict[str, str]:
        """Give the environment of one of the processes."""
        return environment(self.folder / f"flwr-{name}")

    def begin(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a program of Flower; its words go to a log of this name."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(PROGRAMS / command[0]), *command[1:]],
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        self.running.append(process)
        return process

    def log(self, name: str) -> str:
        """Give what a process has said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start(self) -> None:
        """Start the SuperLink, wait until it answers, then start the SuperNodes."""
        self.begin(
            "superlink",
            *("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port)),
            "--disable-runtime-dependency-installation",
        )
        until = time.monotonic() + 120
        while not self._is_healthy():
            if time.monotonic() > until:
                raise TimeoutError(self.log("superlink"))
            time.sleep(0.2)
        for place, (name, config) in enumerate(self.nodes.items()):
            self.begin(
                name,
                *("flower-supernode", "--insecure", "--superlink", self.superlink, "--host", "127.0.0.1"),
                *("--port", str(self.port + 1 + place), "--node-config", config),
            )
        config_file = Path(self.environment("admin")["FLWR_HOME"]) / "config.toml"
        config_file.write_text(f'[superlink.here]\naddress = "{self.superlink}"\ninsecure = true\n')

    def run(self, app: Path, config: str) -> subprocess.Popen[bytes]:
        """Run an app; what its ServerApp says goes to the log `admin`."""
        return self.begin("admin", "flwr", "run", str(app), "here", "--stream", "-c", config)

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.superlink}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
