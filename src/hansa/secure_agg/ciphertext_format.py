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
from functools import lru_cache

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
_PAIR_BYTES = 2 * COEFFICIENT_BITS // 8
_ODD_AT = 7  # the 8 bytes from here hold the even coefficient's top 4 bits, then the odd coefficient
_ODD_SHIFT = np.uint64(4)
_EVEN_TOP_SHIFT = np.uint64(COEFFICIENT_BITS - 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class RingParameters:
    """What SEAL's form repeats of the parameters: their 256-bit hash and the data prime q."""

    parameter_hash: tuple[int, ...]
    data_prime: int

    @property
    def prefix(self) -> bytes:
        """SEAL's constant fields between the header and the coefficients."""
        return struct.pack("<4Q", *self.parameter_hash) + _SEAL_FIELDS


def _header(payload_bytes: int, compression: int = _NO_COMPRESSION) -> bytes:
    size = _SEAL_HEADER.size + payload_bytes
    return _SEAL_HEADER.pack(_SEAL_MAGIC, _SEAL_HEADER.size, *_SEAL_VERSION, compression, 0, size)


@lru_cache(maxsize=4)
def _constants(ring: RingParameters, *, seeded: bool) -> tuple[bytes, bytes]:
    """SEAL's bytes before a ciphertext's coefficients, and those between them and the seed at the end."""
    words = SLOTS if seeded else 2 * SLOTS
    head = ring.prefix + _array_head(words)
    middle = _header(1 + SEED_BYTES) + bytes([_BLAKE2XB]) if seeded else b""
    payload_bytes = len(head) + 8 * words + len(middle) + (SEED_BYTES if seeded else 0)
    return _header(payload_bytes) + head, middle


def _array_head(words: int) -> bytes:
    return _header(8 + 8 * words) + struct.pack("<Q", words)


def _words_in_pairs(data: bytes | bytearray | memoryview, start: int) -> NDArray[np.uint64]:
    """A view of 8 bytes of each 15: one word for each pair of coefficients."""
    pairs = memoryview(data).nbytes // _PAIR_BYTES
    return np.ndarray((pairs,), "<u8", data, start, (_PAIR_BYTES,))


def pack_coefficients(coefficients: NDArray[np.uint64]) -> bytes:
    """Write (k,) coefficients below 2^60, k even, as 15 bytes for each two."""
    packed = bytearray(coefficients.size // 2 * _PAIR_BYTES)
    even, odd = coefficients[0::2].copy(), coefficients[1::2] << _ODD_SHIFT
    odd |= even >> _EVEN_TOP_SHIFT
    # The second write repeats the last byte of the first.
    _words_in_pairs(packed, 0)[:] = even
    _words_in_pairs(packed, _ODD_AT)[:] = odd
    return bytes(packed)


def unpack_coefficients(data: bytes | bytearray | memoryview) -> NDArray[np.uint64]:
    """Read what `pack_coefficients` wrote; any 15 bytes are two values below 2^60."""
    even, odd = _words_in_pairs(data, 0), _words_in_pairs(data, _ODD_AT)
    coefficients = np.empty(2 * even.size, dtype=np.uint64)
    np.bitwise_and(even, _LOW_60, out=coefficients[0::2])
    np.right_shift(odd, _ODD_SHIFT, out=coefficients[1::2])
    return coefficients


def verify_wire_length(data: bytes, expected_bytes: int) -> None:
    """Raise CiphertextSizeMismatch unless a ciphertext has exactly the length of its form."""
    if len(data) != expected_bytes:
        raise CiphertextSizeMismatch(f"a ciphertext has {len(data)} bytes, its form has {expected_bytes}")


def _checked_coefficients(ring: RingParameters, data: bytes | bytearray | memoryview) -> memoryview:
    coefficients = unpack_coefficients(data)
    largest = int(coefficients.max())
    if largest >= ring.data_prime:
        raise MalformedCiphertext(f"a coefficient is {largest}, the bound is {ring.data_prime - 1}")
    return _little_endian(coefficients)


def _little_endian(words: NDArray[np.uint64]) -> memoryview:
    """The bytes of words as SEAL stores them; no copy where the machine stores them alike."""
    return words.astype("<u8", copy=False).data


def seal_from_seeded(ring: RingParameters, data: bytes) -> bytes:
    """Check a ciphertext in seeded form and return it in SEAL's uncompressed form.

    Raises:
        CiphertextSizeMismatch: Not `SEEDED_BYTES` long.
        MalformedCiphertext: A coefficient is not below q.
    """
    verify_wire_length(data, SEEDED_BYTES)
    view, (head, middle) = memoryview(data), _constants(ring, seeded=True)
    return b"".join((head, _checked_coefficients(ring, view[SEED_BYTES:]), middle, view[:SEED_BYTES]))


def seal_from_expanded(ring: RingParameters, data: bytes) -> bytes:
    """Check a ciphertext in expanded form and return it in SEAL's uncompressed form.

    Raises:
        CiphertextSizeMismatch: Not `EXPANDED_BYTES` long.
        MalformedCiphertext: A coefficient is not below q.
    """
    verify_wire_length(data, EXPANDED_BYTES)
    head, _ = _constants(ring, seeded=False)
    return b"".join((head, _checked_coefficients(ring, data)))


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
    head = struct.pack("<4QQd", *parameter_hash, 2 * SLOTS, 1.0) + _array_head(2 * SLOTS)
    return b"".join((_header(len(head) + 8 * coefficients.size), head, _little_endian(coefficients)))


def _zstd_head(payload_bytes: int) -> bytes:
    """What this machine's SEAL writes before the payload: its header and the head of a zstd frame (RFC 8878 section 3.1.1).

    Coefficients modulo a 60-bit prime do not compress, so zstd stores them as one raw block.
    """
    # Single segment, content size minus 256 in two bytes, no checksum; then one block: last, raw, size.
    frame = b"\x28\xb5\x2f\xfd\x60" + struct.pack("<H", payload_bytes - 256)
    frame += (payload_bytes << 3 | 1).to_bytes(3, "little")
    return _header(len(frame) + payload_bytes, _ZSTD) + frame


def _wire_form(ring: RingParameters, saved: bytes, *, seeded: bool) -> bytes:
    """Take coefficients and seed out of SEAL's form; all other bytes must be the expected constants.

    Other bytes mean that the installed SEAL is not the pinned one.
    """
    head, middle = _constants(ring, seeded=seeded)
    words, seed_bytes = (SLOTS, SEED_BYTES) if seeded else (2 * SLOTS, 0)
    inner = head[_SEAL_HEADER.size :]
    head = _zstd_head(len(inner) + 8 * words + len(middle) + seed_bytes) + inner
    end = len(head) + 8 * words
    seed_at = end + len(middle)
    if len(saved) != seed_at + seed_bytes or saved[: len(head)] != head or saved[end:seed_at] != middle:
        raise HeParameterMismatch(
            f"SEAL wrote a ciphertext of {len(saved)} bytes in an unknown form", hint="install tenseal 0.3.18"
        )
    coefficients = np.frombuffer(saved, dtype="<u8", count=words, offset=len(head))
    return saved[seed_at:] + pack_coefficients(coefficients.astype(np.uint64))


def seeded_from_seal(ring: RingParameters, saved: bytes) -> bytes:
    """Return the seeded form of a fresh symmetric ciphertext as SEAL saved it."""
    return _wire_form(ring, saved, seeded=True)


def expanded_from_seal(ring: RingParameters, saved: bytes) -> bytes:
    """Return the expanded form of a ciphertext as SEAL saved it."""
    return _wire_form(ring, saved, seeded=False)
