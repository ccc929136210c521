"""Labelled hashes, key derivation and key streams."""

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES = 32


def framed(*parts: bytes) -> bytes:
    """Join parts, each led by its length in 8 bytes, so that no two lists of parts give the same bytes."""
    return b"".join([len(part).to_bytes(8, "big") + part for part in parts])


def labelled_hash(label: bytes, *parts: bytes) -> bytes:
    """Return SHA-256 over the framed label and parts.

    Guarantees:
        - Two different lists of parts are never hashed as the same bytes.
    """
    return hashlib.sha256(framed(label, *parts)).digest()


def derive_key(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """Return a 32-byte key by HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def keystream_words(key: bytes, count: int, *, nonce: int = 0) -> NDArray[np.uint64]:
    """Return `count` pseudo-random 64-bit words: AES-256-CTR read as little-endian words.

    Args:
        key: 32 bytes, used for this stream only.
        count: Words wanted.
        nonce: Upper 64 bits of the initial counter block; the lower 64 bits count blocks from zero.

    Returns:
        (count,) unsigned 64-bit words, the same on every platform.
    """
    cipher = Cipher(algorithms.AES(key), modes.CTR(nonce.to_bytes(8, "big") + bytes(8)))
    stream = cipher.encryptor().update(bytes(8 * count))
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)
