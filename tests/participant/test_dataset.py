"""A participant's table: encoding, every refusal, and that no message repeats a value."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv, parquet

from hansa import errors
from hansa.participant.dataset import read_table, table_from_columns
from hansa.study import ColumnSchema, DataSchema

SCHEMA = DataSchema(
    label="y",
    columns=(
        ColumnSchema(name="income", kind="numeric", minimum=0, maximum=100),
        ColumnSchema(name="region", kind="categorical", values=(7, 3)),
        ColumnSchema(name="age", kind="numeric", minimum=18, maximum=99),
    ),
)
SECRET = "8675309"  # a value that must never be seen in a message
GOOD: dict[str, list[Any]] = {
    "age": [30.0, 17.0, None, 200.0],
    "extra": ["x", "y", "z", SECRET],
    "y": [0, 1, 1, 0],
    "region": [3, 7, 9, None],
    "income": [-5.0, 50.5, float("inf"), 100.0],
}

NUMERIC = [[0.0, 30.0], [50.5, 18.0], [np.nan, np.nan], [100.0, 99.0]]
CODES = [[2], [1], [0], [0]]


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    table = pa.table(columns)
    parquet.write_table(table, path) if path.suffix == ".parquet" else csv.write_csv(table, path)
    return path


@pytest.mark.parametrize("name", ["table.parquet", "table.csv"])
def test_reads_checks_and_encodes(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, GOOD)
    table = read_table(path, SCHEMA, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    # columns in the order of the study; clamped to the public bounds; infinite and absent values are missing
    np.testing.assert_array_equal(table.numeric, NUMERIC)
    np.testing.assert_array_equal(table.categorical, CODES)  # 0: neither 7 nor 3, or missing
    np.testing.assert_array_equal(table.labels, [0, 1, 1, 0])
    assert (table.numeric.dtype, table.categorical.dtype, table.labels.dtype) == (
        "float64",
        "int64",
        "float64",
    )


def test_rows_and_without_labels() -> None:
    table = table_from_columns(list(GOOD), [np.array(column) for column in GOOD.values()], SCHEMA)
    part = table.rows(np.array([2, 0]))
    assert (len(table), len(part)) == (4, 2)
    np.testing.assert_array_equal(part.numeric, [NUMERIC[2], NUMERIC[0]])
    np.testing.assert_array_equal(part.labels, [1, 0])
    bare = table.without_labels()
    assert np.isnan(bare.labels).all()
    np.testing.assert_array_equal(bare.numeric, table.numeric)
    with pytest.raises(ValueError, match="read-only"):
        table.numeric[0, 0] = 1.0
    assert repr(table) == "Table(4 rows)"


def test_declared_classes_become_zero_and_one() -> None:
    schema = SCHEMA.model_copy(update={"positive_class": -1, "negative_class": 4})
    columns = [np.array(column) for column in (GOOD | {"y": [4, -1, 4, -1]}).values()]
    np.testing.assert_array_equal(table_from_columns(list(GOOD), columns, schema).labels, [0, 1, 0, 1])


@given(st.lists(st.floats(width=64), min_size=1, max_size=20))
def test_numeric_values_are_missing_or_within_bounds_and_codes_in_range(values: list[float]) -> None:
    column = np.array(values)
    names, labels = ["income", "region", "age", "y"], np.zeros(len(column))
    table = table_from_columns(names, [column, column, column, labels], SCHEMA)
    income = table.numeric[:, 0]
    assert np.all(np.isnan(income) == ~np.isfinite(column))
    assert np.all((income[~np.isnan(income)] >= 0) & (income[~np.isnan(income)] <= 100))
    assert set(table.categorical.ravel()) <= {0, 1, 2}


# -- bad input -------------------------------------------------------------------------------------------

Change = Callable[[dict[str, list[Any]]], dict[str, list[Any]]]


def renamed(old: str, new: str) -> Change:
    return lambda columns: {new if name == old else name: column for name, column in columns.items()}


def replaced(name: str, column: list[Any]) -> Change:
    return lambda columns: columns | {name: column}


BAD: list[tuple[Change, type[errors.DataError], str, str, str]] = [
    (renamed("income", "incone"), errors.MissingColumn, "missing_column", "column 'income'", "'incone'"),
    (renamed("y", "outcome"), errors.MissingColumn, "missing_column", "column 'y' of the study", "[data]"),
    (
        replaced("income", ["1", "2", f"{SECRET}x", "bad"]),
        errors.NonNumericColumn,
        "non_numeric_column",
        "column 'income' is not a number in data row 3",
        "",
    ),
    (replaced("region", ["1", "1_0", "3", "4"]), errors.NonNumericColumn, "non_numeric_column", "row 2", ""),
    (replaced("y", ["no", "yes", "no", "no"]), errors.NonNumericColumn, "non_numeric_column", "'y'", ""),
    (replaced("y", [0, None, 1, 0]), errors.InvalidLabel, "invalid_label", "'y' has 1 of 4 values", ""),
    (replaced("y", [0.0, float("nan"), 1.0, 2.0]), errors.InvalidLabel, "invalid_label", "has 2 of 4", ""),
    (replaced("y", [0, 1, int(SECRET), 0]), errors.InvalidLabel, "invalid_label", "neither 0 nor 1", ""),
    (
        lambda columns: {name: [] for name in columns},
        errors.DataError,
        "data",
        "no rows, at least 1",
        "",
    ),
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case[2]}-{case[3]}")
def test_bad_table_has_its_error(
    tmp_path: Path, suffix: str, case: tuple[Change, type[errors.DataError], str, str, str]
) -> None:
    change, kind, code, message, hint = case
    path = write(tmp_path / f"table{suffix}", change(GOOD))
    with pytest.raises(errors.DataError) as caught:
        read_table(path, SCHEMA)
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.exit_status) == (code, 65)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert_shows_no_value(caught.value)


def assert_shows_no_value(error: errors.Error) -> None:
    chain: BaseException | None = error
    while chain is not None:
        assert SECRET not in str(chain)
        assert SECRET not in getattr(chain, "hint", "")
        chain = chain.__cause__ or chain.__context__


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_duplicate_column(tmp_path: Path, suffix: str) -> None:
    table = pa.table([*map(pa.array, GOOD.values()), pa.array(GOOD["age"])], names=[*GOOD, "age"])
    path = tmp_path / f"table{suffix}"
    parquet.write_table(table, path) if suffix == ".parquet" else csv.write_csv(table, path)
    with pytest.raises(errors.DuplicateColumn, match="'age' appears 2 times") as caught:
        read_table(path, SCHEMA)
    assert (caught.value.code, caught.value.exit_status) == ("duplicate_column", 65)


def test_parquet_column_of_dates_is_not_numeric(tmp_path: Path) -> None:
    table = pa.table(GOOD | {"age": pa.array([1, 2, 3, 4], type=pa.timestamp("s"))})
    parquet.write_table(table, tmp_path / "table.parquet")
    with pytest.raises(errors.NonNumericColumn, match="'age' is not a number in data row 1"):
        read_table(tmp_path / "table.parquet", SCHEMA)


def test_file_without_header_shows_none_of_its_first_record(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"{SECRET},{SECRET},incom,0\n1,2,3,1\n")
    with pytest.raises(errors.MissingColumn) as caught:
        read_table(path, SCHEMA)
    assert "incom'" not in caught.value.hint  # near 'income', but it may be a value: nothing else fits
    assert_shows_no_value(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.csv", f"income,region,age,y\n1,3,20,0\n{SECRET},3\n".encode()),  # a short line
        ("table.csv", b""),
        ("table.csv", b"income,region,age,y\n1,3,\xff\xfe,0\n"),
        ("table.parquet", SECRET.encode()),
        ("table.parquet", b"PAR1" + b"\0" * 100 + b"PAR1"),
        ("table.parquet", b""),
        ("table.xlsx", b"PK"),
    ],
)
def test_malformed_file(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(errors.DataError) as caught:
        read_table(path, SCHEMA)
    assert type(caught.value) is errors.DataError
    assert (caught.value.code, caught.value.exit_status) == ("data", 65)
    assert_shows_no_value(caught.value)


@pytest.mark.parametrize("name", ["missing.parquet", "folder.csv"])
def test_unreadable_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(errors.DataFileMissing, match="cannot be read") as caught:
        read_table(tmp_path / name, SCHEMA)
    assert (caught.value.code, caught.value.exit_status) == ("data_file_missing", 66)


@pytest.mark.parametrize("name", ["table.parquet", "table.csv"])
def test_changed_file_is_refused_before_it_is_parsed(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, GOOD)
    agreed = hashlib.sha256(path.read_bytes()).hexdigest()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(errors.ChecksumMismatch, match=f"agreed was {agreed}") as caught:
        read_table(path, SCHEMA, sha256=agreed)
    assert (caught.value.code, caught.value.exit_status) == ("checksum_mismatch", 65)
    path.write_bytes(b"not a table at all")
    with pytest.raises(errors.ChecksumMismatch):
        read_table(path, SCHEMA, sha256=agreed)


def test_columns_of_different_lengths() -> None:
    columns = [np.zeros(4), np.zeros(4), np.zeros(3), np.zeros(4)]
    with pytest.raises(errors.DataError, match=r"different lengths: \[3, 4\]"):
        table_from_columns(["income", "region", "age", "y"], columns, SCHEMA)
    with pytest.raises(errors.DataError, match="1 names for 4 columns"):
        table_from_columns(["income"], columns, SCHEMA)
