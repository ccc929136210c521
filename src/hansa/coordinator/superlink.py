"""Flower's SuperLink as a process of the coordinator: on the loopback interface, watched, started again when it dies.

Whoever reaches the SuperLink's port may start runs and register nodes, for its Control API asks for no credential.
So it listens on the loopback interface alone, and participants reach it through `front.py`, which lets the Fleet API
through and nothing else. Its Runtime API hands out the coordinator's task only against a secret that exists in this
process and in one file.
"""

import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    UnregisterNodeRequest,
    UnregisterNodeResponse,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.constant import NodeStatus

from hansa.errors import Error, PortInUse, StoreNotWritable, SuperLinkFailed
from hansa.federation.fleet_messages import MOST_MESSAGE_BYTES, canonical_node_key
from hansa.federation.flower_api import FlowerApi, Protobuf, R

START_SECONDS = 60.0
_HOST = "127.0.0.1"
_STOP_SECONDS = 5.0
_PORTS = 3  # that are tried at the start, where any free one is asked for
_LONGEST_PAUSE_SECONDS = 10.0
_STEADY_SECONDS = 60.0  # a process that lived so long was no failed start
_LOG_BYTES = 8 << 20
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "LC_ALL", "TZ", "TMPDIR")
_MESSAGES = 64  # of the largest kind, in one list of nodes or messages

logger = logging.getLogger(__name__)


