"""The commands of `hansa consortium`: found one, show it, name its authors. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa.cli_asking import EPILOG, confirm, data_home, option, show, table
from hansa.errors import AuthorityAbsent, UsageError

if TYPE_CHECKING:
    from hansa.coordinator.office import Office

app = typer.Typer(help="Found a consortium and keep it.", no_args_is_help=True, rich_markup_mode=None)
author_app = typer.Typer(help="Who may propose studies.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(author_app, name="author")

Home = Annotated[
    Path | None, option("The coordinator's home (HANSA_HOME, or the user's data folder).", "--home")
]
Json = Annotated[bool, option("Print one JSON object on stdout and nothing else.", "--json")]
DryRun = Annotated[bool, option("Check, say what would be done, and change nothing.", "--dry-run")]
Keys = Annotated[
    Path | None, option("Folder that holds the authority's key, if it is kept elsewhere.", "--authority")
]
Yes = Annotated[bool, option("Do not ask.", "--yes")]


@app.command("init", epilog=EPILOG)
def init(
    name: Annotated[str, typer.Argument(help="Short name: a-z, 0-9 and -")],
    address: Annotated[
        list[str],
        option("Host name or IP address of the coordinator; may be repeated, participants use the first."),
    ],
    home: Home = None,
    port: Annotated[int, option("First of four ports that follow each other (9443).")] = 9443,
    author: Annotated[str, option("Name of the first author of studies (admin).")] = "admin",
    database: Annotated[
        str | None, option("URL of the journal without a password (a file in the home).")
    ] = None,
    database_password_file: Annotated[
        str | None, option("File of mode 0600 that holds the password of the database alone.")
    ] = None,
    dry_run: DryRun = False,
    json_only: Json = False,
) -> None:
    """Make the consortium's authority, the keys of the coordinator's services and the first author's key."""
    from hansa.coordinator.founding import FoundingPlan, found_consortium
    from hansa.federation.consortium import fingerprint_text
    from hansa.secure_agg.certificates import utc_now

    folder = data_home(home, "coordinator")
    hosts = tuple(host.strip("[]") for host in address)
    plan = FoundingPlan(
        name=name,
        folder=folder,
        hosts=hosts,
        port=port,
        author=author,
        database=database,
        database_password_file=database_password_file,
    )
    found: dict[str, Any] = {
        "schema": "hansa/consortium-init/v1",
        "name": name,
        "home": str(folder),
        "addresses": plan.addresses().model_dump(),
        "author": author,
        "changed": not dry_run,
    }
    if dry_run:
        plan.verify()
        lines = [f"would found the consortium {name} in {folder}", *_address_lines(found["addresses"])]
        show(found, [*lines, f"author      {author}", "nothing was changed"], json_only=json_only)
        return
    made = found_consortium(plan, utc_now())
    found["fingerprint"] = fingerprint_text(made.consortium.fingerprint)
    lines = [
        f"consortium  {name}",
        f"home        {folder}",
        f"fingerprint {found['fingerprint']}",
        *_address_lines(found["addresses"]),
        f"author      {author}",
        f"keep the authority's key safe: {folder / 'ca' / 'authority.key'}",
        "next: hansa participant invite NAME",
    ]
    show(found, lines, json_only=json_only)


@app.command("show", epilog=EPILOG)
def show_consortium(home: Home = None, json_only: Json = False) -> None:
    """Show the fingerprint, the addresses, and what comes to an end when."""
    from cryptography import x509

    from hansa.federation.consortium import fingerprint_text
    from hansa.federation.fields import utc_text

    with _office(home) as office:
        place, states = office.home, [record.state for record in office.registry.members.all()]
        until, number = office.revocations.ends(), office.revocations.number()
        authority = x509.load_der_x509_certificate(place.consortium.authority)
        found: dict[str, Any] = {
            "schema": "hansa/consortium/v1",
            "name": place.consortium.name,
            "fingerprint": fingerprint_text(place.consortium.fingerprint),
            "home": str(place.folder),
            "addresses": place.settings.addresses.model_dump(),
            "authority_ends": utc_text(authority.not_valid_after_utc),
            "server_certificate_ends": utc_text(place.server_certificate_ends()),
            "revocation_list": {"number": number, "ends": utc_text(until) if until else None},
            "authors": [record.name for record in office.authors.all() if record.revoked is None],
            "participants": {
                state: states.count(state) for state in ("invited", "requested", "enrolled", "revoked")
            },
        }
    counted = ", ".join(f"{count} {state}" for state, count in found["participants"].items())
    lines = [
        f"consortium          {found['name']}",
        f"fingerprint         {found['fingerprint']}",
        *(f"{key:19} {value}" for key, value in found["addresses"].items()),
        f"authority ends      {found['authority_ends']}",
        f"server cert. ends   {found['server_certificate_ends']}",
        f"revocation list     {number}, ends {found['revocation_list']['ends']}",
        f"authors             {', '.join(found['authors'])}",
        f"participants        {counted}",
    ]
    show(found, lines, json_only=json_only)


