"""Entries without bounds in plaintext slots: integers whose sum, and nothing else, is read from the sum of their slots.

The places are those of `packing`: entry e in slot e mod S, lane e div S. A slot holds Σ_k y_k R^k modulo t for the entries y_k of
its lanes and the radix R of the layout, for any integers y_k. That is linear, so the slots of a sum are a function of the sums
Y_k = Σ y_k alone. Reducing each member's entries into a lane instead would not be: the number of members that wrapped would show,
which depends on single updates.

A sum within ± (R - 1) / 2 is read exactly. One beyond it wraps and spoils the entries of its slot: an accident of the sum, which
whoever chooses the range makes rare.
"""

import numpy as np
from numpy.typing import NDArray

from hansa.errors import UpdateOutOfRange, UpdateShapeMismatch
from hansa.secure_agg.packing import pack, unpack_sum
from hansa.secure_agg.parameters import PLAIN_MODULUS, SLOTS, TAG_SLOTS, Layout, Terms

ENTRY_MOST = 2**62
_LIMB_BITS = 14  # 2^14 t < 2^62: a product with a limb of the radix fits 64 bits


def pack_wrapping(entries: NDArray[np.int64], layout: Layout) -> NDArray[np.uint64]:
    """Pack the entries of one update.

    Args:
        entries: (m,) int64, m >= 1, each within ± 2^62.
        layout: Layout of the cohort.

    Returns:
        (S,) uint64 below t, S as in `packing.pack`. Unused places hold 0.

    Raises:
        UpdateShapeMismatch: `entries` is not a non-empty vector of int64.
        UpdateOutOfRange: An entry is beyond ± 2^62, which no record can bring about.

    Guarantees:
        - The sum modulo t of packed updates is the packed sum of their entries.
        - No entry is clamped or reduced by itself; the length depends on m only.
    """
    if entries.ndim != 1 or entries.size == 0 or entries.dtype != np.int64:
        raise UpdateShapeMismatch(
            f"an update of shape {entries.shape} and type {entries.dtype} is not (m,) int64"
        )
    if int(entries.max()) > ENTRY_MOST or int(entries.min()) < -ENTRY_MOST:
        raise UpdateOutOfRange(f"an entry is not within ±{ENTRY_MOST}")
    slots = np.zeros(layout.ciphertexts_for(entries.size) * SLOTS - TAG_SLOTS, dtype=np.int64)
    for lane in range(layout.lanes - 1, -1, -1):  # Horner
        slots = _times_radix(slots, layout.radix)
        here = entries[lane * slots.size : (lane + 1) * slots.size]
        slots[: here.size] += here % PLAIN_MODULUS
        slots %= PLAIN_MODULUS
    return slots.view(np.uint64)


def unpack_wrapped_sum(slots: NDArray[np.uint64], layout: Layout, count: int) -> NDArray[np.int64]:
    """Return the sums of entries that packed updates add up to.

    Args:
        slots: (S,) uint64 below t, the decrypted sum without its tag.
        layout: Layout of the cohort.
        count: Entries m of each update.

    Returns:
        (m,) int64, each within ± n · layout.maximum_level = ± (R - 1) / 2.

    Raises:
        UpdateShapeMismatch: The slots are not those of `count` entries.

    Guarantees:
        - Exact where every sum of a slot is within the range; no slot of any value is refused.
        - The same integers on every platform.
    """
    expected = layout.ciphertexts_for(count) * SLOTS - TAG_SLOTS if count > 0 else -1
    if slots.shape != (expected,) or slots.dtype != np.uint64:
        raise UpdateShapeMismatch(
            f"slots of shape {slots.shape} and type {slots.dtype} do not hold {count} entries"
        )
    half, whole = (layout.radix - 1) // 2, layout.radix**layout.lanes
    rest = (slots.astype(np.int64) + (whole - 1) // 2) % PLAIN_MODULUS % whole
    sums = np.empty((layout.lanes, slots.size), dtype=np.int64)
    for row in sums:
        rest, row[:] = np.divmod(rest, layout.radix)
    sums -= half
    return sums.reshape(-1)[:count]


def pack_update(levels: NDArray[np.int64], terms: Terms) -> NDArray[np.uint64]:
    """Pack an update as the terms say: in bounds, or wrapping where its noise is distributed."""
    return pack_wrapping(levels, terms.layout) if terms.noise_contributors else pack(levels, terms.layout)


def unpack_update_sum(slots: NDArray[np.uint64], terms: Terms, count: int, members: int) -> NDArray[np.int64]:
    """Read the sum of so many members' updates that `pack_update` packed."""
    if terms.noise_contributors:
        return unpack_wrapped_sum(slots, terms.layout, count)
    return unpack_sum(slots, terms.layout, count, members)


def _times_radix(slots: NDArray[np.int64], radix: int) -> NDArray[np.int64]:
    """Multiply slots by the radix modulo t, a limb of it at a time."""
    product = np.zeros_like(slots)
    for shift in range((radix.bit_length() - 1) // _LIMB_BITS * _LIMB_BITS, -1, -_LIMB_BITS):
        limb = radix >> shift & ((1 << _LIMB_BITS) - 1)
        product = ((product << _LIMB_BITS) % PLAIN_MODULUS + slots * limb) % PLAIN_MODULUS
    return product
