"""Parquet files, read some rows at a time."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from hansa.errors import DataUnreadable
from hansa.participant.connectors.source import PIECE_ROWS, once, open_data_file


class ParquetTable:
    """A Parquet file.

    Args:
        path: The file.

    Raises:
        DataFileMissing: The file cannot be read.
        DataUnreadable: It is not a Parquet file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        names: tuple[str, ...] | None = None
        with open_data_file(path) as file:
            try:
                names = tuple(parquet.ParquetFile(file).schema_arrow.names)
            except (pa.ArrowException, OSError, ValueError):
                names = None
        if names is None:  # outside the handler: the reader's message may quote the file
            raise DataUnreadable(f"data file {str(path)!r} is not a well-formed Parquet file")
        self.names = names

    def pieces(self) -> Iterator[pa.RecordBatch]:
        """Read the rows; see `Source`."""
        wanted = once(self.names)
        with open_data_file(self._path) as file:
            try:
                reader = parquet.ParquetFile(file, pre_buffer=False)
                if tuple(reader.schema_arrow.names) == self.names:
                    # Chosen after reading: the reader takes a name with a dot for a path into a nested column.
                    for piece in reader.iter_batches(batch_size=PIECE_ROWS, use_threads=False):
                        yield piece.select([self.names.index(name) for name in wanted])
                    return
            except (pa.ArrowException, OSError, ValueError):
                pass
        raise DataUnreadable(
            f"data file {str(self._path)!r} is not a well-formed Parquet file, or changed while it was read"
        )
