"""CSV files (RFC 4180, with a declared delimiter and encoding), read a block at a time.

Every cell is read as text: a reader that guesses types does so from the first block only, and its own errors quote values.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from hansa.errors import DataUnreadable
from hansa.participant.connectors.source import PIECE_BYTES, once, open_data_file


class CsvTable:
    """A CSV file with one header line.

    Args:
        path: The file.
        delimiter: One character between two cells.
        encoding: Name of the encoding, as Python names them.

    Raises:
        DataFileMissing: The file cannot be read.
        DataUnreadable: It has no header line, or not this encoding.
    """

    def __init__(self, path: Path, *, delimiter: str = ",", encoding: str = "utf-8") -> None:
        self._path, self._delimiter, self._encoding = path, delimiter, encoding
        self.names = self._header()

    def _header(self) -> tuple[str, ...]:
        with open_data_file(self._path) as file:
            try:
                return tuple(self._reader(file, csv.ConvertOptions()).schema.names)
            except (pa.ArrowException, OSError, ValueError, LookupError):
                pass
        raise self._unreadable("has no header line in this encoding and with this delimiter")

    def pieces(self) -> Iterator[pa.RecordBatch]:
        """Read the rows; see `Source`."""
        wanted = once(self.names)
        convert = csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            strings_can_be_null=True,
        )
        with open_data_file(self._path) as file:
            try:
                yield from self._reader(file, convert)
                return
            except (pa.ArrowException, OSError, ValueError):
                pass
        # Outside the handler: the reader's message quotes the file.
        raise self._unreadable(
            "is not well formed, or changed while it was read: a line has another number of cells,"
            " or a byte is of another encoding"
        )

    def _reader(self, file: object, convert: csv.ConvertOptions) -> csv.CSVStreamingReader:
        return csv.open_csv(
            file,
            read_options=csv.ReadOptions(block_size=PIECE_BYTES, encoding=self._encoding, use_threads=False),
            parse_options=csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            convert_options=convert,
        )

    def _unreadable(self, what: str) -> DataUnreadable:
        declared = f"delimiter {self._delimiter!r}, encoding {self._encoding}"
        return DataUnreadable(f"data file {str(self._path)!r} {what} ({declared})")
