"""The two forms of a ciphertext on the wire, and the bytes that Microsoft SEAL 4.3 reads and writes.

    seeded (up)       64 bytes seed of the polynomial c1, then c0
    expanded (down)   c0, then c1
    key (between members, sealed)   the secret polynomial modulo q, then modulo the special prime, as SEAL's NTT

A polynomial is 4096 coefficients below the data prime q < 2^60, two in 15 bytes, little-endian. Everything
else in SEAL's form (versions, sizes, flags, parameter hash, compression) is constant for our one parameter
set, so it is not sent: the bytes that reach SEAL's parser are made here, around coefficients that were
checked. A peer therefore cannot choose a header, a length or a compressed payload, where SEAL before 4.4 has
had memory errors.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hansa.errors import CiphertextSizeMismatch, HeParameterMismatch, MalformedCiphertext
from hansa.secure_agg.parameters import COEFFICIENT_BITS, SLOTS

SEED_BYTES = 64
POLYNOMIAL_BYTES = SLOTS * COEFFICIENT_BITS // 8
SEEDED_BYTES = SEED_BYTES + POLYNOMIAL_BYTES
EXPANDED_BYTES = 2 * POLYNOMIAL_BYTES
KEY_BYTES = 2 * POLYNOMIAL_BYTES

_SEAL_HEADER = struct.Struct(
    "<HBBBBHQ"
)  # magic, header size, version major and minor, compression, reserved, size
_SEAL_MAGIC = 0xA15E
_SEAL_VERSION = (4, 3)
_NO_COMPRESSION = 0
_ZSTD = 2
_BLAKE2XB = 1
# is_ntt_form, number of polynomials, degree, number of data primes, scale, correction factor
_SEAL_FIELDS = struct.pack("<BQQQdQ", 0, 2, SLOTS, 1, 1.0, 1)
_LOW_60 = np.uint64((1 << COEFFICIENT_BITS) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RingParameters:
    """What SEAL's form repeats of the parameters: their 256-bit hash and the data prime q."""

    parameter_hash: Sequence[int]
    data_prime: int

    @property
    def prefix(self) -> bytes:
        """SEAL's constant fields between the header and the coefficients."""
        return struct.pack("<4Q", *self.parameter_hash) + _SEAL_FIELDS


def _header(payload_bytes: int, compression: int = _NO_COMPRESSION) -> bytes:
    size = _SEAL_HEADER.size + payload_bytes
    return _SEAL_HEADER.pack(_SEAL_MAGIC, _SEAL_HEADER.size, *_SEAL_VERSION, compression, 0, size)


