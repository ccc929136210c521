"""Masks modulo t: pairwise ones that cancel in the sum of a cohort, and one of its own for each member.

After Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017),
section 4, here with one-time X25519 keys (RFC 7748), HKDF-SHA256 (RFC 5869) and AES-256-CTR. A masked update
is uniform modulo t to everybody who does not hold its maker's self-mask seed, and to everybody who lacks its
maker's private round key and that of one other member of the cohort.
"""

import sys
from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from hansa import labels
from hansa.secure_agg.cohort import counter_bytes
from hansa.secure_agg.derivation import derive_key, fill_with_keystream, framed, keystream, keystream_words
from hansa.secure_agg.parameters import PLAIN_MODULUS
from hansa.secure_agg.sealing import exchange

_WORD_BITS = 64
_PIECE_SLOTS = 1 << 15
_BIG_ENDIAN = sys.byteorder == "big"


def pair_seed(
    private: X25519PrivateKey,
    peer_public: bytes,
    cohort: bytes,
    *,
    participant: str,
    peer: str,
    round_index: int,
    attempt: int,
) -> bytes:
    """Derive the mask seed that two members share in one attempt of one round.

    Args:
        private: Own one-time round key.
        peer_public: The peer's one-time public key, 32 bytes.
        cohort: Cohort hash, 32 bytes.
        participant: Own id.
        peer: The peer's id.
        round_index: Round number.
        attempt: Attempt number.

    Returns:
        32 bytes.

    Raises:
        MalformedMessage: The peer's key is a point of low order: the secret would be zero for everybody.

    Guarantees:
        - Both ends derive the same seed.
        - Another cohort hash, pair, round or attempt gives an unrelated seed.
    """
    secret = exchange(private, peer_public, peer)
    first, second = sorted((participant, peer))
    info = framed(
        labels.PAIR_MASK, first.encode(), second.encode(), counter_bytes(round_index), counter_bytes(attempt)
    )
    return derive_key(secret, salt=cohort, info=info)


def self_seed(secret: bytes, cohort: bytes, *, participant: str, round_index: int, attempt: int) -> bytes:
    """Derive the seed of a member's self-mask in one attempt of one round, 32 bytes."""
    info = framed(labels.SELF_MASK, participant.encode(), counter_bytes(round_index), counter_bytes(attempt))
    return derive_key(secret, salt=cohort, info=info)


def mask_stream(seed: bytes, slots: int, modulus: int = PLAIN_MODULUS) -> NDArray[np.uint64]:
    """Expand a seed into integers below a modulus.

    The top bits of each word of the key stream are a candidate. The rare candidate that is not below the
    modulus is replaced from a second stream addressed by its slot, so that both ends agree without exchanging
    a word.

    Args:
        seed: 32 bytes, used for one upload.
        slots: Integers wanted.
        modulus: t.

    Returns:
        (slots,) uint64 in [0, modulus).

    Guarantees:
        - Exactly uniform for a uniform key stream: rejection, no reduction.
        - The same on every platform.
    """
    values = np.empty(slots, dtype=np.uint64)
    _MaskStream(seed, modulus).fill(values)
    return values


class _MaskStream:
    """The integers of one seed, piece after piece; see `mask_stream`."""

    def __init__(self, seed: bytes, modulus: int = PLAIN_MODULUS) -> None:
        self._seed, self._modulus, self._next_slot = seed, modulus, 0
        self._shift = _WORD_BITS - (modulus - 1).bit_length()
        self._stream = keystream(seed)

    def fill(self, values: NDArray[np.uint64]) -> None:
        """Overwrite an array with the next integers."""
        first_slot = self._next_slot
        self._next_slot += values.size
        fill_with_keystream(self._stream, values)
        if _BIG_ENDIAN:
            values.byteswap(inplace=True)
        values >>= np.uint64(self._shift)
        if values.size and int(values.max()) >= self._modulus:  # hardly ever; and one pass without a copy
            for place in np.flatnonzero(values >= self._modulus).tolist():
                values[place] = self._replacement(first_slot + place)

    def _replacement(self, slot: int) -> int:
        key = derive_key(self._seed, salt=b"", info=labels.MASK_REPLACEMENT)
        # Each word serves with probability above 1/2; a longer prefix of the same stream keeps the earlier words.
        tries = 8
        while True:
            for word in keystream_words(key, tries, nonce=slot).tolist():
                if word >> self._shift < self._modulus:
                    return int(word >> self._shift)
            tries *= 2


def net_mask(seeds: Iterable[tuple[int, bytes]], slots: int) -> NDArray[np.uint64]:
    """Return the signed sum of masks modulo t.

    Args:
        seeds: (sign, seed). A member adds its self-mask (+1) and the mask of each pair: +1 where its own id sorts
            before the peer's, otherwise -1.
        slots: Slots to mask.

    Returns:
        (slots,) uint64 below t.

    Guarantees:
        - The pairwise masks of a whole cohort add up to 0 modulo t in every slot.
    """
    streams = [(sign, _MaskStream(seed)) for sign, seed in seeds]
    # Masks are below 2^48: from here no difference is below zero, and no sum overflows before 2^16 of them.
    base = PLAIN_MODULUS * sum(sign < 0 for sign, _ in streams)
    total = np.full(slots, base, dtype=np.uint64)
    # Piece by piece through all streams, so that sum and mask stay in a core's cache.
    mask = np.empty(_PIECE_SLOTS, dtype=np.uint64)
    for start in range(0, slots, _PIECE_SLOTS):
        piece = total[start : start + _PIECE_SLOTS]
        part = mask[: piece.size]
        for sign, stream in streams:
            stream.fill(part)
            if sign > 0:
                piece += part
            else:
                piece -= part
        piece %= np.uint64(PLAIN_MODULUS)
    return total


def add_mask(slots: NDArray[np.uint64], mask: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return slots + mask modulo t; both below t."""
    total = slots + mask
    # Below zero wraps around to the top, so the smaller one is the one in range: a fraction of a division's time.
    np.minimum(total, total - np.uint64(PLAIN_MODULUS), out=total)
    return total


def take_mask(slots: NDArray[np.uint64], mask: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return slots - mask modulo t; both below t."""
    total = slots - mask
    np.minimum(total, total + np.uint64(PLAIN_MODULUS), out=total)
    return total


def pair_sign(participant: str, peer: str) -> int:
    """Return the sign with which a participant adds the mask of a pair."""
    return 1 if participant < peer else -1
