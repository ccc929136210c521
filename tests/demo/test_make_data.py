"""The script that made the example's Parquet file, run backwards and forwards."""

import csv
import importlib.util
import io
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from pyarrow import parquet

FOLDER = Path(__file__).parents[2] / "examples" / "bank"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_data", FOLDER / "make_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def source(script: ModuleType) -> bytes:
    """Put the source's form together again: SEX 0/1, one-hot columns, a row number, amounts as decimals."""
    table = {name: column.to_numpy() for name, column in zip(*_columns(), strict=True)}
    columns = {"ID": np.arange(1, 30_001), "SEX": table.pop("SEX") - 1}
    columns[script.LABEL] = table.pop("DEFAULT_NEXT_MONTH")
    for name, classes in (("EDUCATION", 7), ("MARRIAGE", 4)):
        codes = table.pop(name)
        columns |= {f"{name}_{code}": (codes == code).astype(int) for code in range(classes)}
    columns |= {
        name: values.astype(float) if values.itemsize == 4 else values for name, values in table.items()
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    return text.getvalue().encode("ascii")


def _columns() -> tuple[list[str], list[object]]:
    table = parquet.read_table(FOLDER / "data" / "credit_default.parquet")
    return table.column_names, table.columns


def test_conversion_brings_back_the_published_table(script: ModuleType) -> None:
    published = parquet.read_table(FOLDER / "data" / "credit_default.parquet")
    assert script.convert(source(script)).equals(published)


def test_another_source_is_refused(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "UCI_Credit_Card.csv"
    path.write_bytes(b"ID\n1\n")
    with pytest.raises(SystemExit, match="expected " + script.SOURCE_SHA256):
        script.read_source(path)


def test_columns_that_are_not_one_hot_are_refused(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="is not one-hot"):
        script.undo_one_hot({"A_0": np.array([1, 0]), "A_1": np.array([1, 1])}, "A_", 2)


def test_values_that_are_no_integers_are_refused(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="x is not a column of 30000 integers"):
        script.exact_integers("x", np.full(30_000, 0.5))
