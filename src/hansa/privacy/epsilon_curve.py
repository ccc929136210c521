"""ε after every one of many rounds, for the price of a few.

Asking dp-accounting for each round anew repeats its transform of the step and its search for a window a thousand times. Here the
transform of one step is taken once and multiplied on; each round then costs one inverse transform and one pass over the tail:

    F_r = F_before · F_step^(r S),    probabilities of round r = F_r back, read in the window that a Chernoff bound leaves

The grid and the distribution of a step are dp-accounting's, rounded up; mass that may lie outside of the window counts as lost
("infinite privacy loss"), so ε stays an upper bound.
Sources: Koskela et al. 2020, algorithm 1 (composition by FFT); Gopi et al. 2021, section 5 (windows from tail bounds).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from hansa.privacy.accounting import Mechanism, composed_distribution, merged, step_distribution

_TAIL = 1e-15  # mass that may be cut off, given to infinite loss
# Powers at which the moment bound is tried: wide tails are bounded best by small ones, single steps by large ones.
_ORDERS = np.geomspace(0.01, 40.0, 60)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Side:
    """One direction of a privacy loss distribution: probabilities of losses (start + i) · grid, and of infinite loss."""

    probabilities: NDArray[np.float64]
    start: int
    infinite: float

    def log_moments(self, grid: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """ln E exp(± order · loss) for every order, as bounds of the upper and of the lower tail need them."""
        kept = self.probabilities > 0
        losses = (self.start + np.flatnonzero(kept)) * grid
        logs = np.log(self.probabilities[kept])

        def moments(sign: float) -> NDArray[np.float64]:
            exponents = logs + sign * _ORDERS[:, None] * losses
            top = exponents.max(axis=1)
            return np.asarray(top + np.log(np.exp(exponents - top[:, None]).sum(axis=1)))

        return moments(1.0), moments(-1.0)


def epsilons_by_round(
    *,
    noise_multiplier: float,
    sample_rate: float,
    steps_per_round: int,
    rounds: int,
    delta: float,
    before: Iterable[tuple[float, float, int]] = (),
) -> NDArray[np.float64]:
    """Compute ε after each round of a study.

    Args:
        noise_multiplier: σ of the study, above 0.
        sample_rate: Poisson rate q.
        steps_per_round: Local steps S.
        rounds: Number of rounds R.
        delta: δ.
        before: (σ, q, steps) of what the data set has spent already.

    Returns:
        (R,) ε after rounds 1 to R, spending before included, not to be written to; `inf` where noise is missing or δ leaves none.

    Guarantees:
        - Equals `epsilon_of_all` of the same steps to one part in a million, at every round.
        - Never falls from one round to the next.
        - Asked again for the same, by another participant say, it costs nothing.
    """
    return _epsilons(Mechanism(noise_multiplier, sample_rate, steps_per_round), rounds, delta, merged(before))


@lru_cache(maxsize=64)
def _epsilons(
    round_: Mechanism, rounds: int, delta: float, spent: tuple[Mechanism, ...]
) -> NDArray[np.float64]:
    noise_multiplier, sample_rate, steps_per_round = round_
    if rounds == 0:
        return np.zeros(0)
    if noise_multiplier <= 0 or any(one.noise_multiplier <= 0 for one in spent):
        return np.full(rounds, math.inf)
    step = step_distribution(noise_multiplier, sample_rate)
    past = composed_distribution(spent) if spent else None
    worst = np.zeros(rounds)
    for direction in ("_pmf_remove", "_pmf_add"):
        first, grid = _side(step, direction)
        base = None if past is None else _side(past, direction)[0]
        worst = np.maximum(worst, _side_curve(first, base, grid, steps_per_round, rounds, delta))
    # The sums are exact to about 1e-12 only; more steps never cost less.
    curve = np.asarray(np.maximum.accumulate(worst))
    curve.setflags(write=False)
    return curve


def _side(distribution: Any, direction: str) -> tuple[_Side, float]:
    # dp-accounting has no public way to its probabilities; its version is pinned, and a test compares every result.
    held = getattr(distribution, direction).to_dense_pmf()
    side = _Side(
        probabilities=np.asarray(held._probs, dtype=np.float64),
        start=int(held._lower_loss),
        infinite=float(held._infinity_mass),
    )
    return side, float(held._discretization)


def _side_curve(
    step: _Side, base: _Side | None, grid: float, steps_per_round: int, rounds: int, delta: float
) -> NDArray[np.float64]:
    if base is None:
        base = _Side(probabilities=np.ones(1), start=0, infinite=0.0)
    counts = steps_per_round * np.arange(1, rounds + 1)
    lows, highs = _windows(step, base, grid, counts)
    sizes = _sizes(np.maximum(highs - lows + 1, max(len(step.probabilities), len(base.probabilities))))
    survives = math.log1p(-step.infinite)
    epsilons = np.empty(rounds)
    for index, count in enumerate(counts):
        if index == 0 or sizes[index] != sizes[index - 1]:
            per_round = fft.rfft(step.probabilities, sizes[index]) ** steps_per_round
            running = fft.rfft(base.probabilities, sizes[index]) * per_round**index
        running *= per_round
        everything = fft.irfft(running, sizes[index])
        low, high = int(lows[index]), int(highs[index])
        origin = base.start + int(count) * step.start  # loss of entry 0, in grid steps
        window = np.take(everything, np.arange(low - origin, high - origin + 1), mode="wrap")
        infinite = _TAIL + 1.0 - (1.0 - base.infinite) * math.exp(count * survives)
        epsilons[index] = _epsilon(window, low, grid, infinite, delta)
    return epsilons


def _sizes(needed: NDArray[np.int64]) -> list[int]:
    """Lengths of the transforms: the window grows with the rounds, so it is followed in steps of a quarter."""
    stages = np.ceil(np.log(np.maximum.accumulate(needed)) / math.log(1.25))
    return [int(fft.next_fast_len(math.ceil(1.25**stage), real=True)) for stage in stages]


def _windows(
    step: _Side, base: _Side, grid: float, counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Losses, in grid steps, between which all but `_TAIL` of the mass lies after each count of steps."""
    step_up, step_down = step.log_moments(grid)
    base_up, base_down = base.log_moments(grid)
    room = math.log(2.0 / _TAIL)

    def reach(base_moments: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.float64]:
        # Chernoff: P[loss > t] <= exp(ln M(order) - order t)
        return np.asarray(((base_moments + counts[:, None] * moments + room) / (_ORDERS * grid)).min(axis=1))

    last_step, last_base = len(step.probabilities) - 1, len(base.probabilities) - 1
    low = np.maximum(np.floor(-reach(base_down, step_down)), base.start + counts * step.start)
    high = np.minimum(
        np.ceil(reach(base_up, step_up)), base.start + last_base + counts * (step.start + last_step)
    )
    return low.astype(np.int64), high.astype(np.int64)


def _epsilon(window: NDArray[np.float64], low: int, grid: float, infinite: float, delta: float) -> float:
    """Least ε ≥ 0 with infinite + Σ_{loss > ε} p (1 − e^(ε − loss)) ≤ δ."""
    if infinite > delta:
        return math.inf
    above = window[max(0, 1 - low) :].clip(
        min=0.0
    )  # losses of at least one grid step; rounding may go below 0
    losses = grid * (max(low, 1) + np.arange(len(above)))
    mass = infinite + np.cumsum(above[::-1])[::-1]
    weighted = np.cumsum((above * np.exp(-losses))[::-1])[::-1]
    # δ at ε = loss i counts the losses beyond it; with i = 0 standing for ε = 0 it falls along the grid.
    at = np.concatenate([[0.0], losses])
    deltas = np.append(mass, infinite) - np.exp(at) * np.append(weighted, 0.0)
    index = int(np.argmax(deltas <= delta))
    if index == 0:
        return 0.0
    return float(math.log((mass[index - 1] - delta) / weighted[index - 1]))
