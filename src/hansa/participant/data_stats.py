"""Aggregates of a data set for its owner's own eyes. Nothing here is protected by noise, so nothing of it may leave the machine.

A column is numeric where every cell that is there is a number; otherwise it is counted by its texts. Memory: 8 bytes a cell of a
numeric column, for exact quantiles, and the texts of a column with few different ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hansa.errors import DataUnreadable
from hansa.participant.coercion import numbers_of, texts_of
from hansa.participant.connectors.opening import open_source
from hansa.participant.connectors.source import once
from hansa.participant.dataset_file import DatasetEntry

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHOWN_MOST = 20
_DISTINCT_MOST = 10_000


@dataclass(slots=True)
class _Column:
    """What is gathered of one column."""

    missing: int = 0
    wrong: int = 0
    numbers: list[NDArray[np.float64]] = field(default_factory=list)
    texts: Counter[str] | None = field(default_factory=Counter)

    def take(self, cells: pa.Array) -> None:
        found = numbers_of(cells)
        self.wrong += int(found.wrong.sum())
        if self.wrong:
            self.numbers = []
        else:
            self.numbers.append(found.values[~found.missing])
        texts = texts_of(cells)
        self.missing += texts.count(None)
        if self.texts is not None:
            self.texts.update(text for text in texts if text is not None)
            if len(self.texts) > _DISTINCT_MOST:
                self.texts = None

    def as_json(self, rows: int, *, shares: bool) -> dict[str, Any]:
        kind = "text" if self.wrong else "numeric"
        found: dict[str, Any] = {"kind": kind, "missing_share": self.missing / rows}
        distinct = None if self.texts is None else len(self.texts)
        found["distinct"] = distinct
        values = np.concatenate([*self.numbers, np.empty(0)])
        if not self.wrong and len(values):
            found |= {
                "minimum": float(values.min()),
                "maximum": float(values.max()),
                "mean": float(values.mean()),
            }
            found["quantiles"] = {
                f"{q:g}": float(value)
                for q, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)
            }
        if self.texts and (shares or len(self.texts) <= SHOWN_MOST):
            found["shares"] = {text: count / rows for text, count in self.texts.most_common(SHOWN_MOST)}
        return found


def data_stats(entry: DatasetEntry, home: Path) -> dict[str, Any]:
    """Read a data set once and give its aggregates.

    Args:
        entry: Its description.
        home: The participant's home folder.

    Returns:
        Rows, persons where it names a person column, and of every other column: kind, share of missing cells, number of different
        texts (None above 10,000), minimum, mean, quantiles and maximum of numbers, shares of at most 20 texts.

    Raises:
        DataUnreadable: A declared column is not there, or there are no rows; otherwise as `open_source` raises.

    Guarantees:
        - Nothing is sent, written or logged.
        - Keys of persons and records are counted and never shown.
    """
    source = open_source(entry, home)
    keys = {name for name in (entry.person, entry.record) if name is not None}
    _verify_declared(entry, source.names, keys)
    names = [name for name in once(source.names) if name not in keys]
    columns = {name: _Column() for name in names}
    persons: Counter[str] = Counter()
    rows = 0
    for piece in source.pieces():
        rows += piece.num_rows
        for name in names:
            columns[name].take(_cells(entry, name, piece))
        if entry.person is not None:
            persons.update(text for text in texts_of(piece.column(entry.person)) if text is not None)
    if not rows:
        raise DataUnreadable(f"data set {entry.name!r} has no rows")
    found = {name: column.as_json(rows, shares=name == entry.label) for name, column in columns.items()}
    if entry.kind == "jsonl":
        found[entry.text]["kind"] = "length"
    return {"rows": rows, "persons": _persons(persons, entry), "columns": found}


def _cells(entry: DatasetEntry, name: str, piece: pa.RecordBatch) -> pa.Array:
    """Give the cells of a column; of texts their lengths, in place of what was written."""
    cells = piece.column(name)
    if entry.kind == "jsonl" and name == entry.text:
        return pc.utf8_length(cells)
    return cells


def _verify_declared(entry: DatasetEntry, names: Sequence[str], keys: set[str]) -> None:
    declared = keys | set(entry.columns.values()) | {name for name in [entry.label] if name is not None}
    absent = sorted(declared - set(names))
    if absent:
        raise DataUnreadable(
            f"column {absent[0]!r} of the description is not in the data, {len(absent)} are not in all"
        )


def _persons(persons: Mapping[str, int], entry: DatasetEntry) -> dict[str, int] | None:
    if entry.person is None:
        return None
    return {"count": len(persons), "most_records": max(persons.values(), default=0)}
