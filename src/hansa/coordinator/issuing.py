"""How the authority's certificates for members, authors and the coordinator's own services are made."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hansa.errors import InvalidValue, MalformedMessage
from hansa.federation.consortium import Consortium
from hansa.federation.documents import Document
from hansa.federation.enrolments import Enrolment, make_enrolment
from hansa.federation.fields import whole_seconds
from hansa.federation.tls_authority import (
    issue_client_certificate,
    issue_server_certificate,
    request_tls_certificate,
)
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.identity import verify_participant_id

BACK_DATED = timedelta(minutes=10)  # TLS stacks allow no skew between clocks


def verify_name(name: str) -> None:
    """Raise InvalidValue unless a name is one that a participant or an author may have."""
    try:
        verify_participant_id(name)
    except MalformedMessage as error:
        raise InvalidValue(
            f"the name is {name[:80]!r}, not 1 to 64 of A-Z a-z 0-9 . _ -",
            hint="choose a short name, such as bank-01",
        ) from error


def window(authority: CertificateAuthority, now: datetime, days: int) -> dict[str, datetime]:
    """Give begin and end of a certificate that is issued now; none outlasts its authority."""
    end = x509.load_der_x509_certificate(authority.certificate).not_valid_after_utc
    now = whole_seconds(now)
    return {"not_before": now - BACK_DATED, "not_after": min(now + timedelta(days=days), end)}


def public_keys(certificates: Iterable[bytes]) -> set[bytes]:
    """Return the keys in certificates: 32 bytes of an Ed25519 key, SubjectPublicKeyInfo of another."""
    found = set()
    for certificate in certificates:
        key = x509.load_der_x509_certificate(certificate).public_key()
        if isinstance(key, Ed25519PublicKey):
            found.add(key.public_bytes_raw())
        else:
            found.add(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return found


def server_certificate(
    authority: CertificateAuthority, key: bytes, *, hosts: Sequence[str], now: datetime, days: int
) -> bytes:
    """Certify the key of the coordinator's services.

    Args:
        authority: The consortium's.
        key: Of `new_tls_key`.
        hosts: Names and addresses under which participants reach the services.
        now: The time.
        days: How long it lasts.

    Returns:
        The certificate, DER.
    """
    request = request_tls_certificate(key, "coordinator")
    return issue_server_certificate(
        authority, request, name="coordinator", hosts=hosts, **window(authority, now, days)
    )


def hosts_of(certificate: bytes) -> tuple[str, ...]:
    """Return the names and addresses in the TLS certificate of a server, DER."""
    found = x509.load_der_x509_certificate(certificate).extensions
    names = found.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in names)


class Issuer:
    """Issues what a member gets.

    Args:
        consortium: Whose members.
        days: How long its certificates last.
        now: Clock.
    """

    def __init__(self, consortium: Consortium, days: int, now: Callable[[], datetime]) -> None:
        self._consortium, self._days, self._now = consortium, days, now

    def issue(
        self,
        authority: CertificateAuthority,
        *,
        name: str,
        number: int,
        identity_request: bytes,
        tls_request: bytes,
        flower_key: str,
    ) -> Document[Enrolment]:
        """Issue both certificates of a member and sign its enrolment; its requests were checked before."""
        valid = window(authority, self._now(), self._days)
        body = make_enrolment(
            consortium=self._consortium.fingerprint,
            participant=name,
            number=number,
            identity_certificate=authority.issue(identity_request, participant=name, **valid),
            tls_certificate=issue_client_certificate(authority, tls_request, participant=name, **valid),
            flower_key=flower_key,
        )
        return Document.sign(body, authority.sign)
