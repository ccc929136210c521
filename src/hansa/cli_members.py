"""The admin's commands of `hansa participant`: invite, approve, renew, revoke, look. Nothing heavy is imported early."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa.cli_asking import EPILOG, confirm, data_home, option, show, table
from hansa.errors import AuthorityAbsent, DocumentRejected

if TYPE_CHECKING:
    from hansa.coordinator.members import MemberRecord
    from hansa.coordinator.office import Office

app = typer.Typer()

Name = Annotated[str, typer.Argument(help="Name of the participant.")]
Home = Annotated[
    Path | None, option("The coordinator's home (HANSA_HOME, or the user's data folder).", "--home")
]
Json = Annotated[bool, option("Print one JSON object on stdout and nothing else.", "--json")]
DryRun = Annotated[bool, option("Check, say what would be done, and change nothing.", "--dry-run")]
Keys = Annotated[
    Path | None, option("Folder that holds the authority's key, if it is kept elsewhere.", "--authority")
]
Yes = Annotated[bool, option("Do not ask.", "--yes")]


@app.command("invite", epilog=EPILOG)
def invite(
    name: Name,
    home: Home = None,
    output: Annotated[Path | None, option("File of the invitation (NAME.invitation.json).")] = None,
    authority: Keys = None,
    dry_run: DryRun = False,
    json_only: Json = False,
) -> None:
    """Invite an institution: write a file with a one-time code for its admin, to be handed over in confidence."""
    from hansa.coordinator.issuing import verify_name
    from hansa.federation.consortium import fingerprint_text
    from hansa.federation.fields import utc_text
    from hansa.federation.files import PRIVATE, write_file, write_output

    verify_name(name)
    file = output or Path(f"{name}.invitation.json")
    with _office(home) as office:
        key = office.home.authority(authority)
        office.registry.verify_invitable(name)
        found: dict[str, Any] = {
            "schema": "hansa/participant-invite/v1",
            "name": name,
            "fingerprint": fingerprint_text(office.home.consortium.fingerprint),
            "file": str(file),
            "changed": not dry_run,
        }
        if dry_run:
            show(found, [f"would invite {name} and write {file}"], json_only=json_only)
            return
        write_output(file, b"", mode=PRIVATE)  # the file first: an invitation that is lost serves nobody
        try:
            invitation = office.registry.invite(name, key)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        write_file(file, invitation.encode() + b"\n", mode=PRIVATE)
    found["expires"] = utc_text(invitation.body.expires)
    lines = [
        f"invitation for {name} until {found['expires']}: {file}",
        f"fingerprint of the consortium: {found['fingerprint']}",
        "hand over the file in confidence, and read the fingerprint to its receiver by telephone",
        f"next: there, hansa participant join {file.name}; here, hansa participant list",
    ]
    show(found, lines, json_only=json_only)


@app.command("list", epilog=EPILOG)
def list_members(home: Home = None, json_only: Json = False) -> None:
    """List all participants, what each one waits for, and how long its certificates last."""
    with _office(home) as office:
        described = [_described(office, record) for record in office.registry.members.all()]
    rows = [("NAME", "STATE", "DAYS LEFT", "WAITS FOR")]
    rows += [
        (
            one["name"],
            one["state"],
            "-" if one["days_left"] is None else str(one["days_left"]),
            one["waits_for"],
        )
        for one in described
    ]
    show({"schema": "hansa/participants/v1", "participants": described}, table(rows), json_only=json_only)


@app.command("show", epilog=EPILOG)
def show_member(name: Name, home: Home = None, json_only: Json = False) -> None:
    """Show what is known of a participant."""
    with _office(home) as office:
        found = _described(office, office.registry.members.get(name))
    lines = [f"{key.replace('_', ' '):18} {value}" for key, value in found.items() if value not in (None, "")]
    show({"schema": "hansa/participant/v1", **found}, lines, json_only=json_only)


@app.command("approve", epilog=EPILOG)
def approve(
    name: Name,
    fingerprint: Annotated[
        str,
        option(
            "Fingerprint of its keys, as the participant reads it to you by telephone. Never copy it from here."
        ),
    ],
    home: Home = None,
    request: Annotated[
        Path | None, option("Its request as a file, where it cannot reach the coordinator.")
    ] = None,
    output: Annotated[
        Path | None,
        option("Where the enrolment is written; with --request the default is NAME.enrolment.json."),
    ] = None,
    authority: Keys = None,
    dry_run: DryRun = False,
    json_only: Json = False,
) -> None:
    """Make a participant a member, after its fingerprint was compared."""
    from hansa.federation.consortium import read_fingerprint, verify_fingerprint
    from hansa.federation.documents import load_document
    from hansa.federation.fields import utc_text
    from hansa.federation.files import write_file, write_output
    from hansa.federation.requests import EnrolmentRequest, keys_of_request

    given = read_fingerprint(fingerprint)
    file = output or (Path(f"{name}.enrolment.json") if request else None)
    with _office(home) as office:
        registry, key = office.registry, office.home.authority(authority)
        if request is not None:
            document = load_document(request, EnrolmentRequest)
            if document.body.participant != name:
                raise DocumentRejected(
                    f"the request is one of {document.body.participant!r}, not of {name!r}"
                )
            registry.verify_request(document)
            shown = keys_of_request(document).fingerprint(office.home.consortium.fingerprint, name)
            verify_fingerprint(given, shown, what=f"the request of {name!r}")
            if not dry_run:
                registry.submit(document)
        if request is None or not dry_run:
            registry.verify_approvable(name, given)
        found: dict[str, Any] = {
            "schema": "hansa/participant-approve/v1",
            "name": name,
            "changed": not dry_run,
        }
        if dry_run:
            show(found, [f"the fingerprint is right; would make {name} a member"], json_only=json_only)
            return
        if file is not None:
            write_output(file, b"")  # the file first: an enrolment is issued once
        try:
            enrolment = registry.approve(name, fingerprint=given, authority=key)
        except BaseException:
            if file is not None:
                file.unlink(missing_ok=True)
            raise
        if file is not None:
            write_file(file, enrolment.encode() + b"\n")
    found |= {"ends": utc_text(enrolment.body.not_after), "file": str(file) if file else None}
    lines = [f"{name} is a member; its certificates last until {found['ends']}"]
    resume = f"--resume --enrolment {file.name}" if file else "--resume"
    show(found, [*lines, f"next: there, hansa participant join {resume}"], json_only=json_only)


@app.command("renew", epilog=EPILOG)
def renew(
    name: Name, home: Home = None, authority: Keys = None, dry_run: DryRun = False, json_only: Json = False
) -> None:
    """Issue the new certificates that a member has asked for, where the coordinator has not the authority's key."""
    from hansa.federation.fields import utc_text

    with _office(home) as office:
        key = office.home.authority(authority)
        if dry_run:
            office.renewals.verify_renewable(name)
            ends = office.registry.members.get(name).enrolment_document.body.not_after
        else:
            ends = office.renewals.renew(name, key).body.not_after
    found = {
        "schema": "hansa/participant-renew/v1",
        "name": name,
        "ends": utc_text(ends),
        "changed": not dry_run,
    }
    verb = (
        "would be renewed; its present certificates last" if dry_run else "is renewed; its certificates last"
    )
    show(found, [f"{name} {verb} until {utc_text(ends)}"], json_only=json_only)