class SuperLink:
    """One SuperLink process and its nodes.

    Args:
        folder: Private folder for its log, its secret and Flower's own files; made if it is not there.
        port: Port on the loopback interface; 0 for any free one, the same for all restarts.
        database: File in which the SuperLink keeps runs and messages. Without it they are in memory; that is faster,
            and nothing is lost by it, for Flower does not go on with a run after a restart either way (see
            `superlink_grid.py`).
        start_seconds: Longest wait until it answers.

    Attributes:
        starts: Processes that were started and answered.
        secret: Proof that a task of the Runtime API is the coordinator's; another one for each process.

    Guarantees:
        - It listens on the loopback interface only, reports nothing to Flower's makers, and installs nothing.
        - It ends when this process ends, whatever way.
        - When it dies it is started again, after pauses of up to 10 s if it dies again at once, and knows the same
          nodes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        database: Path | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self._folder, self._database, self._start_seconds = folder, database, start_seconds
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()  # of process and nodes; held while a process starts
        self._closing = threading.Event()
        self._failures, self._started_at = 0, 0.0
        self._members: dict[str, bytes] = {}
        self._api: FlowerApi | None = None
        self.starts, self.secret = 0, b""

    @property
    def address(self) -> str:
        """Host and port, such as `127.0.0.1:18000`."""
        return f"{_HOST}:{self._port}"

    @property
    def process_id(self) -> int | None:
        """Process id, None while there is none."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the process and the thread that watches it.

        Raises:
            PortInUse: Somebody else listens on the port.
            SuperLinkFailed: It does not answer in time, or ends at once.
            StoreNotWritable: The folder cannot be made or written to.
        """
        left = _PORTS if self._port == 0 else 1
        while True:
            left -= 1
            try:
                self.ensure_running()
                break
            except SuperLinkFailed:
                # It takes seconds until it listens: somebody else may have the port by then that was free before.
                if not left or self._port == 0 or self._is_free():
                    raise
                self._port = 0
        threading.Thread(target=self._watch, name="superlink-watch", daemon=True).start()

    def ensure_running(self) -> int:
        """See that a process runs and answers, and give its number; see `starts`.

        Raises:
            As `start`.
        """
        with self._lock:
            if self._closing.is_set():
                raise SuperLinkFailed("the SuperLink is closed")
            if self._process is None or self._process.poll() is not None:
                self._launch()
            return self.starts

    def set_members(self, node_keys: Mapping[str, bytes]) -> None:
        """Let exactly these participants' nodes in: by name, their Flower public keys in PEM.

        Raises:
            InvalidValue: A key is not one that Flower takes.
            FlowerRefused: A key was registered and removed before.
        """
        members = {name: canonical_node_key(key) for name, key in node_keys.items()}
        with self._lock:
            self._members = members
            if self._process is not None:
                self._register()

    def members(self) -> dict[str, bytes]:
        """Give the node keys by participant."""
        with self._lock:
            return dict(self._members)

    def nodes(self) -> dict[bytes, NodeInfo]:
        """Give what the SuperLink knows of each node that was not removed, by node key."""
        found = self._call("list-nodes", ListNodesRequest(), ListNodesResponse).nodes_info
        return {node.public_key: node for node in found if node.status != NodeStatus.UNREGISTERED}

    def close(self) -> None:
        """End the process and its watch."""
        self._closing.set()
        with self._lock:
            self._stop()

    # -- the process -------------------------------------------------------------------------------------

    def _launch(self) -> None:
        self._pause()
        self._stop()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            command = self._command()
        except OSError as error:
            raise StoreNotWritable(
                f"the SuperLink's folder cannot be used: {error.strerror} {self._folder}"
            ) from error
        self._reserve_port()
        try:
            with _open_log(self._folder / "superlink.log") as log:
                self._process = subprocess.Popen(  # noqa: S603 - our own command line
                    [*command, "--port", str(self._port)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=self._environment(),
                    start_new_session=True,  # Ctrl-C is for the coordinator, which ends it when it has done
                )
        except OSError as error:
            self._failures += 1
            raise SuperLinkFailed(f"the SuperLink cannot be started: {error.strerror}") from error
        self._api = FlowerApi(f"http://{self.address}", most_bytes=MOST_MESSAGE_BYTES * _MESSAGES)
        self._started_at = time.monotonic()
        try:
            self._await_answer()
            self._register()
        except Error:
            self._failures += 1
            self._stop()
            raise
        self.starts += 1
        logger.info("superlink_started: process %s on %s", self.process_id, self.address)

    def _command(self) -> list[str]:
        secret_file = self._folder / "superexec.secret"
        self.secret = secrets.token_bytes(32)
        secret_file.unlink(missing_ok=True)
        with os.fdopen(os.open(secret_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(self.secret)
        command = [sys.executable, "-P", "-m", "hansa.coordinator.superlink_process", "--insecure"]
        command += ["--host", _HOST, "--isolation", "process"]
        command += ["--superexec-auth-secret-file", str(secret_file)]
        command += ["--disable-runtime-dependency-installation"]
        return command if self._database is None else [*command, "--database", str(self._database)]

    def _environment(self) -> dict[str, str]:
        """Give only what the process needs: whatever else stands in the environment is not its business."""
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        return kept | {
            "HOME": str(self._folder),
            "FLWR_HOME": str(self._folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_LOG_LEVEL": "WARNING",
            "PYTHONSAFEPATH": "1",
        }

    def _reserve_port(self) -> None:
        """Choose a port once, and find out before a slow start whether somebody has it."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, self._port))
            except OSError as error:
                raise PortInUse(
                    f"port {self._port} on {_HOST} cannot be listened on: {error.strerror}"
                ) from error
            self._port = probe.getsockname()[1]

    def _is_free(self) -> bool:
        """Whether nobody listens on the port."""
        try:
            self._reserve_port()
        except PortInUse:
            return False
        return True

    def _await_answer(self) -> None:
        process, api = self._process, self._api
        deadline = time.monotonic() + self._start_seconds
        while process is not None and api is not None and process.poll() is None:
            if api.is_healthy() and process.poll() is None:
                return
            if time.monotonic() > deadline:
                raise SuperLinkFailed(f"the SuperLink does not answer within {self._start_seconds:g} s")
            if self._closing.wait(0.05):
                raise SuperLinkFailed("the SuperLink is closed")
        raise SuperLinkFailed(f"the SuperLink ended with status {process.returncode if process else None}")

    def _pause(self) -> None:
        """Wait longer and longer before a process that dies at once is started again."""
        if self._process is None and self._failures == 0:
            return
        lived = time.monotonic() - self._started_at
        self._failures = 0 if lived > _STEADY_SECONDS else self._failures + (self._process is not None)
        self._closing.wait(min(0.1 * 2.0 ** min(self._failures, 10), _LONGEST_PAUSE_SECONDS))

    def _stop(self) -> None:
        if self._api is not None:
            self._api.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._process = self._api = None

    def _watch(self) -> None:
        while not self._closing.is_set():
            process = self._process
            if process is not None:
                process.wait()
            if self._closing.is_set():
                return
            if process is not None and process is self._process:
                logger.warning("superlink_died: process %s, status %s", process.pid, process.returncode)
            try:
                self.ensure_running()
            except Error as error:
                logger.error("%s: %s", error.code, error.message)
                self._closing.wait(1.0)

    # -- its nodes ---------------------------------------------------------------------------------------

    def _register(self) -> None:
        known = self.nodes()
        wanted = {key: name for name, key in self._members.items()}
        for key in wanted.keys() - known.keys():
            request = RegisterNodeRequest(public_key=key, name=wanted[key])
            self._call("register-node", request, RegisterNodeResponse)
        for key in known.keys() - wanted.keys():
            request = UnregisterNodeRequest(node_id=known[key].node_id)
            self._call("unregister-node", request, UnregisterNodeResponse)

    def _call(self, function: str, request: Protobuf, response_type: type[R]) -> R:
        api = self._api
        if api is None:
            raise SuperLinkFailed("the SuperLink does not run")
        return api.call(f"/v1/control/{function}", request, response_type)


def _open_log(path: Path) -> BinaryIO:
    """Open the process's log to append to it; one that has grown large is put aside first."""
    if path.exists() and path.stat().st_size > _LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return os.fdopen(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab")
