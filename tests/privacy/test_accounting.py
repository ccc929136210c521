"""Accounting: golden values, other accountants as bounds on both sides, tight calibration."""

import itertools
import math

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy import optimize, stats

from hansa.errors import PrivacyTargetUnreachable
from hansa.privacy.accounting import calibrate, epsilon_of, epsilon_of_all
from hansa.privacy.epsilon_curve import epsilons_by_round
from hansa.privacy.lower_bound import gaussian_epsilon

DELTA = 1e-5
# (sample rate, noise multiplier, steps): epsilon at delta 1e-5 by the privacy loss distribution on a fine grid
GOLDEN = {
    (0.01, 1.0, 1000): 1.828,
    (0.01, 1.0, 2000): 2.584,
    (0.01, 1.0, 5000): 4.202,
    (0.01, 1.0, 10_000): 6.188,
    (0.01, 0.6, 1000): 7.434,
}


def epsilon(sample_rate: float, noise_multiplier: float, steps: int, delta: float = DELTA) -> float:
    return epsilon_of(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps, delta=delta)


@pytest.mark.parametrize(("setting", "golden"), GOLDEN.items(), ids=str)
def test_epsilon_equals_the_golden_value(setting: tuple[float, float, int], golden: float) -> None:
    assert epsilon(*setting) == pytest.approx(golden, rel=0.005)


@pytest.mark.parametrize("setting", [*GOLDEN, (0.2, 1.0, 30), (1.0, 5.0, 10)], ids=str)
def test_epsilon_is_at_most_the_looser_renyi_bound(setting: tuple[float, float, int]) -> None:
    sample_rate, noise_multiplier, steps = setting
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    assert epsilon(*setting) <= accountant.get_epsilon(DELTA)


@pytest.mark.parametrize("setting", [(0.01, 1.0, 1000), (0.01, 0.6, 1000), (0.2, 1.0, 30)], ids=str)
def test_within_half_a_percent_of_opacus_prv_accountant_and_inside_its_bounds(
    setting: tuple[float, float, int],
) -> None:
    sample_rate, noise_multiplier, steps = setting
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    distribution = accountant._get_dprv(eps_error=0.01, delta_error=DELTA / 1000)
    lower, estimate, upper = distribution.compute_epsilon(DELTA, DELTA / 1000, 0.01)
    assert lower <= epsilon(*setting) <= upper == accountant.get_epsilon(DELTA, eps_error=0.01)
    assert epsilon(*setting) == pytest.approx(estimate, rel=0.005)


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (3.0, 4), (10.0, 30)])
def test_within_half_a_percent_of_the_closed_form_where_there_is_no_sampling(
    sigma: float, steps: int
) -> None:
    # Balle & Wang 2018, theorem 8, at sensitivity sqrt(steps)
    mu = math.sqrt(steps) / sigma

    def excess(eps: float) -> float:
        return stats.norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu) - DELTA

    exact = optimize.brentq(excess, 0, 50)
    assert exact <= epsilon(1.0, sigma, steps) * (1 + 1e-6)  # at least the true one
    assert epsilon(1.0, sigma, steps) == pytest.approx(exact, rel=0.005)


@pytest.mark.parametrize("delta", [1e-5, 1e-8, 1e-10, 1e-12, 1e-14, 1e-16])
@pytest.mark.parametrize(("sigma", "steps"), [(5.0, 10), (30.0, 3000), (100.0, 10_000), (1000.0, 10**6)])
def test_at_least_the_closed_form_however_small_delta_is(sigma: float, steps: int, delta: float) -> None:
    # Powers of a Fourier transform lose a little mass at every step; at a small delta that mass is all there is.
    exact = gaussian_epsilon(math.sqrt(steps) / sigma, delta)
    assert epsilon(1.0, sigma, steps, delta) >= exact
    assert epsilon_of_all([(sigma, 1.0, steps), (500.0, 1.0, 1)], delta) >= exact
    assert epsilons_by_round(
        noise_multiplier=sigma, sample_rate=1.0, steps_per_round=steps, rounds=1, delta=delta
    )[0] >= exact * (1 - 1e-6)


def test_grows_with_the_number_of_steps() -> None:
    series = [epsilon(0.1, 1.2, steps) for steps in (0, 1, 2, 3, 10, 30, 100, 300)]
    assert series[0] == 0.0
    assert all(before < after for before, after in itertools.pairwise(series))


def test_more_noise_a_lower_rate_or_a_larger_delta_cost_less() -> None:
    base = epsilon(0.1, 1.0, 50)
    assert epsilon(0.1, 1.1, 50) < base
    assert epsilon(0.09, 1.0, 50) < base
    assert epsilon(0.1, 1.0, 50, delta=1e-4) < base


@pytest.mark.parametrize("noise_multiplier", [0.0, -1.0])
def test_no_noise_is_no_privacy(noise_multiplier: float) -> None:
    assert epsilon(0.1, noise_multiplier, 1) == math.inf


@pytest.mark.parametrize(("target", "rate", "steps"), [(8.0, 0.2, 30), (1.0, 0.05, 20), (3.0, 1.0, 5)])
def test_calibrated_noise_keeps_the_target_and_a_thousandth_less_does_not(
    target: float, rate: float, steps: int
) -> None:
    sigma = calibrate(epsilon=target, delta=DELTA, sample_rate=rate, steps=steps)
    assert sigma == round(sigma, 3)
    assert epsilon(rate, sigma, steps) <= target
    assert epsilon(rate, round(sigma - 0.001, 3), steps) > target


def test_the_smallest_noise_multiplier_is_never_undercut() -> None:
    sigma = calibrate(epsilon=100.0, delta=DELTA, sample_rate=0.01, steps=1)
    assert sigma == 0.3
    assert epsilon(0.01, sigma, 1) <= 100.0


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(PrivacyTargetUnreachable, match=r"up to 200 reaches epsilon 0.001 .* in 10000 steps"):
        calibrate(epsilon=0.001, delta=DELTA, sample_rate=1.0, steps=10_000)
