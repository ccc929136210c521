"""Which entries of an update move in a round, and as which integers.

Everything here that participants must agree on is an exact integer or an elementwise float64 operation in a
fixed order, so it is bit-identical on unlike machines.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from hansa import labels
from hansa.errors import AggregateRangeViolation, InvalidValue, UpdateNotFinite, UpdateShapeMismatch
from hansa.secure_agg.cohort import counter_bytes
from hansa.secure_agg.derivation import derive_key, framed, keystream_words
from hansa.secure_agg.parameters import MAXIMUM_BITS, MINIMUM_BITS, Layout

Uniform = Callable[[int], NDArray[np.float64]]


def _exact(value: float) -> Fraction:
    # The decimal that people wrote, not the nearest binary fraction above it: 0.1 of 163840 is 16384, not
    # 16385.
    return Fraction(repr(float(value)))


def kept_entries(trainable: int, share: float, layout: Layout) -> int:
    """Return how many entries move in a round: the share, rounded up to fill whole ciphertexts.

    Args:
        trainable: Trainable entries P of the model, at least 1.
        share: Share of them to move, in (0, 1].
        layout: Layout of the cohort.

    Returns:
        The `layout.capacity` of a number of ciphertexts, or P where that is smaller.

    Raises:
        InvalidValue: `trainable` or `share` is out of bounds.
    """
    if trainable < 1:
        raise InvalidValue(f"trainable = {trainable} is not at least 1")
    if not 0 < share <= 1:
        raise InvalidValue(f"share = {share} is not in (0, 1]")
    wanted = math.ceil(_exact(share) * trainable)
    return min(trainable, layout.capacity(layout.ciphertexts_for(wanted)))


def _smallest(keys: NDArray[np.float64] | NDArray[np.uint64], count: int) -> NDArray[np.int64]:
    """Return the sorted positions of the `count` smallest keys, ties to the lower position."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    if count == keys.size:
        return np.arange(keys.size, dtype=np.int64)
    # An order statistic is one value whatever algorithm finds it, unlike the order that a partition leaves.
    bound = np.partition(keys, count - 1)[count - 1]
    chosen = keys < bound
    ties = np.flatnonzero(keys == bound)
    chosen[ties[: count - int(np.count_nonzero(chosen))]] = True
    return np.flatnonzero(chosen).astype(np.int64)


def select_support(
    scores: NDArray[np.float64],
    kept: int,
    explore_share: float,
    *,
    group_key: bytes,
    transcript: bytes,
    round_index: int,
) -> NDArray[np.int64]:
    """Choose the entries that move in a round, the same at all participants and unknown to the coordinator.

    Args:
        scores: (P,) float64, finite; large means wanted, such as the size of entries in earlier aggregates.
        kept: Entries to choose, 1 to P.
        explore_share: Share of them that is drawn at random, in [0, 1].
        group_key: 32 secret bytes that participants share.
        transcript: 32 bytes, last link of the transcript.
        round_index: Round number.

    Returns:
        (kept,) int64 positions, sorted.

    Raises:
        UpdateShapeMismatch: `scores` is not (P,) float64, or `kept` is not in 1..P.
        UpdateNotFinite: A score is not finite.
        InvalidValue: `explore_share` is not in [0, 1], or the key is not 32 bytes.

    Guarantees:
        - round((1 - explore_share) kept) of the positions have the largest scores, ties to the lower
          position.
        - The rest is a uniform sample of the other positions: each gets a 64-bit word of a key stream, the
          smallest words win. A tie at the border, probability below P / 2^64, goes to the lower position.
        - Equal inputs give equal positions on every platform; another key, transcript or round others.
    """
    if scores.ndim != 1 or scores.dtype != np.float64 or not 1 <= kept <= scores.size:
        raise UpdateShapeMismatch(f"{kept} of {scores.dtype} scores of shape {scores.shape} cannot be kept")
    if not np.isfinite(scores).all():
        raise UpdateNotFinite("a score is NaN or infinite")
    if not 0 <= explore_share <= 1 or len(group_key) != 32:
        raise InvalidValue(
            f"explore_share = {explore_share} is not in [0, 1], or the group key is not 32 bytes"
        )
    top = _smallest(-scores, round((1 - _exact(explore_share)) * kept))
    others = np.ones(scores.size, dtype=np.bool_)
    others[top] = False
    rest = np.flatnonzero(others)
    key = derive_key(group_key, salt=transcript, info=framed(labels.SUPPORT, counter_bytes(round_index)))
    explored = rest[_smallest(keystream_words(key, rest.size), kept - top.size)]
    return np.sort(np.concatenate([top, explored.astype(np.int64)]))


