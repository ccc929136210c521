"""Joining a consortium: from an invitation to keys and a request, and from the authority's answer to an enrolment in use.

1. check the invitation; people compare the consortium's fingerprint
2. make identity, TLS key and Flower key, each where it is used
3. write the request down, then send it: whatever breaks, the same request is sent again
4. people compare the fingerprint of the keys; the admin approves
5. check the enrolment against what is pinned and put it into use
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from hansa.errors import HomeExists, HomeMissing, InvalidValue
from hansa.federation.documents import Document, read_document
from hansa.federation.enrolments import Enrolment, verify_enrolment
from hansa.federation.files import PRIVATE, make_folder, read_file, read_private_file, write_file
from hansa.federation.invitations import Invitation, verify_invitation
from hansa.federation.requests import CollectRequest, EnrolmentRequest, MemberKeys, keys_of_request
from hansa.federation.tls_authority import new_tls_key, request_tls_certificate, to_pem
from hansa.participant.home import ParticipantHome, make_identity
from hansa.participant.settings import FILE_NAME, load_participant_settings, participant_toml


def verify_home_is_free(folder: Path, invitation: Invitation) -> None:
    """Check that a home can be used for an invitation.

    Raises:
        HomeExists: It is the home of another participant, or its participant has joined already.
    """
    if not (folder / FILE_NAME).exists():
        return
    settings = load_participant_settings(folder)
    pinned = (settings.name, settings.consortium.fingerprint)
    if pinned != (invitation.participant, invitation.fingerprint.hex()):
        raise HomeExists(f"{str(folder)!r} is the home of {settings.name!r} in {settings.consortium.name!r}")
    if (folder / "request" / "request.json").exists() or (folder / "current").exists():
        raise HomeExists(
            f"{settings.name!r} has joined or asked to join in {str(folder)!r}",
            hint="go on with `hansa participant join --resume`; for a new invitation choose a new home",
        )


def begin_enrolment(
    document: Document[Invitation], folder: Path, now: datetime
) -> tuple[ParticipantHome, Document[EnrolmentRequest]]:
    """Make a home with all keys and the request. The consortium's fingerprint was compared before.

    Args:
        document: The invitation.
        folder: The home; made if there is none.
        now: The time.

    Returns:
        The home, and the request to send.

    Raises:
        DocumentRejected, InvitationExpired, CertificateRejected: See `verify_invitation`.
        HomeExists: See `verify_home_is_free`.
        StoreNotWritable: The folder cannot be written.

    Guarantees:
        - No secret key is ever outside of the home, and in it in no file that others can read.
        - The one-time code is not kept.
    """
    verify_invitation(document, now)
    invitation = document.body
    verify_home_is_free(folder, invitation)
    make_folder(folder)
    make_folder(folder / "request")
    write_file(folder / "authority.crt", to_pem(invitation.authority))
    identity = make_identity(folder)
    write_file(folder / FILE_NAME, participant_toml(invitation).encode())
    home = ParticipantHome.open(folder)
    tls_key = _made(home.request_folder / "tls.key", new_tls_key)
    flower = load_ssh_private_key(_made(home.flower_key_file, _new_flower_key), None).public_key()
    body = EnrolmentRequest(
        consortium=invitation.fingerprint,
        participant=invitation.participant,
        identity_request=identity.request_certificate(invitation.participant),
        tls_request=request_tls_certificate(tls_key, invitation.participant),
        flower_key=flower.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        created=now,
        proof=bytes(64),
    )
    request = Document.sign(body.with_proof(invitation.proof_identity().sign), identity.sign)
    write_file(home.request_folder / "request.json", request.encode() + b"\n")
    return home, request


def stored_request(home: ParticipantHome) -> Document[EnrolmentRequest]:
    """Return the request that waits for its answer; HomeMissing if there is none."""
    path = home.request_folder / "request.json"
    if not path.exists():
        raise HomeMissing(
            f"{home.name!r} has no request that waits for an answer", hint="join with an invitation first"
        )
    return read_document(read_file(path, EnrolmentRequest.BYTES_MOST), EnrolmentRequest)


def own_fingerprint(home: ParticipantHome, keys: MemberKeys) -> bytes:
    """Fingerprint of the own keys, which the admin compares; 32 bytes."""
    return keys.fingerprint(home.consortium.fingerprint, home.name)


def ask_for_enrolment(home: ParticipantHome, now: datetime) -> Document[CollectRequest]:
    """Make the question whether the enrolment is there."""
    body = CollectRequest(consortium=home.consortium.fingerprint, participant=home.name, created=now)
    return Document.sign(body, home.identity().sign)


def finish_enrolment(home: ParticipantHome, document: Document[Enrolment], now: datetime) -> None:
    """Check the authority's answer and put it into use.

    Args:
        home: The home with the request.
        document: The enrolment, untrusted.
        now: The time.

    Raises:
        HomeMissing: There is no request.
        DocumentRejected, CertificateRejected: See `verify_enrolment`; nothing was changed.
    """
    keys = keys_of_request(stored_request(home))
    if keys.identity != home.identity().public:
        raise InvalidValue("the request in this home is one of another identity", hint="join in a new home")
    verify_enrolment(
        document, consortium=home.consortium, participant=home.name, keys=keys, number=1, now=now
    )
    home.install(document, read_private_file(home.request_folder / "tls.key"))
    (home.request_folder / "tls.key").unlink()  # it lies with the enrolment now


def _made(path: Path, make: Callable[[], bytes]) -> bytes:
    """Read a secret file; make it first if there is none, as after a crash in the middle."""
    if not path.exists():
        write_file(path, make(), mode=PRIVATE, replace=False)
    return read_private_file(path)


def _new_flower_key() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
