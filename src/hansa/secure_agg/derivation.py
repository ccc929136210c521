"""Labelled hashes, key derivation and key streams."""

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES = 32
_ZEROS = memoryview(bytes(1 << 18))  # a quarter of a megabyte stays in a core's cache


def framed(*parts: bytes) -> bytes:
    """Join parts, each led by its length in 8 bytes, so that no two lists of parts give the same bytes."""
    return b"".join([len(part).to_bytes(8, "big") + part for part in parts])


def labelled_hash(label: bytes, *parts: bytes) -> bytes:
    """Return SHA-256 over the framed label and parts.

    Guarantees:
        - Two different lists of parts are never hashed as the same bytes.
    """
    digest = hashlib.sha256()
    for part in (label, *parts):  # as `framed` would join them, without a copy of a whole ciphertext
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def derive_key(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """Return a 32-byte key by HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def keystream(key: bytes, nonce: int = 0) -> CipherContext:
    """Return AES-256-CTR from counter zero; see `keystream_words`."""
    return Cipher(algorithms.AES(key), modes.CTR(nonce.to_bytes(8, "big") + bytes(8))).encryptor()


def fill_with_keystream(stream: CipherContext, words: NDArray[np.uint64]) -> None:
    """Overwrite little-endian words with the next ones of a key stream, without another buffer of their size."""
    octets = words.view(np.uint8)
    for start in range(0, octets.size, len(_ZEROS)):
        part = octets[start : start + len(_ZEROS)]
        stream.update_into(_ZEROS[: part.size], part.data)


def keystream_words(key: bytes, count: int, *, nonce: int = 0) -> NDArray[np.uint64]:
    """Return `count` pseudo-random 64-bit words: AES-256-CTR read as little-endian words.

    Args:
        key: 32 bytes, used for this stream only.
        count: Words wanted.
        nonce: Upper 64 bits of the initial counter block; the lower 64 bits count blocks from zero.

    Returns:
        (count,) unsigned 64-bit words, the same on every platform.
    """
    words = np.empty(count, dtype="<u8")
    fill_with_keystream(keystream(key, nonce), words)
    return words.astype(np.uint64, copy=False)
