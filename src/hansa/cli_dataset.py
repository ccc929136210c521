"""The commands of `hansa participant dataset`: describe, check and look at data that never leaves this machine."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa.cli_asking import data_home, printable
from hansa.errors import SchemaMismatch, UsageError

if TYPE_CHECKING:
    from hansa.participant.data_reading import Check
    from hansa.participant.dataset_file import DatasetEntry

EPILOG = "Exit status: 0 ok, 2 usage, 3 refused by policy, 65 data, 66 missing input, 69 unreachable, 78 configuration."

app = typer.Typer(
    help="Describe, check and look at this participant's data. Nothing is sent.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, show_default=False)


Home = Annotated[
    Path | None, _option("The participant's home (HANSA_HOME, or the user's data folder).", "--home")
]
Json = Annotated[bool, _option("Print one JSON object on stdout and nothing else.", "--json")]
DryRun = Annotated[bool, _option("Say what would be written, and write nothing.", "--dry-run")]
DataName = Annotated[str, typer.Argument(help="Name of the data set.", metavar="NAME")]


@app.command("add", epilog=EPILOG)
def add(
    name: DataName,
    kind: Annotated[str, _option("csv, parquet, sql or jsonl.")],
    path: Annotated[str | None, _option("File of csv, parquet or jsonl.")] = None,
    delimiter: Annotated[str | None, _option("csv: character between cells (,).")] = None,
    encoding: Annotated[str | None, _option("csv: encoding (utf-8).")] = None,
    url: Annotated[str | None, _option("sql: URL of the database, without a password.")] = None,
    url_file: Annotated[str | None, _option("sql: file that holds such a URL.")] = None,
    password_file: Annotated[str | None, _option("sql: file that holds the password alone.")] = None,
    query: Annotated[str | None, _option("sql: one SELECT.")] = None,
    query_file: Annotated[str | None, _option("sql: file that holds it.")] = None,
    table: Annotated[str | None, _option("sql: table or view, in place of a query.")] = None,
    label: Annotated[str | None, _option("Column of the label in the data.")] = None,
    person: Annotated[str | None, _option("Column that says whose record it is.")] = None,
    record: Annotated[str | None, _option("Column that names a record for ever.")] = None,
    column: Annotated[
        list[str] | None, _option("STUDY=DATA, another name of a column in the data; may be repeated.")
    ] = None,
    policy: Annotated[str | None, _option("policy.toml of the data set.")] = None,
    home: Home = None,
    dry_run: DryRun = False,
    json_only: Json = False,
) -> None:
    """Describe a data set in datasets.toml. The data is not read; `check` reads it."""
    from hansa.participant.dataset_edit import add_dataset

    given = {
        "name": name, "kind": kind, "path": path, "delimiter": delimiter, "encoding": encoding, "url": url,
        "url_file": url_file, "password_file": password_file, "query": query, "query_file": query_file, "table": table,
        "label": label, "person": person, "record": record, "columns": _pairs(column), "policy": policy,
    }  # fmt: skip
    entry = _entry({key: value for key, value in given.items() if value is not None})
    block = add_dataset(data_home(home, "participant"), entry, dry_run=dry_run)
    _tell_change("add", name, block, dry_run=dry_run, json_only=json_only)
    if not json_only and not dry_run:
        typer.echo(f"next: hansa participant dataset check {name} STUDY.toml")


@app.command("remove", epilog=EPILOG)
def remove(name: DataName, home: Home = None, dry_run: DryRun = False, json_only: Json = False) -> None:
    """Take a data set out of datasets.toml. Its ledger stays, and so does what was spent on its records."""
    from hansa.participant.dataset_edit import remove_dataset

    block = remove_dataset(data_home(home, "participant"), name, dry_run=dry_run)
    _tell_change("remove", name, block, dry_run=dry_run, json_only=json_only)
    if not json_only:
        typer.echo("the ledger stays: the same records keep their budget, under this name only")


@app.command("list", epilog=EPILOG)
def list_datasets(home: Home = None, json_only: Json = False) -> None:
    """List the data sets of this participant, and which have a ledger."""
    from hansa.participant.dataset_file import load_datasets
    from hansa.participant.registered_data import registered_names
    from hansa.privacy.data_identity import ledger_path

    folder = data_home(home, "participant")
    entries, known = load_datasets(folder).dataset, registered_names(folder)
    rows = [
        {
            "name": entry.name,
            "kind": entry.kind,
            "policy": entry.policy,
            "ledger": ledger_path(folder, known[entry.name]).name if entry.name in known else None,
        }
        for entry in entries
    ]
    removed = sorted(set(known) - {entry.name for entry in entries})
    if json_only:
        found = {"schema": "hansa/dataset-list/v1", "data_sets": rows, "removed": removed}
        typer.echo(json.dumps(found, sort_keys=True))
        return
    typer.echo(f"{'NAME':24}{'KIND':9}{'POLICY':20}LEDGER")
    for row in rows:
        typer.echo(
            f"{row['name']:24}{row['kind']:9}{row['policy'] or '-':20}{row['ledger'] or 'not registered yet'}"
        )
    for name in removed:
        typer.echo(f"{name:24}{'-':9}{'-':20}{ledger_path(folder, known[name]).name} (no longer described)")


@app.command("check", epilog=EPILOG)
def check(
    name: DataName,
    study_file: Annotated[
        Path | None,
        typer.Argument(help="A study.toml; a data set of texts needs none.", metavar="[STUDY.toml]"),
    ] = None,
    home: Home = None,
    json_only: Json = False,
) -> None:
    """Hold a data set against a study and list every problem, by columns and counts. Nothing is registered, spent or sent."""
    from hansa.participant.data_reading import check_data
    from hansa.participant.dataset_file import load_datasets
    from hansa.study import load_study

    study = None if study_file is None else load_study(study_file)
    entry = load_datasets(data_home(home, "participant")).named(name)
    if study is None and entry.kind != "jsonl":
        raise UsageError(f"data set {name!r} is a table: give the study.toml that it should fit")
    found = check_data(entry, data_home(home, "participant"), study)
    errors = [problem for problem in found.problems if problem.severity == "error"]
    if json_only:
        report = {
            "schema": "hansa/dataset-check/v1",
            "data_set": name,
            "study": study.id if study else None,
            "rows": found.rows if found.rows >= 0 else None,
            "fits": found.fits,
            "problems": [problem.as_json() for problem in found.problems],
        }
        typer.echo(json.dumps(report, sort_keys=True))
    else:
        _tell_check(name, found)
    if errors:
        raise SchemaMismatch(
            f"data set {name!r} does not fit: {len(errors)} of the problems are errors", hint=_hint(errors)
        )


@app.command("stats", epilog=EPILOG)
def stats(name: DataName, home: Home = None, json_only: Json = False) -> None:
    """Show aggregates of a data set, here and to nobody else: they have no noise."""
    from hansa.participant.data_stats import data_stats
    from hansa.participant.dataset_file import load_datasets

    found = data_stats(
        load_datasets(data_home(home, "participant")).named(name), data_home(home, "participant")
    )
    if json_only:
        typer.echo(
            json.dumps(
                {"schema": "hansa/dataset-stats/v1", "data_set": name, "sent": False, **found}, sort_keys=True
            )
        )
        return
    typer.echo(f"data set {name}: {found['rows']} rows")
    if found["persons"]:
        typer.echo(
            f"{found['persons']['count']} persons, at most {found['persons']['most_records']} records of one"
        )
    typer.echo(
        f"{'COLUMN':24}{'MISSING':>9}{'MIN':>12}{'5 %':>12}{'MEDIAN':>12}{'95 %':>12}{'MAX':>12}  SHARES"
    )
    for column, values in found["columns"].items():
        typer.echo(_stats_line(column, values))
    typer.echo("nothing was sent; without noise these numbers are for your eyes only", err=True)


def _stats_line(column: str, values: dict[str, Any]) -> str:
    quantiles = values.get("quantiles", {})
    numbers = [
        values.get("minimum"),
        *(quantiles.get(q) for q in ("0.05", "0.5", "0.95")),
        values.get("maximum"),
    ]
    shown = "".join(f"{'-' if number is None else format(number, '.6g'):>12}" for number in numbers)
    shares = [f"{text[:20]} {share:.1%}" for text, share in list(values.get("shares", {}).items())[:6]]
    more = "" if values["distinct"] is None else f"{values['distinct']} different"
    return f"{column[:23]:24}{values['missing_share']:>9.1%}{shown}  {', '.join(shares) or more}"


def _tell_check(name: str, found: "Check") -> None:
    for problem in found.problems:
        typer.echo(printable(f"{problem.severity:6} {problem.message} [{problem.code}]"))
    rows = f", {found.rows} rows" if found.rows >= 0 else ""
    typer.echo(f"data set {name}{rows}: {'fits' if found.fits else 'does not fit'}")


def _hint(errors: Sequence[Any]) -> str:
    codes = {problem.code for problem in errors}
    if "missing_column" in codes:
        return "name the columns of the data with `columns` in datasets.toml, or correct delimiter and header"
    return "correct the data or its description in datasets.toml; docs/data.md lists the checks"


def _tell_change(verb: str, name: str, block: str, *, dry_run: bool, json_only: bool) -> None:
    if json_only:
        found = {
            "schema": "hansa/dataset-change/v1",
            "change": verb,
            "data_set": name,
            "block": block,
            "written": not dry_run,
        }
        typer.echo(json.dumps(found, sort_keys=True))
        return
    if dry_run:
        typer.echo(f"would {verb}, nothing is written:\n{block}", nl=False)
        return
    typer.echo(
        f"data set {name} is {'described' if verb == 'add' else 'no longer described'} in datasets.toml"
    )


def _pairs(columns: Sequence[str] | None) -> dict[str, str] | None:
    if not columns:
        return None
    found: dict[str, str] = {}
    for pair in columns:
        study, separator, data = pair.partition("=")
        if not (study and separator and data):
            raise UsageError(f"--column {pair!r} is not STUDY=DATA")
        if study in found:
            raise UsageError(f"--column names {study!r} twice")
        found[study] = data
    return found


def _entry(given: dict[str, Any]) -> "DatasetEntry":
    from hansa.participant.dataset_file import SCHEMA, validated

    return validated({"schema": SCHEMA, "dataset": [given]}).dataset[0]
