import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.errors import (
    AggregateRangeViolation,
    CohortTooLarge,
    CohortTooSmall,
    InvalidValue,
    UpdateOutOfRange,
    UpdateShapeMismatch,
)
from hansa.secure_agg.packing import pack, unpack_sum
from hansa.secure_agg.parameters import PLAIN_MODULUS, Layout, layout_for


@pytest.mark.parametrize(("participants", "lanes"), [(3, 5), (4, 4), (15, 4), (16, 4), (17, 3), (258, 3)])
def test_five_lanes_at_3_four_up_to_16_and_three_up_to_258(participants, lanes):
    layout = layout_for(participants)
    assert layout.radix == 254 * participants + 1
    assert layout.lanes == lanes
    assert layout.entries_per_ciphertext == lanes * 4096


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("participants", [3, 4, 15, 16, 17, 100, 258])
def test_the_largest_packed_sum_is_below_t_and_one_more_lane_would_not_fit(participants, bits):
    layout = Layout(participants=participants, bits=bits)
    assert layout.radix**layout.lanes - 1 < PLAIN_MODULUS
    assert layout.radix ** (layout.lanes + 1) - 1 >= PLAIN_MODULUS
    assert layout.radix > participants * 2 * layout.maximum_level


def test_bounds_of_a_layout():
    for participants in (-1, 0, 1, 2):
        with pytest.raises(CohortTooSmall):
            layout_for(participants)
    with pytest.raises(CohortTooLarge):
        layout_for(259)
    for bits in (1, 17):
        with pytest.raises(InvalidValue):
            layout_for(3, bits)


@settings(max_examples=25, deadline=None)
@given(
    participants=st.integers(3, 20),
    bits=st.sampled_from([2, 5, 8, 16]),
    count=st.integers(1, 40_000),
    seed=st.integers(0, 2**32),
)
def test_the_integer_sum_of_packed_updates_unpacks_to_the_sum_of_levels(participants, bits, count, seed):
    layout = layout_for(participants, bits)
    top = layout.maximum_level
    levels = np.random.default_rng(seed).integers(-top, top + 1, (participants, count))
    slots = sum((pack(row, layout) for row in levels), start=np.uint64(0))
    assert slots.shape == (layout.ciphertexts_for(count) * 4096 - 8,)
    assert (
        layout.capacity(layout.ciphertexts_for(count))
        >= count
        > layout.capacity(layout.ciphertexts_for(count) - 1)
    )
    np.testing.assert_array_equal(unpack_sum(slots, layout, count), levels.sum(axis=0))


@pytest.mark.parametrize("participants", [3, 16, 17, 258])
@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_updates_do_not_carry(participants, sign):
    layout = layout_for(participants)
    levels = np.full(layout.capacity(1), sign * 127)
    total = pack(levels, layout) * np.uint64(participants)
    np.testing.assert_array_equal(unpack_sum(total, layout, levels.size), levels * participants)


def test_an_update_is_refused_for_its_levels_or_its_shape():
    layout = layout_for(3)
    for level in (128, -128, 2**63 - 1, -(2**63)):
        with pytest.raises(UpdateOutOfRange):
            pack(np.array([0, level]), layout)
    for levels in (np.zeros((2, 2), np.int64), np.zeros(0, np.int64), np.zeros(4), np.zeros(4, np.int32)):
        with pytest.raises(UpdateShapeMismatch):
            pack(levels, layout)


def test_a_sum_that_no_updates_add_up_to_is_refused():
    layout = layout_for(3)
    slots = pack(np.zeros(10, np.int64), layout) * np.uint64(3)
    unpack_sum(slots, layout, 10)
    too_large = slots.copy()
    too_large[0] = layout.radix**layout.lanes
    with pytest.raises(AggregateRangeViolation, match="bound"):
        unpack_sum(too_large, layout, 10)
    padding = slots.copy()
    padding[10] += np.uint64(1)
    with pytest.raises(AggregateRangeViolation, match="unused"):
        unpack_sum(padding, layout, 10)
    with pytest.raises(AggregateRangeViolation):
        unpack_sum(pack(np.zeros(10, np.int64), layout) * np.uint64(2), layout, 10)  # one update is missing
    two = pack(np.full(10, 127), layout) * np.uint64(2)
    assert unpack_sum(two, layout, 10, 2).tolist() == [254] * 10
    with pytest.raises(
        AggregateRangeViolation, match="sum of 2"
    ):  # fits three updates, not the two that there were
        unpack_sum(pack(np.full(10, 127), layout) * np.uint64(3), layout, 10, 2)
    for wrong, count in ((slots, 30_000), (slots[1:], 10), (slots.astype(np.int64), 10), (slots, 0)):
        with pytest.raises(UpdateShapeMismatch):
            unpack_sum(wrong, layout, count)