def _maximum_level(bound: float, bits: int) -> int:
    if not (math.isfinite(bound) and bound > 0):
        raise InvalidValue(f"bound = {bound} is not a finite number above 0")
    if not MINIMUM_BITS <= bits <= MAXIMUM_BITS:
        raise InvalidValue(f"bits = {bits} is not in {MINIMUM_BITS}..{MAXIMUM_BITS}")
    return int(2 ** (bits - 1) - 1)


def quantise(
    values: NDArray[np.float64] | NDArray[np.float32], bound: float, bits: int, uniform: Uniform
) -> NDArray[np.int64]:
    """Round an update at random to integer levels.

    Args:
        values: (m,) floating point, in the unit of the parameters.
        bound: Largest magnitude kept, same unit, above 0; larger values are clamped.
        bits: Width of a level, 2 to 20.
        uniform: uniform(m) returns (m,) float64 in [0, 1) from a source that nobody else can predict.

    Returns:
        (m,) int64 in [-(2^(bits-1)-1), 2^(bits-1)-1]; level · bound / (2^(bits-1)-1) approximates the value.

    Raises:
        UpdateShapeMismatch: Not a vector of floats, or `uniform` returned another shape.
        UpdateNotFinite: A value is NaN or infinite.
        InvalidValue: `bound` or `bits` is out of bounds.

    Guarantees:
        - The expected level is value · (2^(bits-1)-1) / bound for every value within ± bound.
        - Levels are within bounds for every finite value.
    """
    maximum_level = _maximum_level(bound, bits)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.floating):
        raise UpdateShapeMismatch(
            f"an update of shape {values.shape} and type {values.dtype} is not a vector of floats"
        )
    if not np.isfinite(values).all():
        raise UpdateNotFinite(
            f"{np.count_nonzero(~np.isfinite(values))} of {values.size} entries are not finite"
        )
    draws = uniform(values.size)
    if draws.shape != values.shape:
        raise UpdateShapeMismatch(f"{draws.shape} random numbers came for an update of shape {values.shape}")
    scaled = np.clip(values.astype(np.float64), -bound, bound) / bound * maximum_level
    floor = np.floor(scaled)
    # The fraction is exact, so a value on a level stays on it and the bound is never passed.
    return floor.astype(np.int64) + (draws < scaled - floor)


def dequantise_sum(
    total: NDArray[np.int64], bound: float, bits: int, participants: int
) -> NDArray[np.float64]:
    """Return the mean of the participants' updates from the sum of their levels.

    Args:
        total: (m,) int64 sum of levels.
        bound: As in `quantise`.
        bits: As in `quantise`.
        participants: Number n of updates in the sum.

    Returns:
        (m,) float64, in the unit of `bound`.

    Raises:
        UpdateShapeMismatch: `total` is not (m,) int64.
        AggregateRangeViolation: A sum is larger than n levels can be.
        InvalidValue: `bound`, `bits` or `participants` is out of bounds.

    Guarantees:
        - total · bound / (n (2^(bits-1)-1)), one multiplication and one division per entry: bit-identical
          everywhere.
    """
    maximum_level = _maximum_level(bound, bits)
    if total.ndim != 1 or total.dtype != np.int64:
        raise UpdateShapeMismatch(f"a sum of shape {total.shape} and type {total.dtype} is not (m,) int64")
    if participants < 1:
        raise InvalidValue(f"participants = {participants} is not at least 1")
    limit = maximum_level * participants
    if total.size and (int(total.max()) > limit or int(total.min()) < -limit):
        raise AggregateRangeViolation(f"a sum of levels is not within ±{limit}")
    return total.astype(np.float64) * np.float64(bound) / np.float64(limit)
