"""TLS certificates of a consortium: P-256 keys under the same Ed25519 authority that certifies identities.

gRPC's TLS stack (BoringSSL) checks chains that an Ed25519 authority has signed, and uses no Ed25519 key in a handshake. So
every party has a second key for TLS (RFC 5480, secp256r1), with a certificate of its own. There is one authority and one
revocation list (RFC 5280 section 5) for both kinds.

    client   CN = participant id, SAN = URI urn:hansa:participant:<id>, for client authentication only
    server   SAN = host names and addresses, for server authentication only

The URI is there because gRPC takes a common name for a host name where a certificate has no alternative name at all.
"""

import ipaddress
import re
from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hansa.errors import CertificateRejected, InvalidValue, MessageTooLarge
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import (
    MAXIMUM_CERTIFICATE_BYTES,
    RevocationList,
    common_names,
    read_issued,
    refusing,
)
from hansa.secure_agg.identity import verify_participant_id

PARTICIPANT_URI = "urn:hansa:participant:"
_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*"
)


def new_tls_key() -> bytes:
    """Make a P-256 key and return it as PKCS #8 in PEM, unencrypted: for a file that only its owner can read."""
    key = generate_private_key(SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def request_tls_certificate(key: bytes, name: str) -> bytes:
    """Return a certificate signing request (PKCS #10, DER) for a key of `new_tls_key`.

    Raises:
        InvalidValue: The bytes are no P-256 key in PEM, or the name is not 1 to 64 characters long.
    """
    if not 1 <= len(name) <= 64:
        raise InvalidValue(f"a name in a certificate has {len(name)} characters, not 1 to 64")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(load_tls_key(key), SHA256())
    return request.public_bytes(Encoding.DER)


def load_tls_key(key: bytes) -> EllipticCurvePrivateKey:
    """Read a key of `new_tls_key`; InvalidValue if it is not one."""
    try:
        found = load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise InvalidValue("a TLS key is not an unencrypted private key in PEM") from error
    if not isinstance(found, EllipticCurvePrivateKey) or not isinstance(found.curve, SECP256R1):
        raise InvalidValue("a TLS key is not on the curve P-256")
    return found


def issue_client_certificate(
    authority: CertificateAuthority,
    request: bytes,
    *,
    participant: str,
    not_before: datetime,
    not_after: datetime,
) -> bytes:
    """Certify a participant's TLS key.

    Args:
        authority: The consortium's.
        request: PKCS #10 request, DER, untrusted. That it comes from this participant is for the authority to find out.
        participant: Id that the certificate will name.
        not_before: Begin of its validity. TLS stacks allow no skew between clocks, so ten minutes ago is better than now.
        not_after: End of its validity.

    Returns:
        The certificate, DER.

    Raises:
        CertificateRejected: The request is not one of a P-256 key, or names another participant.
        MessageTooLarge: It is longer than any request.
        InvalidValue: The end is not after the begin, or later than the authority's own.
        MalformedMessage: The id is none.
    """
    verify_participant_id(participant)
    return authority.certify(
        requested_tls_key(request, participant),
        name=participant,
        purpose=ExtendedKeyUsageOID.CLIENT_AUTH,
        not_before=not_before,
        not_after=not_after,
        alternative_names=[x509.UniformResourceIdentifier(PARTICIPANT_URI + participant)],
    )


def issue_server_certificate(
    authority: CertificateAuthority,
    request: bytes,
    *,
    name: str,
    hosts: Sequence[str],
    not_before: datetime,
    not_after: datetime,
) -> bytes:
    """Certify the TLS key of a server that participants reach under `hosts`, DNS names and IP addresses; as for a client."""
    return authority.certify(
        requested_tls_key(request, name),
        name=name,
        purpose=ExtendedKeyUsageOID.SERVER_AUTH,
        not_before=not_before,
        not_after=not_after,
        alternative_names=[_host_name(host) for host in hosts] if hosts else _no_hosts(),
    )


def verify_client_certificate(
    certificate: bytes, *, authority: bytes, now: datetime, revoked: RevocationList | None
) -> str:
    """Check a participant's TLS certificate and return the participant that it names.

    Args:
        certificate: DER, untrusted.
        authority: DER of the pinned authority.
        now: The time, with its zone.
        revoked: The authority's revocation list, where the consortium uses one; it must be current.

    Raises:
        CertificateRejected: It is not a valid one of this authority for a participant's P-256 key, or is revoked.
        MessageTooLarge: It is longer than any certificate.
        InvalidValue: The clock gives a time without a zone.

    Guarantees:
        - A certificate for an identity key, of a server or of the authority itself does not pass.
    """
    what = "a TLS certificate of a client"
    with refusing(what):
        found = read_issued(
            certificate, authority=authority, what=what, purpose=ExtendedKeyUsageOID.CLIENT_AUTH, now=now
        )
        _verify_tls_key(found, what)
        names = common_names(found)
        others = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = others.get_values_for_type(x509.UniformResourceIdentifier)
        if len(names) != 1 or len(others) != 1 or uris != [PARTICIPANT_URI + names[0]]:
            raise CertificateRejected(f"{what} names {str(names)[:100]} and {str(uris)[:100]}")
        verify_participant_id(names[0])
    if revoked is not None:
        revoked.verify_not_revoked(found.serial_number, now)
    return names[0]


def verify_server_certificate(
    certificate: bytes, *, authority: bytes, now: datetime, revoked: RevocationList | None
) -> None:
    """Check a server's own TLS certificate before it is used; raises as `verify_client_certificate`."""
    what = "the TLS certificate of the server"
    with refusing(what):
        found = read_issued(
            certificate, authority=authority, what=what, purpose=ExtendedKeyUsageOID.SERVER_AUTH, now=now
        )
        _verify_tls_key(found, what)
    if revoked is not None:
        revoked.verify_not_revoked(found.serial_number, now)


def to_pem(certificate: bytes) -> bytes:
    """Return a certificate in PEM, from DER."""
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)


