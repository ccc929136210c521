"""The consortium's certificate authority: what it makes, and from what.

It runs where the consortium wants it, on none of the machines that train; only its certificate, the members'
certificates and its revocation lists leave it. Members make their keys themselves (`Identity.request_certificate`).
"""

import hmac
import os
from collections.abc import Iterable
from datetime import datetime
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hansa.errors import CertificateRejected, Error, InvalidValue, MessageTooLarge
from hansa.secure_agg.certificates import MAXIMUM_CERTIFICATE_BYTES, verify_authority
from hansa.secure_agg.identity import Identity, RandomBytes, verify_participant_id


class CertificateAuthority:
    """An Ed25519 key that certifies identity keys, and its self-signed certificate.

    Args:
        private: The authority's key.
        certificate: Its certificate, DER.
        random_bytes: Source of serial numbers.

    Raises:
        CertificateRejected: The certificate is not one of an authority, or not one of this key.

    Guarantees:
        - Neither repr() nor str() shows the secret.
        - What it issues passes `certificates.verify_certificate` within its validity, and holds nothing of the
          request but the name that was asked for and the key.
        - It certifies a key only to who shows that it holds the secret.
    """

    __slots__ = ("_private", "_random_bytes", "_subject", "certificate")

    def __init__(
        self, private: Ed25519PrivateKey, certificate: bytes, random_bytes: RandomBytes = os.urandom
    ) -> None:
        verify_authority(certificate)
        found = x509.load_der_x509_certificate(certificate)
        if found.public_key() != private.public_key():
            raise CertificateRejected("the authority's certificate holds another key")
        self._private, self._random_bytes, self._subject = private, random_bytes, found.subject
        self.certificate = certificate

    @classmethod
    def create(
        cls, name: str, *, not_before: datetime, not_after: datetime, random_bytes: RandomBytes = os.urandom
    ) -> Self:
        """Make a new authority.

        Args:
            name: Its common name, 1 to 64 characters.
            not_before: Begin of its validity.
            not_after: End of its validity, and of that of all that it issues.
            random_bytes: Source of its key and of serial numbers.

        Raises:
            InvalidValue: The end is not after the begin, or the name is empty or too long.
        """
        if not 1 <= len(name) <= 64:
            raise InvalidValue(f"the name of an authority has {len(name)} characters, not 1 to 64")
        private = Ed25519PrivateKey.from_private_bytes(random_bytes(32))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, subject, private.public_key(), not_before, not_after, random_bytes)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
        return cls(private, builder.sign(private, None).public_bytes(Encoding.DER), random_bytes)

    @classmethod
    def load(cls, secret: bytes, certificate: bytes, random_bytes: RandomBytes = os.urandom) -> Self:
        """Read an authority from its 32 secret bytes and its certificate."""
        return cls(Ed25519PrivateKey.from_private_bytes(secret), certificate, random_bytes)

    def sign(self, message_type: str, body: bytes) -> bytes:
        """Sign a document in the authority's name; see `Identity.sign`. Certificates begin otherwise: neither is ever the other."""
        return Identity(self._private).sign(message_type, body)

    def export(self) -> bytes:
        """Return the 32 secret bytes, for the authority's own encrypted store only."""
        return self._private.private_bytes_raw()

    def issue(self, request: bytes, *, participant: str, not_before: datetime, not_after: datetime) -> bytes:
        """Certify the key of a request.

        Args:
            request: PKCS #10 request, DER, untrusted. That it comes from this participant is for the authority to find out.
            participant: Id that the certificate will name.
            not_before: Begin of its validity.
            not_after: End of its validity.

        Returns:
            The certificate, DER.

        Raises:
            CertificateRejected: The request is not one, names another participant, holds another kind of key, or is
                not signed by it.
            MessageTooLarge: It is longer than any request.
            InvalidValue: The end is not after the begin, or later than the authority's own.
            MalformedMessage: The id is none.
        """
        verify_participant_id(participant)
        key = requested_key(request, participant)
        # Members are clients of the coordinator. A server's certificate of the same authority is no member's.
        return self.certify(
            key,
            name=participant,
            purpose=ExtendedKeyUsageOID.CLIENT_AUTH,
            not_before=not_before,
            not_after=not_after,
        )

    def certify(
        self,
        key: Ed25519PublicKey | EllipticCurvePublicKey,
        *,
        name: str,
        purpose: x509.ObjectIdentifier,
        not_before: datetime,
        not_after: datetime,
        alternative_names: Iterable[x509.GeneralName] = (),
    ) -> bytes:
        """Sign a certificate for a key. Whose key it is has been checked before: see `issue` and `federation.tls_authority`.

        Args:
            key: The public key.
            name: Common name.
            purpose: Extended key usage, for a client or a server.
            not_before: Begin of its validity.
            not_after: End of its validity.
            alternative_names: Subject alternative names.

        Returns:
            The certificate, DER.

        Raises:
            InvalidValue: The end is not after the begin, or later than the authority's own.
        """
        end = x509.load_der_x509_certificate(self.certificate).not_valid_after_utc
        if (
            not_after.utcoffset() is not None and not_after.replace(microsecond=0) > end
        ):  # X.509 has whole seconds
            raise InvalidValue("a certificate cannot outlast its authority")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._subject, key, not_before, not_after, self._random_bytes)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage("digital_signature"), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        builder = builder.add_extension(self._key_identifier(), critical=False)
        if names := list(alternative_names):
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._private, None).public_bytes(Encoding.DER)

    def revocation_list(
        self, revoked: Iterable[bytes], *, number: int, this_update: datetime, next_update: datetime
    ) -> bytes:
        """Sign the list of all certificates that are not to be accepted any more.

        Args:
            revoked: Certificates of this authority, DER.
            number: Above that of every earlier list.
            this_update: When it was made.
            next_update: When it ends; members accept no certificate by it afterwards.

        Returns:
            The list, DER.

        Raises:
            CertificateRejected: A certificate is not one of this authority.
            InvalidValue: The end is not after the begin, or the number is negative.
        """
        _verify_window(this_update, next_update)
        if number < 0:
            raise InvalidValue(f"a revocation list cannot have the number {number}")
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._subject)
        builder = builder.last_update(this_update).next_update(next_update)
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        builder = builder.add_extension(self._key_identifier(), critical=False)
        authority = x509.load_der_x509_certificate(self.certificate)
        for certificate in revoked:
            try:
                found = x509.load_der_x509_certificate(certificate)
                found.verify_directly_issued_by(authority)
            except Exception as error:  # a wrong file; whatever the parser says of it
                raise CertificateRejected("a certificate to revoke is not one of this authority") from error
            entry = x509.RevokedCertificateBuilder().serial_number(found.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(this_update).build())
        return builder.sign(self._private, None).public_bytes(Encoding.DER)

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._private.public_key())

    def __repr__(self) -> str:
        return f"CertificateAuthority({self._subject.rfc4514_string()})"


