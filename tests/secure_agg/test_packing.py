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
from hansa.secure_agg.bfv import CiphertextSum, HeKey
from hansa.secure_agg.packing import pack, unpack_sum
from hansa.secure_agg.parameters import PLAIN_MODULUS, Layout, layout_for

BITS = [4, 8, 16, 17, 20]
MEMBERS = [3, 16, 17, 100, 258]


@pytest.mark.parametrize(("participants", "lanes"), [(3, 5), (4, 4), (15, 4), (16, 4), (17, 3), (258, 3)])
def test_five_lanes_at_3_four_up_to_16_and_three_up_to_258(participants, lanes):
    layout = layout_for(participants)
    assert layout.radix == 254 * participants + 1
    assert layout.lanes == lanes
    assert layout.entries_per_ciphertext == lanes * 4096


@pytest.mark.parametrize(("participants", "lanes"), [(3, 2), (16, 2), (17, 1), (100, 1), (258, 1)])
def test_two_lanes_of_20_bits_up_to_16_and_one_up_to_258(participants, lanes):
    assert layout_for(participants, 20).lanes == lanes


@pytest.mark.parametrize("bits", range(2, 21))
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
    for bits in (1, 21):
        with pytest.raises(InvalidValue):
            layout_for(3, bits)


@settings(max_examples=25, deadline=None)
@given(
    participants=st.integers(3, 20),
    bits=st.sampled_from([2, 5, 8, 16, 17, 20]),
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


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("participants", MEMBERS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_updates_do_not_carry(participants, sign, bits):
    layout = layout_for(participants, bits)
    levels = np.full(layout.capacity(1), sign * layout.maximum_level)
    total = pack(levels, layout) * np.uint64(participants)
    np.testing.assert_array_equal(unpack_sum(total, layout, levels.size), levels * participants)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("participants", MEMBERS)
def test_the_sum_of_extremes_is_exact_through_encryption(participants, bits):
    layout, key, total = layout_for(participants, bits), HeKey.generate(), CiphertextSum()
    levels = np.full(layout.capacity(1), layout.maximum_level)
    levels[1::3], levels[2::3] = -layout.maximum_level, 0  # other neighbours in each lane
    tagged = np.concatenate([pack(levels, layout), np.zeros(8, np.uint64)])
    for _ in range(participants):
        total.add(key.encrypt(tagged))
    slots = key.decrypt(total.serialise())
    np.testing.assert_array_equal(unpack_sum(slots[:-8], layout, levels.size), levels * participants)


def _packed(levels, layout):
    """The definition, in Python integers: entry e is a digit of slot e mod S, in lane e div S."""
    count = layout.ciphertexts_for(levels.size) * 4096 - 8
    digits = [int(level) + layout.maximum_level for level in levels]
    digits += [layout.maximum_level] * (count * layout.lanes - levels.size)
    return [
        sum(digits[lane * count + slot] * layout.radix**lane for lane in range(layout.lanes))
        for slot in range(count)
    ]


@settings(max_examples=10, deadline=None)
@given(
    participants=st.sampled_from(MEMBERS),
    bits=st.sampled_from(BITS),
    count=st.integers(1, 30_000),
    seed=st.integers(0, 2**32),
)
def test_packing_is_its_definition(participants, bits, count, seed):
    layout = layout_for(participants, bits)
    top = layout.maximum_level
    levels = np.random.default_rng(seed).integers(-top, top + 1, count)
    before = levels.copy()
    slots = pack(levels, layout)
    assert slots.dtype == np.uint64
    assert slots.tolist() == _packed(levels, layout)
    kept = slots.copy()
    np.testing.assert_array_equal(unpack_sum(slots, layout, count, 1), levels)
    np.testing.assert_array_equal(slots, kept)  # neither step writes into what it was given
    np.testing.assert_array_equal(levels, before)


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
