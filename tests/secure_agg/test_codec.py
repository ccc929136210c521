import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from hansa.errors import AggregateRangeViolation, InvalidValue, UpdateNotFinite, UpdateShapeMismatch
from hansa.secure_agg.codec import dequantise_sum, kept_entries, quantise, select_support
from hansa.secure_agg.parameters import layout_for

GOLDEN_SUPPORT = "ab5f0d863594cc9233f2af1acd1027b1de2e7a7ea522b545bfeab11e41cab530"
GOLDEN_POSITIONS = [1, 13, 14, 25, 26]
GOLDEN_MEAN = ["0x1.b858cce85259ap-16", "-0x1.b858cce85259ap-16", "0x1.99628e7ffc8f5p-5"]
KEYS = {"group_key": b"g" * 32, "transcript": b"t" * 32, "round_index": 7}


def _scores(count, seed=0):
    return np.random.default_rng(seed).random(count)


# -- kept entries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainable", "share", "participants", "kept"),
    [
        (1_000_000, 0.3, 15, 19 * 16384 - 32),
        (163_520, 0.1, 15, 16352),  # exactly one ciphertext, although 0.1 as binary fraction is above 1/10
        (163_521, 0.1, 15, 2 * 16384 - 32),
        (1_000_000, 0.3, 17, 25 * 12288 - 24),
        (10_000, 0.3, 3, 10_000),
        (50_000, 1.0, 3, 50_000),
        (1, 1e-9, 3, 1),
    ],
)
def test_the_share_is_rounded_up_to_whole_ciphertexts(trainable, share, participants, kept):
    assert kept_entries(trainable, share, layout_for(participants)) == kept


@pytest.mark.parametrize(
    ("trainable", "share"), [(0, 0.3), (10, 0.0), (10, -0.1), (10, 1.1), (10, float("nan"))]
)
def test_a_share_out_of_bounds_is_refused(trainable, share):
    with pytest.raises(InvalidValue):
        kept_entries(trainable, share, layout_for(3))


# -- support ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 400), data=st.data(), explore=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_a_support_has_the_exact_count_and_the_largest_scores(count, data, explore):
    kept = data.draw(st.integers(1, count))
    scores = np.array(
        data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)), dtype=np.float64
    )
    support = select_support(scores, kept, explore, **KEYS)
    assert support.dtype == np.int64
    assert len(set(support.tolist())) == kept
    assert support.tolist() == sorted(support.tolist())
    assert support.min() >= 0
    assert support.max() < count
    best = sorted(range(count), key=lambda position: (-scores[position], position))
    assert set(best[: round((1 - explore) * kept)]) <= set(support.tolist())


def test_equal_inputs_give_equal_supports_and_another_key_transcript_or_round_another_one():
    scores = _scores(5000)
    support = select_support(scores, 1000, 0.5, **KEYS)
    np.testing.assert_array_equal(support, select_support(scores.copy(), 1000, 0.5, **KEYS))
    for change in ({"group_key": b"h" * 32}, {"transcript": b"u" * 32}, {"round_index": 8}):
        other = select_support(scores, 1000, 0.5, **(KEYS | change))
        assert 500 <= np.intersect1d(support, other).size < 700
    pure = [select_support(scores, 1000, 0.0, **(KEYS | {"round_index": index})) for index in (1, 2)]
    np.testing.assert_array_equal(*pure)


def test_the_support_is_frozen():
    scores = (np.arange(20_000, dtype=np.float64) * 7919 % 1000) / 8
    support = select_support(scores, 4096, 0.25, **KEYS)
    assert hashlib.sha256(support.astype("<i8").tobytes()).hexdigest() == GOLDEN_SUPPORT
    assert support[:5].tolist() == GOLDEN_POSITIONS


def test_the_explored_part_is_uniform_over_the_rest():
    scores = np.zeros(50)
    scores[:10] = 1.0
    counts = np.zeros(50)
    for index in range(2000):
        counts[select_support(scores, 20, 0.5, **(KEYS | {"round_index": index}))] += 1
    assert (counts[:10] == 2000).all()
    assert chisquare(counts[10:]).pvalue > 1e-4


def test_a_support_with_wrong_inputs_is_refused():
    for scores, kept in (
        (_scores(5), 0),
        (_scores(5), 6),
        (_scores(5).astype(np.float32), 2),
        (np.zeros((2, 2)), 1),
    ):
        with pytest.raises(UpdateShapeMismatch):
            select_support(scores, kept, 0.5, **KEYS)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(UpdateNotFinite):
            select_support(np.array([1.0, bad]), 1, 0.5, **KEYS)
    for change in ({"explore_share": 1.1}, {"explore_share": -0.1}, {"group_key": b"short"}):
        with pytest.raises(InvalidValue):
            select_support(_scores(5), 2, **({"explore_share": 0.5} | KEYS | change))


# -- levels -----------------------------------------------------------------------------------------------


def _constant(value):
    return lambda count: np.full(count, value)


