"""Running sums of ciphertexts in a process of their own, so that no upload can bring the aggregator down.

Microsoft SEAL is native code, and what it reads comes from participants. `secure_agg.ciphertext_format` leaves a
peer no header, length or compressed payload to choose; this module is the second wall. With `add` and `sums` the
aggregator's own process never calls SEAL on bytes of a peer, and parsing, most of what a coordinator computes, is
done once: the sums live in the worker. With `check` alone, as the aggregation service uses it today, that process
parses as well, but only what the worker has survived. Uploads lie in an unnamed file, the spool, from which the worker reads
them; when it dies, the next one makes the sums again from those that were accepted.

Questions and answers are CBOR maps over a socket pair, never pickled objects. The worker is a fresh program, not a
fork: it inherits no memory, no descriptor but its connection and the spool, which it cannot write, and no key. Its
memory, time and core file are limited. What it answers is checked like what a peer sends.
"""

import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cbor2

from hansa.errors import (
    CiphertextSizeMismatch,
    Error,
    MalformedCiphertext,
    OutOfOrder,
    StoreNotWritable,
    WorkerFailed,
)
from hansa.secure_agg.bfv import CiphertextSum, parse_seeded
from hansa.secure_agg.ciphertext_format import EXPANDED_BYTES, SEEDED_BYTES, verify_wire_length

_ERRORS: dict[str, type[Error]] = {kind.code: kind for kind in (CiphertextSizeMismatch, MalformedCiphertext)}
_START_SECONDS = 60.0
_ANSWER_BYTES = 4096  # of an answer, beside sums