@app.command("revoke", epilog=EPILOG)
def revoke(
    name: Name,
    reason: Annotated[str, option("Why; it stands in the journal.")],
    home: Home = None,
    authority: Keys = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    json_only: Json = False,
) -> None:
    """End a membership, a request or an invitation, at once and everywhere."""
    with _office(home) as office:
        office.registry.verify_revocable(name)
        if not dry_run:
            confirm(f"revoking {name}", yes=yes)
            office.registry.revoke(name, reason)
            try:
                office.revocations.publish(office.home.authority(authority))
            except AuthorityAbsent as error:
                raise AuthorityAbsent(
                    f"{name} is shut out here, but participants do not know yet: {error.message}",
                    hint="`hansa consortium renew --authority DIR`, with the folder that holds the authority's key",
                ) from error
        number = office.revocations.number()
    found = {
        "schema": "hansa/participant-revoke/v1",
        "name": name,
        "revocation_list": number,
        "changed": not dry_run,
    }
    line = f"would revoke {name}" if dry_run else f"{name} is revoked; revocation list {number} says so"
    show(found, [line], json_only=json_only)


# -- inside --------------------------------------------------------------------------------------------------


def _office(home: Path | None) -> "Office":
    from hansa.coordinator.home import CoordinatorHome
    from hansa.coordinator.office import open_office

    return open_office(CoordinatorHome.open(data_home(home, "coordinator")))


def _described(office: "Office", record: "MemberRecord") -> dict[str, Any]:
    from hansa.federation.consortium import fingerprint_text
    from hansa.federation.fields import utc_text
    from hansa.secure_agg.certificates import utc_now

    keys, fingerprint = record.keys, office.registry.fingerprint(record)
    enrolment = record.enrolment_document.body if record.enrolment else None
    waits = {"invited": "its request", "requested": "approval"}.get(record.state, "")
    ends: datetime | None = enrolment.not_after if enrolment and record.state == "enrolled" else None
    return {
        "name": record.name,
        "state": record.state,
        "waits_for": "renewal" if record.state == "enrolled" and record.renewal_is_pending else waits,
        "invited": utc_text(record.invited),
        "invitation_ends": utc_text(record.expires) if record.state == "invited" else None,
        "wrong_requests": record.attempts,
        "fingerprint": fingerprint_text(fingerprint) if fingerprint else None,
        "identity": keys.identity.hex() if keys else None,
        "enrolment": enrolment.number if enrolment else None,
        "ends": utc_text(ends) if ends else None,
        "days_left": (ends - utc_now()).days if ends else None,
        "revoked": utc_text(record.revoked) if record.revoked else None,
        "reason": record.reason or None,
    }
