"""How much privacy a sequence of DP-SGD steps costs, and how much noise a target needs.

Each step is a Poisson-subsampled Gaussian mechanism; a participant's view of the study is their adaptive composition. Other
participants' updates, the server optimizer and the support are adaptive inputs or post-processing and cost nothing.
ε is an upper bound from the privacy loss distribution, rounded up to a grid ("pessimistic"), add-or-remove-one-record.
Sources: Koskela et al. 2020, "Computing Tight Differential Privacy Guarantees Using FFT"; Google's dp-accounting;
Zhu & Wang 2019 for the two directions of the subsampled mechanism.
"""

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from dp_accounting.pld import privacy_loss_distribution

from hansa.errors import PrivacyTargetUnreachable

# Width of the privacy-loss grid. Values are rounded up, so a coarser grid costs tightness (below 0.1 % here), never safety.
_GRID = 1e-3
# σ is rounded up to this step, so that all participants, whose last bits may differ, calibrate to the same number.
_NOISE_STEP = 1e-3
_NOISE_MINIMUM, _NOISE_MAXIMUM = 0.3, 200.0
# Composition takes powers of a Fourier transform in double precision: its relative error of 10^-16 grows with the power, so mass
# is misplaced by some 2·10^-17 a step (measured against the closed form, 10 to 4·10^6 steps). Ten times that is kept back from δ.
_ROUNDING_A_STEP = 2e-16
_ROUNDING_STEPS_LEAST = 50


class Mechanism(NamedTuple):
    """Equal steps: noise multiplier σ, Poisson rate q, how many."""

    noise_multiplier: float
    sample_rate: float
    steps: int


@lru_cache(maxsize=256)
def step_distribution(noise_multiplier: float, sample_rate: float) -> Any:
    """Privacy loss distribution of one step, as dp-accounting holds it: both directions, on the grid, rounded up."""
    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise_multiplier, sampling_prob=sample_rate, value_discretization_interval=_GRID
    )


@lru_cache(maxsize=4096)
def epsilon_of(*, noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """Compute ε after a number of equal steps.

    Args:
        noise_multiplier: σ, standard deviation of the noise in units of the clip norm.
        sample_rate: Poisson rate q.
        steps: Number of steps; 0 costs nothing.
        delta: δ.

    Returns:
        ε, at least the true one; `inf` without noise, and where δ is so small that floating point could not tell.

    Guarantees:
        - Grows with the number of steps.
        - At least the closed form where there is no sampling, however small δ is.
        - Within 0.5 % of Opacus' PRV accountant, and of the closed form where there is no sampling.
    """
    if steps == 0:
        return 0.0
    if noise_multiplier <= 0.0:
        return math.inf
    composed = step_distribution(noise_multiplier, sample_rate).self_compose(steps)
    return _epsilon_at(composed, steps, delta)


def usable_delta(delta: float, steps: int) -> float:
    """Give what is left of δ once the rounding of so many composed steps is kept back; 0 or less where nothing is."""
    return delta - _ROUNDING_A_STEP * (steps + _ROUNDING_STEPS_LEAST)


def _epsilon_at(distribution: Any, steps: int, delta: float) -> float:
    left = usable_delta(delta, steps)
    return float(distribution.get_epsilon_for_delta(left)) if left > 0 else math.inf


def merged(mechanisms: Iterable[tuple[float, float, int]]) -> tuple[Mechanism, ...]:
    """Add up equal mechanisms and leave out those without steps, in one order however they came."""
    steps: Counter[tuple[float, float]] = Counter()
    for noise_multiplier, sample_rate, count in mechanisms:
        if count < 0:
            raise ValueError(f"a mechanism has {count} steps, below 0")
        steps[(noise_multiplier, sample_rate)] += count
    return tuple(Mechanism(*key, count) for key, count in sorted(steps.items()) if count)


@lru_cache(maxsize=64)
def composed_distribution(mechanisms: tuple[Mechanism, ...]) -> Any:
    """Privacy loss distribution of at least one mechanism with noise, one after the other.

    Args:
        mechanisms: As `merged` gives them.
    """
    first, *rest = (
        step_distribution(one.noise_multiplier, one.sample_rate).self_compose(one.steps) for one in mechanisms
    )
    for distribution in rest:
        first = first.compose(distribution)
    return first


def epsilon_of_all(mechanisms: Iterable[tuple[float, float, int]], delta: float) -> float:
    """Compute ε of unlike mechanisms, such as the studies that used one data set.

    The privacy loss distributions are composed, and δ is spent once; adding the ε of the parts would split δ and
    be looser (Koskela et al. 2020, section 5; Kairouz et al. 2015 for the gap).

    Args:
        mechanisms: (σ, q, steps) each; equal ones are added up.
        delta: δ of the whole.

    Returns:
        ε, at least the true one; `inf` where a mechanism has no noise.

    Raises:
        ValueError: A number of steps is negative.

    Guarantees:
        - Does not depend on the order of the mechanisms, nor on how equal ones are split.
        - At least `epsilon_of` any one of them at the same δ.
        - For one mechanism the same as `epsilon_of`.
    """
    parts = merged(mechanisms)
    alone = max(
        (epsilon_of(noise_multiplier=s, sample_rate=q, steps=count, delta=delta) for s, q, count in parts),
        default=0.0,
    )
    if len(parts) < 2 or math.isinf(alone):
        return alone
    composed = composed_distribution(parts)
    return max(alone, _epsilon_at(composed, sum(one.steps for one in parts), delta))


def calibrate(*, epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Find the least noise multiplier that keeps a whole study within its target.

    Returns:
        σ, rounded up to a multiple of 0.001.

    Raises:
        PrivacyTargetUnreachable: Even σ = 200 spends more than `epsilon`.

    Guarantees:
        - `epsilon_of` the result is at most `epsilon`, and above it at σ - 0.001, unless σ is the smallest allowed.
    """

    def spends(thousandths: int) -> float:
        return epsilon_of(
            noise_multiplier=round(thousandths * _NOISE_STEP, 3),
            sample_rate=sample_rate,
            steps=steps,
            delta=delta,
        )

    low, high = round(_NOISE_MINIMUM / _NOISE_STEP), round(_NOISE_MAXIMUM / _NOISE_STEP)
    if spends(high) > epsilon:
        raise PrivacyTargetUnreachable(
            f"no noise multiplier up to {_NOISE_MAXIMUM:g} reaches epsilon {epsilon:g} at delta {delta:g} "
            f"in {steps} steps at sample rate {sample_rate:g}"
        )
    if spends(low) <= epsilon:
        return round(low * _NOISE_STEP, 3)
    while high - low > 1:
        middle = (low + high) // 2
        if spends(middle) <= epsilon:
            high = middle
        else:
            low = middle
    return round(high * _NOISE_STEP, 3)
