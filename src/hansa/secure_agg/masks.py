"""Pairwise masks modulo t that cancel in the sum of the whole cohort.

After Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017),
section 4, masking with one-time pads, here with one-time X25519 keys (RFC 7748), HKDF-SHA256 (RFC 5869) and
AES-256-CTR. A masked update is uniform modulo t to everybody who does not hold the private round keys of its
maker or of all other members.

There is no self-mask: in strict mode no round key is ever handed to anybody, not even in parts. A round key
never leaves the object that made it.
"""

import os
from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from numpy.typing import NDArray

from hansa import labels
from hansa.errors import MalformedMessage, UploadReuse
from hansa.secure_agg.cohort import counter_bytes
from hansa.secure_agg.derivation import derive_key, framed, keystream_words
from hansa.secure_agg.identity import RandomBytes
from hansa.secure_agg.parameters import PLAIN_MODULUS

_WORD_BITS = 64


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
    try:
        secret = private.exchange(X25519PublicKey.from_public_bytes(peer_public))
    except ValueError as error:  # RFC 7748 section 6.1: the all-zero secret must be refused
        raise MalformedMessage(f"the round key of {peer!r} is not a usable X25519 point") from error
    first, second = sorted((participant, peer))
    info = framed(
        labels.PAIR_MASK, first.encode(), second.encode(), counter_bytes(round_index), counter_bytes(attempt)
    )
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
    shift = _WORD_BITS - (modulus - 1).bit_length()
    values = keystream_words(seed, slots) >> np.uint64(shift)
    rejected = np.flatnonzero(values >= modulus)
    if rejected.size:
        replacement_key = derive_key(seed, salt=b"", info=labels.MASK_REPLACEMENT)
        for slot in rejected.tolist():
            values[slot] = _replacement(replacement_key, slot, shift, modulus)
    return values


def _replacement(key: bytes, slot: int, shift: int, modulus: int) -> int:
    # Each word serves with probability above 1/2; a longer prefix of the same stream keeps the earlier words.
    tries = 8
    while True:
        for word in keystream_words(key, tries, nonce=slot).tolist():
            if word >> shift < modulus:
                return int(word >> shift)
        tries *= 2


def net_mask(seeds: Iterable[tuple[int, bytes]], slots: int) -> NDArray[np.uint64]:
    """Return the sum modulo t of a member's masks with all its peers.

    Args:
        seeds: (sign, seed) of each peer; +1 where the own id sorts before the peer's, otherwise -1.
        slots: Slots to mask.

    Returns:
        (slots,) uint64 below t.

    Guarantees:
        - The net masks of a whole cohort add up to 0 modulo t in every slot.
    """
    modulus = np.uint64(PLAIN_MODULUS)
    total = np.zeros(slots, dtype=np.uint64)
    for sign, seed in seeds:
        mask = mask_stream(seed, slots)
        total += mask if sign > 0 else modulus - mask  # below 2^48 each: no overflow before 2^15 peers
    return total % modulus


class RoundSecret:
    """The private half of a round key: made for one attempt, used for one upload, then forgotten.

    Python cannot overwrite memory: `erase` drops the only reference, and OpenSSL clears what it frees.

    Guarantees:
        - After `erase` no seed can be derived: UploadReuse.
        - repr() shows no secret.
    """

    __slots__ = ("_private", "public")

    def __init__(self, random_bytes: RandomBytes = os.urandom) -> None:
        private = X25519PrivateKey.from_private_bytes(random_bytes(32))
        self._private: X25519PrivateKey | None = private
        self.public = private.public_key().public_bytes_raw()

    def signed_seeds(
        self, participant: str, public_keys: dict[str, bytes], cohort: bytes, round_index: int, attempt: int
    ) -> list[tuple[int, bytes]]:
        """Return (sign, seed) for every peer of `participant`; `public_keys` maps ids to round keys."""
        if self._private is None:
            raise UploadReuse("the round key of this attempt is erased; masks serve one upload only")
        return [
            (
                1 if participant < peer else -1,
                pair_seed(
                    self._private,
                    public_key,
                    cohort,
                    participant=participant,
                    peer=peer,
                    round_index=round_index,
                    attempt=attempt,
                ),
            )
            for peer, public_key in public_keys.items()
            if peer != participant
        ]

    def erase(self) -> None:
        """Forget the private key."""
        self._private = None

    def __repr__(self) -> str:
        return f"RoundSecret(public={self.public.hex()[:16]}...)"
