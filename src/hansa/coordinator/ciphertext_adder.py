"""Running sums of ciphertexts in a process of their own, so that no upload can bring the aggregator down.

Microsoft SEAL is native code, and what it reads comes from participants. `secure_agg.ciphertext_format` leaves a
peer no header, length or compressed payload to choose; this module is the second wall. The aggregator's own process
writes the bytes of a peer into a file, the spool, and never lets SEAL touch them; the worker (`adding_worker.py`) reads
them from there, parses each once and keeps the sums. When it dies, the next one makes the sums again from the uploads
that were accepted.

Questions and answers are CBOR maps over a socket pair, never pickled objects. The worker is a fresh program, not a
fork: it inherits no memory, no descriptor but its connection and the spool, which it cannot write, and no key. Its
memory, time and core file are limited. What it answers is checked like what a peer sends.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cbor2

from hansa.coordinator.spool import SPOOL_BYTES, Spool
from hansa.errors import CiphertextSizeMismatch, Error, MalformedCiphertext, OutOfOrder, WorkerFailed
from hansa.secure_agg.ciphertext_format import EXPANDED_BYTES, SEEDED_BYTES, verify_wire_length
from hansa.secure_agg.parameters import SLOTS

_ERRORS: dict[str, type[Error]] = {kind.code: kind for kind in (CiphertextSizeMismatch, MalformedCiphertext)}
_START_SECONDS = 60.0
_ANSWER_BYTES = EXPANDED_BYTES + 4096  # one sum and a few words
_SUM_BYTES = (
    2 * SLOTS * 8 + 1024
)  # of one sum in the worker's memory: SEAL's two polynomials, and what is around them


class CiphertextAdder:
    """Sums of one attempt after another, kept by a worker process.

    Args:
        spool_folder: Where the bytes of a whole round lie, in a file without a name; see `Spool`.
        spool_bytes: Largest size of that file.
        upload_seconds: Processor time, and also wall time, that adding one upload may take.
        memory_bytes: Address space of the worker.
        sums_bytes: Memory of the worker for running sums. Sums beyond it are made of the spool when they are asked for.
        command: Start of the worker's command line; two descriptor numbers are added.

    Attributes:
        starts: Workers started so far; above 1 means that one has died.

    Guarantees:
        - An upload that is refused, or that kills the worker or exceeds its limits, leaves the sums as they were.
        - The sums are those of the uploads whose `commit` returned, whatever died in between.
        - Memory is one ciphertext for each upload that arrives here, and `sums_bytes` in the worker, however long uploads are.
        - Uploads are added one after another, from whatever thread; none waits for another one to arrive.
    """

    def __init__(
        self,
        *,
        spool_folder: Path | None = None,
        spool_bytes: int = SPOOL_BYTES,
        upload_seconds: float = 60.0,
        memory_bytes: int = 2 << 30,
        sums_bytes: int = 32 << 20,
        command: Sequence[str] = (sys.executable, "-m", "hansa.coordinator.adding_worker"),
    ) -> None:
        self._upload_seconds, self._memory_bytes = upload_seconds, memory_bytes
        self._most_sums = sums_bytes // _SUM_BYTES
        self._command, self._lock = tuple(command), threading.Lock()
        self._spool = Spool(spool_folder, spool_bytes)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any]
        self._attempt: AttemptSums | None = None
        self._accepted: list[int] = []  # where in the spool each upload begins that is in the sums
        self._count = self.starts = 0

    def begin(self, uploads: int) -> "AttemptSums":
        """Begin the sums of an attempt of so many uploads at most; those of the one before are over."""
        if self._attempt is not None:
            self._attempt.end()  # outside of the lock: an upload that is being added needs it
        with self._lock:
            self._spool.begin(uploads)
            self._accepted, self._count = [], 0
            if self._process is not None:
                self._ask({"name": "begin"})
            self._attempt = AttemptSums(self, self._spool)
            return self._attempt

    @property
    def terms(self) -> int:
        """Uploads in the sums."""
        return len(self._accepted)

    @property
    def process_id(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return self._process.pid if self._process else None

    def add(self, attempt: "AttemptSums", start: int, count: int) -> None:
        """Add the upload of `count` ciphertexts that begins at `start` in the spool; see `IncomingUpload.commit`."""
        with self._lock:
            self._verify_running(attempt)
            if self._accepted and count != self._count:
                raise CiphertextSizeMismatch(f"{count} ciphertexts, the sums have {self._count}")
            self._ready()
            answer = self._ask({"name": "add", "start": start, "count": count})
            if answer is None:
                raise MalformedCiphertext(
                    "the process that parses ciphertexts died of them, or met its limits"
                )
            if answer["terms"] != self.terms + ("error" not in answer):
                self._stop()  # the next one is made from what was accepted
                raise WorkerFailed("the process that adds ciphertexts has lost count of them")
            if "error" in answer:
                kind = _ERRORS.get(str(answer["error"]), MalformedCiphertext)
                raise kind(f"refused: {answer.get('message')}")
            self._count = count
            self._accepted.append(start)

    def totals(self, attempt: "AttemptSums") -> Iterator[bytes]:
        """Give the sums one after another; see `Sums.totals`."""
        with self._lock:
            self._verify_running(attempt)
            if not self._accepted:
                raise OutOfOrder("no upload was added to these sums")
            count = self._count
        return (self._total(attempt, place) for place in range(count))

    def _total(self, attempt: "AttemptSums", place: int) -> bytes:
        with self._lock:
            self._verify_running(attempt)
            for _ in range(2):  # a worker that dies at this is replaced once
                self._ready()
                answer = self._ask({"name": "sum", "place": place})
                if answer is not None:
                    found = answer.get("sum")
                    if (
                        type(found) is bytes
                        and len(found) == EXPANDED_BYTES
                        and answer["terms"] == self.terms
                    ):
                        return found
                    break
            raise WorkerFailed("the process that adds ciphertexts does not give the sums")

    def verify_starts(self) -> None:
        """Start the worker where there is none; raise WorkerFailed if it does not start."""
        with self._lock:
            self._ready()

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

    # -- the worker --------------------------------------------------------------------------------------

    def _verify_running(self, attempt: "AttemptSums") -> None:
        if attempt is not self._attempt:
            raise OutOfOrder("the attempt of these sums is over")

    def _ready(self) -> None:
        """See that there is a worker which holds the sums of all accepted uploads."""
        if self._process is not None and self._process.poll() is None:
            return
        self._stop()
        self._start()
        for start in self._accepted:
            answer = self._ask({"name": "add", "start": start, "count": self._count})
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
        limits = {"name": "limits", "memory_bytes": self._memory_bytes, "most_sums": self._most_sums}
        if self._ask(limits, _START_SECONDS) is None:
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
            answer = cbor2.loads(self._connection.recv_bytes(_ANSWER_BYTES))
            if type(answer) is dict and type(answer.get("terms")) is int:
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


class AttemptSums:
    """The sums of one attempt, a `secure_agg.sums.Sums`; made by `CiphertextAdder.begin`, which ends the one before."""

    def __init__(self, adder: CiphertextAdder, spool: Spool) -> None:
        self._adder, self._spool = adder, spool
        self._lock, self._over = threading.Lock(), False
        self._uploads: list[SpooledUpload] = []

    def open(self, count: int) -> "SpooledUpload":
        """See `Sums.open`."""
        with self._lock:
            if self._over:
                raise OutOfOrder("the attempt of these sums is over")
            upload = SpooledUpload(self, self._spool, self._spool.open(count), count)
            self._uploads = [known for known in self._uploads if known.is_open] + [upload]
            return upload

    def add(self, start: int, count: int) -> None:
        """Let the worker add the upload that lies at `start`."""
        self._adder.add(self, start, count)

    def totals(self) -> Iterator[bytes]:
        """See `Sums.totals`."""
        return self._adder.totals(self)

    def end(self) -> None:
        """Take nothing more; an upload that is being added is added first."""
        with self._lock:
            self._over, uploads = True, self._uploads
        for upload in uploads:
            upload.discard()


class SpooledUpload:
    """One upload in its place in the spool, a `secure_agg.sums.IncomingUpload`.

    Attributes:
        is_open: Whether it was neither added nor discarded.
    """

    def __init__(self, sums: AttemptSums, spool: Spool, start: int, count: int) -> None:
        self._sums, self._spool, self._start, self._count = sums, spool, start, count
        self._lock, self._written, self.is_open = threading.Lock(), 0, True

    def write(self, ciphertext: bytes) -> None:
        """See `IncomingUpload.write`."""
        verify_wire_length(ciphertext, SEEDED_BYTES)
        with self._lock:  # never written once another upload may have the place
            self._verify_open()
            if self._written == self._count:
                raise CiphertextSizeMismatch(f"more ciphertexts came than the {self._count} of the header")
            self._spool.write(self._start + self._written * SEEDED_BYTES, ciphertext)
            self._written += 1

    def commit(self) -> None:
        """See `IncomingUpload.commit`."""
        with self._lock:
            self._verify_open()
            if self._written != self._count:
                raise CiphertextSizeMismatch(
                    f"{self._written} ciphertexts came, the header says {self._count}"
                )
            self._sums.add(self._start, self._count)
            self.is_open = False

    def discard(self) -> None:
        """See `IncomingUpload.discard`."""
        with self._lock:
            if self.is_open:
                self.is_open = False
                self._spool.free(self._start)

    def _verify_open(self) -> None:
        if not self.is_open:
            raise OutOfOrder("this upload was added or discarded")
