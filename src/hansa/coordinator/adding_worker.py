"""The process that parses and adds ciphertexts, started by `ciphertext_adder.py` as a program of its own.

    limits    core file, address space, sums in memory
    begin     forget the sums
    add       parse and add one upload from the spool, whole or not at all
    sum       give one of the sums

It holds its connection and the spool, which it cannot write; no key, no message and no member's name reach it.
"""

import math
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

import cbor2

from hansa.errors import CiphertextSizeMismatch, MalformedCiphertext
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES
from hansa.secure_agg.sums import CiphertextSums


class AddingWorker:
    """Answers one question after another until the connection closes.

    Args:
        connection: To the aggregator; CBOR maps in both directions.
        spool: Descriptor of the spool.

    Guarantees:
        - What is wrong with an upload is answered and leaves the sums as they were. Any other failure ends the process,
          and with it sums that nobody knows the state of.
    """

    def __init__(self, connection: "Connection[Any, Any]", spool: int) -> None:
        self._connection, self._spool = connection, spool
        self._most_sums = 0
        self._sums = CiphertextSums()

    def serve(self) -> None:
        """Answer until there is no aggregator any more."""
        while True:
            try:
                question = cbor2.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                return  # the aggregator is gone, or wants no more
            _allow_processor_seconds(question["seconds"])
            try:
                answer = self.answer(question)
            except (CiphertextSizeMismatch, MalformedCiphertext) as error:
                answer = {"error": error.code, "message": error.message}
            self._connection.send_bytes(cbor2.dumps(answer | {"terms": self._sums.terms}))

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Do what one question asks for."""
        name = question["name"]
        if name == "limits":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_AS, (question["memory_bytes"], question["memory_bytes"]))
            self._most_sums = question["most_sums"]
            self._sums = CiphertextSums(self._most_sums)
        elif name == "begin":
            self._sums = CiphertextSums(self._most_sums)
        elif name == "sum":
            return {"sum": self._sums.total(question["place"])}
        else:
            start = question["start"]
            self._sums.add(
                question["count"],
                lambda place: os.pread(self._spool, SEEDED_BYTES, start + place * SEEDED_BYTES),
            )
        return {}


def _allow_processor_seconds(seconds: float) -> None:
    """Let the kernel end this process when one answer takes more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.RLIM_INFINITY))


def main() -> None:
    """Serve the aggregator; the command line names the descriptors of connection and spool."""
    # Ctrl-C is for the aggregator, which then closes the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    AddingWorker(Connection(int(sys.argv[1])), int(sys.argv[2])).serve()


if __name__ == "__main__":
    main()