def _array(coefficients: bytes) -> bytes:
    payload = struct.pack("<Q", len(coefficients) // 8) + coefficients
    return _header(len(payload)) + payload


def _seal_form(ring: RingParameters, coefficients: bytes, seed: bytes | None) -> bytes:
    payload = ring.prefix + _array(coefficients)
    if seed is not None:
        generator = bytes([_BLAKE2XB]) + seed
        payload += _header(len(generator)) + generator
    return _header(len(payload)) + payload


def pack_coefficients(coefficients: NDArray[np.uint64]) -> bytes:
    """Write (k,) coefficients below 2^60, k even, as 15 bytes for each two."""
    even, odd = coefficients[0::2], coefficients[1::2]
    pairs = np.empty((even.size, 15), dtype=np.uint8)
    pairs[:, :8] = (even | odd << np.uint64(COEFFICIENT_BITS)).astype("<u8").view(np.uint8).reshape(-1, 8)
    pairs[:, 8:] = (odd >> np.uint64(4)).astype("<u8").view(np.uint8).reshape(-1, 8)[:, :7]
    return pairs.tobytes()


def unpack_coefficients(data: bytes) -> NDArray[np.uint64]:
    """Read what `pack_coefficients` wrote; any 15 bytes are two values below 2^60."""
    pairs = np.frombuffer(data, dtype=np.uint8).reshape(-1, 15)
    halves = np.zeros((2, pairs.shape[0], 8), dtype=np.uint8)
    halves[0] = pairs[:, :8]
    halves[1, :, :7] = pairs[:, 8:]
    low, high = halves.view("<u8")[:, :, 0].astype(np.uint64)
    coefficients = np.empty(2 * low.size, dtype=np.uint64)
    coefficients[0::2] = low & _LOW_60
    coefficients[1::2] = low >> np.uint64(COEFFICIENT_BITS) | high << np.uint64(4)
    return coefficients


def verify_wire_length(data: bytes, expected_bytes: int) -> None:
    """Raise CiphertextSizeMismatch unless a ciphertext has exactly the length of its form."""
    if len(data) != expected_bytes:
        raise CiphertextSizeMismatch(f"a ciphertext has {len(data)} bytes, its form has {expected_bytes}")


def _checked_coefficients(ring: RingParameters, data: bytes) -> bytes:
    coefficients = unpack_coefficients(data)
    if int(coefficients.max()) >= ring.data_prime:
        raise MalformedCiphertext(
            f"a coefficient is {int(coefficients.max())}, the bound is {ring.data_prime - 1}"
        )
    return coefficients.astype("<u8").tobytes()


def seal_from_seeded(ring: RingParameters, data: bytes) -> bytes:
    """Check a ciphertext in seeded form and return it in SEAL's uncompressed form.

    Raises:
        CiphertextSizeMismatch: Not `SEEDED_BYTES` long.
        MalformedCiphertext: A coefficient is not below q.
    """
    verify_wire_length(data, SEEDED_BYTES)
    return _seal_form(ring, _checked_coefficients(ring, data[SEED_BYTES:]), data[:SEED_BYTES])


def seal_from_expanded(ring: RingParameters, data: bytes) -> bytes:
    """Check a ciphertext in expanded form and return it in SEAL's uncompressed form.

    Raises:
        CiphertextSizeMismatch: Not `EXPANDED_BYTES` long.
        MalformedCiphertext: A coefficient is not below q.
    """
    verify_wire_length(data, EXPANDED_BYTES)
    return _seal_form(ring, _checked_coefficients(ring, data), None)


def seal_from_key(parameter_hash: Sequence[int], primes: Sequence[int], data: bytes) -> bytes:
    """Check a secret key and return it in SEAL's uncompressed form.

    Raises:
        HeParameterMismatch: Not `KEY_BYTES` long, zero, or a coefficient is not below its prime.
    """
    if len(data) != KEY_BYTES or not any(data):
        raise HeParameterMismatch(f"{len(data)} bytes are not a secret key of {KEY_BYTES} bytes")
    coefficients = unpack_coefficients(data)
    for part, prime in zip(coefficients.reshape(2, SLOTS), primes, strict=True):
        if int(part.max()) >= prime:
            raise HeParameterMismatch("a coefficient of a secret key is not below its prime")
    payload = struct.pack("<4QQd", *parameter_hash, 2 * SLOTS, 1.0)
    payload += _array(coefficients.astype("<u8").tobytes())
    return _header(len(payload)) + payload


def _uncompressed(saved: bytes) -> bytes:
    """Return what is inside the zstd frame (RFC 8878 section 3.1.1) that this machine's SEAL saved.

    Coefficients modulo a 60-bit prime do not compress, so zstd stores them as one raw block. Anything else
    means that the installed SEAL is not the pinned one.
    """
    head, frame = saved[: _SEAL_HEADER.size], saved[_SEAL_HEADER.size :]
    size = len(frame) - 10
    # Single segment, content size minus 256 in two bytes, no checksum; then one block: last, raw, size.
    expected = b"\x28\xb5\x2f\xfd\x60" + struct.pack("<H", size - 256) + (size << 3 | 1).to_bytes(3, "little")
    if head != _header(len(frame), _ZSTD) or frame[:10] != expected:
        raise HeParameterMismatch(
            f"SEAL wrote a ciphertext of {len(saved)} bytes in an unknown form", hint="install tenseal 0.3.18"
        )
    return frame[10:]


def _wire_form(ring: RingParameters, saved: bytes, *, seeded: bool) -> bytes:
    """Take coefficients and seed out of SEAL's form; all other bytes must be the expected constants."""
    payload = _uncompressed(saved)
    start = len(ring.prefix) + _SEAL_HEADER.size + 8
    coefficients = payload[start : start + 8 * (SLOTS if seeded else 2 * SLOTS)]
    seed = payload[-SEED_BYTES:] if seeded else b""
    if _seal_form(ring, coefficients, seed or None) != _header(len(payload)) + payload:
        raise HeParameterMismatch("SEAL wrote a ciphertext of an unknown form", hint="install tenseal 0.3.18")
    return seed + pack_coefficients(np.frombuffer(coefficients, dtype="<u8").astype(np.uint64))


def seeded_from_seal(ring: RingParameters, saved: bytes) -> bytes:
    """Return the seeded form of a fresh symmetric ciphertext as SEAL saved it."""
    return _wire_form(ring, saved, seeded=True)


def expanded_from_seal(ring: RingParameters, saved: bytes) -> bytes:
    """Return the expanded form of a ciphertext as SEAL saved it."""
    return _wire_form(ring, saved, seeded=False)
