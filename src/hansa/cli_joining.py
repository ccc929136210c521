"""The command `hansa participant join`: what an institution does to become a member. Nothing heavy is imported before it runs."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa.cli_asking import EPILOG, data_home, option, show
from hansa.errors import CoordinatorUnreachable, EnrolmentPending, FingerprintMismatch, UsageError

if TYPE_CHECKING:
    from hansa.federation.documents import Document
    from hansa.federation.enrolments import Enrolment
    from hansa.federation.invitations import Invitation
    from hansa.participant.home import ParticipantHome

_PAUSE_SECONDS = 3.0

app = typer.Typer()

Home = Annotated[
    Path | None, option("The participant's home (HANSA_HOME, or the user's data folder).", "--home")
]
Json = Annotated[bool, option("Print one JSON object on stdout and nothing else.", "--json")]


@app.command("join", epilog=EPILOG)
def join(
    invitation: Annotated[Path | None, typer.Argument(help="The invitation's file.")] = None,
    home: Home = None,
    fingerprint: Annotated[
        str | None, option("Fingerprint of the consortium, as its admin reads it to you by telephone.")
    ] = None,
    offline: Annotated[
        bool, option("Write the request into a file for the admin, and call nobody.", "--offline")
    ] = False,
    output: Annotated[Path | None, option("With --offline: file of the request (NAME.request.json).")] = None,
    resume: Annotated[bool, option("Go on with a request that was made before.", "--resume")] = False,
    enrolment: Annotated[
        Path | None, option("With --resume: the enrolment as a file from the admin.")
    ] = None,
    wait: Annotated[int, option("Seconds to wait for the admin's approval (0).")] = 0,
    dry_run: Annotated[bool, option("Check the invitation, and change nothing.", "--dry-run")] = False,
    json_only: Json = False,
) -> None:
    """Join a consortium: make the keys, ask for membership, and fetch the certificates once the admin has approved."""
    folder = data_home(home, "participant")
    if resume:
        if invitation is not None:
            raise UsageError("--resume goes on with a request; leave the invitation out")
        _resume(folder, enrolment, wait, json_only=json_only)
        return
    if invitation is None:
        raise UsageError("give the invitation's file, or --resume")
    _begin(invitation, folder, fingerprint, offline, output, wait, dry_run=dry_run, json_only=json_only)


def _begin(
    file: Path,
    folder: Path,
    fingerprint: str | None,
    offline: bool,
    output: Path | None,
    wait: int,
    *,
    dry_run: bool,
    json_only: bool,
) -> None:
    from hansa.federation.consortium import fingerprint_text
    from hansa.federation.documents import load_document
    from hansa.federation.files import write_output
    from hansa.federation.invitations import Invitation, verify_invitation
    from hansa.federation.requests import keys_of_request
    from hansa.participant.enrolling import begin_enrolment, own_fingerprint, verify_home_is_free
    from hansa.secure_agg.certificates import utc_now

    document = load_document(file, Invitation)
    verify_invitation(document, utc_now())
    verify_home_is_free(folder, document.body)
    _compare(document, fingerprint)
    found: dict[str, Any] = {
        "schema": "hansa/participant-join/v1",
        "name": document.body.participant,
        "consortium": document.body.name,
        "consortium_fingerprint": fingerprint_text(document.body.fingerprint),
        "home": str(folder),
        "changed": not dry_run,
    }
    if dry_run:
        line = (
            f"the invitation is good; would make keys in {folder} and ask {document.body.name} for membership"
        )
        show(found, [line], json_only=json_only)
        return
    place, request = begin_enrolment(document, folder, utc_now())
    own = fingerprint_text(own_fingerprint(place, keys_of_request(request)))
    found |= {"fingerprint": own, "state": "made", "file": None}
    lines = [f"keys of {place.name} are in {folder}", f"fingerprint of your keys: {own}"]
    if not offline:
        _send(place, found, lines, wait, json_only=json_only)
        return
    written = output or Path(f"{place.name}.request.json")
    write_output(written, request.encode() + b"\n")
    found["file"] = str(written)
    lines += [
        f"send {written} to the admin, and read the fingerprint to them by telephone",
        "next: hansa participant join --resume --enrolment FILE, when their answer is here",
    ]
    show(found, lines, json_only=json_only)


def _send(
    place: "ParticipantHome", found: dict[str, Any], lines: list[str], wait: int, *, json_only: bool
) -> None:
    """Send the request that was made, and wait for the answer if that was asked for."""
    if not json_only:  # before the network is tried: the keys are made, whatever follows
        for line in lines:
            typer.echo(line)
    try:
        _submit(place)
    except CoordinatorUnreachable as error:
        hint = "the keys and the request are made; when the coordinator is there: hansa participant join --resume"
        raise CoordinatorUnreachable(error.message, hint=hint) from error
    if wait > 0:
        typer.echo("hansa: waiting for the admin's approval; read the fingerprint to them now", err=True)
        _install(place, _collected(place, wait))
        _tell_enrolled(place, found, json_only=json_only)
        return
    found["state"] = "requested"
    lines = ["read it to the admin by telephone", "next: hansa participant join --resume"]
    show(found, lines, json_only=json_only)


def _resume(folder: Path, enrolment: Path | None, wait: int, *, json_only: bool) -> None:
    from hansa.federation.consortium import fingerprint_text
    from hansa.federation.documents import load_document
    from hansa.federation.enrolments import Enrolment
    from hansa.participant.home import ParticipantHome

    place = ParticipantHome.open(folder)
    place.verify_key_files()
    if not place.is_enrolled:
        if enrolment is not None:
            document = load_document(enrolment, Enrolment)
        else:
            _submit(place)  # it may not have arrived; the same request again changes nothing
            document = _collected(place, wait)
        _install(place, document)
    found: dict[str, Any] = {
        "schema": "hansa/participant-join/v1",
        "name": place.name,
        "consortium": place.consortium.name,
        "consortium_fingerprint": fingerprint_text(place.consortium.fingerprint),
        "home": str(folder),
        "changed": True,
    }
    _tell_enrolled(place, found, json_only=json_only)


def _tell_enrolled(place: "ParticipantHome", found: dict[str, Any], *, json_only: bool) -> None:
    from hansa.federation.fields import utc_text

    body = place.enrolment().body
    found |= {"state": "enrolled", "number": body.number, "ends": utc_text(body.not_after)}
    lines = [
        f"{place.name} is a member of {place.consortium.name}; its certificates last until {found['ends']}",
        "next: hansa participant dataset add, then hansa participant run",
    ]
    show(found, lines, json_only=json_only)


def _compare(document: "Document[Invitation]", fingerprint: str | None) -> None:
    """Have people compare the consortium's fingerprint, or compare what they typed."""
    from hansa.federation.consortium import fingerprint_text, read_fingerprint, verify_fingerprint

    found, name = document.body.fingerprint, document.body.name
    if fingerprint is not None:
        verify_fingerprint(read_fingerprint(fingerprint), found, what=f"the consortium {name!r}")
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "the consortium's fingerprint must be compared",
            hint="give the one that the admin reads to you with --fingerprint; there is no terminal to ask on",
        )
    typer.echo(f"fingerprint of the consortium {name}:\n  {fingerprint_text(found)}", err=True)
    typer.echo("is it what its admin reads to you by telephone? [y/N] ", nl=False, err=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise FingerprintMismatch(f"the fingerprint of {name!r} was not confirmed; nothing was made")


def _submit(place: "ParticipantHome") -> None:
    from hansa.participant.enrolling import stored_request
    from hansa.participant.enrolment_client import EnrolmentClient

    with EnrolmentClient(place.settings.addresses.enrolment, place.consortium.authority) as client:
        client.submit(stored_request(place))


def _collected(place: "ParticipantHome", wait: int) -> "Document[Enrolment]":
    from hansa.participant.enrolling import ask_for_enrolment
    from hansa.participant.enrolment_client import EnrolmentClient
    from hansa.secure_agg.certificates import utc_now

    end = time.monotonic() + wait
    with EnrolmentClient(place.settings.addresses.enrolment, place.consortium.authority) as client:
        while True:
            try:
                return client.collect(ask_for_enrolment(place, utc_now()))
            except EnrolmentPending:
                if time.monotonic() + _PAUSE_SECONDS > end:
                    raise
            time.sleep(_PAUSE_SECONDS)


def _install(place: "ParticipantHome", document: "Document[Enrolment]") -> None:
    from hansa.participant.enrolling import finish_enrolment
    from hansa.secure_agg.certificates import utc_now

    finish_enrolment(place, document, utc_now())
