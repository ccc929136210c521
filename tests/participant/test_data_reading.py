"""A data set held against a study: every problem at once, without a value; and the rows are those of the units."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv, parquet

from hansa import errors
from hansa.participant.connectors.opening import open_source
from hansa.participant.data_problems import Problem
from hansa.participant.data_reading import check_data, read_data
from hansa.participant.data_stats import data_stats
from hansa.participant.dataset import Table, table_from_columns
from hansa.participant.dataset_file import DatasetEntry
from hansa.participant.registered_data import register_named_data
from hansa.participant.table_reading import TableReading
from hansa.study import ColumnSchema, DataSchema, Study, load_study

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/bank"
SECRET = "8675309"  # a value that must never be seen in a message
COLUMNS = (
    ColumnSchema(name="income", kind="numeric", minimum=0, maximum=100),
    ColumnSchema(name="region", kind="categorical", values=(7, 3)),
    ColumnSchema(name="age", kind="numeric", minimum=18, maximum=99),
)
GOOD: dict[str, list[Any]] = {
    "age": [30.0, 17.0, None, 200.0],
    "client": ["anna", "bela", "anna", "cora"],
    "y": [0, 1, 1, 0],
    "region": [3, 7, 9, None],
    "income": [-5.0, 50.5, float("inf"), 100.0],
}


@pytest.fixture(scope="module")
def study() -> Study:
    example = load_study(EXAMPLE / "study.toml")
    privacy = example.privacy.model_copy(update={"nominal_records": 10, "sample_rate": 0.5})
    return example.model_copy(update={"data": DataSchema(label="y", columns=COLUMNS), "privacy": privacy})


def entry_of(home: Path, data: dict[str, list[Any]], kind: str = "parquet", /, **more: Any) -> DatasetEntry:
    path = home / f"t.{kind}"
    csv.write_csv(pa.table(data), path) if kind == "csv" else parquet.write_table(pa.table(data), path)
    return DatasetEntry(name="clients", kind=kind, path=path.name, **more)


def found(entry: DatasetEntry, home: Path, study: Study) -> dict[tuple[str, str], Problem]:
    return {(problem.code, problem.column): problem for problem in check_data(entry, home, study).problems}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_notes_count_what_the_encoding_answers(tmp_path: Path, study: Study, kind: str) -> None:
    check = check_data(entry_of(tmp_path, GOOD, kind), tmp_path, study)
    assert check.fits
    assert check.rows == 4
    counts = {(problem.code, problem.column): problem.count for problem in check.problems}
    assert counts == {
        ("out_of_range", "age"): 2,
        ("missing_values", "age"): 1,
        ("out_of_range", "income"): 1,
        ("missing_values", "income"): 1,
        ("missing_values", "region"): 1,
        ("unknown_category", "region"): 1,
        ("few_rows", ""): 4,
        ("new_data_set", ""): 0,
        ("no_policy", ""): 0,
    }


def test_every_problem_is_found_at_once_with_columns_and_counts_and_no_value(
    tmp_path: Path, study: Study
) -> None:
    bad = {
        "age": ["1", f"{SECRET}x", "2", "y"],
        "client": ["anna", None, "", "cora"],
        "y": ["0", SECRET, None, "no"],
        "region": ["x", "7", "1_0", "3"],
        "income": ["1", "2", "3", "4"],
    }
    entry = entry_of(tmp_path, bad, "csv", person="client", policy="none.toml")
    problems = found(entry, tmp_path, study)
    wrong = {key: problem.count for key, problem in problems.items() if problem.severity == "error"}
    assert wrong == {
        ("non_numeric_column", "age"): 2,
        ("non_numeric_column", "y"): 1,
        ("non_numeric_column", "region"): 2,
        ("invalid_label", "y"): 2,
        ("missing_person", "client"): 2,
        ("policy_file_missing", ""): 0,
    }
    assert (
        problems["non_numeric_column", "age"].message
        == "column 'age' is not a number in 2 of 4 rows, first in data row 2"
    )
    assert SECRET not in json.dumps([problem.as_json() for problem in problems.values()])
    with pytest.raises(errors.SchemaMismatch) as caught:
        read_data(entry, tmp_path, study)
    assert caught.value.message.startswith("data set 'clients' has 5 problems: ")
    assert SECRET not in caught.value.message
    assert (caught.value.code, caught.value.exit_status) == ("schema_mismatch", 65)
    assert list(tmp_path.glob("ledger.salt")) == []  # a check keeps nothing


def test_names_that_are_not_there_or_there_twice(tmp_path: Path, study: Study) -> None:
    renamed = {("incone" if name == "income" else name): cells for name, cells in GOOD.items()}
    problems = found(entry_of(tmp_path, renamed), tmp_path, study)
    assert "did you mean column 'incone'" in problems["missing_column", "income"].message
    mapped = entry_of(tmp_path, renamed, columns={"income": "incone", "other": "age2"})
    assert found(mapped, tmp_path, study)["unused_mapping", "other"].severity == "note"
    assert read_data(mapped, tmp_path, study).table.numeric[1, 0] == 50.5
    wrongly = found(entry_of(tmp_path, GOOD, columns={"income": "salary"}, person="who"), tmp_path, study)
    assert (
        "'income' ('salary' in the data) of the study is not" in wrongly["missing_column", "income"].message
    )
    assert ("missing_column", "who") in wrongly
    twice = pa.table([*map(pa.array, GOOD.values()), pa.array(GOOD["age"])], names=[*GOOD, "age"])
    parquet.write_table(twice, tmp_path / "t.parquet")
    entry = DatasetEntry(name="clients", kind="parquet", path="t.parquet")
    assert (
        found(entry, tmp_path, study)["duplicate_column", "age"].message
        == "column 'age' appears 2 times in the data"
    )


def test_a_wrong_delimiter_and_a_header_that_is_a_record_show_no_name_of_the_file(
    tmp_path: Path, study: Study
) -> None:
    entry = entry_of(tmp_path, GOOD, "csv", delimiter=";")
    assert "is the delimiter ';'?" in found(entry, tmp_path, study)["missing_column", "y"].message
    (tmp_path / "t.csv").write_text(f"{SECRET},incom,0,1\n1,2,3,4\n")
    entry = DatasetEntry(name="clients", kind="csv", path="t.csv")
    words = json.dumps([problem.message for problem in check_data(entry, tmp_path, study).problems])
    assert SECRET not in words
    assert "'incom'" not in words


def test_the_label_and_categories_have_their_own_names_in_the_data(tmp_path: Path, study: Study) -> None:
    columns = {**GOOD, "late": ["no", "yes", "yes", "no"], "region": ["north", "south", "7", None]}
    del columns["y"]
    entry = entry_of(
        tmp_path,
        columns,
        label="late",
        categories={"y": {"no": 0, "yes": 1}, "region": {"north": 3, "south": 9}},
    )
    data = read_data(entry, tmp_path, study)
    assert data.table.labels.tolist() == [0, 1, 1, 0]
    assert data.table.categorical[:, 0].tolist() == [2, 0, 1, 0]
    assert [(note.code, note.column, note.count) for note in data.notes if note.column == "region"] == [
        ("missing_values", "region", 1),
        ("unknown_category", "region", 1),
    ]


def test_persons_are_numbered_and_are_the_units(tmp_path: Path, study: Study) -> None:
    data = read_data(entry_of(tmp_path, GOOD, person="client"), tmp_path, study)
    assert data.persons is not None
    assert data.persons.tolist() == [0, 1, 0, 2]
    assert (len(data.units), len(data.marks)) == (3, 7)
    assert repr(data) == "ReadData('clients')"
    alone = read_data(entry_of(tmp_path, GOOD), tmp_path, study)
    assert (alone.persons, len(alone.units)) == (None, 4)


@pytest.fixture
def persons(study: Study) -> Study:
    privacy = study.privacy.model_copy(update={"unit": "person", "sample_rate": 0.3, "records_per_person": 1})
    return study.model_copy(
        update={"privacy": privacy, "data": study.data.model_copy(update={"person": "client"})}
    )


def test_a_study_of_persons_finds_its_column_and_counts_persons(tmp_path: Path, persons: Study) -> None:
    entry = entry_of(tmp_path, GOOD)
    problems = found(entry, tmp_path, persons)
    assert (problems["too_few_rows", ""].severity, problems["too_few_rows", ""].count) == ("error", 3)
    assert problems["capped_persons", "client"].count == 1
    few = persons.privacy.model_copy(update={"sample_rate": 0.5, "records_per_person": 2})
    enough = persons.model_copy(update={"privacy": few})
    data = read_data(entry, tmp_path, enough)
    assert data.persons is not None
    assert data.persons.tolist() == [0, 1, 0, 2]
    assert len(data.units) == 3
    assert "capped_persons" not in {note.code for note in data.notes}


def test_the_column_of_persons_may_have_another_name_and_must_be_there(
    tmp_path: Path, persons: Study
) -> None:
    renamed = {("who" if name == "client" else name): cells for name, cells in GOOD.items()}
    assert ("missing_column", "client") in found(entry_of(tmp_path, renamed), tmp_path, persons)
    for more in ({"person": "who"}, {"columns": {"client": "who"}}):
        problems = found(entry_of(tmp_path, renamed, **more), tmp_path, persons)
        assert not {code for code, _ in problems} & {"missing_column", "unused_mapping"}
    missing = {**renamed, "who": ["a", None, "b", "c"]}
    assert (
        found(entry_of(tmp_path, missing, person="who"), tmp_path, persons)["missing_person", "who"].count
        == 1
    )


def test_too_few_rows_for_the_sampling(tmp_path: Path, study: Study) -> None:
    one = {name: cells[:1] for name, cells in GOOD.items()}
    problems = found(entry_of(tmp_path, one), tmp_path, study)
    assert (
        problems["too_few_rows", ""].message == "1 rows or persons at sample rate 0.5 are 0.5 a step, below 1"
    )
    assert problems["one_class", "y"].severity == "note"
    none = {name: pa.array([], pa.float64()) for name in GOOD}
    assert ("no_rows", "") in found(entry_of(tmp_path, none), tmp_path, study)  # type: ignore[arg-type]


def test_a_check_says_what_registering_would(tmp_path: Path, study: Study) -> None:
    entry = entry_of(tmp_path, GOOD)
    data = read_data(entry, tmp_path, study)
    register_named_data(tmp_path, "cards", units=data.units, marks=data.marks, time=0)
    refused = found(entry, tmp_path, study)["data_already_registered", ""]
    assert refused.severity == "error"
    assert "'cards'" in refused.message
    same = found(entry.model_copy(update={"name": "cards"}), tmp_path, study)
    assert not {code for code, _ in same} & {"new_data_set", "data_already_registered"}


def test_the_policy_is_that_of_the_data_set(tmp_path: Path, study: Study) -> None:
    (tmp_path / "policy.toml").write_text((EXAMPLE / "policy.toml").read_text())
    entry = entry_of(tmp_path, GOOD, policy="policy.toml")
    assert found(entry, tmp_path, study)["policy_mismatch", ""].severity == "error"
    fits = entry.model_copy(update={"name": "credit-cards"})
    assert not {code for code, _ in found(fits, tmp_path, study)} & {"policy_mismatch", "no_policy"}


def test_the_example_is_read_as_the_demo_reads_it() -> None:
    study = load_study(EXAMPLE / "study.toml")
    entry = DatasetEntry(
        name="a", kind="parquet", path="data/credit_default.parquet", label="DEFAULT_NEXT_MONTH"
    )
    table = parquet.read_table(EXAMPLE / "data/credit_default.parquet")
    columns = [column.to_numpy() for column in table.columns]
    assert_same(
        read_data(entry, EXAMPLE, study).table, table_from_columns(table.column_names, columns, study.data)
    )


def assert_same(one: Table, other: Table) -> None:
    np.testing.assert_array_equal(one.numeric, other.numeric)
    np.testing.assert_array_equal(one.categorical, other.categorical)
    np.testing.assert_array_equal(one.labels, other.labels)


cells = st.one_of(
    st.none(), st.floats(), st.integers(-300, 300), st.sampled_from(["7", "3.0", "1e1", "nan", "x", "1_0"])
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(cells, cells, cells, st.sampled_from([0, 1, "1", "0.0"])), min_size=1, max_size=6),
    st.integers(1, 6),
)
def test_in_any_pieces_the_table_is_the_one_that_is_read_at_once(
    rows: list[tuple[Any, ...]], size: int
) -> None:
    study = load_study(EXAMPLE / "study.toml").model_copy(
        update={"data": DataSchema(label="y", columns=COLUMNS)}
    )
    names = ["income", "region", "age", "y"]
    columns = {
        name: [None if c is None else str(c) for c in column]
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
    reading = TableReading(study, DatasetEntry(name="a", kind="csv", path="x"), names)
    whole = pa.RecordBatch.from_pydict(
        {name: pa.array(column, pa.string()) for name, column in columns.items()}
    )
    for start in range(0, len(rows), size):
        reading.take(whole.slice(start, size))
    arrays = [np.array(column, dtype=object) for column in columns.values()]
    try:
        expected = table_from_columns(names, arrays, study.data)
    except errors.NonNumericColumn:
        assert any(problem.code == "non_numeric_column" for problem in reading.problems())
        return
    assert not any(problem.code in ("non_numeric_column", "invalid_label") for problem in reading.problems())
    assert_same(reading.table(), expected)


# -- texts -----------------------------------------------------------------------------------------------------


def texts(home: Path, lines: list[dict[str, Any]], **more: Any) -> DatasetEntry:
    (home / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DatasetEntry(name="notes", kind="jsonl", path="t.jsonl", **more)


def test_texts_have_a_schema_of_their_own(tmp_path: Path, study: Study) -> None:
    lines = [
        {"text": "abc", "label": "a"},
        {"text": "", "label": 7},
        {"text": "abcdef"},
        {"text": "de", "label": "b"},
    ]
    entry = texts(tmp_path, lines, labels=("a", "b"), longest_text=5)
    check = check_data(entry, tmp_path, None)
    counts = {problem.code: (problem.severity, problem.count) for problem in check.problems}
    assert counts == {
        "missing_text": ("error", 1),
        "long_text": ("error", 1),
        "unknown_label": ("error", 1),
        "missing_label": ("error", 1),
        "new_data_set": ("note", 0),
        "no_policy": ("note", 0),
    }
    free = texts(tmp_path, [{"text": "abc", "who": "p"}, {"text": "d"}], person="who")
    codes = {problem.code: problem.severity for problem in check_data(free, tmp_path, None).problems}
    assert codes["missing_label"] == "note"
    assert codes["missing_person"] == "error"
    assert not check_data(texts(tmp_path, []), tmp_path, None).fits
    assert "texts" in {problem.code for problem in check_data(free, tmp_path, study).problems}
    with pytest.raises(errors.SchemaMismatch, match="holds texts"):
        read_data(free, tmp_path, study)
    with pytest.raises(errors.SchemaMismatch, match="a study says"):
        check_data(entry_of(tmp_path, GOOD), tmp_path, None)


# -- aggregates ------------------------------------------------------------------------------------------------


def test_stats_are_exact_and_hide_the_keys(tmp_path: Path) -> None:
    found = data_stats(entry_of(tmp_path, GOOD, "csv", person="client", label="y"), tmp_path)
    assert (found["rows"], found["persons"]) == (4, {"count": 3, "most_records": 2})
    assert set(found["columns"]) == {"age", "y", "region", "income"}
    age = found["columns"]["age"]
    assert (age["kind"], age["missing_share"], age["minimum"], age["maximum"]) == (
        "numeric",
        0.25,
        17.0,
        200.0,
    )
    assert age["quantiles"]["0.5"] == 30.0
    assert found["columns"]["y"]["shares"] == {"0": 0.5, "1": 0.5}
    assert "anna" not in json.dumps(found)


def test_stats_of_texts_are_lengths_and_of_words_shares(tmp_path: Path) -> None:
    found = data_stats(texts(tmp_path, [{"text": "abc", "label": "x"}, {"text": "d"}]), tmp_path)["columns"]
    assert found["text"]["kind"] == "length"
    assert (found["text"]["minimum"], found["text"]["maximum"]) == (1.0, 3.0)
    assert found["label"]["shares"] == {"x": 0.5}
    assert found["label"]["kind"] == "text"
    words = entry_of(tmp_path, {"c": ["a", "b", "3", None]})
    assert data_stats(words, tmp_path)["columns"]["c"] == {
        "kind": "text", "missing_share": 0.25, "distinct": 3, "shares": {"a": 0.25, "b": 0.25, "3": 0.25}
    }  # fmt: skip


def test_stats_of_a_description_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(errors.DataUnreadable, match="'who' of the description is not in the data"):
        data_stats(entry_of(tmp_path, GOOD, person="who"), tmp_path)
    with pytest.raises(errors.DataUnreadable, match="has no rows"):
        data_stats(entry_of(tmp_path, {"a": pa.array([], pa.int64())}), tmp_path)  # type: ignore[dict-item]


def test_stats_of_many_different_texts_stay_small(tmp_path: Path) -> None:
    column = data_stats(entry_of(tmp_path, {"c": [f"t{k}" for k in range(10_001)]}), tmp_path)["columns"]["c"]
    assert column == {"kind": "text", "missing_share": 0.0, "distinct": None}


def test_a_source_is_opened_by_its_kind(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, {"a": [1]}, "csv", encoding="latin-1")
    assert list(open_source(entry, tmp_path).names) == ["a"]
