"""Several quantised entries in one plaintext slot, and the sum of many such slots back into sums of entries.

An upload of c ciphertexts has 4096 c slots; the last 8 are its tag, the S before them hold the update. Entry
e stands at slot e mod S in lane e div S, as a digit of a number in base `Layout.radix`.
"""

import numpy as np
from numpy.typing import NDArray

from hansa.errors import AggregateRangeViolation, UpdateOutOfRange, UpdateShapeMismatch
from hansa.secure_agg.parameters import SLOTS, TAG_SLOTS, Layout

_PIECE_SLOTS = 1 << 15  # a piece and its quotient stay in a core's cache


def pack(levels: NDArray[np.int64], layout: Layout) -> NDArray[np.uint64]:
    """Pack the levels of one update into plaintext slots.

    Args:
        levels: (m,) int64, each in [-layout.maximum_level, layout.maximum_level], m >= 1.
        layout: Layout of the cohort.

    Returns:
        (S,) uint64 below t, S = 4096 c - 8 with c = `layout.ciphertexts_for(m)`. Unused places hold level 0.

    Raises:
        UpdateShapeMismatch: `levels` is not a non-empty vector of int64.
        UpdateOutOfRange: A level is outside its bounds.

    Guarantees:
        - The integer sum of n packed updates is the packed sum of their levels, with no carry between
          entries.
    """
    if levels.ndim != 1 or levels.size == 0 or levels.dtype != np.int64:
        raise UpdateShapeMismatch(
            f"an update of shape {levels.shape} and type {levels.dtype} is not (m,) int64"
        )
    lowest, highest = int(levels.min()), int(levels.max())
    if lowest < -layout.maximum_level or highest > layout.maximum_level:
        raise UpdateOutOfRange(f"levels {lowest}..{highest} are not within ±{layout.maximum_level}")
    slots = np.zeros(layout.ciphertexts_for(levels.size) * SLOTS - TAG_SLOTS, dtype=np.int64)
    for lane in range(layout.lanes - 1, -1, -1):  # Horner, with the levels as they are
        slots *= layout.radix
        entries = levels[lane * slots.size : (lane + 1) * slots.size]
        slots[: entries.size] += entries
    # The shift of all digits at once; where there was no entry it leaves that of level 0.
    slots += layout.maximum_level * sum(layout.radix**lane for lane in range(layout.lanes))
    return slots.view(np.uint64)


def unpack_sum(
    slots: NDArray[np.uint64], layout: Layout, count: int, terms: int | None = None
) -> NDArray[np.int64]:
    """Return the sums of levels that packed updates add up to.

    Args:
        slots: (S,) uint64, the decrypted sum without its tag.
        layout: Layout of the cohort.
        count: Entries m of each update.
        terms: Number r of updates in the sum; all n of the layout where it is not given.

    Returns:
        (m,) int64, each within ± r · layout.maximum_level.

    Raises:
        UpdateShapeMismatch: The slots are not those of `count` entries.
        AggregateRangeViolation: A slot is at least radix^lanes, a sum is larger than r levels can be, or an
            unused place is not the sum of r zeros.

    Guarantees:
        - A slot that no r admissible updates can add up to is refused.
    """
    if (
        count < 1
        or slots.shape != (layout.ciphertexts_for(count) * SLOTS - TAG_SLOTS,)
        or slots.dtype != np.uint64
    ):
        raise UpdateShapeMismatch(
            f"slots of shape {slots.shape} and type {slots.dtype} do not hold {count} entries"
        )
    if int(slots.max()) >= layout.radix**layout.lanes:
        raise AggregateRangeViolation(
            f"a slot is {int(slots.max())}, the bound is {layout.radix**layout.lanes - 1}"
        )
    terms = layout.participants if terms is None else terms
    limit = terms * layout.maximum_level
    sums = np.empty((layout.lanes, slots.size), dtype=np.int64)
    for start in range(0, slots.size, _PIECE_SLOTS):
        _unpack_piece(
            slots[start : start + _PIECE_SLOTS], layout.radix, sums[:, start : start + _PIECE_SLOTS]
        )
    sums -= limit
    flat = sums.reshape(-1)
    largest = int(flat.max())
    if largest > limit:
        raise AggregateRangeViolation(f"a sum of {terms} levels is {largest}, the bound is {limit}")
    if np.any(flat[count:]):
        raise AggregateRangeViolation(f"{np.count_nonzero(flat[count:])} unused places are not 0")
    return flat[:count]


def _unpack_piece(slots: NDArray[np.uint64], radix: int, digits: NDArray[np.int64]) -> None:
    """Write the digits of slots, lowest first, into the rows of an array."""
    rest = slots
    for row in digits:
        quotient = rest // np.uint64(radix)  # a division by a constant is fast, a remainder is not
        row[:] = rest - quotient * np.uint64(radix)
        rest = quotient