def requested_key(request: bytes, participant: str) -> Ed25519PublicKey:
    """Return the key of a request (PKCS #10, DER, untrusted); CertificateRejected or MessageTooLarge as `issue` raises them."""
    if len(request) > MAXIMUM_CERTIFICATE_BYTES:
        raise MessageTooLarge(f"a request has {len(request)} bytes, the bound is {MAXIMUM_CERTIFICATE_BYTES}")
    try:
        found = x509.load_der_x509_csr(request)
        key = found.public_key()
        names = [str(name.value) for name in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if not isinstance(key, Ed25519PublicKey) or not found.is_signature_valid:
            raise CertificateRejected(
                f"the request of {participant!r} is not signed by an Ed25519 key of its own"
            )
        if len(names) != 1 or not hmac.compare_digest(names[0].encode(), participant.encode()):
            raise CertificateRejected(f"the request of {participant!r} names {str(names)[:100]}")
    except Error:
        raise
    except Exception as error:  # whatever a parser raises on hostile bytes is the same to us
        raise CertificateRejected(f"the request of {participant!r} is not well-formed") from error
    return key


def _verify_window(begin: datetime, end: datetime) -> None:
    if begin.utcoffset() is None or end.utcoffset() is None:
        raise InvalidValue("a validity needs times with their zone")
    if end <= begin:
        raise InvalidValue(f"a validity cannot end at {end.isoformat()} and begin at {begin.isoformat()}")


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Ed25519PublicKey | EllipticCurvePublicKey,
    not_before: datetime,
    not_after: datetime,
    random_bytes: RandomBytes,
) -> x509.CertificateBuilder:
    _verify_window(not_before, not_after)
    # 159 random bits: RFC 5280 section 4.1.2.2 wants a positive number of 20 bytes at most.
    serial = int.from_bytes(random_bytes(20), "big") >> 1
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(serial).not_valid_before(not_before).not_valid_after(not_after)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _key_usage(*uses: str) -> x509.KeyUsage:
    known = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{use: use in uses for use in known})
