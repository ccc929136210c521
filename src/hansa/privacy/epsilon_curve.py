"""ε after every one of many rounds, for the price of a few.

Asking dp-accounting for each round anew repeats its transform of the step and its search for a window a thousand times. Here the
transform of one step is taken once and multiplied on; each round then costs one inverse transform and one pass over the tail:

    F_r = Π F_m^(steps of m so far),    probabilities of round r = F_r back, read in the window that a Chernoff bound leaves

The grid and the distribution of a step are dp-accounting's, rounded up; mass that may lie outside of the window counts as lost
("infinite privacy loss"), so ε stays an upper bound.
Sources: Koskela et al. 2020, algorithm 1 (composition by FFT); Gopi et al. 2021, section 5 (windows from tail bounds).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from hansa.privacy.accounting import Mechanism, composed_distribution, merged, step_distribution, usable_delta

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


def epsilons_of_sequence(
    sequence: Iterable[tuple[float, float, int]], *, delta: float
) -> NDArray[np.float64]:
    """Compute ε after each of a sequence of rounds that may be unlike, such as the lines of a ledger.

    Args:
        sequence: (σ, q, steps) of each round, in order; σ above 0.
        delta: δ.

    Returns:
        (R,) ε after each, not to be written to; `inf` from the first one without noise on, or where δ leaves none.

    Guarantees:
        - Equals `epsilon_of_all` of the rounds so far to one part in a million, at every round.
        - Never falls from one round to the next.
    """
    rounds = [Mechanism(*one) for one in sequence]
    bounded = next((place for place, one in enumerate(rounds) if one.noise_multiplier <= 0), len(rounds))
    kinds = sorted({one[:2] for one in rounds[:bounded] if one.steps})
    found = np.full(len(rounds), math.inf)
    if not kinds:
        found[:bounded] = 0.0
    else:
        places = {kind: place for place, kind in enumerate(kinds)}
        counts_RM = np.zeros((bounded, len(kinds)), dtype=np.int64)
        for place, one in enumerate(rounds[:bounded]):
            if one.steps:
                counts_RM[place, places[one[:2]]] = one.steps
        distributions = [step_distribution(*kind) for kind in kinds]
        counts_RM = counts_RM.cumsum(axis=0)
        found[:bounded] = _curve(distributions, counts_RM, counts_RM.sum(axis=1), delta)
    found.setflags(write=False)
    return found


@lru_cache(maxsize=64)
def _epsilons(
    round_: Mechanism, rounds: int, delta: float, spent: tuple[Mechanism, ...]
) -> NDArray[np.float64]:
    noise_multiplier, sample_rate, steps_per_round = round_
    if rounds == 0:
        return np.zeros(0)
    if noise_multiplier <= 0 or any(one.noise_multiplier <= 0 for one in spent):
        return np.full(rounds, math.inf)
    distributions = [step_distribution(noise_multiplier, sample_rate)]
    counts_RM = steps_per_round * np.arange(1, rounds + 1)[:, None]
    if spent:
        distributions.append(composed_distribution(spent))
        counts_RM = np.hstack([counts_RM, np.ones_like(counts_RM)])
    steps_R = counts_RM[:, 0] + sum(one.steps for one in spent)
    curve = _curve(distributions, counts_RM, steps_R, delta)
    curve.setflags(write=False)
    return curve


def _curve(
    distributions: Sequence[Any], counts_RM: NDArray[np.int64], steps_R: NDArray[np.int64], delta: float
) -> NDArray[np.float64]:
    """ε of each row of counts of the distributions, which are of so many steps; counts never fall from row to row."""
    left_R = np.array([usable_delta(delta, steps) if steps else delta for steps in steps_R.tolist()])
    worst = np.zeros(len(counts_RM))
    for direction in ("_pmf_remove", "_pmf_add"):
        sides = [_side(distribution, direction) for distribution in distributions]
        worst = np.maximum(worst, _side_curve([side for side, _ in sides], sides[0][1], counts_RM, left_R))
    # The rounding of the sums was kept back from δ; more steps never cost less.
    return np.asarray(np.maximum.accumulate(worst))


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
    parts: Sequence[_Side], grid: float, counts_RM: NDArray[np.int64], left_R: NDArray[np.float64]
) -> NDArray[np.float64]:
    lows, highs = _windows(parts, grid, counts_RM)
    sizes = _sizes(np.maximum(highs - lows + 1, max(len(part.probabilities) for part in parts)))
    origins = counts_RM @ np.array([part.start for part in parts])  # loss of entry 0, in grid steps
    survives = [math.log1p(-part.infinite) if part.infinite < 1 else -math.inf for part in parts]
    epsilons = np.empty(len(counts_RM))
    powers = _Powers(parts)
    for index, counts in enumerate(counts_RM):
        size = sizes[index]
        if index == 0 or size != sizes[index - 1]:
            running = powers.restart(size, counts)
        else:
            for place in np.flatnonzero(counts - counts_RM[index - 1]):
                running *= powers.of(int(place), int(counts[place] - counts_RM[index - 1, place]))
        everything = fft.irfft(running, size)
        low, high = int(lows[index]), int(highs[index])
        window = np.take(
            everything, np.arange(low - int(origins[index]), high - int(origins[index]) + 1), mode="wrap"
        )
        log_finite = sum(int(count) * log for count, log in zip(counts, survives, strict=True) if count)
        epsilons[index] = _epsilon(
            window, low, grid, _TAIL + 1.0 - math.exp(log_finite), float(left_R[index])
        )
    return epsilons


class _Powers:
    """Transforms of the parts, raised to numbers of steps; few numbers come up again and again."""

    def __init__(self, parts: Sequence[_Side]) -> None:
        self._parts = parts
        self._once: list[NDArray[np.complex128]] = []
        self._kept: dict[tuple[int, int], NDArray[np.complex128]] = {}

    def restart(self, size: int, counts: NDArray[np.int64]) -> NDArray[np.complex128]:
        """Begin anew at another length; give the product of all parts to the power of their counts."""
        self._once = [fft.rfft(part.probabilities, size) for part in self._parts]
        self._kept = {}
        product = np.ones(size // 2 + 1, dtype=np.complex128)
        for transform, count in zip(self._once, counts, strict=True):
            product *= transform ** int(count)
        return product

    def of(self, place: int, count: int) -> NDArray[np.complex128]:
        """Give a part's transform to the power of a count."""
        if (place, count) not in self._kept:
            self._kept[place, count] = self._once[place] ** count
        return self._kept[place, count]


