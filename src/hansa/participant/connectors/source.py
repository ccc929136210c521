"""What every connector is: names of columns, and rows in pieces.

A connector never writes, never holds more than a piece of the data, and never shows a value: errors of the readers and drivers
below are not chained, for they quote what they read.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import pyarrow as pa

from hansa.errors import DataFileMissing
from hansa.study_problems import lowered

PIECE_ROWS = 8192
PIECE_BYTES = 1 << 20


class Source(Protocol):
    """Data of a participant.

    Guarantees:
        - `pieces` gives every row once, in pieces of bounded size.
        - Nothing is written to what it reads, and no message repeats a value of it.
    """

    @property
    def names(self) -> Sequence[str]:
        """The names of the columns, as they stand in the data; a name may stand there twice."""

    def pieces(self) -> Iterator[pa.RecordBatch]:
        """Read the rows; of every column whose name stands there once.

        Raises:
            DataFileMissing: There is no such file.
            DataUnreadable: It is not what its description says.
        """


def open_data_file(path: Path) -> BinaryIO:
    """Open a data file.

    Raises:
        DataFileMissing: It does not exist, cannot be read, or is not a regular file (a pipe could be read once only).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = lowered(error.strerror)
        raise DataFileMissing(f"data file {str(path)!r} cannot be read: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataFileMissing(f"data file {str(path)!r} cannot be read: not a regular file")
    return os.fdopen(descriptor, "rb")


def once(names: Sequence[str]) -> list[str]:
    """Give the names that stand there once, in order."""
    return [name for name in names if names.count(name) == 1]
