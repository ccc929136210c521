"""Participant and aggregator together: exact sums, and what the holder of the HE key sees."""

import itertools

import numpy as np
import pytest
from scipy.stats import chisquare

from hansa.errors import (
    UpdateShapeMismatch,
)
from hansa.secure_agg.agreement import verify_results
from hansa.secure_agg.bfv import CiphertextSum
from hansa.secure_agg.packing import pack
from hansa.secure_agg.parameters import PLAIN_MODULUS, layout_for


@pytest.mark.parametrize("participants", [3, 4, 15, 17])
def test_the_decrypted_sum_is_the_sum_of_levels_integer_for_integer(consortium, participants):
    house = consortium(participants)
    levels = house.levels(house.layout.entries_per_ciphertext + 77, seed=participants)
    levels["bank-000"][:] = 127
    levels["bank-001"][:] = -127
    members, uploads = house.protected(levels)
    aggregator = house.aggregator(uploads)
    headers, aggregate = aggregator.headers(), aggregator.aggregate()
    for member in members.values():
        np.testing.assert_array_equal(member.open(headers, aggregate), sum(levels.values()))
    download = sum(map(len, headers)) + sum(map(len, aggregate))
    assert aggregator.downlink_bytes == participants * download
    assert aggregator.uplink_bytes == sum(len(h) + sum(map(len, c)) for h, c in uploads.values())


@pytest.mark.parametrize("level", [-127, 127])
@pytest.mark.parametrize("bits", [8, 16])
def test_all_extreme_updates_add_up_exactly(consortium, level, bits):
    house = consortium(16, bits)
    value = level if bits == 8 else level * 258
    levels = {name: np.full(5000, value) for name in house.ids}
    members, uploads = house.protected(levels)
    aggregator = house.aggregator(uploads)
    total = members["bank-007"].open(aggregator.headers(), aggregator.aggregate())
    assert set(total.tolist()) == {16 * value}


def test_rounds_follow_each_other_and_the_transcript_chains(consortium):
    house = consortium()
    links = {}
    for round_index, seed in ((1, 0), (2, 0), (3, 1)):
        levels = house.levels(50, seed)
        members, uploads = house.protected(levels, round_index)
        aggregator = house.aggregator(uploads, round_index)
        totals = {name: m.open(aggregator.headers(), aggregator.aggregate()) for name, m in members.items()}
        found = {members[name].transcript(total) for name, total in totals.items()}
        assert len(found) == 1
        links[round_index] = found.pop()
        changed = totals["bank-000"].copy()
        changed[0] += 1
        assert members["bank-000"].transcript(changed) != links[round_index]
        for wrong in (changed[:-1], changed.astype(float)):
            with pytest.raises(UpdateShapeMismatch):
                members["bank-000"].transcript(wrong)
        verify_results([m.confirm(b"n" * 32) for m in members.values()], house.roster, round_index, 0)
    assert len(set(links.values())) == 3
    assert all(len(link) == 32 for link in links.values())


# -- what the holder of the HE key sees --------------------------------------------------------------------


def _uniformity(slots):
    """Smallest p-value of three chi-square tests: high bits, low bits, and the lowest lane."""
    values = slots.reshape(-1).astype(object)
    high = np.bincount((values * 64 // PLAIN_MODULUS).astype(int), minlength=64)
    low = np.bincount((values % 61).astype(int), minlength=61)
    lane = np.bincount((values % layout_for(4).radix % 32).astype(int), minlength=32)[:31]
    return min(chisquare(counts).pvalue for counts in (high, low, lane))


def _decrypt_alone(he_key, ciphertexts):
    slots = []
    for ciphertext in ciphertexts:
        alone = CiphertextSum()
        alone.add(ciphertext)
        slots.append(he_key.decrypt(alone.serialise()))
    return np.stack(slots)


@pytest.mark.parametrize("level", [-127, 127])
def test_one_upload_decrypted_with_the_he_key_is_uniform(consortium, he_key, level):
    house = consortium(4)
    _, uploads = house.protected({name: np.full(3 * 16384, level) for name in house.ids})
    alone = {name: _decrypt_alone(he_key, ciphertexts) for name, (_, ciphertexts) in uploads.items()}
    assert all(_uniformity(slots) > 1e-4 for slots in alone.values())
    # Without the last member no partial sum is any better, pairs and triples included.
    for size in (2, 3):
        for group in itertools.combinations(house.ids, size):
            partial = sum(alone[name] for name in group) % np.uint64(PLAIN_MODULUS)
            assert _uniformity(partial) > 1e-5


@pytest.mark.parametrize("level", [-127, 127])
def test_the_same_upload_without_masks_would_be_seen_at_once(he_key, level):
    slots = pack(np.full(3 * 16384, level), layout_for(4))
    seen = _decrypt_alone(he_key, [he_key.encrypt(row) for row in slots])
    np.testing.assert_array_equal(seen, slots)
    assert _uniformity(seen) < 1e-100


def test_two_attempts_with_the_same_update_have_unrelated_masks(consortium, he_key):
    house = consortium()
    levels = house.levels(3 * 16384)
    _, first = house.protected(levels, 1, 0)
    _, second = house.protected(levels, 1, 1)
    one, two = (_decrypt_alone(he_key, uploads["bank-000"][1]) for uploads in (first, second))
    assert _uniformity((one + np.uint64(PLAIN_MODULUS) - two) % np.uint64(PLAIN_MODULUS)) > 1e-4
