"""JSON lines for texts: {"text": ..., "label": ...}, one object a line, UTF-8 (RFC 8259), read line by line."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from hansa.errors import DataUnreadable
from hansa.participant.connectors.source import PIECE_BYTES, PIECE_ROWS, open_data_file

LINE_BYTES_MOST = 1 << 22


class JsonLines:
    """A file of texts.

    Args:
        path: The file.
        fields: Names of the fields that a line may have; others are refused, and so is a name that stands there twice.

    Raises:
        DataFileMissing: The file cannot be read.

    Guarantees:
        - A line of more than 4 MiB is refused before it is read whole.
        - A field is a text, an integer, true, false or null; anything else is refused.
    """

    def __init__(self, path: Path, *, fields: tuple[str, ...]) -> None:
        self._path, self.names = path, fields
        open_data_file(path).close()

    def pieces(self) -> Iterator[pa.RecordBatch]:
        """Read the rows; see `Source`. Texts stay texts, integers become their digits; a missing field is null."""
        rows: list[dict[str, str | None]] = []
        held_bytes = 0
        for number, line in self._lines():
            rows.append(self._row(number, line))
            held_bytes += len(line)
            if len(rows) == PIECE_ROWS or held_bytes > PIECE_BYTES:
                yield self._piece(rows)
                rows, held_bytes = [], 0
        if rows:
            yield self._piece(rows)

    def _piece(self, rows: list[dict[str, str | None]]) -> pa.RecordBatch:
        columns = [pa.array([row.get(name) for row in rows], pa.string()) for name in self.names]
        return pa.RecordBatch.from_arrays(columns, names=list(self.names))

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with open_data_file(self._path) as file:
            number = 0
            while line := file.readline(LINE_BYTES_MOST + 1):
                number += 1
                if len(line) > LINE_BYTES_MOST:
                    raise self._wrong(number, f"has more than {LINE_BYTES_MOST} bytes")
                if line.strip():
                    yield number, line

    def _row(self, number: int, line: bytes) -> dict[str, str | None]:
        found: Any = None
        with suppress(ValueError, RecursionError):  # whose messages quote the line
            found = json.loads(line.decode("utf-8"), object_pairs_hook=_pairs)
        if not isinstance(found, _Fields):
            raise self._wrong(number, "is not a JSON object in UTF-8")
        if found.twice:
            raise self._wrong(number, "has a field twice")
        if not found.keys() <= set(self.names):
            raise self._wrong(number, f"has another field than {', '.join(self.names)}")
        for name, value in found.items():
            if not (value is None or isinstance(value, str | int)):
                raise self._wrong(number, f"has a field {name!r} that is neither text nor integer")
            if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
                raise self._wrong(number, f"has a field {name!r} that is not Unicode text")
        return {name: _text(value) for name, value in found.items()}

    def _wrong(self, number: int, what: str) -> DataUnreadable:
        return DataUnreadable(f"line {number} of {str(self._path)!r} {what}")


class _Fields(dict[str, Any]):
    twice = False


def _pairs(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = _Fields(pairs)
    found.twice = len(found) < len(pairs)
    return found


def _text(value: str | int | None) -> str | None:
    return value if value is None or isinstance(value, str) else str(int(value))
