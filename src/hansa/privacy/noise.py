"""Secret randomness: a ChaCha20 stream seeded by the operating system, and Gaussian noise made from it.

Normals come from the Box-Muller transform of 64-bit words in float64: r = sqrt(-2 ln u), (r cos 2πv, r sin 2πv), with u in (0, 1].
Not protected against: an observer of the exact floating-point value (Mironov 2012). What leaves a participant has been rounded
to a grid whose step is public, which is post-processing of the noised value; the attack on raw doubles has no target.
Sources: RFC 8439 (ChaCha20); Box & Muller 1958.
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
        half = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log(1.0 - self.uniform(half)))
        angle = 2.0 * np.pi * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


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