@app.command("renew", epilog=EPILOG)
def renew(
    home: Home = None,
    authority: Keys = None,
    address: Annotated[
        list[str] | None,
        option("Host names and addresses of the coordinator (those of the present certificate)."),
    ] = None,
    new_key: Annotated[
        bool, option("Make another key as well, and revoke what was certified for the old one.", "--new-key")
    ] = False,
    dry_run: DryRun = False,
    json_only: Json = False,
) -> None:
    """Give the coordinator's services another certificate, and make another revocation list if one is due.

    A coordinator that runs shows it to whoever connects from then on; it need not be started again.
    """
    from hansa.coordinator.office import renew_services
    from hansa.federation.fields import utc_text
    from hansa.secure_agg.certificates import utc_now

    with _office(home) as office:
        key = office.home.authority(authority)
        if not dry_run:
            hosts = tuple(host.strip("[]") for host in address or ())
            renew_services(office, key, utc_now(), hosts, new_key=new_key)
        ends, until = office.home.server_certificate_ends(), office.revocations.ends()
        number = office.revocations.number()
    found = {
        "schema": "hansa/consortium-renew/v1",
        "server_certificate_ends": utc_text(ends),
        "revocation_list": number,
        "revocation_list_ends": utc_text(until) if until else None,
        "new_key": new_key,
        "changed": not dry_run,
    }
    verb = "would be renewed; the present one" if dry_run else "renewed; it"
    lines = [f"server certificate {verb} ends {utc_text(ends)}"]
    if new_key and dry_run:
        lines.append("it would be for a new key, and those for the old one revoked")
    elif new_key:
        lines.append(f"it is for a new key; those for the old one are revoked, revocation list {number}")
    show(found, lines, json_only=json_only)


@author_app.command("add", epilog=EPILOG)
def author_add(
    name: Annotated[str, typer.Argument(help="Name of the author.")],
    home: Home = None,
    request: Annotated[
        Path | None,
        option(
            "PKCS #10 request (PEM) of an Ed25519 key that the author keeps; without it a key is made in this home."
        ),
    ] = None,
    authority: Keys = None,
    dry_run: DryRun = False,
    json_only: Json = False,
) -> None:
    """Certify an author's key: whoever holds it may propose studies and start, pause and stop them."""
    from hansa.coordinator.issuing import verify_name
    from hansa.federation.fields import utc_text
    from hansa.secure_agg.certificate_authority import requested_key

    verify_name(name)
    asked = _request_file(request) if request else None
    with _office(home) as office:
        key = office.home.authority(authority)
        if asked is not None:
            requested_key(asked, name)
        if dry_run:
            found = {"schema": "hansa/author-add/v1", "name": name, "changed": False}
            show(found, [f"would certify the author {name}"], json_only=json_only)
            return
        record = office.authors.add(name, asked, key) if asked else office.add_author(name, key)
        folder = office.home.folder
    found = {
        "schema": "hansa/author-add/v1",
        "name": name,
        "key": record.key.hex(),
        "ends": utc_text(record.ends),
        "changed": True,
    }
    lines = [f"author {name} may propose studies until {found['ends']}", f"key    {found['key']}"]
    if asked is None:
        lines.append(f"it signs with {folder / 'authors' / f'{name}.key'}")
    show(found, [*lines, "next: hansa study propose STUDY.toml"], json_only=json_only)


@author_app.command("revoke", epilog=EPILOG)
def author_revoke(
    name: Annotated[str, typer.Argument(help="Name of the author.")],
    reason: Annotated[str, option("Why.")],
    home: Home = None,
    authority: Keys = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    json_only: Json = False,
) -> None:
    """End an author's right; its running studies take no command from it any more."""
    with _office(home) as office:
        office.authors.get(name)
        if not dry_run:
            confirm(f"revoking the author {name}", yes=yes)
            office.authors.revoke(name, reason)
            try:
                office.revocations.publish(office.home.authority(authority))
            except AuthorityAbsent as error:
                raise AuthorityAbsent(
                    f"{name} is no author here any more, but participants do not know yet: {error.message}",
                    hint="`hansa consortium renew --authority DIR`, with the folder that holds the authority's key",
                ) from error
        number = office.revocations.number()
    found = {
        "schema": "hansa/author-revoke/v1",
        "name": name,
        "revocation_list": number,
        "changed": not dry_run,
    }
    line = (
        f"would revoke the author {name}"
        if dry_run
        else f"author {name} is revoked, revocation list {number}"
    )
    show(found, [line], json_only=json_only)


@author_app.command("list", epilog=EPILOG)
def author_list(home: Home = None, json_only: Json = False) -> None:
    """List the authors."""
    from hansa.federation.fields import utc_text

    with _office(home) as office:
        records = office.authors.all()
    authors = [
        {
            "name": record.name,
            "key": record.key.hex(),
            "ends": utc_text(record.ends),
            "state": "author" if record.revoked is None else "revoked",
        }
        for record in records
    ]
    rows = [("NAME", "STATE", "ENDS", "KEY")]
    rows += [(one["name"], one["state"], one["ends"], one["key"][:16] + "...") for one in authors]
    show({"schema": "hansa/authors/v1", "authors": authors}, table(rows), json_only=json_only)


# -- inside --------------------------------------------------------------------------------------------------


def _office(home: Path | None) -> "Office":
    from hansa.coordinator.home import CoordinatorHome
    from hansa.coordinator.office import open_office

    return open_office(CoordinatorHome.open(data_home(home, "coordinator")))


def _address_lines(addresses: dict[str, str]) -> list[str]:
    return [f"{key:11} {value}" for key, value in addresses.items()]


def _request_file(path: Path) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from hansa.federation.files import read_file

    try:
        return x509.load_pem_x509_csr(read_file(path, 8192)).public_bytes(Encoding.DER)
    except ValueError as error:
        raise UsageError(
            f"{str(path)!r} is not a certificate request in PEM",
            hint=f"make one: openssl req -new -newkey ed25519 -nodes -keyout author.key -subj /CN=NAME -out {path.name}",
        ) from error
