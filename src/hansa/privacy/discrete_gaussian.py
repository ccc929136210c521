"""Discrete Gaussian noise: integers v with probability ∝ exp(−v² / 2σ²) (Canonne, Kamath & Steinke 2020, definition 1).

Drawn by inversion: 320 secret random bits are compared with a table of the distribution of |v|, computed in integers; a fair bit
gives the sign. The first 64 bits settle almost every draw, and the rest is drawn only where they do not, so the precision costs
nothing. No floating-point number is involved, so there is nothing to attack in one (Mironov 2012).

Up to σ = 1024 there is one table. Above, a draw is z₁ + k z₂ of two tables with σ² = σ₁² + k² σ₂², which is again a discrete
Gaussian but for a factor within 1 ± 10⁻⁵² (Peikert 2010, "An Efficient and Parallel Gaussian Sampler for Lattices", theorem 3.1;
`distributed.py` has the argument and counts the factor).
Not protected against: an observer who times single draws on the participant's own machine.
"""

import math
from bisect import bisect_right
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hansa.errors import InvalidValue
from hansa.privacy.noise import RandomBytes

VARIANCE_MOST = 2**42
ERROR_BITS = 250  # a draw is within 2^-250 of its distribution, in total variation

_BITS = 320  # of a uniform number, and of the fixed point
_TAIL_BITS = 280
_SINGLE_TABLE_MOST = 2**20  # variance
_PIECE = 1 << 18


class DiscreteGaussian:
    """A discrete Gaussian distribution around 0 with an integer variance parameter.

    Args:
        variance: σ², 1 to 2^42. The variance itself is a little smaller below σ = 1, and the same to 30 digits from σ = 2.6 on.

    Raises:
        InvalidValue: `variance` is out of bounds.

    Guarantees:
        - v and −v are equally likely, exactly.
        - Up to σ² = 2^20 each draw is within 2^-250 of the distribution in total variation; above, within twice that of
          one whose every probability is the distribution's within a factor of 1 ± 10^-52.
        - Draws are independent: each uses bits of the stream that no other one uses.
    """

    def __init__(self, variance: int) -> None:
        if not 1 <= variance <= VARIANCE_MOST:
            raise InvalidValue(f"variance {variance} of the noise is not in 1..{VARIANCE_MOST}")
        self.variance = variance
        self._factor, self._fine, self._coarse = 0, variance, 0
        if variance > _SINGLE_TABLE_MOST:
            # About √σ / 2, at which both tables have the same size. Both conditions of the theorem hold with room:
            # σ₁ ≥ 4 k and σ₂ ≥ 4.
            self._factor = math.isqrt(math.isqrt(variance)) // 2
            self._coarse = variance // self._factor**2 - 16
            self._fine = variance - self._factor**2 * self._coarse

    def draw(self, count: int, random_bytes: RandomBytes) -> NDArray[np.int64]:
        """Draw independent values.

        Args:
            count: How many.
            random_bytes: Gives the next bytes of a secret stream.

        Returns:
            (count,) int64.
        """
        drawn = np.empty(count, dtype=np.int64)
        for start in range(0, count, _PIECE):
            piece = drawn[start : start + _PIECE]
            piece[:] = _table(self._fine).draw(piece.size, random_bytes)
            if self._factor:
                piece += self._factor * _table(self._coarse).draw(piece.size, random_bytes)
        return drawn


class _Table:
    """Inversion by one table: entry k is the probability of |v| ≤ k, times 2^320, rounded down."""

    def __init__(self, variance: int) -> None:
        weights = _weights(variance)
        total = 2 * sum(weights) - weights[0]
        self._cumulative, below = [], 0
        for magnitude, weight in enumerate(weights[:-1]):
            below += weight if magnitude == 0 else 2 * weight
            self._cumulative.append((below << _BITS) // total)
        leading = [value >> (_BITS - 64) for value in self._cumulative]
        self._leading = np.array(leading, dtype=np.uint64)

    def draw(self, count: int, random_bytes: RandomBytes) -> NDArray[np.int64]:
        words = np.frombuffer(random_bytes(8 * count), dtype="<u8").astype(np.uint64, copy=False)
        magnitudes = np.searchsorted(self._leading, words, side="right").astype(np.int64)
        # Words equal to the leading one of an entry say nothing yet; about one draw in 10^15.
        undecided = np.flatnonzero((magnitudes > 0) & (self._leading[magnitudes - 1] == words))
        for place in undecided.tolist():
            rest = int.from_bytes(random_bytes((_BITS - 64) // 8), "little")
            magnitudes[place] = bisect_right(self._cumulative, int(words[place]) << (_BITS - 64) | rest)
        signs = np.unpackbits(np.frombuffer(random_bytes(-(-count // 8)), dtype=np.uint8))[:count]
        return magnitudes * (1 - 2 * signs.astype(np.int64))


@lru_cache(maxsize=8)
def _table(variance: int) -> _Table:
    return _Table(variance)


def _weights(variance: int) -> list[int]:
    """exp(−k² / 2σ²) · 2^320 for k = 0, 1, ... down to 2^-280 of the first.

    By p_(k+1) = p_k · r_k, r_(k+1) = r_k · exp(−1/σ²). Every product is rounded down, so after k steps a weight is low by less than
    k + 3σ² units: below 2^25 of 2^320 at the largest table, of σ² = 17 k² < 2^23.1 for a factor k of 724. Over its 2^16 entries
    that is below 2^-280 in total variation; what is cut off is below 2^-268.
    """
    one = 1 << _BITS
    ratio = _exponential(variance)  # exp(−1 / 2σ²)
    step = ratio * ratio >> _BITS
    weights, weight = [], one
    while weight >> (_BITS - _TAIL_BITS):
        weights.append(weight)
        weight = weight * ratio >> _BITS
        ratio = ratio * step >> _BITS
    return weights


def _exponential(variance: int) -> int:
    """exp(−1 / 2σ²) · 2^320, by its series, with 32 bits to spare."""
    one = 1 << (_BITS + 32)
    total, term, number = one, one, 0
    while term:
        number += 1
        term //= 2 * variance * number
        total += -term if number % 2 else term
    return total >> 32
