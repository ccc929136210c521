"""X.509 certificates (RFC 5280) of a consortium: which of them a member accepts, and which are revoked.

A consortium that has an authority pins its certificate in the roster, beside the members' identity keys. A member is
then who the roster *and* a valid certificate say: the roster alone decides who takes part, the certificate lets the
authority set an end to it. Making certificates is `certificate_authority.py`.

All checks are local: clock and revocation list are handed in.
"""

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID, SignatureAlgorithmOID

from hansa import labels
from hansa.errors import CertificateRejected, Error, InvalidValue, MessageTooLarge
from hansa.secure_agg.derivation import labelled_hash

MAXIMUM_CERTIFICATE_BYTES = 2048
MAXIMUM_REVOCATION_LIST_BYTES = 65536
CLOCK_SKEW = timedelta(minutes=5)  # how far two honest clocks may be apart

_CLOCK_HINT = (
    "compare this machine's clock; if it is right, the authority must issue a new one for the same key"
)
_LIST_HINT = "fetch the authority's latest revocation list; an older one may hide that a key was stolen"
_CRITICAL = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE}
_USES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign",
)  # fmt: skip


def utc_now() -> datetime:
    """Return the system's time, for whoever is not handed another clock."""
    return datetime.now(UTC)


def authority_hash(authority: bytes) -> bytes:
    """Return what a manifest says of the pinned authority: 32 bytes over its DER, or nothing where there is none."""
    return labelled_hash(labels.AUTHORITY, authority) if authority else b""


def verify_authority(authority: bytes) -> None:
    """Check that DER bytes are a certificate that a roster may pin as its authority. Its validity is checked when it is used.

    Raises:
        CertificateRejected: It is not a self-signed Ed25519 certificate of an authority with path length 0, for
            signing certificates and revocation lists only.
        MessageTooLarge: It is longer than any such certificate.
    """
    _read_authority(authority)


def verify_certificate(
    certificate: bytes,
    *,
    authority: bytes,
    participant: str,
    identity_key: bytes,
    now: datetime,
    revoked: "RevocationList | None" = None,
) -> None:
    """Check that a certificate is one of the pinned authority for this participant and its pinned key.

    Args:
        certificate: DER, untrusted; empty where the consortium has no authority.
        authority: DER of the pinned authority, empty where there is none.
        participant: Id that the certificate must name.
        identity_key: Pinned Ed25519 key, 32 bytes, that it must hold.
        now: The time, with its zone.
        revoked: The authority's revocation list, where the consortium uses one; it must be current.

    Raises:
        CertificateRejected: Anything is not as it must be.
        MessageTooLarge: It is longer than `MAXIMUM_CERTIFICATE_BYTES`; it was not parsed.
        InvalidValue: The clock gives a time without a zone, or the list is one for another authority.

    Guarantees:
        - Whatever the bytes are, nothing else is raised.
        - Without an authority only the empty certificate passes, with one only a certificate.
        - A validity that ended, or begins, up to `CLOCK_SKEW` from now passes; beyond it does not.
    """
    if not authority:
        if certificate:
            raise CertificateRejected(
                f"{participant!r} shows a certificate, and the roster pins no authority"
            )
        return
    what = f"the certificate of {participant!r}"
    if not certificate:
        raise CertificateRejected(f"{participant!r} shows no certificate, and the roster pins an authority")
    with refusing(what):
        found = read_issued(
            certificate, authority=authority, what=what, purpose=ExtendedKeyUsageOID.CLIENT_AUTH, now=now
        )
        if common_names(found) != [participant]:
            raise CertificateRejected(f"{what} names {str(common_names(found))[:100]}")
        if not hmac.compare_digest(_ed25519(found).public_bytes_raw(), identity_key):
            raise CertificateRejected(f"{what} holds another key than the one that the roster pins")
    if revoked is not None:
        if revoked.authority != authority:
            raise InvalidValue("the revocation list is kept for another authority than the roster pins")
        revoked.verify_not_revoked(found.serial_number, now)


