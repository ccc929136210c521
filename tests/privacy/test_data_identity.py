"""The same data has one commitment, and only its owner can tell whose it is."""

from pathlib import Path

import numpy as np
import pytest

from hansa.privacy.data_identity import (
    data_commitment,
    ledger_path,
    person_units,
    persons_of_rows,
    row_units,
    unit_marks,
)

SALT = b"s" * 32
UNITS = [b"anna", b"bela", b"cora"]


def test_order_does_not_matter_and_which_units_how_often_does() -> None:
    found = data_commitment(SALT, UNITS)
    assert len(found) == 32
    assert data_commitment(SALT, reversed(UNITS)) == found
    others = [UNITS[:2], [*UNITS, b"dora"], [*UNITS, b"anna"], [b"annab", b"ela", b"cora"], []]
    assert len({found, *(data_commitment(SALT, units) for units in others)}) == 6


def test_another_salt_gives_another_commitment() -> None:
    assert data_commitment(b"t" * 32, UNITS) != data_commitment(SALT, UNITS)


def test_a_salt_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="not 32"):
        data_commitment(b"short", UNITS)


def test_a_row_is_its_numbers() -> None:
    table = np.array([[1.0, -0.0], [np.nan, 2.0]])
    same = np.array([[1.0, 0.0], [-np.nan, 2.0]])
    assert row_units(table, np.array([0, 1])) == row_units(
        same.copy(), np.array([0.0, 1.0], dtype=np.float32)
    )
    assert len(set(row_units(table, np.array([0, 1])) + row_units(table, np.array([1, 1])))) == 3
    assert row_units(np.ones((2, 3, 4)))[0] == row_units(np.ones((1, 12)))[0]
    assert np.isnan(table[1, 0])  # the caller's array is as it was


def test_each_data_set_has_its_own_ledger() -> None:
    paths = {ledger_path(Path("folder"), data_commitment(SALT, units)) for units in (UNITS, UNITS[:2])}
    assert len(paths) == 2
    assert all(path.match("folder/ledger-*.jsonl") for path in paths)


def test_marks_know_the_same_units_again_under_the_same_salt_only():
    marks = unit_marks(SALT, [b"anna", b"bela", b"anna"])
    assert marks.dtype == np.uint64
    assert len(marks) == 2
    assert marks.tolist() == sorted(marks.tolist())
    assert marks.tolist() == unit_marks(SALT, [b"bela", b"anna"]).tolist()
    assert set(unit_marks(SALT, [b"anna"]).tolist()) < set(marks.tolist())
    assert not set(unit_marks(b"t" * 32, [b"anna", b"bela"]).tolist()) & set(marks.tolist())
    assert unit_marks(SALT, []).tolist() == []
    with pytest.raises(ValueError, match="not 32"):
        unit_marks(b"short", [])


def test_a_person_counts_once_whatever_number_of_records_it_has() -> None:
    once, often = person_units([b"a", b"b"]), person_units([b"b", b"a", b"b", b"b"])
    assert data_commitment(SALT, once) == data_commitment(SALT, often)
    assert data_commitment(SALT, once) != data_commitment(SALT, person_units([b"a", b"c"]))
    assert data_commitment(SALT, once) != data_commitment(
        SALT, [b"a", b"b"]
    )  # by records: another unit, another ledger


def test_persons_without_a_key_are_known_by_their_rows() -> None:
    rows = [b"r0", b"r1", b"r2", b"r3"]
    keys = persons_of_rows(rows, np.array([0, 1, 0, 1]))
    assert len(keys) == 2
    assert sorted(keys) == sorted(
        persons_of_rows(rows[::-1], np.array([0, 5, 0, 5]))
    )  # numbers and order do not count
    assert sorted(keys) != sorted(persons_of_rows(rows, np.array([0, 1, 1, 0])))
