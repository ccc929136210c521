"""`hansa audit statement` and `hansa audit report`. Nothing heavy is imported before a command runs."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa.errors import Error, LedgerFileMissing, StatementInvalid, UsageError

if TYPE_CHECKING:
    from hansa.privacy.statement import Approval
    from hansa.reports.privacy_report import PrivacyReport
    from hansa.study import Study

STATEMENT_EPILOG = (
    "Exit status: 0 written, 1 the ledger does not hold, 2 usage, 3 another participant's ledger, 66 missing input, "
    "73 output, 78 configuration, 130 interrupted."
)
REPORT_EPILOG = (
    "Exit status: 0 everything holds, 1 something does not (the report is written and says what), 2 usage, "
    "66 missing input, 73 output, 78 typst is not installed, 130 interrupted."
)
NAME = "privacy-report"
_FILE_BYTES_MOST = 1 << 20


class Format(StrEnum):
    """Formats of a report."""

    HTML = "html"
    JSON = "json"
    PDF = "pdf"


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, show_default=False)


def audit_statement(
    ledger: Annotated[Path, typer.Argument(help="A ledger-*.jsonl file of this participant.")],
    home: Annotated[Path, _option("Home folder of the participant, with its identity.")],
    policy: Annotated[Path, _option("The data set's policy.toml: its name and its limits.")],
    output: Annotated[Path, _option("File to write, such as statement-cards.json.")],
    study: Annotated[
        list[Path] | None,
        _option("study.toml of a study in the ledger that the home does not know; may be repeated."),
    ] = None,
    base_model: Annotated[
        list[str] | None, _option("STUDY=HEX, hash of a study's public base model; may be repeated.")
    ] = None,
    empirical: Annotated[
        list[Path] | None, _option("What `hansa audit empirical --output` wrote; may be repeated.")
    ] = None,
    approvals: Annotated[
        Path | None, _option("Who agreed to which study, JSON of the form hansa/approvals/v1.")
    ] = None,
    dry_run: Annotated[bool, _option("Print the statement and write nothing.", "--dry-run")] = False,
) -> None:
    """Sign what this participant vouches for beside its ledger: limits, studies, protections, who was missing, program.

    It holds no record, no number of records, no loss and no gradient. Hand it to the auditor with the ledger.
    """
    from hansa.participant.home import open_identity
    from hansa.participant.policy_file import load_policy
    from hansa.participant.stating import known_in, signed_statement
    from hansa.privacy.empirical_file import read_empirical
    from hansa.privacy.statement import write_statement
    from hansa.study import load_study

    rules = load_policy(policy)
    identity = open_identity(home)
    known = known_in(home, rules.data_set)
    agreements = [*known.studies, *(load_study(file) for file in study or [])]
    bounds, inversions = [], []
    for file in empirical or []:
        found_bounds, found_inversions = read_empirical(file)
        bounds += found_bounds
        inversions += found_inversions
    signed = signed_statement(
        ledger,
        identity,
        policy=rules,
        studies=agreements,
        base_models={**known.base_models, **_base_models(base_model or [], agreements)},
        approvals=[*known.approvals, *([] if approvals is None else _approvals(approvals))],
        empirical=bounds,
        inversions=inversions,
    )
    if dry_run:
        typer.echo(signed.decode(), nl=False)
        return
    write_statement(output, signed)
    typer.echo(f"wrote {output}")
    typer.echo(
        f"next: hand {output.name} and {ledger.name} to the auditor, who runs hansa audit report FOLDER"
    )


def audit_report(
    place: Annotated[Path, typer.Argument(help="Folder with the participants' ledgers and statements.")],
    output: Annotated[
        Path, _option("Folder for privacy-report.html, .json and .pdf (privacy-report).")
    ] = Path(NAME),
    formats: Annotated[
        list[Format] | None, _option("html, json or pdf; may be repeated (html and json).", "--format")
    ] = None,
    key: Annotated[
        list[str] | None,
        _option("PARTICIPANT=HEX, a public key that you know; otherwise the ledger's own is believed."),
    ] = None,
    json_only: Annotated[
        bool,
        _option("Print the JSON report on stdout and nothing else; files are written as well.", "--json"),
    ] = False,
) -> None:
    """Verify everything, recompute epsilon by three accountants, and write a report that can be signed for."""
    from hansa.cli_keys import keys_of
    from hansa.reports.files import prepare_directory, write_files

    keys = keys_of(key or [])
    wanted = list(dict.fromkeys(formats or [Format.HTML, Format.JSON]))
    if Format.PDF in wanted:
        from hansa.reports.paper import typst_here

        typst_here()
    prepare_directory(output)
    from hansa.reports.gather import gather
    from hansa.reports.page import report_json

    report = gather(place, keys=keys)
    contents = {f"{NAME}.{kind}": _made(report, kind) for kind in wanted}
    paths = write_files(output, contents)
    if json_only:
        typer.echo(report_json(report), nl=False)
    else:
        typer.echo(as_words(report), nl=False)
        for path in paths:
            typer.echo(f"wrote {path}")
    if report.problems:
        raise _error_of(report)


def _made(report: "PrivacyReport", kind: Format) -> bytes:
    from hansa.reports.page import report_html, report_json

    if kind == Format.HTML:
        return report_html(report).encode()
    if kind == Format.JSON:
        return report_json(report).encode()
    from hansa.reports.paper import report_pdf

    return report_pdf(report)


def as_words(report: "PrivacyReport") -> str:
    """Put a report into lines for a terminal."""
    from hansa.reports.wording import printable
    from hansa.reports.written import write

    lines = ["VERIFIED" if report.verified else "NOT VERIFIED"]
    lines += [f"problem  {f'{one.file}: ' if one.file else ''}{one.message}" for one in report.problems]
    lines += [
        f"OFF      {layer.layer.replace('_', ' ')} in {', '.join(layer.off_in)}"
        for layer in report.overall.layers
        if not layer.on
    ]
    lines += [f"caution  {text}" for text in report.cautions]
    lines.append("PARTICIPANT       DATA SET          UNIT    EPSILON     LIMIT      LEFT     DELTA")
    for one in report.data_sets:
        spent = one.spent
        lines.append(
            f"{one.participant[:16]:16}  {one.name[:16]:16}  {one.unit:6}  {write('epsilon', _finite(spent.epsilon)):>8}  "
            f"{write('limit', spent.limit):>8}  {write('left', spent.left):>8}  {write('delta', one.delta):>8}"
        )
    return "".join(f"{printable(line)}\n" for line in lines)


def _finite(value: float) -> float | None:
    return None if value == float("inf") else value


def _error_of(report: "PrivacyReport") -> Error:
    """The error of the first problem; whatever it is, the report does not hold."""
    first = report.problems[0]
    error = Error(
        f"{f'{first.file}: ' if first.file else ''}{first.message}",
        hint="the report names everything that does not hold; do not rely on its numbers",
    )
    error.code = first.code
    return error


def _base_models(texts: Sequence[str], studies: Sequence["Study"]) -> dict[str, str]:
    """Read STUDY=HEX; a study is named by its name or its id."""
    found = {}
    for text in texts:
        name, _, digits = text.partition("=")
        named = sorted({study.id for study in studies if name in (study.name, study.id)})
        if len(named) != 1 or len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
            raise UsageError(
                f"--base-model is {text[:80]!r}, not the name of a study that is given, =, and 64 hex digits"
            )
        found[named[0]] = digits
    return found


def _approvals(path: Path) -> "list[Approval]":
    import json

    from pydantic import TypeAdapter, ValidationError

    from hansa.privacy.statement import Approval

    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MOST + 1)
    except OSError as error:
        raise LedgerFileMissing(f"{str(path)!r} cannot be read: {error.strerror}") from error
    try:
        found = json.loads(data) if len(data) <= _FILE_BYTES_MOST else None
        if not isinstance(found, dict) or found.keys() != {"schema", "approvals"}:
            raise ValueError
        if found["schema"] != "hansa/approvals/v1":
            raise ValueError
        return TypeAdapter(list[Approval]).validate_json(json.dumps(found["approvals"]))
    except (ValueError, RecursionError, ValidationError) as error:
        raise StatementInvalid(
            f"{path.name} has not the form hansa/approvals/v1", hint="docs/privacy.md shows one"
        ) from error