class CiphertextChecker:
    """Sums of one round's uploads, kept by a worker process.

    Args:
        spool_folder: Where uploads wait in case that the worker dies: the bytes of a whole round, in a file without a
            name. It should be on a disk; the system's folder for temporary files if not given.
        upload_seconds: Processor time, and also wall time, that one upload may take.
        memory_bytes: Address space of the worker.
        command: Start of the worker's command line; two descriptor numbers are added.

    Attributes:
        terms: Uploads in the sums.
        starts: Workers started so far; above 1 means that one has died.

    Guarantees:
        - An upload that is refused, or that kills the worker or exceeds its limits, leaves the sums as they were.
        - The sums are those of the uploads whose `add` returned, whatever died in between.
        - Memory is one upload here, one sum and one upload in the worker, whatever their number.
        - Calls from several threads are served one after another.
    """

    def __init__(
        self,
        *,
        spool_folder: Path | None = None,
        upload_seconds: float = 60.0,
        memory_bytes: int = 2 << 30,
        command: Sequence[str] = (sys.executable, "-m", "hansa.coordinator.ciphertext_checker"),
    ) -> None:
        self._upload_seconds, self._memory_bytes = upload_seconds, memory_bytes
        self._command, self._lock = tuple(command), threading.Lock()
        # Unbuffered: the worker reads it through a descriptor of its own.
        self._spool = tempfile.TemporaryFile(dir=spool_folder, buffering=0)  # noqa: SIM115 - see close
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any]
        self._count = self.terms = self.starts = 0

    def begin(self) -> None:
        """Forget the sums and the uploads of the last round."""
        with self._lock:
            self._count = self.terms = 0
            self._ask({"name": "begin"})

    def check(self, ciphertexts: Sequence[bytes]) -> None:
        """Check the ciphertexts of one upload, and add them to nothing. Raises as `add` does."""
        with self._lock:
            self._offer("check", ciphertexts)

    def add(self, ciphertexts: Sequence[bytes]) -> None:
        """Check the ciphertexts of one upload, then add all of them.

        Args:
            ciphertexts: Seeded form, untrusted, as many as in the first upload of the round.

        Raises:
            CiphertextSizeMismatch: Another number than in the first upload, or one has not its form's length.
            MalformedCiphertext: One is not of the accepted form, or the worker died of it.
            StoreNotWritable: The spool's disk is full.
            WorkerFailed: No worker can be started, or not with the sums of before.
        """
        with self._lock:
            if self.terms and len(ciphertexts) != self._count:
                raise CiphertextSizeMismatch(
                    f"{len(ciphertexts)} ciphertexts, the first upload had {self._count}"
                )
            self._offer("add", ciphertexts)
            self._count = len(ciphertexts)
            self.terms += 1

    def sums(self) -> list[bytes]:
        """Return the sums in expanded form; OutOfOrder if nothing was added.

        Raises:
            WorkerFailed: The worker cannot give them.
        """
        with self._lock:
            if not self.terms:
                raise OutOfOrder("no upload was added to these sums")
            answer: dict[str, Any] = {}
            for _ in range(2):  # a worker that dies at this is replaced once
                self._ready()
                answer = answer or self._ask({"name": "sums"}) or {}
            found = answer.get("sums")
            if not _are_sums(found, self._count) or answer.get("terms") != self.terms:
                raise WorkerFailed("the process that adds ciphertexts does not give the sums")
            return [bytes(data) for data in found or ()]

    @property
    def process_id(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return self._process.pid if self._process else None

    def close(self) -> None:
        """End the worker and remove the spool."""
        with self._lock:
            self._stop()
            self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _offer(self, name: str, ciphertexts: Sequence[bytes]) -> None:
        """Let the worker read an upload; whether it stays in the spool is decided by `terms` alone."""
        # 1 lengths, before anything is kept
        if not ciphertexts:
            raise CiphertextSizeMismatch("an upload has no ciphertext")
        for ciphertext in ciphertexts:
            verify_wire_length(ciphertext, SEEDED_BYTES)
        # 2 a worker with the sums of all accepted uploads
        self._ready()
        # 3 the upload behind the accepted ones
        place = self.terms * self._count * SEEDED_BYTES
        self._write(place, ciphertexts)
        # 4 parsed, and added if that is wanted, in the worker
        answer = self._ask({"name": name, "place": place, "count": len(ciphertexts)})
        if answer is None:
            raise MalformedCiphertext("the process that parses ciphertexts died of them, or met its limits")
        if "error" in answer:
            raise _ERRORS.get(answer["error"], MalformedCiphertext)(f"refused: {answer.get('message')}")

    def _write(self, place: int, ciphertexts: Sequence[bytes]) -> None:
        try:
            for ciphertext in ciphertexts:
                written = os.pwrite(self._spool.fileno(), ciphertext, place)
                if written != SEEDED_BYTES:  # a disk that fills up ends a write early before it fails one
                    raise StoreNotWritable("an upload cannot be kept on disk: no space left")
                place += SEEDED_BYTES
        except OSError as error:
            raise StoreNotWritable(f"an upload cannot be kept on disk: {error.strerror}") from error

    def _ready(self) -> None:
        """See that there is a worker which holds the sums of all accepted uploads."""
        if self._process is not None and self._process.poll() is None:
            return
        self._stop()
        self._start()
        for term in range(self.terms):
            place = term * self._count * SEEDED_BYTES
            answer = self._ask({"name": "add", "place": place, "count": self._count})
            if answer is None or "error" in answer:
                self._stop()
                raise WorkerFailed("the process that adds ciphertexts fails on uploads that it had accepted")

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        with theirs, open(f"/proc/self/fd/{self._spool.fileno()}", "rb", buffering=0) as readable:
            descriptors = (theirs.fileno(), readable.fileno())
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                [*self._command, *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # SEAL's warnings are written there
                stderr=subprocess.DEVNULL,
            )
        self.starts += 1
        if self._ask({"name": "limits", "memory_bytes": self._memory_bytes}, _START_SECONDS) is None:
            raise WorkerFailed("the process that adds ciphertexts does not start")

    def _ask(self, question: dict[str, Any], seconds: float | None = None) -> dict[str, Any] | None:
        """Send a question and wait for the answer; None, and no worker any more, if there is none in time."""
        if self._process is None:
            return None
        seconds = self._upload_seconds if seconds is None else seconds
        watchdog = threading.Timer(seconds, self._process.kill)
        watchdog.start()
        try:
            self._connection.send_bytes(cbor2.dumps(question | {"seconds": seconds}))
            answer = cbor2.loads(self._connection.recv_bytes(self._count * EXPANDED_BYTES + _ANSWER_BYTES))
            if type(answer) is dict:
                return answer
        except (EOFError, OSError, cbor2.CBORDecodeError):
            pass  # it has died, or what it says is no answer: the same to us
        finally:
            watchdog.cancel()
        self._stop()
        return None

    def _stop(self) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.wait()
            self._process = None


def _are_sums(found: object, count: int) -> bool:
    return (
        type(found) is list
        and len(found) == count
        and all(type(data) is bytes and len(data) == EXPANDED_BYTES for data in found)
    )


class _Worker:
    """What runs in the other process: it answers one question after another until the connection closes."""

    def __init__(self, connection: "Connection[Any, Any]", spool: int) -> None:
        self._connection, self._spool = connection, spool
        self._sums: list[CiphertextSum] = []

    def serve(self) -> None:
        while True:
            try:
                question = cbor2.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                return  # the aggregator is gone, or wants no more
            _allow_processor_seconds(question["seconds"])
            try:
                answer = self._answer(question)
            except (CiphertextSizeMismatch, MalformedCiphertext) as error:
                answer = {"error": error.code, "message": error.message}
            self._connection.send_bytes(cbor2.dumps(answer))

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        name = question["name"]
        if name == "limits":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_AS, (question["memory_bytes"], question["memory_bytes"]))
        elif name == "begin":
            self._sums = []
        elif name == "sums":
            return {"sums": [running.serialise() for running in self._sums], "terms": self._sums[0].terms}
        else:
            first, end = question["place"], question["place"] + question["count"] * SEEDED_BYTES
            starts = range(first, end, SEEDED_BYTES)
            parsed = [parse_seeded(os.pread(self._spool, SEEDED_BYTES, start)) for start in starts]
            if name == "add":
                self._sums = self._sums or [CiphertextSum() for _ in parsed]
                for running, ciphertext in zip(self._sums, parsed, strict=True):
                    running.add_parsed(ciphertext)
        return {}


def _allow_processor_seconds(seconds: float) -> None:
    """Let the kernel end this process when one answer takes more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.RLIM_INFINITY))


def main() -> None:
    """Serve the aggregator; the command line names the descriptors of connection and spool."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the aggregator, which then closes the connection
    _Worker(Connection(int(sys.argv[1])), int(sys.argv[2])).serve()


if __name__ == "__main__":
    main()
