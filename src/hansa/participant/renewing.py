"""Renewal: new certificates for the same identity, before the old ones end. The TLS key is a new one each time."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from hansa.errors import HomeMissing
from hansa.federation.documents import Document, read_document
from hansa.federation.enrolments import Enrolment, verify_enrolment
from hansa.federation.files import PRIVATE, make_folder, read_file, read_private_file, write_file
from hansa.federation.requests import MemberKeys, RenewalRequest, tls_key_of
from hansa.federation.tls_authority import new_tls_key, request_tls_certificate
from hansa.participant.home import ParticipantHome

RENEWED_AT = 2 / 3  # of the validity; a third is left for an admin who has to do it by hand


def renewal_time(enrolment: Enrolment) -> datetime:
    """When a renewal is due: with a third of the validity left."""
    return enrolment.not_before + (enrolment.not_after - enrolment.not_before) * RENEWED_AT


def renewal_is_due(enrolment: Enrolment, now: datetime) -> bool:
    """Whether it is time to ask for new certificates."""
    return now >= renewal_time(enrolment)


def begin_renewal(home: ParticipantHome, now: datetime) -> Document[RenewalRequest]:
    """Make a request for renewal, or give the one that waits for its answer.

    Args:
        home: The home of a member.
        now: The time.

    Raises:
        NotAMember: There is no enrolment to continue.

    Guarantees:
        - The request is written down before it is returned: after a crash the same one is sent, and the answer fits its key.
        - A request that continues an earlier enrolment than the present one is replaced.
    """
    number = home.enrolment().body.number
    waiting = _waiting(home)
    if waiting is not None and waiting.body.number == number:
        return waiting
    identity, folder = home.identity(), home.renewal_folder
    make_folder(folder)
    (folder / "request.json").unlink(missing_ok=True)  # before its key
    tls_key = new_tls_key()
    write_file(folder / "tls.key", tls_key, mode=PRIVATE)
    body = RenewalRequest(
        consortium=home.consortium.fingerprint,
        participant=home.name,
        number=number,
        identity_request=identity.request_certificate(home.name),
        tls_request=request_tls_certificate(tls_key, home.name),
        created=now,
    )
    document = Document.sign(body, identity.sign)
    write_file(folder / "request.json", document.encode() + b"\n")
    return document


def finish_renewal(home: ParticipantHome, document: Document[Enrolment], now: datetime) -> None:
    """Check what came back and put it into use.

    Args:
        home: The home with the request.
        document: The enrolment, untrusted.
        now: The time.

    Raises:
        HomeMissing: No request waits.
        DocumentRejected, CertificateRejected: It is not the answer to the request, see `verify_enrolment`; nothing was changed.

    Guarantees:
        - The old certificates are in use until the new ones are, and identity and Flower key stay.
    """
    present, request = home.enrolment().body, _waiting(home)
    if request is None:
        raise HomeMissing(f"{home.name!r} has no request for renewal", hint="ask for one first")
    keys = MemberKeys(identity=home.identity().public, tls=tls_key_of(request), flower=present.flower_key)
    verify_enrolment(
        document,
        consortium=home.consortium,
        participant=home.name,
        keys=keys,
        number=present.number + 1,
        now=now,
    )
    home.install(document, read_private_file(home.renewal_folder / "tls.key"))
    _request_file(home).unlink()
    (home.renewal_folder / "tls.key").unlink()


def renew_if_due(
    home: ParticipantHome,
    ask: Callable[[Document[RenewalRequest]], Document[Enrolment]],
    now: datetime,
) -> bool:
    """Renew the certificates of a home when it is time; a daemon calls this now and then.

    Args:
        home: The home of a member.
        ask: Sends the request: `ConsortiumClient.renew`, or `EnrolmentClient.renew` where the certificates have ended.
        now: The time.

    Returns:
        Whether new certificates are in use.

    Raises:
        EnrolmentPending: The admin has to make them; the old ones stay in use, and the next call asks again.
        See `begin_renewal` and `finish_renewal` for everything else.
    """
    if not renewal_is_due(home.enrolment().body, now):
        return False
    finish_renewal(home, ask(begin_renewal(home, now)), now)
    return True


def _request_file(home: ParticipantHome) -> Path:
    return home.renewal_folder / "request.json"


def _waiting(home: ParticipantHome) -> Document[RenewalRequest] | None:
    path = _request_file(home)
    if not path.exists():
        return None
    return read_document(read_file(path, RenewalRequest.BYTES_MOST), RenewalRequest)
