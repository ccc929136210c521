"""The revocation list in a file, looked at again at every use: what is revoked is out at the next call."""

import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from hansa.errors import Error
from hansa.secure_agg.certificates import MAXIMUM_REVOCATION_LIST_BYTES, RevocationList, utc_now


class RevocationFile:
    """Gives the list that stands in a file.

    Args:
        authority: Certificate of the authority, DER.
        path: The file, DER; it is replaced whole.
        clock: The time, with its zone.

    Guarantees:
        - A list that was put into the file counts from the next use on.
        - A list that could not be taken at once - no descriptor was left, the clock was behind - is taken when it can be.
        - Without a file, or with one that is no list, no certificate passes; an older list than one that was seen is not taken.
    """

    def __init__(self, authority: bytes, path: Path, clock: Callable[[], datetime] = utc_now) -> None:
        self._path, self._clock, self._lock = path, clock, threading.Lock()
        self._known, self._mark = RevocationList(authority), (0, 0, 0)

    def __call__(self) -> RevocationList:
        """Return the latest list; its age is checked where it is used."""
        with self._lock:
            mark = self._stat()
            if mark != self._mark and self._take():
                self._mark = mark
            return self._known

    def _stat(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _take(self) -> bool:
        """Take a later list into a new object, so that whoever uses the old one is not disturbed; tell whether it was one."""
        fresh = RevocationList(self._known.authority, self._known.encoded)
        try:
            with open(self._path, "rb") as file:
                fresh.update(file.read(MAXIMUM_REVOCATION_LIST_BYTES + 1), self._clock())
        except (OSError, Error):
            return False
        self._known = fresh
        return True
