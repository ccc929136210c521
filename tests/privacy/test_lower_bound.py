"""Lower bounds of ε from scores: never above the truth, also where the mechanism is no Gaussian one, and not idle."""

import math

import numpy as np
import pytest
from scipy import special, stats

from hansa.privacy.accounting import epsilon_of
from hansa.privacy.canary import _DEVIATIONS
from hansa.privacy.lower_bound import _rate_at_most, gaussian_epsilon, lower_bound

DELTA = 1e-5


def scores(mu: float, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    return draws.normal(mu, 1.0, count), draws.normal(0.0, 1.0, count)


@pytest.mark.parametrize(("mu", "golden"), [(1.0, 4.3772), (0.5, 1.9931)])
def test_epsilon_of_a_gaussian_mechanism_is_that_of_the_accountant(mu: float, golden: float) -> None:
    exact = epsilon_of(noise_multiplier=1 / mu, sample_rate=1.0, steps=1, delta=DELTA)
    assert gaussian_epsilon(mu, DELTA) == pytest.approx(exact, rel=1e-3)
    assert gaussian_epsilon(mu, DELTA) == pytest.approx(golden, rel=5e-3)


def test_epsilon_grows_with_mu_and_is_0_where_delta_suffices() -> None:
    series = [gaussian_epsilon(mu, DELTA) for mu in (0.0, 1e-6, 0.1, 0.5, 1.0, 3.0, 10.0, 30.0)]
    assert series[:2] == [0.0, 0.0]
    assert (np.diff(series[1:]) > 0).all()


def test_a_bound_of_a_rate_is_that_of_clopper_and_pearson() -> None:
    for events, trials, share in ((0, 100, 0.01), (3, 50, 0.001), (499, 500, 0.05)):
        expected = stats.binomtest(events, trials).proportion_ci(1 - 2 * share, method="exact").high
        assert _rate_at_most(events, trials, share) == pytest.approx(expected, rel=1e-9)
    assert _rate_at_most(7, 7, 0.01) == 1.0


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0, 3.0])
def test_bounds_hold_in_at_least_the_stated_share_of_trials_and_are_near(mu: float) -> None:
    thresholds = [mu / 2 + z for z in (-1.0, 0.0, 1.0, 2.0)]
    found = [
        lower_bound(*scores(mu, 2000, seed), thresholds, delta=DELTA, confidence=0.9) for seed in range(60)
    ]
    assert np.mean([one.mu <= mu for one in found]) >= 0.9
    assert np.median([one.mu for one in found]) >= mu - 0.25
    exact = gaussian_epsilon(mu, DELTA)
    assert np.mean([one.epsilon_free <= exact for one in found]) >= 0.9


def test_perfect_separation_is_bounded_by_the_number_of_canaries_only() -> None:
    few, many = (
        lower_bound(np.full(n, 9.0), np.zeros(n), [4.0], delta=DELTA, confidence=0.95) for n in (100, 10_000)
    )
    assert 3 < few.mu < many.mu < 8
    assert few.epsilon_free == pytest.approx(math.log(100 / -math.log(0.025)), rel=0.05)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-7])
def test_the_gaussian_bound_of_exact_error_rates_is_below_the_accountants_epsilon(
    rate: float, sigma: float, delta: float
) -> None:
    """The assumption of the module, computed: sums of Poisson-subsampled steps at the audit's thresholds."""
    for steps in (1, 4, 64):
        deviation, hits = sigma * math.sqrt(steps), np.arange(steps + 1)
        chance = stats.binom.pmf(hits, steps, rate)
        for factor in _DEVIATIONS:
            threshold = rate * steps / 2 + factor * deviation
            alpha = special.ndtr(-threshold / deviation)
            beta = float(chance @ special.ndtr((threshold - hits) / deviation))
            mu = -special.ndtri(alpha) - special.ndtri(min(beta, 1.0))
            claimed = epsilon_of(noise_multiplier=sigma, sample_rate=rate, steps=steps, delta=delta)
            assert gaussian_epsilon(max(mu, 0.0), delta) <= max(claimed * (1 + 1e-3), 0.1)
