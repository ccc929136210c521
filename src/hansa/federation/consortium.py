"""What every party pins of a consortium: its name and its authority, in one fingerprint that people compare by telephone."""

import hmac
import re
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hansa import labels
from hansa.errors import DocumentRejected, FingerprintMismatch, InvalidValue, UsageError
from hansa.secure_agg.certificates import verify_authority
from hansa.secure_agg.derivation import labelled_hash

FINGERPRINT_BYTES = 32
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_GROUP = 4  # digits that are read out in one breath


@dataclass(frozen=True, slots=True, kw_only=True)
class Consortium:
    """The pinned identity of a consortium.

    Args:
        name: Its short name: a-z, 0-9 and -
        authority: Certificate of its authority, DER.

    Attributes:
        fingerprint: SHA-256 over label, name and certificate, 32 bytes.

    Raises:
        InvalidValue: The name is none.
        CertificateRejected, MessageTooLarge: The certificate is not one of an authority; its validity is checked when it is used.

    Guarantees:
        - Two consortia that differ in name or certificate have different fingerprints.
    """

    name: str
    authority: bytes = field(repr=False)
    fingerprint: bytes = field(init=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidValue(
                f"the name of a consortium is {self.name[:80]!r}, not 1 to 63 of a-z, 0-9 and -",
                hint="choose a short name, such as northern-banks",
            )
        verify_authority(self.authority)
        found = labelled_hash(labels.CONSORTIUM, self.name.encode(), self.authority)
        object.__setattr__(self, "fingerprint", found)

    @property
    def authority_key(self) -> bytes:
        """The authority's Ed25519 public key, 32 bytes."""
        key = x509.load_der_x509_certificate(self.authority).public_key()
        if not isinstance(key, Ed25519PublicKey):  # `verify_authority` has refused any other
            raise DocumentRejected("the authority has another kind of key")
        return key.public_bytes_raw()

    def verify_own(self, fingerprint: bytes, title: str) -> None:
        """Raise DocumentRejected if a document, by the fingerprint in it, is for another consortium."""
        if not hmac.compare_digest(fingerprint, self.fingerprint):
            raise DocumentRejected(f"the {title} is for another consortium than {self.name!r}")


def fingerprint_text(fingerprint: bytes) -> str:
    """Spell a fingerprint for people: hexadecimal digits in groups of four."""
    digits = fingerprint.hex()
    return "-".join(digits[at : at + _GROUP] for at in range(0, len(digits), _GROUP))


def read_fingerprint(text: str) -> bytes:
    """Read a fingerprint that somebody typed: all 64 digits; hyphens, spaces, colons and capitals do not count.

    Raises:
        UsageError: There are not exactly 64 hexadecimal digits.
    """
    digits = re.sub(r"[-: ]", "", text[:1000].strip()).lower()
    if not re.fullmatch(rf"[0-9a-f]{{{2 * FINGERPRINT_BYTES}}}", digits, re.ASCII):
        raise UsageError(
            f"a fingerprint has {2 * FINGERPRINT_BYTES} hexadecimal digits, not {text[:100]!r}",
            hint="give all of it, not only its beginning",
        )
    return bytes.fromhex(digits)


def verify_fingerprint(given: bytes, found: bytes, *, what: str) -> None:
    """Compare a fingerprint that somebody read out with the one that was found, in constant time.

    Raises:
        FingerprintMismatch: They differ.
    """
    if not hmac.compare_digest(given, found):
        # What was found is not shown: whoever copies it from the message has compared nothing.
        raise FingerprintMismatch(f"the fingerprint of {what} is not {fingerprint_text(given)}")
