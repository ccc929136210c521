"""A participant's own word on studies: `hansa study approve|deny` and `hansa participant study list|show|approve|deny`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa.cli_asking import EPILOG, confirm, data_home, option, show, table
from hansa.errors import UsageError

if TYPE_CHECKING:
    from hansa.participant.home import ParticipantHome
    from hansa.participant.study_desk import DeskStudy, StudyDesk

app = typer.Typer(
    help="Studies that were proposed to this participant.", no_args_is_help=True, rich_markup_mode=None
)
decisions = typer.Typer()

Name = Annotated[str, typer.Argument(help="Name of the study, or the begin of its session.")]
Home = Annotated[
    Path | None, option("The participant's home (HANSA_HOME, or the user's data folder).", "--home")
]
Json = Annotated[bool, option("Print one JSON object on stdout and nothing else.", "--json")]
DryRun = Annotated[bool, option("Check, say what would be signed, and change nothing.", "--dry-run")]
Yes = Annotated[bool, option("Do not ask.", "--yes")]


@app.command("list", epilog=EPILOG)
def list_studies(home: Home = None, json_only: Json = False) -> None:
    """List the studies that were proposed here, and what this participant said."""
    _, desk = _desk(home)
    views = [_view(study) for study in desk.all()]
    rows = [("STUDY", "SESSION", "STATE", "DATA SET", "EPSILON", "ROUNDS", "AUTHOR")]
    rows += [
        (
            view["name"], view["session"][:8], view["state"], view["data_set"] or "-",
            f"{view['epsilon']:g}", str(view["rounds"]), view["author"],
        )
        for view in views
    ]  # fmt: skip
    lines = (
        table(rows) if views else ["no study was proposed here; the agent fetches proposals while it runs"]
    )
    show({"schema": "hansa/participant-studies/v1", "studies": views}, lines, json_only=json_only)


@app.command("show", epilog=EPILOG)
def show_study(name: Name, home: Home = None, json_only: Json = False) -> None:
    """Show everything that an approval would agree to: the whole agreement, base, members and author."""
    _, desk = _desk(home)
    view = _view(desk.find(name))
    lines = [
        f"study      {view['name']}  (session {view['session']})",
        f"state      {view['state']}",
        f"purpose    {view['purpose']}",
        f"id         {view['study']}",
        f"base       {view['base_model']}",
        f"author     {view['author']}",
        f"privacy    epsilon {view['epsilon']:g}, delta {view['delta']:g}, unit {view['unit']}, {view['mode']} noise",
        f"rounds     {view['rounds']} with {view['needed']} participants",
        f"answers    until {view['expires']}",
    ]
    lines += [f"invited    {name}  identity {key[:16]}..." for name, key in view["invited"].items()]
    lines += [f"OFF        {layer.replace('_', ' ')}" for layer, on in view["protections"].items() if not on]
    lines += ["the whole agreement:", *_leaves(view["agreement"])]
    if view["state"] == "undecided":
        lines.append(f"next: hansa study approve {view['name']}, or hansa study deny {view['name']}")
    show({"schema": "hansa/participant-study/v1", **view}, lines, json_only=json_only)


@app.command("approve", epilog=EPILOG)
@decisions.command("approve", epilog=EPILOG)
def approve(
    name: Name,
    data_set: Annotated[
        str, option("Data set that serves the study (the only one there is).", "--data-set")
    ] = "",
    home: Home = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    json_only: Json = False,
) -> None:
    """Approve a study in this participant's name, by hand. The data set's policy has to allow it.

    The approval is signed here; the agent sends it. It agrees to this study, this base and these members, and to nothing else.
    """
    from hansa.participant.dataset_file import load_datasets
    from hansa.participant.seat import data_set_policy
    from hansa.participant.study_desk import policy_for, verify_allowed

    place, desk = _desk(home)
    study = desk.find(name)
    names = [entry.name for entry in load_datasets(place.folder).dataset]
    if not data_set and len(names) != 1:
        raise UsageError(
            f"this participant has {len(names)} data sets",
            hint=f"add --data-set NAME, one of: {', '.join(names)}",
        )
    chosen = data_set or names[0]
    verify_allowed(policy_for(data_set_policy(place.folder, chosen), study), study)
    found: dict[str, Any] = {
        "schema": "hansa/study-approve/v1", "study": study.name, "session": study.session, "data_set": chosen,
        "changed": not dry_run,
    }  # fmt: skip
    if dry_run:
        show(found, [f"would approve {study.name} for the data set {chosen}"], json_only=json_only)
        return
    body = study.proposal.body
    privacy = body.agreement().privacy
    what = f"{study.name} (session {study.session[:8]}, study {body.study_id.hex()[:16]}, base {body.base_model.hex()[:16]},"
    confirm(f"approving {what} epsilon {privacy.epsilon:g}) for the data set {chosen}", yes=yes)
    desk.approve(study, chosen, by="hand", identity=place.identity())
    lines = [f"approved {study.name}, session {study.session[:8]}, for the data set {chosen}"]
    show(found, [*lines, "next: the agent sends it; hansa participant run"], json_only=json_only)


@app.command("deny", epilog=EPILOG)
@decisions.command("deny", epilog=EPILOG)
def deny(name: Name, home: Home = None, yes: Yes = False, json_only: Json = False) -> None:
    """Refuse a study in this participant's name."""
    place, desk = _desk(home)
    study = desk.find(name)
    confirm(f"denying {study.name}", yes=yes)
    desk.deny(study, by="hand", identity=place.identity())
    found = {"schema": "hansa/study-deny/v1", "study": study.name, "session": study.session, "changed": True}
    show(found, [f"denied {study.name}, session {study.session[:8]}"], json_only=json_only)


# -- inside ----------------------------------------------------------------------------------------------


def _desk(home: Path | None) -> tuple["ParticipantHome", "StudyDesk"]:
    from hansa.participant.home import ParticipantHome
    from hansa.participant.study_desk import StudyDesk
    from hansa.secure_agg.certificates import utc_now

    place = ParticipantHome.open(data_home(home, "participant"))
    return place, StudyDesk(place.folder, participant=place.name, now=utc_now)


def _view(study: "DeskStudy") -> dict[str, Any]:
    body = study.proposal.body
    agreement = body.agreement()
    return {
        "name": study.name,
        "session": study.session,
        "state": study.state,
        "data_set": study.data_set,
        "study": body.study_id.hex(),
        "purpose": agreement.purpose,
        "base_model": body.base_model.hex(),
        "author": body.author,
        "invited": {member.name: member.identity.hex() for member in body.invited},
        "needed": body.approvals_needed,
        "epsilon": agreement.privacy.epsilon,
        "delta": agreement.privacy.delta,
        "unit": agreement.privacy.unit,
        "mode": agreement.privacy.mode,
        "rounds": agreement.training.rounds,
        "protections": agreement.protections(),
        "agreement": agreement.model_dump(by_alias=True, mode="json"),
        "created": body.created.isoformat(),
        "expires": body.expires.isoformat(),
    }


def _leaves(value: Any, path: str = "") -> list[str]:
    """Set an agreement line by line; nothing of it is left out."""
    if isinstance(value, dict):
        return [line for key, one in value.items() for line in _leaves(one, f"{path}.{key}" if path else key)]
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return [line for at, one in enumerate(value) for line in _leaves(one, f"{path}[{at}]")]
    return [f"  {path} = {json.dumps(value)}"]