@pytest.mark.parametrize("bits", [2, 8, 16, 17, 20])
@settings(max_examples=50, deadline=None)
@given(value=st.floats(-1, 1), bound=st.floats(1e-6, 1e6))
def test_the_expected_level_is_the_scaled_value(bits, value, bound):
    steps = 1000
    grid = (
        np.arange(steps) + 0.5
    ) / steps  # in place of a random source: the mean over it is exact to 1/steps
    levels = quantise(np.full(steps, value * bound), bound, bits, lambda count: grid[:count])
    top = 2 ** (bits - 1) - 1
    assert abs(levels.mean() - value * top) <= 0.5 / steps + 1e-9 * top
    assert np.ptp(levels) <= 1


def test_random_rounding_is_unbiased_with_a_random_source():
    generator = np.random.default_rng(0)
    value, count = 0.1234, 200_000
    levels = quantise(np.full(count, value), 1.0, 8, generator.random)
    assert abs(levels.mean() - value * 127) < 5 * 0.5 / count**0.5
    nearest = np.rint(np.full(count, value) * 127)
    assert abs(nearest.mean() - value * 127) > 0.1  # rounding to nearest is not


@pytest.mark.parametrize("draw", [0.0, 0.5, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("bound", [1.0, 0.1, 0.3, 1e-30, 7e300])
def test_levels_are_within_bounds_whatever_is_drawn(draw, bound):
    values = np.array([bound, -bound, 3 * bound, -1.7e308, 1.7e308, 0.0, -0.0])
    levels = quantise(values, bound, 8, _constant(draw))
    assert levels.tolist() == [127, -127, 127, -127, 127, 0, 0]
    assert levels.dtype == np.int64


@pytest.mark.parametrize("bits", [4, 8, 16, 17, 20])
@pytest.mark.parametrize("participants", [3, 16, 17, 100, 258])
def test_levels_and_means_are_exact_at_every_width(participants, bits):
    top = 2 ** (bits - 1) - 1
    levels = np.unique(np.linspace(-top, top, 2001).astype(np.int64))
    np.testing.assert_array_equal(
        quantise(levels.astype(np.float64), float(top), bits, _constant(0.5)), levels
    )
    for draw in (0.0, np.nextafter(1.0, 0.0)):
        extremes = quantise(np.array([top, -top, 2.0 * top]), float(top), bits, _constant(draw))
        assert extremes.tolist() == [top, -top, top]
    limit = top * participants
    totals = np.unique(np.linspace(-limit, limit, 2001).astype(np.int64))
    means = dequantise_sum(totals, 0.25, bits, participants)  # a power of two: only the division rounds
    assert means.tolist() == [float(Fraction(int(total), 4 * limit)) for total in totals]
    with pytest.raises(AggregateRangeViolation):
        dequantise_sum(np.array([limit + 1]), 0.25, bits, participants)


def test_single_precision_is_taken_as_it_is():
    values = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    draws = np.random.default_rng(2).random(1000)
    np.testing.assert_array_equal(
        quantise(values, 2.0, 8, lambda _: draws),
        quantise(values.astype(np.float64), 2.0, 8, lambda _: draws),
    )


def test_an_update_that_is_not_finite_or_not_a_vector_is_refused():
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(UpdateNotFinite, match="1 of 2"):
            quantise(np.array([0.0, bad]), 1.0, 8, _constant(0.5))
    for values in (np.zeros((2, 2)), np.zeros(2, dtype=np.int64)):
        with pytest.raises(UpdateShapeMismatch):
            quantise(values, 1.0, 8, _constant(0.5))
    with pytest.raises(UpdateShapeMismatch):
        quantise(np.zeros(3), 1.0, 8, lambda count: np.zeros(count + 1))
    for bound, bits in ((0.0, 8), (-1.0, 8), (np.inf, 8), (np.nan, 8), (1.0, 1), (1.0, 21)):
        with pytest.raises(InvalidValue):
            quantise(np.zeros(3), bound, bits, _constant(0.5))


def test_the_mean_is_frozen_bit_by_bit():
    total = np.array([0, 1, -1, 1904, -1905, 15 * 127, 77])
    mean = dequantise_sum(total, 0.05, 8, 15)
    assert mean[5] == 0.05
    assert mean.tobytes() == b"".join(np.float64(int(value) * 0.05 / 1905).tobytes() for value in total)
    assert [value.hex() for value in mean.tolist()[1:4]] == GOLDEN_MEAN


def test_a_sum_that_n_levels_cannot_be_is_refused():
    dequantise_sum(np.array([381, -381]), 1.0, 8, 3)
    for level in (382, -382):
        with pytest.raises(AggregateRangeViolation):
            dequantise_sum(np.array([level]), 1.0, 8, 3)
    with pytest.raises(UpdateShapeMismatch):
        dequantise_sum(np.array([1.0]), 1.0, 8, 3)
    for participants, bound in ((0, 1.0), (3, 0.0)):
        with pytest.raises(InvalidValue):
            dequantise_sum(np.array([0]), bound, 8, participants)


def test_quantise_and_mean_together_are_within_one_level():
    generator = np.random.default_rng(3)
    values = generator.normal(scale=0.2, size=(5, 1000)).clip(-1, 1)
    total = sum(quantise(row, 1.0, 8, generator.random) for row in values)
    assert np.abs(dequantise_sum(total, 1.0, 8, 5) - values.mean(axis=0)).max() < 1 / 127
