"""`hansa coordinator doctor` and `hansa participant doctor`: everything that is wrong with a side's set-up, and what mends it."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hansa.cli_asking import data_home, option
from hansa.errors import HomeMissing

if TYPE_CHECKING:
    from hansa.federation.checks import Result

EPILOG = "Exit status: 0 nothing fails, 1 something fails, 66 no such folder, 130 interrupted."
Json = Annotated[bool, option("Print one JSON object on stdout and nothing else.", "--json")]

coordinator = typer.Typer(rich_markup_mode=None)
participant = typer.Typer(rich_markup_mode=None)


@coordinator.command("doctor", epilog=EPILOG)
def coordinator_doctor(
    home: Annotated[
        Path | None, option("The coordinator's home (HANSA_HOME, or the user's data folder).", "--home")
    ] = None,
    json_only: Json = False,
) -> None:
    """Check this coordinator: settings, database, keys, certificates, ports, processes. Nothing is changed.

    Each line says ok, warn or fail and the cause; below it stands the command that mends it.
    """
    from hansa.coordinator.doctor import COORDINATOR_CHECKS
    from hansa.coordinator.examination import Examination
    from hansa.federation.checks import run_checks

    folder = _folder(home, "coordinator")
    with Examination(folder) as place:
        results = run_checks(COORDINATOR_CHECKS, place)
    _tell("coordinator", folder, results, json_only=json_only)


@participant.command("doctor", epilog=EPILOG)
def participant_doctor(
    home: Annotated[
        Path | None, option("The participant's home (HANSA_HOME, or the user's data folder).", "--home")
    ] = None,
    json_only: Json = False,
) -> None:
    """Check this participant: settings, keys, certificates, the way to the coordinator, data, budgets. Nothing is changed.

    Each line says ok, warn or fail and the cause; below it stands the command that mends it.
    """
    from hansa.federation.checks import run_checks
    from hansa.participant.doctor import PARTICIPANT_CHECKS
    from hansa.participant.examination import Examination

    folder = _folder(home, "participant")
    _tell("participant", folder, run_checks(PARTICIPANT_CHECKS, Examination(folder)), json_only=json_only)


def _folder(home: Path | None, side: str) -> Path:
    folder = data_home(home, side).expanduser().absolute()
    if not folder.is_dir():
        raise HomeMissing(f"there is no folder {str(folder)!r}")
    return folder


def _tell(side: str, folder: Path, results: "Sequence[Result]", *, json_only: bool) -> None:
    from hansa.federation.checks import as_json, as_lines, is_healthy

    if json_only:
        typer.echo(json.dumps(as_json(side, str(folder), results), sort_keys=True))
    else:
        for line in as_lines(results, for_owner=sys.stdout.isatty()):
            typer.echo(line)
    if not is_healthy(results):
        raise typer.Exit(1)
