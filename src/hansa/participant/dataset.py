"""A participant's table: read once, checked against the study, never shown.

The values are private. No error message, hint, exception chain or repr of this module repeats one: a message
names columns, rows and counts only. Errors of the file readers are not chained, for they quote the file.
"""

import difflib
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv, parquet

from hansa import errors
from hansa.study import ColumnSchema, DataSchema

_OTHER = 0  # code of a category outside the public vocabulary, and of a missing one


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Table:
    """Checked rows, in the columns' order of the study.

    Attributes:
        numeric: (n, numeric columns) float64, clamped to the public bounds, NaN where missing.
        categorical: (n, categorical columns) int64 codes; 0 is other or missing, k is the k-th public value.
        labels: (n,) float64 in {0, 1}, 1 for the positive class; all NaN in a table without labels.
    """

    numeric: NDArray[np.float64]
    categorical: NDArray[np.int64]
    labels: NDArray[np.float64]

    def __post_init__(self) -> None:
        for array in (self.numeric, self.categorical, self.labels):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Table({len(self)} rows)"

    def rows(self, index: NDArray[np.int64]) -> "Table":
        """Copy the rows at `index`, (k,), in that order."""
        return Table(
            numeric=self.numeric[index], categorical=self.categorical[index], labels=self.labels[index]
        )

    def without_labels(self) -> "Table":
        """Copy the table with every label NaN, so that nothing can learn from them by mistake."""
        return Table(
            numeric=self.numeric.copy(),
            categorical=self.categorical.copy(),
            labels=np.full(len(self), np.nan),
        )


