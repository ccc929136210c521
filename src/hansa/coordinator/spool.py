"""The spool: an unnamed file in which uploads wait until they are added, and stay until the attempt is over.

It stands in for memory, so a coordinator needs the same whatever the number of members, and it is what the sums are made
from again when the process that keeps them dies.
"""

import os
import tempfile
import threading
from pathlib import Path

from hansa.errors import OutOfOrder, SpoolQuotaExceeded, StoreNotWritable
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES

SPOOL_BYTES = 64 << 30


class Spool:
    """Places of equal size in one file, each for one upload.

    Args:
        folder: Where the file lies; it should be on a disk. The system's folder for temporary files if not given.
        quota_bytes: Largest size of the file. Each upload may take its equal share, so one member cannot take the room
            of the others.

    Guarantees:
        - The file has no name, and what was in it is gone when this object or the process is.
        - A place serves one upload at a time; one that is given back is used again before a new one.
    """

    def __init__(self, folder: Path | None = None, quota_bytes: int = SPOOL_BYTES) -> None:
        self._quota_bytes, self._share_bytes = quota_bytes, 0
        # Unbuffered: another process reads it through a descriptor of its own.
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - see close
        self._lock = threading.Lock()
        self._free: set[int] = set()

    def begin(self, places: int) -> None:
        """Forget everything, and make places for as many uploads. No upload may be on its way."""
        with self._lock:
            self._free = set(range(places))
            self._share_bytes = self._quota_bytes // max(places, 1)
            os.ftruncate(self._file.fileno(), 0)

    def open(self, count: int) -> int:
        """Take a place for an upload of `count` ciphertexts and return where in the file it begins.

        Raises:
            SpoolQuotaExceeded: The upload is larger than its share of the quota.
            OutOfOrder: All places are taken.
        """
        with self._lock:
            if count * SEEDED_BYTES > self._share_bytes:
                raise SpoolQuotaExceeded(
                    f"an upload of {count * SEEDED_BYTES} bytes is larger than its share of the spool,"
                    f" {self._share_bytes} bytes"
                )
            if not self._free:
                raise OutOfOrder("there are more uploads than members")
            place = min(self._free)
            self._free.remove(place)
            return place * self._share_bytes

    def free(self, start: int) -> None:
        """Give back the place that begins at `start`."""
        with self._lock:
            self._free.add(start // self._share_bytes)

    def write(self, start: int, data: bytes) -> None:
        """Write at a place in the file; StoreNotWritable if the disk is full."""
        try:
            written = os.pwrite(self._file.fileno(), data, start)
        except OSError as error:
            raise StoreNotWritable(f"an upload cannot be kept on disk: {error.strerror}") from error
        if written != len(data):  # a disk that fills up ends a write early before it fails one
            raise StoreNotWritable("an upload cannot be kept on disk: no space left")

    def fileno(self) -> int:
        """Return the descriptor, through which the file can be read and written."""
        return self._file.fileno()

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
