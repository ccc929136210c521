"""Unlike mechanisms on one data set: composed, not added; and never below any of them."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from hansa.privacy.accounting import epsilon_of, epsilon_of_all, merged

DELTA = 1e-5
PLANS = [
    [(1.0, 0.01, 500), (6.0, 0.4, 30)],
    [(6.0, 0.4, 30), (6.5, 0.4, 30), (7.0, 0.3, 10)],
    [(3.0, 1.0, 4), (2.0, 1.0, 1)],
]


def alone(sigma: float, rate: float, steps: int, delta: float = DELTA) -> float:
    return epsilon_of(noise_multiplier=sigma, sample_rate=rate, steps=steps, delta=delta)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_at_least_each_part_and_below_the_sum_of_the_parts(plan: list[tuple[float, float, int]]) -> None:
    found = epsilon_of_all(plan, DELTA)
    assert found > max(alone(*part) for part in plan)
    assert found < sum(alone(*part, delta=DELTA / len(plan)) for part in plan)


def test_one_record_more_of_a_tiny_mechanism_never_lowers_it() -> None:
    for extra in ((200.0, 1e-4, 1), (200.0, 1.0, 1), (1.0, 1e-6, 1)):
        assert epsilon_of_all([(1.0, 0.01, 1000), extra], DELTA) >= alone(1.0, 0.01, 1000)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_order_and_splitting_do_not_count(plan: list[tuple[float, float, int]]) -> None:
    expected = epsilon_of_all(plan, DELTA)
    assert {epsilon_of_all(order, DELTA) for order in itertools.permutations(plan)} == {expected}
    sigma, rate, steps = plan[0]
    split = [(sigma, rate, steps - 1), *plan[1:], (sigma, rate, 1), (5.0, 0.1, 0)]
    assert epsilon_of_all(split, DELTA) == expected


def test_one_mechanism_is_as_alone_and_none_is_free() -> None:
    assert epsilon_of_all([(1.0, 0.01, 700), (1.0, 0.01, 300)], DELTA) == alone(1.0, 0.01, 1000)
    assert epsilon_of_all([], DELTA) == epsilon_of_all([(1.0, 0.1, 0)], DELTA) == 0.0
    assert epsilon_of_all([(1.0, 0.1, 1), (0.0, 0.1, 1)], DELTA) == math.inf
    with pytest.raises(ValueError, match="-1 steps"):
        merged([(1.0, 0.1, -1)])


def test_within_half_a_percent_of_the_closed_form_where_there_is_no_sampling() -> None:
    # Gaussians of unlike sigma compose to one of mu = sqrt(sum of 1 / sigma^2): Dong et al. 2022, corollary 3.3
    plan = [(3.0, 1.0, 4), (2.0, 1.0, 1), (10.0, 1.0, 20)]
    mu = math.sqrt(sum(steps / sigma**2 for sigma, _, steps in plan))

    def excess(eps: float) -> float:
        return stats.norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu) - DELTA

    exact = optimize.brentq(excess, 0, 50)
    assert exact <= epsilon_of_all(plan, DELTA) * (1 + 1e-6)
    assert epsilon_of_all(plan, DELTA) == pytest.approx(exact, rel=0.005)


def test_epsilon_is_monotone_in_rounds_steps_rate_and_the_inverse_of_sigma() -> None:
    rates, sigmas, steps = (0.01, 0.05, 0.2, 1.0), (8.0, 3.0, 1.0, 0.6), (1, 5, 30, 200)
    grid = np.array([[[alone(s, q, n) for n in steps] for s in sigmas] for q in rates])
    for axis in range(3):
        assert (np.diff(grid, axis=axis) > 0).all()