def read_table(path: Path, schema: DataSchema, *, sha256: str | None = None) -> Table:
    """Read and check a Parquet or CSV file.

    Args:
        path: File ending in .parquet or .csv (UTF-8, comma, one header line).
        schema: The [data] section of the study; other columns are not read.
        sha256: Hex digest that the file must have; None if none was agreed on.

    Raises:
        DataFileMissing: The file cannot be read.
        ChecksumMismatch: The file has another SHA-256. It is not parsed.
        DataError: The file is of another kind, malformed or has no rows.
        MissingColumn, DuplicateColumn, NonNumericColumn, InvalidLabel: As in `table_from_columns`.

    Guarantees:
        - The bytes that are parsed are the bytes that were hashed.
        - No message repeats a value of the file.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise errors.DataFileMissing(f"data file {str(path)!r} cannot be read: {reason}") from error
    found = hashlib.sha256(raw).hexdigest()
    if sha256 is not None and found != sha256:
        raise errors.ChecksumMismatch(f"data file {str(path)!r} has sha-256 {found}, agreed was {sha256}")
    readers = {".parquet": _read_parquet, ".csv": _read_csv}
    if path.suffix not in readers:
        raise errors.DataError(f"data file {str(path)!r} ends in neither .parquet nor .csv")
    try:
        table = readers[path.suffix](raw, schema)
    except (pa.ArrowException, OSError, ValueError):
        table = None
    if table is None:  # outside the handler: the reader's message quotes the file
        raise errors.DataError(f"data file {str(path)!r} is not a well-formed {path.suffix} file")
    columns = [column.to_numpy() for column in table.columns]
    return table_from_columns(table.column_names, columns, schema)


def table_from_columns(names: Sequence[str], columns: Sequence[NDArray[Any]], schema: DataSchema) -> Table:
    """Check columns against the study and encode them.

    Args:
        names: Column names, one a column; columns that the study does not name are ignored.
        columns: Arrays (n,) of one length: numbers, or objects that are numbers, texts of numbers or None.
        schema: The [data] section of the study.

    Raises:
        MissingColumn: A column of the study is not there; the hint names the nearest one.
        DuplicateColumn: A name appears twice.
        NonNumericColumn: A value is neither a number nor missing; the message names column and row only.
        InvalidLabel: Labels are missing or of no declared class; the message names column and count only.
        DataError: There are no rows, or the columns differ in length.

    Guarantees:
        - Every numeric value is NaN or within the column's public bounds; infinities count as missing.
        - Every code is in [0, number of public values]; labels are 0 or 1.
    """
    if len(names) != len(columns):
        raise errors.DataError(f"{len(names)} names for {len(columns)} columns")
    _check_names(names, schema)
    by_name = dict(zip(names, columns, strict=True))
    wanted = _wanted(schema)
    lengths = {len(by_name[name]) for name in wanted}
    if len(lengths) != 1:
        raise errors.DataError(f"columns have different lengths: {sorted(lengths)}")
    if lengths == {0}:
        raise errors.DataError("the table has no rows, at least 1 is needed")
    values = {name: _numbers(name, by_name[name]) for name in wanted}
    labels = _labels(values[schema.label], schema)
    numeric = [_clamped(values[column.name], column) for column in schema.numeric]
    codes = [_codes(values[column.name], column) for column in schema.categorical]
    rows = len(labels)
    return Table(
        numeric=np.stack(numeric, axis=1) if numeric else np.empty((rows, 0)),
        categorical=np.stack(codes, axis=1) if codes else np.empty((rows, 0), dtype=np.int64),
        labels=labels,
    )


def _check_names(names: Sequence[str], schema: DataSchema) -> None:
    # The first line of a CSV file without a header is a record, and a message must not repeat its values. So
    # a name of the file is shown only where most (hint) or all (duplicates) names of the study were found.
    counts = Counter(names)
    wanted = _wanted(schema)
    absent = [name for name in wanted if name not in counts]
    if absent:
        near = difflib.get_close_matches(absent[0], names, n=1) if 2 * len(absent) < len(wanted) else []
        hint = f"did you mean column {near[0]!r} of the file?" if near else None
        raise errors.MissingColumn(f"column {absent[0]!r} of the study is not in the data", hint=hint)
    name, count = counts.most_common(1)[0]
    if count > 1:
        raise errors.DuplicateColumn(f"column {name!r} appears {count} times in the data")


def _wanted(schema: DataSchema) -> list[str]:
    return [schema.label, *(column.name for column in schema.columns)]


def _read_parquet(raw: bytes, schema: DataSchema) -> pa.Table:
    file = parquet.ParquetFile(io.BytesIO(raw))
    _check_names(file.schema_arrow.names, schema)
    return file.read(columns=_wanted(schema))


def _read_csv(raw: bytes, schema: DataSchema) -> pa.Table:
    names = csv.open_csv(io.BytesIO(raw)).schema.names
    _check_names(names, schema)
    wanted = _wanted(schema)
    # As text: the reader guesses types from the first block only, and its own conversion errors quote values.
    options = csv.ConvertOptions(
        include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=True
    )
    return csv.read_csv(io.BytesIO(raw), convert_options=options)


def _numbers(name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    """Turn a column into float64, NaN where missing."""
    if values.dtype.kind in "iufb":
        return values.astype(np.float64)
    numbers = np.full(len(values), np.nan)
    if values.dtype.kind in "OUT":
        for row, value in enumerate(values):
            if value is None:
                continue
            number = _number(value)
            if number is None:
                raise _not_a_number(name, row)
            numbers[row] = number
        return numbers
    raise _not_a_number(name, 0)  # dates, durations, bytes: no value of them is a number


def _number(value: object) -> float | None:
    text = str(value)
    try:
        return None if "_" in text else float(text)  # Python reads 1_000, no table writes it
    except ValueError:
        return None


def _not_a_number(name: str, row: int) -> errors.NonNumericColumn:
    return errors.NonNumericColumn(f"column {name!r} is not a number in data row {row + 1}")


def _labels(values: NDArray[np.float64], schema: DataSchema) -> NDArray[np.float64]:
    positive = np.equal(values, schema.positive_class)
    wrong = int(np.count_nonzero(~positive & (values != schema.negative_class)))
    if wrong:
        raise errors.InvalidLabel(
            f"label column {schema.label!r} has {wrong} of {len(values)} values that are missing"
            f" or neither {schema.negative_class} nor {schema.positive_class}"
        )
    return np.where(positive, 1.0, 0.0)


def _clamped(values: NDArray[np.float64], column: ColumnSchema) -> NDArray[np.float64]:
    known = np.where(np.isfinite(values), values, np.nan)
    return np.clip(known, column.minimum, column.maximum)


def _codes(values: NDArray[np.float64], column: ColumnSchema) -> NDArray[np.int64]:
    codes = np.full(len(values), _OTHER, dtype=np.int64)
    for code, value in enumerate(column.values, start=1):
        codes[values == value] = code
    return codes