def read_issued(
    certificate: bytes, *, authority: bytes, what: str, purpose: x509.ObjectIdentifier, now: datetime
) -> x509.Certificate:
    """Check what is common to all certificates of a pinned authority, whatever key they hold, and return it parsed.

    Args:
        certificate: DER, untrusted.
        authority: DER of the pinned authority.
        what: Names the certificate in errors.
        purpose: The extended key usage that it must have.
        now: The time, with its zone.

    Raises:
        CertificateRejected: It is not issued by the authority, not valid now, or not for this purpose.
        MessageTooLarge: It is longer than `MAXIMUM_CERTIFICATE_BYTES`; it was not parsed.
        InvalidValue: The clock gives a time without a zone.
    """
    issuer = _read_authority(authority)
    with refusing(what):
        found = _load(certificate, what)
        _verify_issued(found, issuer, what)
        _verify_validity(what, found.not_valid_before_utc, found.not_valid_after_utc, now)
        _verify_validity("the authority", issuer.not_valid_before_utc, issuer.not_valid_after_utc, now)
        _verify_uses(found, what, ["digital_signature"], is_authority=False)
        if purpose not in found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value:
            kind = "client" if purpose == ExtendedKeyUsageOID.CLIENT_AUTH else "server"
            raise CertificateRejected(f"{what} is not for a {kind}")
    return found


