"""Which records a person takes part with, and batches that never divide one."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.errors import DataError
from hansa.privacy.units import UnitRecords, parts

PROPERTY = settings(deadline=None, max_examples=200, derandomize=True)
OWNERS = st.lists(st.integers(0, 6), max_size=40)


@PROPERTY
@given(OWNERS, st.integers(1, 9), st.sets(st.integers(0, 6)))
def test_a_persons_records_are_its_first_ones_in_the_order_of_the_table(
    owners: list[int], most: int, wanted: set[int]
) -> None:
    found = UnitRecords(np.array(owners, dtype=np.int64), most)
    assert found.count == max(owners, default=-1) + 1
    units = np.array(sorted(unit for unit in wanted if unit < found.count), dtype=np.int64)
    records, place = found.of(units)
    expected = [
        (record, at)
        for at, unit in enumerate(units.tolist())
        for record in [record for record, owner in enumerate(owners) if owner == unit][:most]
    ]
    assert list(zip(records.tolist(), place.tolist(), strict=True)) == expected


def test_another_persons_records_change_nothing_wherever_they_stand() -> None:
    owners = np.array([0, 1, 0, 2, 1, 0, 2])
    apart = np.array(
        [9, 10, 11, 14, 15, 17, 20]
    )  # where these seven stand in a table with fourteen of person 3
    mixed = np.full(21, 3)
    mixed[apart] = owners
    alone, together = UnitRecords(owners, 2), UnitRecords(mixed, 2)
    for unit in range(3):
        records, _ = alone.of(np.array([unit]))
        assert together.of(np.array([unit]))[0].tolist() == apart[records].tolist()


@PROPERTY
@given(OWNERS, st.integers(1, 9))
def test_parts_are_the_batch_in_order_and_divide_nobody(owners: list[int], most: int) -> None:
    units = np.array(sorted(owners), dtype=np.int64)
    found = [units[part].tolist() for part in parts(units, most)]
    assert [unit for part in found for unit in part] == units.tolist()
    assert all(found)
    whole = [unit for part in found for unit in set(part)]
    assert len(whole) == len(set(whole))
    for part in found:
        assert len(part) <= most or len(set(part)) == 1
    for one, two in pairwise(found):  # no part is cut short without need
        assert len(one) + two.count(two[0]) > most


def test_what_is_no_number_of_a_person_is_refused_without_naming_it() -> None:
    with pytest.raises(DataError) as caught:
        UnitRecords(np.array([0, -7]), 3)
    assert "7" not in caught.value.message
    assert repr(UnitRecords(np.array([0, 1]), 1)) == "UnitRecords(...)"
