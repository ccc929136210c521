"""Noise that adds up over members: as private as the Gaussian that is accounted, exact when members vanish, never clamped."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hansa.errors import InvalidValue, UpdateNotFinite
from hansa.privacy.accounting import calibrate, epsilon_of
from hansa.privacy.distributed import (
    SMOOTHING,
    VARIANCE_LEAST,
    DistributedNoise,
    NoisePlan,
    approximation_error,
    plan_noise,
)
from hansa.privacy.noise import SecretRandom
from hansa.secure_agg.parameters import Layout
from hansa.study import Study, parse_study

SEED = bytes(range(32))
STUDY = """
schema = "hansa/study/v1"
name = "shared-noise"
purpose = "test"
[data]
label = "y"
columns = [{ name = "a", kind = "numeric", minimum = 0, maximum = 1 }]
[privacy]
mode = "distributed"
noise_contributors = 11
colluders = 1
epsilon = 3.0
delta = 1e-5
clip_norm = 0.5
sample_rate = 0.05
nominal_records = 2000
[training]
rounds = 100
[training.server_optimizer]
learning_rate = 0.01
[compression]
bits = 16
[aggregation]
mode = "quorum"
participants = 15
"""


def study(**replaced: str) -> Study:
    text = STUDY
    for old, new in replaced.items():
        line = next(one for one in text.splitlines() if one.startswith(f"{old} ="))
        text = text.replace(line, f"{old} = {new}")
    return parse_study(text)


def plan(entries: int = 40_000, **replaced: str) -> NoisePlan:
    return plan_noise(study(**replaced), entries)


def noise(**changes: Any) -> DistributedNoise:
    usual = {"contributors": 10, "colluders": 0, "variance": 10**6, "clip_levels": 3000, "entries": 100}
    return DistributedNoise(**{**usual, **changes})


# -- the noise multiplier --------------------------------------------------------------------------------


def test_the_noise_multiplier_is_that_of_the_honest_members_less_smoothing_over_the_rounded_sensitivity() -> (
    None
):
    found = noise(contributors=11, colluders=1)
    exact = math.sqrt(10 * 10**6 - 2.5**2) / (3000 + math.sqrt(100))
    assert found.noise_multiplier == math.floor(1000 * exact) / 1000 == 1.05
    assert noise(contributors=2, colluders=1, variance=16, clip_levels=1, entries=1).noise_multiplier == 1.561


def test_golden_epsilon_of_dropouts_and_colluders() -> None:
    """ε at q = 0.01, 2000 rounds, δ = 1e-5: all ten, four fewer, one colluder."""
    ten = noise(variance=10**9, clip_levels=100_000, entries=1)
    assert ten.noise_multiplier == 0.999  # 1 − 10⁻⁵ for the rounding of one entry, rounded down

    def epsilon(found: DistributedNoise) -> float:
        return epsilon_of(noise_multiplier=found.noise_multiplier, sample_rate=0.01, steps=2000, delta=1e-5)

    assert epsilon(ten) == pytest.approx(2.584, rel=5e-3)
    assert epsilon(ten.arrived(6)) == pytest.approx(4.67, rel=5e-3)
    assert epsilon(replace(ten, colluders=1)) == pytest.approx(2.88, rel=5e-3)


@pytest.mark.parametrize("entries", [1, 1000, 40_000, 400_000])
@pytest.mark.parametrize("bits", ["16", "20"])
def test_with_the_least_honest_members_the_study_keeps_its_epsilon(entries: int, bits: str) -> None:
    found, agreed = plan(entries, bits=bits), study(bits=bits)
    target = calibrate(epsilon=3.0, delta=1e-5, sample_rate=0.05, steps=agreed.training.rounds)
    assert target <= found.noise.noise_multiplier < target + 0.002
    spent = epsilon_of(noise_multiplier=found.noise.noise_multiplier, sample_rate=0.05, steps=100, delta=1e-5)
    assert spent <= 3.0
    less = replace(found.noise, variance=math.ceil(found.noise.variance * 0.99))
    assert less.noise_multiplier < target  # not more noise than that


def test_the_plan_follows_from_study_and_sizes_only() -> None:
    assert plan() == plan()
    assert plan(40_000) != plan(40_001)


def test_the_sum_has_the_noise_of_one_and_not_of_all_members() -> None:
    """At equal ε local noise of n members adds up to √n deviations, distributed noise to √(n / honest) and some for rounding."""
    found = plan()
    target = found.noise.noise_multiplier
    local = math.sqrt(15) * target * found.clip_norm
    grid = found.clip_norm / found.noise.clip_levels
    distributed = math.sqrt(15 * found.noise.variance) * grid
    inflation = found.noise.sensitivity / found.noise.clip_levels
    assert distributed == pytest.approx(math.sqrt(15 / 10) * target * found.clip_norm * inflation, rel=1e-3)
    assert local / distributed == pytest.approx(math.sqrt(10) / inflation, rel=1e-3)
    assert local / distributed > 2.5


# -- as private as what is accounted ---------------------------------------------------------------------


def hockey_stick(p: np.ndarray, q: np.ndarray, epsilon: float) -> float:
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())


def gaussian_delta(multiplier: float, epsilon: float) -> float:
    """δ of a Gaussian mechanism at ε (Balle & Wang 2018, theorem 8)."""
    first = stats.norm.cdf(1 / (2 * multiplier) - epsilon * multiplier)
    return float(first - math.exp(epsilon) * stats.norm.cdf(-1 / (2 * multiplier) - epsilon * multiplier))


@pytest.mark.parametrize("honest", [1, 2, 5])
@pytest.mark.parametrize("shift", [1, 3, 9])
def test_a_sum_of_least_shares_leaks_no_more_than_the_gaussian_that_is_accounted(
    honest: int, shift: int
) -> None:
    """In one dimension, by the probabilities themselves, at the smallest variance that is allowed."""
    values = np.arange(-300, 301)
    one = np.exp(-(values**2) / (2 * VARIANCE_LEAST))
    one /= one.sum()
    total = one
    for _ in range(honest - 1):
        total = np.convolve(total, one)
    moved = np.concatenate([np.zeros(shift), total])
    total = np.concatenate([total, np.zeros(shift)])
    accounted = math.sqrt(honest * VARIANCE_LEAST - SMOOTHING**2) / shift
    without = math.sqrt(honest * VARIANCE_LEAST) / shift
    for epsilon in (0.05, 0.3, 1.0, 2.0):
        found = hockey_stick(total, moved, epsilon)
        assert found <= gaussian_delta(accounted, epsilon) + 1e-12
        assert found == pytest.approx(hockey_stick(moved, total, epsilon), abs=1e-12)
        # the test can tell: twice the members would not have been allowed
        assert found > gaussian_delta(2 * without, epsilon)


def test_what_the_argument_neglects_is_below_any_number_that_is_shown() -> None:
    factor, variation = approximation_error(honest=258, entries=10**8, rounds=10**4)
    assert factor < 1e-38
    assert variation < 1e-60
    more, _ = approximation_error(honest=258, entries=10**9, rounds=10**4)
    assert more == pytest.approx(10 * factor)


def test_rounding_adds_at_most_the_root_of_the_entries_to_what_one_record_moves() -> None:
    """Equal secret randomness, so noise and the uniform numbers of the rounding cancel."""
    found, draws = plan(300), np.random.default_rng(3)
    per_clip = found.noise.clip_levels / found.clip_norm
    largest = 0.0
    for seed in range(60):
        before = draws.normal(size=300) * 10.0 ** draws.uniform(-3, 3)
        step = draws.normal(size=300)
        step *= found.clip_norm / np.linalg.norm(step)
        one, other = (found.integers(x, SecretRandom(bytes([seed]) * 32)) for x in (before, before + step))
        moved = float(np.linalg.norm((other - one).astype(np.float64)))
        assert np.abs((other - one) - step * per_clip).max() < 1 + 1e-6
        largest = max(largest, moved)
        assert moved <= found.noise.sensitivity
    assert largest > found.noise.clip_levels * 0.99


# -- integers and their sums -----------------------------------------------------------------------------


def test_no_entry_is_clamped_and_every_entry_is_noised() -> None:
    found = plan(500)
    values = np.concatenate([np.zeros(100), np.full(200, 1e6), np.full(200, -1e6)])
    integers = found.integers(values, SecretRandom(SEED))
    assert integers.shape == values.shape
    assert integers.dtype == np.int64
    left = integers - values * found.noise.clip_levels / found.clip_norm
    deviation = math.sqrt(found.noise.variance)
    for part in (left[:100], left[100:300], left[300:]):
        assert 0.8 < part.std() / deviation < 1.25
    assert (np.abs(integers[100:]) > 1e9).all()  # no bound of a lane is near
    with pytest.raises(UpdateNotFinite):
        found.integers(np.array([np.nan]), SecretRandom(SEED))


def test_rounding_is_unbiased_and_leaves_whole_numbers() -> None:
    found = plan(40_000)
    grid = found.clip_norm / found.noise.clip_levels
    random, values = SecretRandom(SEED), np.full(40_000, 0.3 * grid)
    quiet = replace(found, noise=replace(found.noise, variance=1))
    mean = quiet.integers(values, random).mean()
    assert mean == pytest.approx(0.3, abs=5 * math.sqrt((1 + 0.21) / 40_000))


@pytest.mark.parametrize("contributors", [15, 13, 11])
def test_members_that_vanish_take_their_share_away_and_the_rest_is_as_accounted(contributors: int) -> None:
    found = plan()
    total = sum(
        found.noise_only(40_000, SecretRandom(bytes([member]) * 32)) for member in range(contributors)
    )
    accounted = contributors * found.noise.variance
    assert float(np.var(total)) == pytest.approx(accounted, rel=5 * math.sqrt(2 / 40_000))
    kolmogorov = stats.kstest(total / math.sqrt(accounted), "norm").pvalue
    assert kolmogorov > 0.01
    assert stats.kstest(total / math.sqrt(accounted * 4 / 9), "norm").pvalue < 1e-9
    assert stats.kstest(total / math.sqrt(accounted * 9 / 4), "norm").pvalue < 1e-9


def test_the_mean_is_read_from_the_sum_in_the_unit_of_a_gradient() -> None:
    found = plan(50)
    clipped = np.linspace(-3, 3, 50)
    quiet = replace(found, noise=replace(found.noise, variance=1))
    total = sum(quiet.integers(clipped, SecretRandom(bytes([n]) * 32)) for n in range(15))
    mean = found.mean(total, 15)
    divisor = 0.05 * 2000
    assert mean == pytest.approx(clipped / divisor, abs=1e-5)
    assert mean.dtype == np.float64
    np.testing.assert_array_equal(mean, found.mean(total, 15))


# -- range -----------------------------------------------------------------------------------------------


def test_the_range_is_that_of_the_lanes_and_wraps_rarely() -> None:
    found = plan()
    layout = Layout(participants=15, bits=16)
    assert found.half_range == (layout.radix - 1) // 2
    assert found.wrap_chance() < 1e-100
    room = found.half_range / found.noise.clip_levels  # of signal, in clip norms
    assert room > 15 * 16 * found.noise.noise_multiplier
    assert found.wrap_chance(0.9 * room) < 1e-12
    assert found.wrap_chance(room) == 1.0
    assert found.wrap_chance(0.5 * room) < found.wrap_chance(0.95 * room)


def test_the_bound_of_a_wrap_holds_for_sums_that_wrap_often() -> None:
    found = replace(plan(), half_range=round(2.5 * math.sqrt(15 * plan().noise.variance)))
    total = sum(found.noise_only(40_000, SecretRandom(bytes([member]) * 32)) for member in range(15))
    often = float(np.mean(np.abs(total) > found.half_range))
    assert 0.005 < often <= found.wrap_chance()


def test_a_grid_on_which_rounding_would_double_the_noise_is_refused() -> None:
    with pytest.raises(
        InvalidValue, match=r"too coarse for 10000000 entries.*raise compression\.bits above 16"
    ):
        plan(10_000_000)
    assert plan(10_000_000, bits="20").noise.clip_levels ** 2 >= 10_000_000


def test_a_range_that_noise_alone_would_pass_is_refused() -> None:
    text = STUDY.replace("bits = 16", "bits = 16\nrange_noise_multiples = 0.5")
    with pytest.raises(
        InvalidValue, match=r"range_noise_multiples = 0\.5 leaves a sum less than 12 deviations"
    ):
        plan_noise(parse_study(text), 1000)


def test_no_member_draws_less_than_the_argument_needs() -> None:
    coarse = STUDY.replace("bits = 16", "bits = 16\nrange_noise_multiples = 1000.0")
    crowd = coarse.replace("participants = 15", "participants = 258").replace("= 11", "= 200")
    found = plan_noise(parse_study(crowd), 1)
    assert found.noise.variance == VARIANCE_LEAST  # less would reach the target
    assert found.noise.noise_multiplier > 1.1 * plan(1).noise.noise_multiplier