def common_names(certificate: x509.Certificate) -> list[str]:
    """Return every common name of a certificate's subject."""
    return [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


class RevocationList:
    """The latest list of revoked certificates (RFC 5280 section 5) that a party has seen from the pinned authority.

    Args:
        authority: DER of the pinned authority.
        encoded: `encoded` of an earlier object, from the party's own storage. Its age is not checked before it is
            used, so that the number is remembered although the list has ended.

    Raises:
        CertificateRejected: `encoded` is not a list of this authority.
        MessageTooLarge: It is longer than any list.

    Guarantees:
        - The number never goes back, and one number never stands for two lists.
        - Before there is a current list no certificate passes: a list that is withheld revokes all.
    """

    def __init__(self, authority: bytes, encoded: bytes = b"") -> None:
        _read_authority(authority)
        self.authority, self.encoded, self.number = authority, b"", -1
        self._serials: frozenset[int] = frozenset()
        self._window: tuple[datetime, datetime] | None = None
        if encoded:
            self._take(encoded, None)

    def update(self, encoded: bytes, now: datetime) -> None:
        """Take a list that came from anywhere.

        Args:
            encoded: DER, untrusted.
            now: The time, with its zone.

        Raises:
            CertificateRejected: It is not signed by the authority, ended, of the future, older than the one known, or
                another one of the same number. The known one stands.
            MessageTooLarge: It is longer than `MAXIMUM_REVOCATION_LIST_BYTES`.
            InvalidValue: The clock gives a time without a zone.
        """
        self._take(encoded, now)

    def verify_not_revoked(self, serial: int, now: datetime) -> None:
        """Raise CertificateRejected if a serial number is on the list, or if there is no list for this time."""
        if self._window is None:
            raise CertificateRejected("no revocation list of the authority is known", hint=_LIST_HINT)
        _verify_validity("the revocation list", *self._window, now, hint=_LIST_HINT)
        if serial in self._serials:
            raise CertificateRejected(f"the certificate with serial number {serial:x} is revoked")

    def _take(self, encoded: bytes, now: datetime | None) -> None:
        what = "the revocation list"
        issuer = _read_authority(self.authority)
        if len(encoded) > MAXIMUM_REVOCATION_LIST_BYTES:
            raise MessageTooLarge(
                f"{what} has {len(encoded)} bytes, the bound is {MAXIMUM_REVOCATION_LIST_BYTES}"
            )
        with refusing(what):
            found = x509.load_der_x509_crl(encoded)
            if found.issuer != issuer.subject or not found.is_signature_valid(_ed25519(issuer)):
                raise CertificateRejected(f"{what} is not signed by the pinned authority", hint=_LIST_HINT)
            _verify_known(found.extensions, what)
            for entry in found:
                _verify_known(entry.extensions, what)
            if found.next_update_utc is None:
                raise CertificateRejected(f"{what} has no end", hint=_LIST_HINT)
            window = (found.last_update_utc, found.next_update_utc)
            if now is not None:
                _verify_validity(what, *window, now, hint=_LIST_HINT)
            number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
            serials = frozenset(entry.serial_number for entry in found)
        if number < self.number or (number == self.number and encoded != self.encoded):
            raise CertificateRejected(
                f"{what} {number} is not the list {self.number} that is known, and not later", hint=_LIST_HINT
            )
        self.encoded, self.number, self._serials, self._window = encoded, number, serials, window


# -- inside ----------------------------------------------------------------------------------------------


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever a parser raises on hostile bytes, at once or at a later look, into one error."""
    try:
        yield
    except Error:
        raise
    except x509.ExtensionNotFound as error:
        raise CertificateRejected(f"{what} has no extension {error.oid.dotted_string}") from error
    except Exception as error:
        raise CertificateRejected(f"{what} is not well-formed") from error


def _load(certificate: bytes, what: str) -> x509.Certificate:
    if len(certificate) > MAXIMUM_CERTIFICATE_BYTES:
        raise MessageTooLarge(
            f"{what} has {len(certificate)} bytes, the bound is {MAXIMUM_CERTIFICATE_BYTES}"
        )
    found = x509.load_der_x509_certificate(certificate)
    if found.version != x509.Version.v3 or found.signature_algorithm_oid != SignatureAlgorithmOID.ED25519:
        raise CertificateRejected(f"{what} is not an X.509 version 3 certificate signed with Ed25519")
    _verify_known(found.extensions, what)
    return found


def _read_authority(authority: bytes) -> x509.Certificate:
    what = "the authority's certificate"
    with refusing(what):
        found = _load(authority, what)
        _verify_issued(found, found, what)
        _verify_uses(found, what, ["key_cert_sign", "crl_sign"], is_authority=True)
    return found


def _ed25519(certificate: x509.Certificate) -> Ed25519PublicKey:
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise CertificateRejected("a certificate holds a key that is not an Ed25519 key")
    return key


def _verify_issued(found: x509.Certificate, issuer: x509.Certificate, what: str) -> None:
    try:
        found.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise CertificateRejected(f"{what} is not issued by the pinned authority") from error


def _verify_validity(
    what: str, begin: datetime, end: datetime, now: datetime, *, hint: str = _CLOCK_HINT
) -> None:
    if now.utcoffset() is None:
        raise InvalidValue("a clock gives a time without its zone")
    if now < begin - CLOCK_SKEW:
        raise CertificateRejected(
            f"{what} is valid from {begin.isoformat()} on, it is {now.isoformat()}", hint=hint
        )
    if now > end + CLOCK_SKEW:
        raise CertificateRejected(
            f"{what} was valid until {end.isoformat()}, it is {now.isoformat()}", hint=hint
        )


def _verify_uses(found: x509.Certificate, what: str, uses: list[str], *, is_authority: bool) -> None:
    """Check basic constraints and key usage: exactly these uses, and an authority exactly if it must be one."""
    constraints = found.extensions.get_extension_for_class(x509.BasicConstraints).value
    if constraints != x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None):
        kind = "an authority of path length 0" if is_authority else "a member that is no authority"
        raise CertificateRejected(f"{what} has not the basic constraints of {kind}")
    usage = found.extensions.get_extension_for_class(x509.KeyUsage).value
    if [use for use in _USES if getattr(usage, use)] != uses:
        raise CertificateRejected(f"{what} is not for exactly {' and '.join(uses)}")


def _verify_known(extensions: x509.Extensions, what: str) -> None:
    """Refuse critical extensions that nobody here looks at."""
    unknown = [
        extension.oid for extension in extensions if extension.critical and extension.oid not in _CRITICAL
    ]
    if unknown:
        raise CertificateRejected(f"{what} has an unknown critical extension {unknown[0].dotted_string}")
