"""The author's commands of `hansa study` at a coordinator: propose, start, command, look. Nothing heavy is imported early."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa.cli_asking import EPILOG, confirm, data_home, option, printable, show, table
from hansa.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from hansa.coordinator.authoring import Authoring
    from hansa.coordinator.office import Office
    from hansa.coordinator.study_desk import ProposedStudy
    from hansa.federation.starts import Action

app = typer.Typer()

Name = Annotated[str, typer.Argument(help="Name of the study, or the begin of its session.")]
File = Annotated[Path, typer.Argument(help="A study.toml.")]
Home = Annotated[
    Path | None, option("The coordinator's home (HANSA_HOME, or the user's data folder).", "--home")
]
Author = Annotated[str, option("Author who signs (admin).")]
Json = Annotated[bool, option("Print one JSON object on stdout and nothing else.", "--json")]
DryRun = Annotated[bool, option("Check, say what would be signed, and change nothing.", "--dry-run")]
Yes = Annotated[bool, option("Do not ask.", "--yes")]


@app.command("base", epilog=EPILOG)
def study_base(
    file: File,
    public: Annotated[
        Path, option("Public rows, .parquet or .csv; their labels are thrown away.", "--public")
    ],
    output: Annotated[Path, option("File of the base (base.safetensors).")] = Path("base.safetensors"),
    seed: Annotated[int, option("Public seed (0).")] = 0,
    steps: Annotated[int, option("Optimizer steps (300).")] = 300,
    json_only: Json = False,
) -> None:
    """Make the base model that all participants of a study start from: pretrained on public rows, without labels."""
    if seed < 0 or not 0 <= steps <= 1_000_000:
        raise UsageError(f"seed {seed} is below 0, or the number of steps {steps} is not from 0 to 1000000")
    from hansa.study import load_study
    from hansa.study_base import make_base_file

    study = load_study(file)
    with _progress(steps, "pretraining") as advance:
        digest = make_base_file(study, public, output, seed=seed, steps=steps, progress=advance)
    found = {"schema": "hansa/study-base/v1", "file": str(output), "sha256": digest, "study": study.id}
    lines = [f"base of {study.name}: {output}", f"sha256 {digest}"]
    show(found, [*lines, f"next: hansa study propose {file} --base {output}"], json_only=json_only)


@app.command("propose", epilog=EPILOG)
def study_propose(
    file: File,
    base: Annotated[Path, option("File of the base model; see `hansa study base`.", "--base")],
    participants: Annotated[
        str, option("Members that are invited, with commas between (all that are enrolled).")
    ] = "",
    days: Annotated[int, option("Days for answers (14).")] = 14,
    home: Home = None,
    author: Author = "admin",
    dry_run: DryRun = False,
    json_only: Json = False,
) -> None:
    """Propose a study: sign agreement, base and who is invited; their agents fetch it, and they decide."""
    if not 1 <= days <= 365:
        raise UsageError(f"{days} days for answers are not from 1 to 365")
    from hansa.coordinator.authoring import ProposalPlan
    from hansa.coordinator.study_states import name_of, session_of
    from hansa.models.base_files import load_base
    from hansa.study import load_study

    study = load_study(file)
    load_base(base, study)  # a base that does not fit is found here, not at fifteen banks
    invited = tuple(sorted({name.strip() for name in participants.split(",") if name.strip()}))
    plan = ProposalPlan(study=study, base=base, invited=invited, days=days)
    with _authoring(home, author) as authoring:
        if dry_run:
            words = f"would propose {study.name} ({study.id[:16]}) to {', '.join(invited) or 'all members'}"
            nothing = {"schema": "hansa/study-propose/v1", "study": study.id, "changed": False}
            show(nothing, [words], json_only=json_only)
            return
        proposed = authoring.propose(plan)
    names = [member.name for member in proposed.proposal.body.invited]
    found = {
        "schema": "hansa/study-propose/v1",
        "study": study.id,
        "session": session_of(proposed),
        "invited": names,
        "changed": True,
    }
    lines = [
        f"proposed {name_of(proposed)}, session {session_of(proposed)[:8]}, to {', '.join(names)}",
        f"next: there, hansa study approve {study.name}; here, hansa study show {study.name}",
    ]
    show(found, lines, json_only=json_only)


@app.command("start", epilog=EPILOG)
def study_start(name: Name, home: Home = None, author: Author = "admin", json_only: Json = False) -> None:
    """Start a study with those that approved first, as many as it needs; refused while there are too few."""
    with _authoring(home, author) as authoring:
        _signed(authoring.start(name), "started", json_only=json_only)


@app.command("pause", epilog=EPILOG)
def study_pause(name: Name, home: Home = None, author: Author = "admin", json_only: Json = False) -> None:
    """Pause a study after the round that runs; nothing is lost."""
    _command(name, "pause", home, author, json_only=json_only)


@app.command("resume", epilog=EPILOG)
def study_resume(name: Name, home: Home = None, author: Author = "admin", json_only: Json = False) -> None:
    """Let a paused study go on where it was."""
    _command(name, "resume", home, author, json_only=json_only)


@app.command("stop", epilog=EPILOG)
def study_stop(
    name: Name, home: Home = None, author: Author = "admin", yes: Yes = False, json_only: Json = False
) -> None:
    """End a study for good; members keep the model of the rounds that are over."""
    confirm(f"stopping {name} for good", yes=yes)
    _command(name, "stop", home, author, json_only=json_only)


@app.command("list", epilog=EPILOG)
def study_list(home: Home = None, json_only: Json = False) -> None:
    """List all studies: state, approvals, rounds."""
    from hansa.coordinator.authoring import desk_of
    from hansa.coordinator.study_view import view_of
    from hansa.secure_agg.certificates import utc_now

    with _office(home) as office:
        views = [view_of(office, study, utc_now()) for study in desk_of(office).all()]
    rows = [("STUDY", "SESSION", "STATE", "APPROVED", "ROUND", "AUTHOR")]
    for view in views:
        progress = view["progress"] or {"round": 0}
        approved = f"{len(view['approved'])}/{view['needed']}"
        rounds = f"{progress['round']}/{view['rounds']}"
        rows.append((view["name"], view["session"][:8], view["state"], approved, rounds, view["author"]))
    lines = (
        table(rows) if views else ["no study was proposed; next: hansa study propose STUDY.toml --base FILE"]
    )
    show({"schema": "hansa/studies/v1", "studies": views}, lines, json_only=json_only)


@app.command("show", epilog=EPILOG)
def study_show(name: Name, home: Home = None, json_only: Json = False) -> None:
    """Show a study: who approved, who did not, which layers are on, how far it is."""
    with _office(home) as office:
        view = _view(office, name)
    lines = [f"study      {view['name']}  (session {view['session']})", f"state      {view['state']}"]
    if view["error"]:
        lines.append(f"error      {view['message']} [{view['error']}]")
    missing = sorted(set(view["invited"]) - set(view["approved"]) - set(view["denied"]))
    lines += [
        f"purpose    {view['purpose']}",
        f"id         {view['study']}",
        f"base       {view['base_model']}",
        f"author     {view['author']}",
        f"privacy    epsilon {view['epsilon']:g}, delta {view['delta']:g}, {view['rounds']} rounds",
        f"approved   {len(view['approved'])} of {view['needed']}: {', '.join(view['approved']) or 'nobody'}",
        f"denied     {', '.join(view['denied']) or 'nobody'}",
        f"no answer  {', '.join(missing) or 'nobody'}",
        f"roster     {', '.join(view['roster']) or 'not started'}",
    ]
    off = [layer.replace("_", " ") for layer, on in view["protections"].items() if not on]
    lines += [f"OFF        {layer}" for layer in off]
    from hansa.coordinator.study_view import progress_line

    lines.append(progress_line(view))
    show({"schema": "hansa/study/v1", **view}, lines, json_only=json_only)


@app.command("watch", epilog=EPILOG)
def study_watch(
    name: Name,
    home: Home = None,
    json_only: Annotated[bool, option("Print one JSON object a change, a line each.", "--json")] = False,
    interval: Annotated[float, option("Seconds between two looks (1).")] = 1.0,
) -> None:
    """Follow a study until it is over: round, stage, who is late, bytes, time left. Ctrl-C leaves it running."""
    if not 0.05 <= interval <= 3600:
        raise UsageError(f"an interval of {interval:g} s is not from 0.05 to 3600")
    try:
        _watch(name, home, interval, json_only=json_only)
    except KeyboardInterrupt:
        hint = f"the study goes on; hansa study watch {name} shows it again"
        raise Interrupted("stopped watching", hint=hint) from None


def _watch(name: str, home: Path | None, interval: float, *, json_only: bool) -> None:
    from hansa.coordinator.study_states import OVER
    from hansa.coordinator.study_view import progress_line

    said, on_terminal = "", sys.stdout.isatty() and not json_only
    with _office(home) as office:
        while True:
            view = _view(office, name)
            line = (
                json.dumps({"schema": "hansa/study/v1", **view}, sort_keys=True)
                if json_only
                else printable(progress_line(view))
            )
            if _without_times(line) != said:
                said = _without_times(line)
                typer.echo(("\r\x1b[K" if on_terminal else "") + line, nl=not on_terminal)
            if view["state"] in OVER:
                break
            time.sleep(interval)
    if on_terminal:
        typer.echo()


@app.command("logs", epilog=EPILOG)
def study_logs(
    name: Name,
    home: Home = None,
    most: Annotated[int, option("Most events, the latest ones (200).")] = 200,
    json_only: Annotated[bool, option("Print one JSON object an event, a line each.", "--json")] = False,
) -> None:
    """Print what happened to a study, as the coordinator noted it."""
    with _office(home) as office:
        view = _view(office, name)
        events = [
            event
            for event in office.journal.events(study=view["name"], most=1_000_000)
            if event.detail.get("session", view["session"]) == view["session"]
        ][-max(1, most) :]
    for event in events:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event.at))
        if json_only:
            typer.echo(json.dumps({"at": at, "event": event.kind, **event.detail}, sort_keys=True))
            continue
        detail = "  ".join(
            f"{key}={_shown(value)}" for key, value in event.detail.items() if key != "session"
        )
        typer.echo(printable(f"{at}  {event.kind:<16}  {detail}"))


# -- inside ----------------------------------------------------------------------------------------------


@contextmanager
def _office(home: Path | None) -> Iterator["Office"]:
    from hansa.coordinator.home import CoordinatorHome
    from hansa.coordinator.office import open_office

    with open_office(CoordinatorHome.open(data_home(home, "coordinator"))) as office:
        yield office


@contextmanager
def _authoring(home: Path | None, author: str) -> Iterator["Authoring"]:
    from hansa.coordinator.authoring import Authoring

    with _office(home) as office:
        yield Authoring(office, author)


def _command(name: str, action: "Action", home: Path | None, author: str, *, json_only: bool) -> None:
    words: dict[str, str] = {"pause": "paused", "resume": "resumed", "stop": "stopped"}
    with _authoring(home, author) as authoring:
        _signed(authoring.command(name, action), words[action], json_only=json_only)


def _signed(study: "ProposedStudy", what: str, *, json_only: bool) -> None:
    from hansa.coordinator.study_states import name_of, session_of

    found: dict[str, Any] = {
        "schema": "hansa/study-signed/v1", "study": name_of(study), "session": session_of(study), "what": what,
    }  # fmt: skip
    lines = [f"{what} {name_of(study)}, session {session_of(study)[:8]}"]
    show(found, [*lines, f"next: hansa study watch {name_of(study)}"], json_only=json_only)


def _view(office: "Office", name: str) -> dict[str, Any]:
    from hansa.coordinator.authoring import desk_of
    from hansa.coordinator.study_states import Outcomes, find_study
    from hansa.coordinator.study_view import view_of
    from hansa.secure_agg.certificates import utc_now

    now = utc_now()
    return view_of(office, find_study(desk_of(office), Outcomes(office.journal), name, now), now)


def _without_times(line: str) -> str:
    """Leave out what changes all the time, so that a line is printed when something has happened."""
    import re

    return re.sub(
        r"waiting [\d.]+ s|\"waiting_seconds\": [\d.]+|about [\d.]+ s left|\"seconds_left\": [\d.]+", "", line
    )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int, float], None]]:
    """Show steps on stderr: a bar on a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        every = max(1, total // 5)

        def say(done: int, loss: float) -> None:
            if done % every == 0:
                typer.echo(f"{what}: step {done} of {total}, loss {loss:.4f}", err=True)

        yield say
        return
    with Progress(console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, _loss: bar.update(task, completed=done)
