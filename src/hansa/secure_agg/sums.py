"""Running sums of the ciphertexts of uploads: what the aggregator asks of whoever keeps them, and a plain keeper.

    open      a place for an upload on its way
    write     its ciphertexts, one after another; nobody looks into them
    commit    parse and add all of them, or none
    discard   give the place back
    totals    the sums, one after another

Who keeps the sums decides where the bytes of a peer meet a parser. `SumsInProcess` parses where it is called, for tests
and small tools; the coordinator keeps its sums in a process of their own (`coordinator/ciphertext_adder.py`).
"""

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from hansa.errors import CiphertextSizeMismatch, OutOfOrder
from hansa.secure_agg.bfv import CiphertextSum, parse_seeded
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES, verify_wire_length


class IncomingUpload(Protocol):
    """One upload on its way into the sums. Uploads do not wait for each other before `commit`."""

    def write(self, ciphertext: bytes) -> None:
        """Keep the next ciphertext, in seeded form, untrusted.

        Raises:
            CiphertextSizeMismatch: It has not the length of its form, or is one more than was said.
            OutOfOrder: The upload was discarded, or its attempt is over.
            StoreNotWritable: There is no room for it.
        """

    def commit(self) -> None:
        """Parse all ciphertexts and add them.

        Raises:
            CiphertextSizeMismatch: Fewer came than was said, or the sums have another number.
            MalformedCiphertext: One is not of the accepted form; the sums are as they were.
            OutOfOrder: The upload was discarded, or its attempt is over.
            WorkerFailed: The sums cannot be kept at all; they are as they were.
        """

    def discard(self) -> None:
        """Give the place back. Nothing happens to an upload that was added or discarded before."""


class Sums(Protocol):
    """One running sum for each ciphertext of an upload, of one attempt.

    Guarantees:
        - The sums are those of the uploads whose `commit` returned, exactly.
    """

    def open(self, count: int) -> IncomingUpload:
        """Make a place for an upload of `count` ciphertexts.

        Raises:
            OutOfOrder: The attempt is over.
            StoreNotWritable: There is no place for so many.
        """

    def totals(self) -> Iterator[bytes]:
        """Give the sums in expanded form, in order, one at a time; may be called again.

        Raises:
            OutOfOrder: Nothing was added, or the attempt is over.
            WorkerFailed: They cannot be given.
        """


class CiphertextSums:
    """The sums themselves, where the parser runs.

    Args:
        most_sums: Running sums that are kept in memory, all of them where it is not given. What is beyond is parsed when it
            comes, and read and added when its sum is asked for.

    Attributes:
        terms: Uploads in the sums.

    Guarantees:
        - Memory is `most_sums` sums and two parsed ciphertexts, whatever the number and size of uploads.
        - An upload is added whole or not at all, and nothing that was not parsed is accepted.
    """

    def __init__(self, most_sums: int | None = None) -> None:
        self._most_sums = most_sums
        self._sums: list[CiphertextSum] = []
        self._uploads: list[Callable[[int], bytes]] = []
        self._count = self.terms = 0

    def __len__(self) -> int:
        return self._count

    def add(self, count: int, read: Callable[[int], bytes]) -> None:
        """Parse and add one upload.

        Args:
            count: Its ciphertexts.
            read: Gives a ciphertext by its place, the same bytes each time it is asked, for as long as the sums are used.

        Raises:
            CiphertextSizeMismatch: Another count than that of the first upload, or a ciphertext of another length.
            MalformedCiphertext: A ciphertext is not of the accepted form.
        """
        if self.terms and count != self._count:
            raise CiphertextSizeMismatch(f"{count} ciphertexts, the sums have {self._count}")
        kept = count if self._most_sums is None else min(count, self._most_sums)
        sums = self._sums or [CiphertextSum() for _ in range(kept)]
        added = 0
        try:
            for running in sums:
                running.add(read(added))
                added += 1
            for place in range(kept, count):
                parse_seeded(read(place))
        except BaseException:
            # Modulo q subtraction undoes addition exactly, so nobody parses an upload twice to be safe.
            for place in range(added):
                sums[place].subtract(read(place))
            raise
        self._sums, self._count = sums, count
        if kept < count:
            self._uploads.append(read)
        self.terms += 1

    def total(self, place: int) -> bytes:
        """Return one sum in expanded form; OutOfOrder if nothing was added."""
        if not self.terms:
            raise OutOfOrder("no upload was added to these sums")
        if place < len(self._sums):
            return self._sums[place].serialise()
        running = CiphertextSum()
        for read in self._uploads:
            running.add(read(place))
        return running.serialise()


class SumsInProcess:
    """Sums in the calling process, for tests and simple tools: an upload waits in memory, and SEAL reads it here.

    Attributes:
        terms: Uploads in the sums.
    """

    def __init__(self) -> None:
        self.running = CiphertextSums()
        self._lock = threading.Lock()

    @property
    def terms(self) -> int:
        """Uploads in the sums."""
        return self.running.terms

    def open(self, count: int) -> "IncomingUpload":
        """See `Sums.open`."""
        return _UploadInMemory(self, count)

    def add(self, ciphertexts: list[bytes]) -> None:
        """Add one upload, after any other one."""
        with self._lock:
            self.running.add(len(ciphertexts), ciphertexts.__getitem__)

    def totals(self) -> Iterator[bytes]:
        """See `Sums.totals`."""
        if not self.terms:
            raise OutOfOrder("no upload was added to these sums")
        return (self.running.total(place) for place in range(len(self.running)))


class _UploadInMemory:
    def __init__(self, sums: SumsInProcess, count: int) -> None:
        self._sums, self._count = sums, count
        self._ciphertexts: list[bytes] | None = []

    def write(self, ciphertext: bytes) -> None:
        held = self._held()
        verify_wire_length(ciphertext, SEEDED_BYTES)
        if len(held) == self._count:
            raise CiphertextSizeMismatch(f"more ciphertexts came than the {self._count} of the header")
        held.append(ciphertext)

    def commit(self) -> None:
        held = self._held()
        if len(held) != self._count:
            raise CiphertextSizeMismatch(f"{len(held)} ciphertexts came, the header says {self._count}")
        self._sums.add(held)
        self._ciphertexts = None

    def discard(self) -> None:
        self._ciphertexts = None

    def _held(self) -> list[bytes]:
        if self._ciphertexts is None:
            raise OutOfOrder("this upload was added or discarded")
        return self._ciphertexts
