"""BFV encryption under one key that all participants hold, and sums of ciphertexts without it.

Fan and Vercauteren, "Somewhat Practical Fully Homomorphic Encryption" (eprint 2012/144), in the secret-key
form, through Microsoft SEAL (tenseal.sealapi). SEAL draws keys and noise from the operating system itself.
Linux only: SEAL saves to and loads from a path, and the path is an anonymous file in memory.

BFV is not secure against chosen ciphertexts: whoever learns the decryption of a crafted ciphertext learns the
key. No decrypted value and no reason of a failed decryption may go back to the coordinator. Ciphertexts are
not authenticated either: that an aggregate is the sum of the uploads is what the tag inside it shows
(`tag.py`).
"""

import os
import threading
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tenseal import sealapi

from hansa import labels
from hansa.errors import (
    HeParameterMismatch,
    MalformedCiphertext,
    OutOfOrder,
    UpdateOutOfRange,
    UpdateShapeMismatch,
)
from hansa.secure_agg.ciphertext_format import (
    RingParameters,
    expanded_from_seal,
    pack_coefficients,
    seal_from_expanded,
    seal_from_key,
    seal_from_seeded,
    seeded_from_seal,
)
from hansa.secure_agg.derivation import labelled_hash
from hansa.secure_agg.parameters import COEFFICIENT_MODULUS_BITS, PLAIN_MODULUS, SLOTS


class _Scheme:
    """The one parameter set: SEAL's context, which holds no key, and what the wire form needs of it."""

    def __init__(self) -> None:
        parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.BFV)
        parameters.set_poly_modulus_degree(SLOTS)
        primes = sealapi.CoeffModulus.Create(SLOTS, list(COEFFICIENT_MODULUS_BITS))
        parameters.set_coeff_modulus(primes)
        parameters.set_plain_modulus(PLAIN_MODULUS)
        self.context = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.TC128)
        self.encoder = sealapi.BatchEncoder(self.context)
        self.evaluator = sealapi.Evaluator(self.context)
        self.parameter_hash = list(self.context.first_parms_id())
        self.ring = RingParameters(parameter_hash=tuple(self.parameter_hash), data_prime=primes[0].value())
        self.key_primes = tuple(prime.value() for prime in primes)
        self.key_parameter_hash = tuple(self.context.key_parms_id())


@lru_cache(maxsize=1)
def _scheme() -> _Scheme:
    return _Scheme()


