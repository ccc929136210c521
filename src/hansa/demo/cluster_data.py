"""The bank example's rows as the files that its parties hold: public rows, one table a bank, test rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from hansa.demo.bank_data import BankData
from hansa.errors import OutputNotWritable
from hansa.participant.dataset import Table
from hansa.study import DataSchema

_OTHER = 0  # a value that no vocabulary of the example has


def write_table(table: Table, schema: DataSchema, path: Path) -> None:
    """Write encoded rows as the table that they would be read from: a category that was not known becomes 0.

    Raises:
        OutputNotWritable: The file cannot be written.
    """
    columns: dict[str, pa.Array] = {}
    for place, column in enumerate(schema.numeric):
        columns[column.name] = pa.array(table.numeric[:, place], from_pandas=True)
    for place, column in enumerate(schema.categorical):
        values = np.array([_OTHER, *column.values], dtype=np.int64)
        columns[column.name] = pa.array(values[table.categorical[:, place]])
    # Rows without labels get one class: they are read by what throws labels away.
    is_positive = np.nan_to_num(table.labels, nan=0.0) > 0
    columns[schema.label] = pa.array(np.where(is_positive, schema.positive_class, schema.negative_class))
    try:
        parquet.write_table(pa.table(columns), path)
    except OSError as error:
        raise OutputNotWritable(f"{str(path)!r} cannot be written: {error.strerror}") from error


def write_bank(
    data: BankData, parts: dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]], folder: Path
) -> None:
    """Write public.parquet, test.parquet and one file for each bank."""
    write_table(data.public, data.schema, folder / "public.parquet")
    write_table(data.test, data.schema, folder / "test.parquet")
    for name, rows in parts.items():
        write_table(data.private.rows(rows), data.schema, folder / f"{name}.parquet")