def from_pem(certificate: bytes) -> bytes:
    """Return the one certificate of a PEM text in DER; CertificateRejected if there is none, or more than one."""
    with refusing("a certificate in PEM"):
        found = x509.load_pem_x509_certificates(certificate)
        if len(found) != 1:
            raise CertificateRejected(f"a certificate in PEM stands alone, here are {len(found)}")
        return found[0].public_bytes(Encoding.DER)


# -- inside ----------------------------------------------------------------------------------------------


def requested_tls_key(request: bytes, name: str) -> EllipticCurvePublicKey:
    """Return the key of a request (PKCS #10, DER, untrusted); raises as `issue_client_certificate`."""
    what = f"the TLS request of {name!r}"
    if len(request) > MAXIMUM_CERTIFICATE_BYTES:
        raise MessageTooLarge(f"{what} has {len(request)} bytes, the bound is {MAXIMUM_CERTIFICATE_BYTES}")
    with refusing(what):
        found = x509.load_der_x509_csr(request)
        key = found.public_key()
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
            raise CertificateRejected(f"{what} holds no P-256 key")
        if not found.is_signature_valid:
            raise CertificateRejected(f"{what} is not signed by its own key")
        names = [str(part.value) for part in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if names != [name]:
            raise CertificateRejected(f"{what} names {str(names)[:100]}")
    return key


def _verify_tls_key(certificate: x509.Certificate, what: str) -> None:
    key = certificate.public_key()
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise CertificateRejected(f"{what} holds no P-256 key")


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(host):
        raise InvalidValue(
            f"{host[:80]!r} is neither an IP address nor a DNS name in lower case without wildcards"
        )
    return x509.DNSName(host)


def _no_hosts() -> list[x509.GeneralName]:
    raise InvalidValue("a server's certificate needs a host name or an address")