class _MemoryFile:
    """An anonymous file in memory, through which objects go into SEAL and come out of it."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("hansa-seal", os.MFD_CLOEXEC)
        self._path = f"/proc/self/fd/{self._descriptor}"

    def __del__(self) -> None:
        os.close(self._descriptor)

    def save(self, native: Any) -> bytes:
        native.save(self._path)
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    def load(self, native: Any, data: bytes) -> None:
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))  # nothing of an earlier, longer object behind this one
        native.load(_scheme().context, self._path)


class _ThreadFile(threading.local):
    """One file for all ciphertexts of a thread: a new one costs as much as reading a ciphertext from it."""

    def __init__(self) -> None:
        self.file = _MemoryFile()


_thread_file = _ThreadFile()


def _take_new_file() -> None:
    _thread_file.file = _MemoryFile()


# Parent and child would write over each other; of the parent's threads only the one that forks lives in the child.
os.register_at_fork(after_in_child=_take_new_file)


def _save(native: Any) -> bytes:
    return _thread_file.file.save(native)


def _load(native: Any, data: bytes) -> None:
    _thread_file.file.load(native, data)


def _load_key(native: Any, data: bytes) -> None:
    _MemoryFile().load(native, data)  # its own file, gone afterwards: a key would stay in the thread's


def _load_ciphertext(data: bytes) -> Any:
    scheme = _scheme()
    ciphertext = sealapi.Ciphertext(scheme.context)
    try:
        _load(ciphertext, data)
        # Our own bytes around checked coefficients leave only transparency open; the rest costs nothing to
        # repeat.
        sound = (
            ciphertext.size() == 2
            and not ciphertext.is_ntt_form()
            and not ciphertext.is_transparent()
            and ciphertext.coeff_modulus_size() == 1
            and ciphertext.poly_modulus_degree() == SLOTS
            and list(ciphertext.parms_id()) == scheme.parameter_hash
        )
    except Exception as error:  # the binding maps C++ exceptions to several types
        raise MalformedCiphertext("SEAL refuses a ciphertext") from error
    if not sound:
        raise MalformedCiphertext("a ciphertext is transparent or not of our parameters")
    return ciphertext


def parse_seeded(data: bytes) -> Any:
    """Read a ciphertext in seeded form from untrusted bytes.

    Raises:
        CiphertextSizeMismatch: Not exactly 30784 bytes.
        MalformedCiphertext: A coefficient is not below q, or SEAL refuses it.

    Guarantees:
        - Any other bytes end in one of these two errors, and nothing is printed.
    """
    return _load_ciphertext(seal_from_seeded(_scheme().ring, data))


def parse_expanded(data: bytes) -> Any:
    """Read a ciphertext in expanded form (an aggregate) from untrusted bytes.

    Raises:
        CiphertextSizeMismatch: Not exactly 61440 bytes.
        MalformedCiphertext: A coefficient is not below q, the ciphertext is transparent (its c1 is zero), or
            SEAL refuses it.

    Guarantees:
        - Any other bytes end in one of these two errors, and nothing is printed.
    """
    return _load_ciphertext(seal_from_expanded(_scheme().ring, data))


class HeKey:
    """The secret key that the participants share and the coordinator never sees.

    Attributes:
        key_id: 32 bytes, a hash of the key that may be public: the key has thousands of bits of entropy.

    Guarantees:
        - decrypt(sum of encrypt(x_i)) = sum of x_i modulo t, exactly, for up to 258 terms.
        - repr() shows no secret; the object cannot be pickled.
    """

    __slots__ = ("_decryptor", "_encryptor", "_serialised", "key_id")

    def __init__(self, serialised: bytes) -> None:
        scheme, secret = _scheme(), sealapi.SecretKey()
        try:
            _load_key(secret, seal_from_key(scheme.key_parameter_hash, scheme.key_primes, serialised))
            self._encryptor = sealapi.Encryptor(_scheme().context, secret)
            self._decryptor = sealapi.Decryptor(_scheme().context, secret)
        except Exception as error:  # the binding maps C++ exceptions to several types
            raise HeParameterMismatch("bytes are not a secret key for our parameters") from error
        self._serialised = serialised
        self.key_id = labelled_hash(labels.HE_KEY_ID, serialised)

    @classmethod
    def generate(cls) -> Self:
        """Make a new key."""
        # SEAL's views do not keep what they look into alive, so each owner has a name.
        generator = sealapi.KeyGenerator(_scheme().context)
        secret = generator.secret_key()
        plain = secret.data()
        values = plain.dyn_array()
        coefficients = np.array([values.at(place) for place in range(2 * SLOTS)], dtype=np.uint64)
        return cls(pack_coefficients(coefficients))

    @classmethod
    def load(cls, serialised: bytes) -> Self:
        """Read a key that `export` wrote; the bytes may come from another member.

        Raises:
            HeParameterMismatch: Not 61440 bytes, or a coefficient is not below its prime.
        """
        return cls(serialised)

    def export(self) -> bytes:
        """Return the secret key, 61440 bytes, for an encrypted store or a seal only."""
        return self._serialised

    def encrypt(self, slots: NDArray[np.uint64]) -> bytes:
        """Encrypt one plaintext with fresh randomness.

        Args:
            slots: (4096,) uint64 below t.

        Returns:
            The seeded form, 30784 bytes.

        Raises:
            UpdateShapeMismatch: Not (4096,) uint64.
            UpdateOutOfRange: A slot is not below t.
        """
        if slots.shape != (SLOTS,) or slots.dtype != np.uint64:
            raise UpdateShapeMismatch(
                f"a plaintext of shape {slots.shape} and type {slots.dtype} is not (4096,) uint64"
            )
        largest = int(slots.max())
        if largest >= PLAIN_MODULUS:
            raise UpdateOutOfRange(f"a slot is {largest}, the bound is {PLAIN_MODULUS - 1}")
        plain = sealapi.Plaintext()
        _scheme().encoder.encode(slots.data.tolist(), plain)  # half the time of slots.tolist()
        return seeded_from_seal(_scheme().ring, _save(self._encryptor.encrypt_symmetric(plain)))

    def decrypt(self, ciphertext: bytes) -> NDArray[np.uint64]:
        """Decrypt a ciphertext in expanded form.

        Args:
            ciphertext: Untrusted bytes.

        Returns:
            (4096,) uint64 below t. A ciphertext under another key decrypts to noise: check the range of the
            result.

        Raises:
            CiphertextSizeMismatch, MalformedCiphertext: See `parse_expanded`.
        """
        native = parse_expanded(ciphertext)
        plain = sealapi.Plaintext()
        self._decryptor.decrypt(native, plain)
        return np.fromiter(_scheme().encoder.decode_uint64(plain), np.uint64, SLOTS)

    def __reduce__(self) -> str:
        raise TypeError("an HE key is not pickled; use export and load")

    def __repr__(self) -> str:
        return f"HeKey(key_id={self.key_id.hex()[:16]}...)"


class CiphertextSum:
    """A running sum of ciphertexts. It holds no key and cannot decrypt.

    Guarantees:
        - A ciphertext that is refused leaves the sum as it was.
    """

    __slots__ = ("_total", "terms")

    def __init__(self) -> None:
        self._total: Any = None
        self.terms = 0

    def add(self, ciphertext: bytes) -> None:
        """Add a ciphertext in seeded form, untrusted; see `parse_seeded` for errors."""
        self.add_parsed(parse_seeded(ciphertext))

    def add_parsed(self, ciphertext: Any) -> None:
        """Add a ciphertext that `parse_seeded` returned; the caller gives it away."""
        if self._total is None:
            self._total = ciphertext
        else:
            _scheme().evaluator.add_inplace(self._total, ciphertext)
        self.terms += 1

    def subtract(self, ciphertext: bytes) -> None:
        """Take out a ciphertext in seeded form that was added before; the sum is then what it was, bit for bit."""
        parsed = parse_seeded(ciphertext)
        if self.terms <= 1:
            self._total = None  # nothing is left; SEAL would refuse the zero that remains as transparent
        else:
            _scheme().evaluator.sub_inplace(self._total, parsed)
        self.terms = max(self.terms - 1, 0)

    def serialise(self) -> bytes:
        """Return the sum in expanded form, 61440 bytes; OutOfOrder if nothing was added."""
        if self._total is None:
            raise OutOfOrder("no ciphertext was added to this sum")
        return expanded_from_seal(_scheme().ring, _save(self._total))
