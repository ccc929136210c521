"""Several quantised entries in one plaintext slot, and the sum of many such slots back into sums of entries.

Entry e of ciphertext c stands at slot e mod 4096 in lane e div 4096, as a digit of a number in base
`Layout.radix`.
"""

import numpy as np
from numpy.typing import NDArray

from hansa.errors import AggregateRangeViolation, UpdateOutOfRange, UpdateShapeMismatch
from hansa.secure_agg.parameters import SLOTS, Layout


def pack(levels: NDArray[np.int64], layout: Layout) -> NDArray[np.uint64]:
    """Pack the levels of one update into plaintext slots.

    Args:
        levels: (m,) int64, each in [-layout.maximum_level, layout.maximum_level], m >= 1.
        layout: Layout of the cohort.

    Returns:
        (c, 4096) uint64 below t, with c = `layout.ciphertexts_for(m)`. Unused places hold level 0.

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
    ciphertexts = layout.ciphertexts_for(levels.size)
    digits = np.full(ciphertexts * layout.entries_per_ciphertext, layout.maximum_level, dtype=np.uint64)
    digits[: levels.size] = (levels + layout.maximum_level).astype(np.uint64)
    lanes = digits.reshape(ciphertexts, layout.lanes, SLOTS)
    radix = np.uint64(layout.radix)
    slots = lanes[:, -1].copy()
    for lane in range(layout.lanes - 2, -1, -1):
        slots = slots * radix + lanes[:, lane]
    return slots


def unpack_sum(slots: NDArray[np.uint64], layout: Layout, count: int) -> NDArray[np.int64]:
    """Return the sums of levels that n packed updates add up to.

    Args:
        slots: (c, 4096) uint64, the decrypted sum.
        layout: Layout of the cohort.
        count: Entries m of each update.

    Returns:
        (m,) int64, each within ± n · layout.maximum_level.

    Raises:
        UpdateShapeMismatch: The slots are not those of `count` entries.
        AggregateRangeViolation: A slot is at least radix^lanes, or an unused place is not the sum of n zeros.

    Guarantees:
        - A slot that no n admissible updates can add up to is refused.
    """
    if count < 1 or slots.shape != (layout.ciphertexts_for(count), SLOTS) or slots.dtype != np.uint64:
        raise UpdateShapeMismatch(
            f"slots of shape {slots.shape} and type {slots.dtype} do not hold {count} entries"
        )
    if int(slots.max()) >= layout.radix**layout.lanes:
        raise AggregateRangeViolation(
            f"a slot is {int(slots.max())}, the bound is {layout.radix**layout.lanes - 1}"
        )
    radix = np.uint64(layout.radix)
    digits = np.empty((slots.shape[0], layout.lanes, SLOTS), dtype=np.uint64)
    for lane in range(layout.lanes):
        slots, digits[:, lane] = np.divmod(slots, radix)
    sums = digits.reshape(-1).astype(np.int64) - layout.participants * layout.maximum_level
    if np.any(sums[count:]):
        raise AggregateRangeViolation(f"{np.count_nonzero(sums[count:])} unused places are not 0")
    return sums[:count].copy()
