"""Entries without bounds: the slots of a sum are a function of the sum, exact within the range and harmless beyond it."""

import numpy as np
import pytest

from hansa.errors import UpdateOutOfRange, UpdateShapeMismatch
from hansa.secure_agg.packing import pack
from hansa.secure_agg.parameters import PLAIN_MODULUS, Layout, Terms
from hansa.secure_agg.wrapping import ENTRY_MOST, pack_update, pack_wrapping, unpack_wrapped_sum

LAYOUTS = [Layout(participants=n, bits=b) for n in (3, 4, 15, 16, 17, 100, 258) for b in (16, 17, 20)]


def added(packed: list[np.ndarray]) -> np.ndarray:
    total = np.zeros_like(packed[0])
    for slots in packed:
        assert int(slots.max()) < PLAIN_MODULUS
        total = (total + slots) % np.uint64(PLAIN_MODULUS)
    return total


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("members", [2, 3])
def test_the_sum_of_entries_is_read_exactly_whatever_the_single_entries_are(
    layout: Layout, members: int
) -> None:
    draws = np.random.default_rng(layout.radix)
    half, count = (layout.radix - 1) // 2, 5000
    entries = draws.integers(-(2**40), 2**40, (members, count))  # far beyond a lane
    wanted = draws.integers(-half, half + 1, count)
    wanted[:4] = [half, -half, 0, -1]
    entries[-1] = wanted - entries[:-1].sum(axis=0)
    total = added([pack_wrapping(one, layout) for one in entries])
    np.testing.assert_array_equal(unpack_wrapped_sum(total, layout, count), wanted)


def test_updates_with_the_same_sum_have_the_same_sum_of_slots() -> None:
    """Nothing but the sum can be read from it: not how often single entries passed a bound."""
    layout = Layout(participants=15, bits=16)
    draws = np.random.default_rng(1)
    first = draws.integers(-100, 100, (5, 3000))
    second = first + np.array([[1], [-1], [0], [2], [-2]]) * draws.integers(-(2**45), 2**45, 3000)
    assert np.count_nonzero(second != first) > 11_000
    one, other = (added([pack_wrapping(row, layout) for row in rows]) for rows in (first, second))
    np.testing.assert_array_equal(one, other)


def test_reducing_each_update_by_itself_would_show_more_than_the_sum() -> None:
    """The way that is not taken: reduced into its lane first, the same sum gives different slots."""
    layout = Layout(participants=3, bits=16)
    modulus = 2 * layout.maximum_level + 1

    def reduced(values: list[int]) -> np.ndarray:
        shifted = [(value + layout.maximum_level) % modulus - layout.maximum_level for value in values]
        return added([pack(np.array([value], dtype=np.int64), layout) for value in shifted])

    assert not np.array_equal(reduced([20_000, -1, 0]), reduced([40_000, -20_001, 0]))


@pytest.mark.parametrize("beyond", [1, 2, 1000])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_beyond_the_range_spoils_its_slot_and_no_other_one(beyond: int, sign: int) -> None:
    layout = Layout(participants=4, bits=16)
    half = (layout.radix - 1) // 2
    entries = np.arange(20_000, dtype=np.int64)
    entries[7] = sign * (half + beyond)
    found = unpack_wrapped_sum(pack_wrapping(entries, layout), layout, entries.size)
    slots = 4096 * layout.ciphertexts_for(entries.size) - 8
    spoilt = np.flatnonzero(found != entries)
    assert 7 in spoilt
    assert set(spoilt % slots) == {7}
    assert np.abs(found).max() <= half


def test_any_slot_is_read_without_an_error() -> None:
    layout = Layout(participants=15, bits=16)
    slots = np.random.default_rng(2).integers(0, PLAIN_MODULUS, 4096 - 8, dtype=np.uint64)
    slots[:2] = [0, PLAIN_MODULUS - 1]
    found = unpack_wrapped_sum(slots, layout, 8000)
    assert np.abs(found).max() <= (layout.radix - 1) // 2


def test_the_length_depends_on_the_number_of_entries_only() -> None:
    layout = Layout(participants=15, bits=20)
    small, large = np.zeros(5000, dtype=np.int64), np.full(5000, ENTRY_MOST)
    assert pack_wrapping(small, layout).shape == pack_wrapping(large, layout).shape


def test_only_terms_with_distributed_noise_pack_without_bounds() -> None:
    too_large = np.array([2**30], dtype=np.int64)
    with pytest.raises(UpdateOutOfRange):
        pack_update(too_large, Terms(participants=4, mode="quorum", bits=16))
    packed = pack_update(too_large, Terms(participants=4, mode="quorum", bits=16, noise_contributors=3))
    np.testing.assert_array_equal(packed, pack_wrapping(too_large, Layout(participants=4, bits=16)))


def test_what_is_not_a_vector_of_integers_is_refused() -> None:
    layout = Layout(participants=4, bits=16)
    for wrong in (np.zeros(0, dtype=np.int64), np.zeros((2, 2), dtype=np.int64), np.zeros(3)):
        with pytest.raises(UpdateShapeMismatch):
            pack_wrapping(wrong, layout)
    with pytest.raises(UpdateOutOfRange):
        pack_wrapping(np.array([ENTRY_MOST + 1]), layout)
    for slots in (np.zeros(4087, dtype=np.uint64), np.zeros(4088, dtype=np.int64)):
        with pytest.raises(UpdateShapeMismatch):
            unpack_wrapped_sum(slots, layout, 5)
    with pytest.raises(UpdateShapeMismatch):
        unpack_wrapped_sum(np.zeros(4088, dtype=np.uint64), layout, 0)
