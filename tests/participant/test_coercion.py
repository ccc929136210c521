"""Cells become numbers, texts and keys by themselves alone, whatever connector and piece they came in."""

import math
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.participant.coercion import numbers_of, texts_of
from hansa.participant.raw_units import UnitKeys, row_keys

words = st.text(max_size=12).filter(lambda text: "\x00" not in text)
written = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.sampled_from(
        [
            "",
            " ",
            " 7 ",
            "nan",
            "NaN",
            "inf",
            "-Infinity",
            "1e400",
            "1_0",
            "0x10",
            "nan(1)",
            "1.",
            ".5",
            "+3",
            "\uff11\uff12",  # digits of another script
        ]
    ),
    words,
)


def by_python(text: str | None) -> float | None:
    """A number, NaN where missing, None where neither."""
    if text is None or not text.strip():
        return math.nan
    try:
        number = None if "_" in text else float(text)
    except ValueError:
        return None
    return number if number is None or math.isfinite(number) else math.nan


@given(st.lists(st.one_of(st.none(), written), max_size=8))
def test_a_text_is_the_number_that_python_reads(cells: list[str | None]) -> None:
    found = numbers_of(pa.array(cells, pa.string()))
    expected = [by_python(cell) for cell in cells]
    np.testing.assert_array_equal(found.wrong, [number is None for number in expected])
    np.testing.assert_array_equal(
        found.missing, [number is not None and math.isnan(number) for number in expected]
    )
    np.testing.assert_array_equal(
        found.values, [math.nan if number is None else number for number in expected]
    )


@given(st.lists(st.one_of(st.none(), written), min_size=1, max_size=8))
def test_every_cell_is_a_number_or_missing_or_wrong_and_does_not_depend_on_its_neighbours(
    cells: list[str | None],
) -> None:
    whole = numbers_of(pa.array(cells, pa.string()))
    np.testing.assert_array_equal(np.isfinite(whole.values).astype(int) + whole.missing + whole.wrong, 1)
    for row, cell in enumerate(cells):
        alone = numbers_of(pa.array([cell], pa.string()))
        assert (alone.missing[0], alone.wrong[0]) == (whole.missing[row], whole.wrong[row])
        np.testing.assert_array_equal(alone.values[0], whole.values[row])


@pytest.mark.parametrize(
    ("cells", "kind", "expected"),
    [
        ([1, None, -3], pa.int8(), [1, "missing", -3]),
        ([2**60, 1, None], pa.uint64(), [2.0**60, 1, "missing"]),
        ([1.5, math.nan, math.inf], pa.float32(), [1.5, "missing", "missing"]),
        ([True, False, None], pa.bool_(), [1, 0, "missing"]),
        ([Decimal("1.25"), None], pa.decimal128(5, 2), [1.25, "missing"]),
        (["1", "x", None], pa.large_string(), [1, "wrong", "missing"]),
        ([date(2020, 1, 1), None], pa.date32(), ["wrong", "missing"]),
        ([b"1", None], pa.binary(), ["wrong", "missing"]),
        ([[1], None], pa.list_(pa.int64()), ["wrong", "missing"]),
        ([None, None], pa.null(), ["missing", "missing"]),
    ],
)
def test_every_type_of_a_column(cells: list[Any], kind: pa.DataType, expected: list[Any]) -> None:
    array = pa.array(cells, kind)
    for form in (array, array.slice(0), pa.chunked_array([array.slice(0, 1), array.slice(1)])):
        found = numbers_of(form)
        shown = [
            "missing" if gone else "wrong" if bad else value
            for value, gone, bad in zip(found.values, found.missing, found.wrong, strict=True)
        ]
        assert shown == expected


def test_a_dictionary_of_texts_is_its_texts_and_categories_are_numbers() -> None:
    array = pa.array(["male", " female ", "1", "?", None]).dictionary_encode()
    found = numbers_of(array, {"male": 1, "female": 2})
    np.testing.assert_array_equal(found.values, [1, 2, 1, math.nan, math.nan])
    assert found.wrong.tolist() == [False, False, False, True, False]
    assert texts_of(array) == ["male", "female", "1", "?", None]


