"""Secret randomness: a ChaCha20 stream seeded by the operating system, and Gaussian noise made from it.

Normals come from the polar method in float64: of points (x, y) uniform in a square those inside the unit circle are kept,
s = x² + y², and x √(-2 ln s / s), y √(-2 ln s / s) are two independent normals. It needs no sine and no cosine; how many points
are thrown away depends on this stream alone. It works in blocks that stay in the processor's cache.
Not protected against: an observer of the exact floating-point value (Mironov 2012). What leaves a participant has been rounded
to a grid whose step is public, which is post-processing of the noised value; the attack on raw doubles has no target.
Sources: RFC 8439 (ChaCha20); Marsaglia & Bray 1964 (the polar method).
"""

import os
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

RandomBytes = Callable[[int], bytes]

_KEY_BYTES = 32
_NONCE_BYTES = 16
_BLOCK_POINTS = 8192


class SecretRandom:
    """A stream of secret random bytes.

    Args:
        seed: 32 secret bytes; taken from the operating system unless a test injects them. Neither the command line nor a study
            can reach this argument.

    Guarantees:
        - Two objects made without a seed give independent streams.
        - The object's repr shows nothing of its state.
        - The copy that a fork leaves in another process gives nothing: equal noise in two updates would cancel.
    """

    def __init__(self, seed: bytes | None = None) -> None:
        key = os.urandom(_KEY_BYTES) if seed is None else seed
        if len(key) != _KEY_BYTES:
            raise ValueError(f"a seed has {_KEY_BYTES} bytes, got {len(key)}")
        self._process_id = os.getpid()
        self._stream = Cipher(ChaCha20(key, bytes(_NONCE_BYTES)), mode=None).encryptor()

    def __repr__(self) -> str:
        return "SecretRandom(...)"

    def bytes(self, count: int) -> bytes:
        """Give the next `count` bytes."""
        if os.getpid() != self._process_id:
            raise RuntimeError("this secret randomness belongs to another process")
        return self._stream.update(bytes(count))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Give `count` values uniform in [0, 1) with 53 bits each."""
        words = np.frombuffer(self.bytes(8 * count), dtype="<u8")
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, count: int) -> NDArray[np.float64]:
        """Give `count` independent standard normal values."""
        values, filled = np.empty(count), 0
        while filled < count:
            # π/4 of the points are kept, and each gives two values.
            points = min(_BLOCK_POINTS, int((count - filled) * 0.65) + 16)
            pair = self._symmetric(2 * points)
            x, y = pair[:points], pair[points:]
            square = x * x
            square += y * y
            inside = square < 1.0
            square = square[inside]
            factor = np.log(square)
            factor /= square
            factor *= -2.0
            np.sqrt(factor, out=factor)
            for part in (x, y):
                found = part[inside] * factor
                kept = min(len(found), count - filled)
                values[filled : filled + kept] = found[:kept]
                filled += kept
        return values

    def _symmetric(self, count: int) -> NDArray[np.float64]:
        """Give values uniform on the odd multiples of 2^-52 in (-1, 1): each as likely as its opposite, and none is 0."""
        words = np.frombuffer(self.bytes(8 * count), dtype="<u8")
        values = (words >> np.uint64(12)).view(np.int64).astype(np.float64)
        values += 0.5
        values *= 2.0**-51
        values -= 1.0
        return values


def gaussian_noise(
    count: int, *, clip_norm: float, noise_multiplier: float, random: SecretRandom
) -> NDArray[np.float64]:
    """Draw the noise of one step.

    Args:
        count: Entries of the support.
        clip_norm: ℓ₂ sensitivity C.
        noise_multiplier: σ, standard deviation in units of C.
        random: Source of secret randomness.

    Returns:
        (count,) independent N(0, (σC)²).

    Guarantees:
        - Every entry is noised, whether a sample touched it or not.
    """
    return random.normal(count) * (noise_multiplier * clip_norm)
