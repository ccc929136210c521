"""Worker processes of the embedded consortium, and the pipe that they talk through.

A worker answers calls one after another; while it works on one it may call back services of the parent (the aggregator). Frames
are CBOR maps of plain values, never pickled objects. A worker ignores Ctrl-C, which its parent handles, and ends when the pipe
closes, so none is left behind.
"""

import os
import resource
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import cbor2

from hansa import errors
from hansa.errors import Error

Service = Callable[..., Any]
_FORK = get_context("fork")


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
        self._process = _FORK.Process(target=_work, args=(theirs, self._connection, build), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def process_id(self) -> int | None:
        """Process id of the worker."""
        return self._process.pid

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
                    service = self._services[frame["name"]]
                    _send(self._connection, _answer(service, frame["values"]))
            except (EOFError, OSError) as error:
                raise errors.WorkerFailed("a worker process has died") from error
            return _result(frame)

    def stop(self) -> None:
        """End the worker."""
        self._connection.close()
        self._process.join(timeout=2.0)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(timeout=2.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _work(
    connection: Connection, parents_end: Connection, build: Callable[[Parent], Mapping[str, Service]]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parents_end.close()
    try:
        operations = {"peak_memory_bytes": peak_memory_bytes, **build(Parent(connection))}
        while True:
            frame = _receive(connection)
            _send(connection, _answer(operations[frame["name"]], frame["values"]))
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone or has closed the pipe: that is how a worker is told to stop


def _answer(operation: Service, values: list[Any]) -> dict[str, Any]:
    try:
        return {"kind": "result", "value": operation(*values)}
    except Error as error:
        return {
            "kind": "error",
            "class": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
        }
    except Exception:
        return {"kind": "error", "class": "WorkerFailed", "message": traceback.format_exc(), "hint": None}


def _result(frame: dict[str, Any]) -> Any:
    if frame["kind"] == "result":
        return frame["value"]
    raise getattr(errors, frame["class"])(frame["message"], hint=frame["hint"])


def _send(connection: Connection, frame: dict[str, Any]) -> None:
    connection.send_bytes(cbor2.dumps(frame))


def _receive(connection: Connection) -> dict[str, Any]:
    frame: dict[str, Any] = cbor2.loads(connection.recv_bytes())
    return frame