@given(st.integers(min_value=-(2**53), max_value=2**53))
def test_a_whole_number_is_one_key_whatever_its_type(number: int) -> None:
    forms = [
        pa.array([number]),
        pa.array([float(number)]),
        pa.array([str(number)]),
        pa.array([f" {number} "]),
    ]
    assert {tuple(texts_of(form)) for form in forms} == {(str(number),)}


def test_keys_that_are_no_whole_numbers() -> None:
    assert texts_of(pa.array([1.5, math.nan, None, math.inf])) == ["1.5", None, None, "inf"]
    assert texts_of(pa.array(["07", "7", "", " "])) == ["07", "7", None, None]
    assert texts_of(pa.array([b"\xff", None])) == ["b'\\xff'", None]
    assert texts_of(pa.array([True, False])) == ["1", "0"]


# -- keys of units ---------------------------------------------------------------------------------------------

ROWS = {"b": ["1", "2.50", "x", None], "a": ["7", "-0", "", "nan"], "c": ["u", "v", "w", "w"]}


def test_a_row_has_one_key_whatever_its_types_order_and_piece() -> None:
    texts = pa.RecordBatch.from_pydict(ROWS)
    keys = row_keys(texts)
    assert len(set(keys)) == 4
    other = pa.RecordBatch.from_pydict(
        {"c": ["u", "v"], "a": pa.array([7, 0], pa.int8()), "b": pa.array([1.0, 2.5])}
    )
    assert row_keys(other) == keys[:2]
    assert [key for row in range(4) for key in row_keys(texts.slice(row, 1))] == keys
    mixed = pa.RecordBatch.from_pydict({"b": [None], "a": pa.array([math.nan]), "c": ["w"]})
    assert row_keys(mixed) == keys[3:]


def test_other_values_and_other_names_are_other_rows() -> None:
    keys = row_keys(pa.RecordBatch.from_pydict(ROWS))
    for change in ({"b": ["3"] * 4}, {"b": [None, None, "y", "y"]}, {"c": ["z"] * 4}):
        changed = row_keys(pa.RecordBatch.from_pydict(ROWS | change))
        assert all(old != new for old, new in zip(keys, changed, strict=True))
    renamed = pa.RecordBatch.from_pydict({"b": ROWS["b"], "a": ROWS["a"], "d": ROWS["c"]})
    assert not set(keys) & set(row_keys(renamed))
    # the same texts in other places
    swapped = pa.RecordBatch.from_pydict({"b": ["u"], "a": ["7"], "c": ["1"]})
    assert row_keys(swapped) != keys[:1]


@given(st.lists(st.tuples(written, written), min_size=2, max_size=6))
def test_rows_are_equal_where_their_cells_mean_the_same(pairs: list[tuple[str, str]]) -> None:
    keys = row_keys(pa.RecordBatch.from_pydict({"a": [a for a, _ in pairs], "b": [b for _, b in pairs]}))

    def meaning(text: str) -> object:
        number = by_python(text)
        return text.strip() if number is None else ("missing" if math.isnan(number) else number + 0.0)

    meanings = [(meaning(a), meaning(b)) for a, b in pairs]
    for i in range(len(pairs)):
        for j in range(i):
            assert (keys[i] == keys[j]) == (meanings[i] == meanings[j])


def test_units_are_persons_then_records_then_rows_and_marks_are_all_of_them() -> None:
    piece = pa.RecordBatch.from_pydict(
        {"who": ["p", "q", "p", None], "id": [1, 2, 3, None], "v": [0, 0, 0, 0]}
    )
    persons, records, plain = (
        UnitKeys(person="who", record="id"),
        UnitKeys(person=None, record="id"),
        UnitKeys(person=None, record=None),
    )
    assert [keys.take(piece) for keys in (persons, records, plain)] == [(1, 1), (0, 1), (0, 0)]
    assert persons.persons is not None
    assert persons.persons.tolist() == [0, 1, 0, -1]
    assert persons.person_count == len(persons.units()) == 2
    assert len(records.units()) == 3
    assert plain.units() == row_keys(piece)
    assert plain.persons is None
    assert set(persons.marks()) == {*persons.units(), *records.units(), *plain.units()}
    elsewhere = UnitKeys(person="who", record="id", key_space="cards")
    elsewhere.take(piece)
    assert set(elsewhere.marks()) & set(persons.marks()) == set(plain.units())
