"""Authors: who may propose studies and command them, by a certificate of the consortium's authority.

An author's certificate is for signing documents (RFC 9336, id-kp-documentSigning) and for nothing else: it opens no connection and
is no member's, and a member's certificate makes no author. Authors and members stand on the same revocation list.
"""

import hmac
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hansa.errors import CertificateRejected
from hansa.secure_agg.certificate_authority import CertificateAuthority, requested_key
from hansa.secure_agg.certificates import RevocationList, common_names, read_issued, refusing

DOCUMENT_SIGNING = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")


def issue_author_certificate(
    authority: CertificateAuthority, request: bytes, *, author: str, not_before: datetime, not_after: datetime
) -> bytes:
    """Certify an author's key.

    Args:
        authority: The consortium's.
        request: PKCS #10 request of an Ed25519 key, DER, untrusted. That it comes from this author is for the caller to find out.
        author: Name that the certificate will have.
        not_before: Begin of its validity.
        not_after: End of its validity.

    Returns:
        The certificate, DER.

    Raises:
        CertificateRejected: The request is not one of an Ed25519 key, or names another author.
        MessageTooLarge: It is longer than any request.
        InvalidValue: The end is not after the begin, or later than the authority's own.

    Guarantees:
        - What it issues passes `verify_author_certificate`, and neither `verify_certificate` nor `verify_client_certificate`.
    """
    key = requested_key(request, author)
    return authority.certify(
        key, name=author, purpose=DOCUMENT_SIGNING, not_before=not_before, not_after=not_after
    )


def verify_author_certificate(
    certificate: bytes,
    *,
    authority: bytes,
    author: str,
    key: bytes,
    now: datetime,
    revoked: RevocationList | None,
) -> None:
    """Check that a certificate makes somebody an author of the pinned consortium.

    Args:
        certificate: DER, untrusted.
        authority: DER of the pinned authority.
        author: Name that it must have.
        key: Ed25519 key that it must hold, 32 bytes.
        now: The time, with its zone.
        revoked: The authority's revocation list, where the consortium uses one; it must be current.

    Raises:
        CertificateRejected: It is not a valid one of this authority for this author and key, or is revoked.
        MessageTooLarge: It is longer than any certificate.
    """
    what = f"the certificate of the author {author[:64]!r}"
    with refusing(what):
        found = read_issued(certificate, authority=authority, what=what, purpose=DOCUMENT_SIGNING, now=now)
        held = found.public_key()
        if common_names(found) != [author]:
            raise CertificateRejected(f"{what} names {str(common_names(found))[:100]}")
        if not isinstance(held, Ed25519PublicKey) or not hmac.compare_digest(held.public_bytes_raw(), key):
            raise CertificateRejected(f"{what} holds another key")
    if revoked is not None:
        revoked.verify_not_revoked(found.serial_number, now)
