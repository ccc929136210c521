"""Whose budget the rows of a data set spend: keys of persons, records and raw rows, before any study encodes them.

The units of the data set are its persons where it names a person column, its records where it names a record column, and
otherwise its rows by their values. All keys that a row has are marks of it: by them the same row is known again in a data set
that names other columns.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from hansa import labels
from hansa.participant.coercion import numbers_of, texts_of
from hansa.secure_agg.derivation import framed


def row_keys(piece: pa.RecordBatch) -> list[bytes]:
    """Give each row a key: the hash of its values.

    Args:
        piece: Rows with all columns of the data.

    Returns:
        n keys of 32 bytes.

    Guarantees:
        - The key depends on the names of the columns and the row's values only: the same row as CSV, Parquet or out of a database
          has one key, in any piece and with its columns in any order.
        - A number has one form whatever its type or spelling; every missing value is the same, and so are 0 and -0.
    """
    names = sorted(piece.schema.names)
    head = labels.DATA_RECORD + framed(b"row", *(name.encode() for name in names))
    columns = [piece.column(name) for name in names]
    found = [numbers_of(column) for column in columns]
    table = np.empty((piece.num_rows, len(columns)), dtype="<f8")
    for place, numbers in enumerate(found):
        table[:, place] = numbers.values + 0.0
    table[np.isnan(table)] = np.nan
    rows = [bytearray(row.tobytes()) for row in table]
    for place, (column, numbers) in enumerate(zip(columns, found, strict=True)):
        wrong = np.flatnonzero(numbers.wrong)
        if len(wrong):
            texts = texts_of(column.take(pa.array(wrong)))
            for row, text in zip(wrong.tolist(), texts, strict=True):
                rows[row] += framed(place.to_bytes(4, "big"), (text or "").encode())
    return [hashlib.sha256(head + row).digest() for row in rows]


class UnitKeys:
    """Collects the keys of a data set, a piece at a time.

    Args:
        person: Column of the persons, if there is one.
        record: Column of the records' own keys, if there is one.
        key_space: Name of the numbering that the keys belong to; equal keys of different spaces are different units.
    """

    def __init__(self, *, person: str | None, record: str | None, key_space: str = "") -> None:
        self._person, self._record, self._space = person, record, key_space.encode()
        self._codes: dict[str, int] = {}
        self._of_rows: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        self._records: list[bytes] = []
        self._rows: list[bytes] = []

    def take(self, piece: pa.RecordBatch) -> tuple[int, int]:
        """Take the keys of a piece.

        Returns:
            How many rows lack their person, and how many their record key.
        """
        self._rows += row_keys(piece)
        without_person = without_record = 0
        if self._person is not None:
            persons = texts_of(piece.column(self._person))
            without_person = persons.count(None)
            codes = [
                -1 if text is None else self._codes.setdefault(text, len(self._codes)) for text in persons
            ]
            self._of_rows.append(np.array(codes, dtype=np.int64))
        if self._record is not None:
            records = texts_of(piece.column(self._record))
            without_record = records.count(None)
            self._records += [self._key(b"record", text) for text in records if text is not None]
        return without_person, without_record

    @property
    def persons(self) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
        """(n,) number of each row's person in order of appearance, -1 where it has none; None without a person column."""
        if self._person is None:
            return None
        return np.concatenate([*self._of_rows, np.empty(0, dtype=np.int64)])

    @property
    def person_count(self) -> int:
        """How many persons there are."""
        return len(self._codes)

    def units(self) -> list[bytes]:
        """Give the keys of the units, as `data_commitment` takes them."""
        if self._person is not None:
            return self._persons()
        return list(self._rows if self._record is None else self._records)

    def marks(self) -> Sequence[bytes]:
        """Give every key by which a row can be known again."""
        return [*self._rows, *self._records, *self._persons()]

    def _persons(self) -> list[bytes]:
        return [self._key(b"person", text) for text in self._codes]

    def _key(self, kind: bytes, text: str) -> bytes:
        return labels.DATA_RECORD + framed(kind, self._space, text.encode())
