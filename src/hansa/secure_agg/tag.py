"""Tags inside the upload that show whether an aggregate is the sum of the uploads.

For slots v of an upload, coefficients h_kj < 2^16 and offsets β_k < t, both from the group key and the cohort
hash:

    tag_k = Σ_j h_kj v_j + β_k  mod t,   k = 0..7

The tags of r uploads add up to h(Σ v) + r β. This is the affine form of a universal-hash authenticator
(Wegman and Carter 1981; Stinson 1994). A sum that was changed by any e ≠ 0 passes for at most one value in
2^16 of each h_kj where e_j ≠ 0, so with probability 2^-128 in all eight; β defeats what is linear: scaling,
zero, and the exact sum of an earlier round. It holds against everybody who lacks the group key; a member can
add what it likes to its own upload anyway.
"""

import hmac

import numpy as np
from numpy.typing import NDArray

from hansa import labels
from hansa.errors import AggregateTagMismatch, UpdateShapeMismatch
from hansa.secure_agg.derivation import derive_key, keystream_words
from hansa.secure_agg.masks import mask_stream
from hansa.secure_agg.parameters import PLAIN_MODULUS, TAG_SLOTS

_BLOCK_SLOTS = 1 << 15  # slots whose coefficients come from one key stream
_PIECE_SLOTS = 1 << 13  # 2^13 products below 2^16 · 2^24 add up below 2^53: every float64 here is exact
_LIMB_BITS = 24
_LOW_LIMB = np.uint64((1 << _LIMB_BITS) - 1)


class SumTag:
    """The tag key of one cohort.

    Args:
        group_key: 32 bytes common to the participants.
        cohort: Cohort hash, 32 bytes.

    Guarantees:
        - Tags are the same integers on every platform.
        - Another cohort hash or group key gives unrelated coefficients and offsets.
        - repr() shows no secret.
    """

    __slots__ = ("_coefficient_key", "_offsets")

    def __init__(self, group_key: bytes, cohort: bytes) -> None:
        self._coefficient_key = derive_key(group_key, salt=cohort, info=labels.TAG_COEFFICIENTS)
        offset_key = derive_key(group_key, salt=cohort, info=labels.TAG_OFFSETS)
        self._offsets = [int(value) for value in mask_stream(offset_key, TAG_SLOTS)]

    def _linear(self, slots: NDArray[np.uint64]) -> list[int]:
        """Return h(v) modulo t, by exact float64 products with the two 24-bit limbs of the slots."""
        totals = [0] * TAG_SLOTS
        for block, start in enumerate(range(0, slots.size, _BLOCK_SLOTS)):
            part = slots[start : start + _BLOCK_SLOTS]
            words = keystream_words(self._coefficient_key, TAG_SLOTS * part.size // 4, nonce=block)
            # Eight 16-bit coefficients a slot are two 64-bit words, read as little-endian on any machine.
            coefficients = words.astype("<u8", copy=False).view("<u2").reshape(part.size, TAG_SLOTS)
            for at in range(0, part.size, _PIECE_SLOTS):
                piece = part[at : at + _PIECE_SLOTS]
                limbs = np.stack([piece & _LOW_LIMB, piece >> np.uint64(_LIMB_BITS)]).astype(np.float64)
                low, high = (limbs @ coefficients[at : at + _PIECE_SLOTS].astype(np.float64)).tolist()
                for row in range(TAG_SLOTS):
                    totals[row] += int(low[row]) + (int(high[row]) << _LIMB_BITS)
        return [total % PLAIN_MODULUS for total in totals]

    def append(self, slots: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return an upload's (S,) slots, each below t, followed by its 8 tags."""
        tags = [
            (linear + offset) % PLAIN_MODULUS
            for linear, offset in zip(self._linear(slots), self._offsets, strict=True)
        ]
        return np.concatenate([slots, np.array(tags, dtype=np.uint64)])

    def verify(self, tagged: NDArray[np.uint64], terms: int) -> NDArray[np.uint64]:
        """Check the sum of `terms` tagged uploads and return it without its tags.

        Raises:
            UpdateShapeMismatch: Not (S + 8,) uint64.
            AggregateTagMismatch: It is not the sum of so many uploads tagged under this key.
        """
        if tagged.ndim != 1 or tagged.size <= TAG_SLOTS or tagged.dtype != np.uint64:
            raise UpdateShapeMismatch(f"slots of shape {tagged.shape} and type {tagged.dtype} carry no tag")
        slots = tagged[:-TAG_SLOTS]
        expected = [
            (linear + terms * offset) % PLAIN_MODULUS
            for linear, offset in zip(self._linear(slots), self._offsets, strict=True)
        ]
        found = tagged[-TAG_SLOTS:].astype("<u8").tobytes()
        if not hmac.compare_digest(found, np.array(expected, dtype="<u8").tobytes()):
            raise AggregateTagMismatch(f"the aggregate is not the sum of the {terms} uploads of the roster")
        return slots

    def __repr__(self) -> str:
        return "SumTag(...)"