def _sizes(needed: NDArray[np.int64]) -> list[int]:
    """Lengths of the transforms: the window grows with the rounds, so it is followed in steps of a quarter."""
    stages = np.ceil(np.log(np.maximum.accumulate(needed)) / math.log(1.25))
    return [int(fft.next_fast_len(math.ceil(1.25**stage), real=True)) for stage in stages]


def _windows(
    parts: Sequence[_Side], grid: float, counts_RM: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Losses, in grid steps, between which all but `_TAIL` of the mass lies after each row of counts."""
    moments = [part.log_moments(grid) for part in parts]
    room = math.log(2.0 / _TAIL)

    def reach(sides: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        # Chernoff: P[loss > t] <= exp(ln M(order) - order t)
        return np.asarray(((counts_RM @ np.stack(sides) + room) / (_ORDERS * grid)).min(axis=1))

    first = counts_RM @ np.array([part.start for part in parts])
    last = counts_RM @ np.array([part.start + len(part.probabilities) - 1 for part in parts])
    low = np.maximum(np.floor(-reach([down for _, down in moments])), first)
    high = np.minimum(np.ceil(reach([up for up, _ in moments])), last)
    return low.astype(np.int64), high.astype(np.int64)


def _epsilon(window: NDArray[np.float64], low: int, grid: float, infinite: float, delta: float) -> float:
    """Least ε ≥ 0 with infinite + Σ_{loss > ε} p (1 − e^(ε − loss)) ≤ δ."""
    if infinite > delta or delta <= 0:
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
