"""Worker processes of the embedded consortium, and the pipe that they talk through.

A worker answers calls one after another; while it works on one it may call back services of the parent (the aggregator). Frames
are CBOR maps of plain values, never pickled objects. A worker ignores Ctrl-C, which its parent handles, and ends when the pipe
closes, so none is left behind. It holds its own end of its own pipe and no other: it cannot speak to another worker.
"""

import os
import resource
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cbor2

from hansa import errors
from hansa.errors import Error

Service = Callable[..., Any]
_FORK = get_context("fork")
# Every fork inherits these, and one that stays open in another worker keeps a pipe alive whose parent is gone.
_PARENTS_ENDS: set[Connection] = set()


class Parent:
    """The worker's end: lets code in the worker call services of the parent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def call(self, service: str, *values: Any) -> Any:
        """Call a service of the parent and wait for its result; raises the parent's error."""
        _send(self._connection, {"kind": "service", "name": service, "values": list(values)})
        return _result(_receive(self._connection))


class Host:
    """A worker process, seen from the parent.

    Args:
        build: Called in the worker with its `Parent`; gives the operations that the worker answers. What it refers to is inherited
            by the fork, nothing is sent.
        services: What the worker may call back.
    """

    def __init__(
        self, build: Callable[[Parent], Mapping[str, Service]], services: Mapping[str, Service]
    ) -> None:
        self._services = dict(services)
        self._lock = threading.Lock()
        self._connection, theirs = _FORK.Pipe()
        _PARENTS_ENDS.add(self._connection)
        self._process = _FORK.Process(target=_work, args=(theirs, build), daemon=True)
        # Ctrl-C waits until the worker has learned to ignore it.
        unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)

    @property
    def process_id(self) -> int | None:
        """Process id of the worker."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the worker runs."""
        return self._process.is_alive()

    def call(self, operation: str, *values: Any) -> Any:
        """Run an operation in the worker; raises what it raised.

        Raises:
            Error: The worker's own error, of its class.
            WorkerFailed: The worker died, or failed in a way that is not one of hansa's errors.
        """
        with self._lock:
            try:
                _send(self._connection, {"kind": "call", "name": operation, "values": list(values)})
                while (frame := _receive(self._connection))["kind"] == "service":
                    _answer(self._connection, self._services, frame)
            except (EOFError, OSError) as error:
                self._process.join(timeout=2.0)  # its end of the pipe closes a moment before it has ended
                raise errors.WorkerFailed("a worker process has died") from error
            return _result(frame)

    def stop(self) -> None:
        """End the worker. Whoever waits for an answer of it gets WorkerFailed."""
        _PARENTS_ENDS.discard(self._connection)
        self._connection.close()
        self._process.join(timeout=2.0)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(timeout=2.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def peak_memory_of(process_id: int | None) -> int:
    """Largest resident memory of another process since it began its program; 0 if it is gone."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _work(connection: Connection, build: Callable[[Parent], Mapping[str, Service]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for inherited in _PARENTS_ENDS:
        inherited.close()
    operations = {"peak_memory_bytes": peak_memory_bytes, **build(Parent(connection))}
    try:
        while True:
            _answer(connection, operations, _receive(connection))
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone or has closed the pipe: that is how a worker is told to stop


def _answer(connection: Connection, operations: Mapping[str, Service], frame: dict[str, Any]) -> None:
    """Run the operation that a frame asks for and send its result or its error."""
    try:
        answer = cbor2.dumps({"kind": "result", "value": operations[frame["name"]](*frame["values"])})
    except Exception as error:
        answer = cbor2.dumps({"kind": "error", "error": error_values(error)})
    connection.send_bytes(answer)


def _result(frame: dict[str, Any]) -> Any:
    if frame["kind"] == "result":
        return frame["value"]
    raise error_of(*frame["error"])


def error_values(error: Exception) -> list[Any]:
    """Take an error apart for a pipe; one that is not hansa's becomes a WorkerFailed with its traceback."""
    if isinstance(error, Error):
        return [type(error).__name__, error.message, error.hint]
    return [errors.WorkerFailed.__name__, "".join(traceback.format_exception(error)), None]


def error_of(name: str, message: str, hint: str | None) -> Error:
    """Put an error together that `error_values` took apart."""
    kind: type[Error] = getattr(errors, name)
    return kind(message, hint=hint)


def _send(connection: Connection, frame: dict[str, Any]) -> None:
    connection.send_bytes(cbor2.dumps(frame))


def _receive(connection: Connection) -> dict[str, Any]:
    frame: dict[str, Any] = cbor2.loads(connection.recv_bytes())
    return frame
