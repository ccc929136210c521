"""The commands of `hansa audit`: check what participants spent, from files alone. Nothing heavy is imported before a command runs.

An auditor keeps a tree head of each ledger (`head`) and gives it at the next audit (`verify --head`): then a ledger that was cut,
rewritten or replaced since is found. `prove` shows one entry to somebody who may not see the ledger.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa.cli_keys import keys_of
from hansa.cli_report import REPORT_EPILOG, STATEMENT_EPILOG, audit_report, audit_statement
from hansa.errors import AuditError, LedgerFileMissing, ProofInvalid, UsageError

if TYPE_CHECKING:
    from hansa.privacy.audit import Finding, LedgerAudit
    from hansa.privacy.ledger_head import TreeHead
    from hansa.privacy.ledger_history import Reservation
    from hansa.privacy.statement_audit import StatementFinding

EPILOG = "Exit status: 0 verified, 1 not verified, 2 usage, 66 missing input, 130 interrupted."
_FILE_BYTES_MOST = 1 << 20

app = typer.Typer(
    help="Check what participants spent, from their ledger files alone.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, show_default=False)


Json = Annotated[bool, _option("Print one JSON object on stdout and nothing else.", "--json")]
LedgerFile = Annotated[Path, typer.Argument(help="A ledger-*.jsonl file.")]

app.command("report", epilog=REPORT_EPILOG)(audit_report)
app.command("statement", epilog=STATEMENT_EPILOG)(audit_statement)


@app.command("verify", epilog=EPILOG)
def verify(
    place: Annotated[Path | None, typer.Argument(help="Folder with ledgers, or one of them.")] = None,
    head: Annotated[
        list[Path] | None,
        _option("Earlier tree head, or signed upload header, that a ledger must continue; may be repeated."),
    ] = None,
    proof: Annotated[
        list[Path] | None, _option("Inclusion proof of `hansa audit prove`; may be repeated.")
    ] = None,
    key: Annotated[
        list[str] | None,
        _option("PARTICIPANT=HEX, a public key that you know; otherwise the ledger's own is believed."),
    ] = None,
    quick: Annotated[
        bool,
        _option("Check the last signature of each ledger, which covers all lines, and not each.", "--quick"),
    ] = False,
    json_only: Json = False,
) -> None:
    """Check signatures, chain, order and history of ledgers, recompute epsilon, and check it against its limit.

    Statements beside the ledgers are held against them and against each other.
    """
    if place is None and not proof:
        raise UsageError("give a folder with ledgers, or --proof")
    from hansa.privacy.audit import audit_folder
    from hansa.privacy.contradictions import contradictions
    from hansa.privacy.ledger_head import verify_proof
    from hansa.privacy.statement_audit import audit_statements

    keys = keys_of(key or [])
    proofs = [(file, verify_proof(_json_file(file))) for file in proof or []]
    heads = [_head(_json_file(file)) for file in head or []] + [found for _, found in proofs]
    for found in heads:
        if keys.get(found.participant, found.public_key) != found.public_key:
            raise ProofInvalid(
                f"a tree head of {found.participant!r} is signed by another key than was given"
            )
    findings = [] if place is None else audit_folder(place, keys=keys, heads=heads, every_signature=not quick)
    statements = [] if place is None else audit_statements(place, findings, keys=keys)
    between = contradictions(findings, statements)
    errors: list[AuditError] = [one.error for one in findings if one.error is not None]
    errors += [one.error for one in statements if one.error is not None]
    errors += between
    if json_only:
        typer.echo(json.dumps(_verification(findings, statements, between, proofs), sort_keys=True))
    else:
        for finding in findings:
            typer.echo(_finding_words(finding))
        for one in statements:
            typer.echo(_statement_words(one))
        for error in between:
            typer.echo(f"NOT       {error.message}")
        for file, found in proofs:
            typer.echo(
                f"proof     {file.name}: holds, {found.participant}, key {found.public_key.hex()[:16]}..."
            )
        if place is not None and not errors:
            typer.echo(
                "next: hansa audit head LEDGER --json > head.json, and --head head.json at the next audit"
            )
    if errors:
        raise errors[0]


@app.command("prove", epilog=EPILOG)
def prove(
    ledger: LedgerFile,
    entry: Annotated[int, _option("Number of the entry: 0 is the opening, N stands on line N + 1.")],
    json_only: Json = False,
) -> None:
    """Prove that an entry is in a ledger, to somebody who sees neither the ledger nor its other entries."""
    from hansa.privacy.audit import read
    from hansa.privacy.ledger_head import proof_as_json
    from hansa.privacy.merkle import inclusion_proof

    history = read(ledger).history
    if not 0 <= entry < history.size:
        raise UsageError(f"{ledger.name} has entries 0 to {history.size - 1}, not {entry}")
    path = inclusion_proof(history.leaves, entry)
    found = proof_as_json(history.head(), history.signature, entry, history.encoded[entry], path)
    if json_only:
        typer.echo(json.dumps(found, sort_keys=True))
        return
    typer.echo(f"entry {entry} of {found['size']} of {found['participant']}: {found['entry']['kind']}")
    typer.echo(f"root  {found['root']}")
    for node in path:
        typer.echo(f"path  {node.hex()}")
    typer.echo(
        f"next: the same with --json > proof-{entry}.json; then hansa audit verify --proof proof-{entry}.json"
    )


@app.command("head", epilog=EPILOG)
def head_command(ledger: LedgerFile, json_only: Json = False) -> None:
    """Print the signed tree head of a ledger; keep it, and give it to the next audit."""
    from hansa.privacy.audit import read

    history = read(ledger).history
    found = history.head().as_json(history.signature)
    if json_only:
        typer.echo(json.dumps(found, sort_keys=True))
        return
    for name in ("participant", "public_key", "data", "size", "root", "signature"):
        typer.echo(f"{name:12}{found[name]}")


@app.command("show", epilog=EPILOG)
def show(ledger: LedgerFile, json_only: Json = False) -> None:
    """Print what a ledger spent, by study and round."""
    from hansa.privacy.audit import audit_ledger

    audit = audit_ledger(ledger)
    if json_only:
        typer.echo(json.dumps({"schema": "hansa/audit-show/v1", **_ledger_json(audit)}, sort_keys=True))
        return
    typer.echo(
        f"{audit.opening.participant}, data {audit.opening.data.hex()[:16]}, unit {audit.opening.unit}"
    )
    typer.echo("STUDY             ROUND  ATTEMPT  EPSILON  COMMITTED  SIGMA    RATE     STEPS")
    for reservation, epsilon in zip(audit.reservations, audit.round_epsilon, strict=True):
        spent = reservation.counted
        typer.echo(
            f"{spent.study[:16]:16}  {_place(reservation)}  {epsilon:7.3f}  "
            f"{'yes' if reservation.committed else 'no':9}  {spent.noise_multiplier:<7g}  "
            f"{spent.sample_rate:<7g}  {spent.steps:5d}"
        )
    for study, epsilon in audit.study_epsilon.items():
        typer.echo(f"study {study[:16]}  epsilon {epsilon:.3f}")
    typer.echo(f"in all  {_epsilon_words(audit)}")
    for note in audit.notes:
        typer.echo(f"note  {note}")


def _verification(
    findings: Sequence["Finding"],
    statements: Sequence["StatementFinding"],
    between: Sequence[AuditError],
    proofs: Sequence[tuple[Path, "TreeHead"]],
) -> dict[str, Any]:
    is_sound = all(one.error is None for one in findings) and all(one.error is None for one in statements)
    return {
        "schema": "hansa/audit-verify/v1",
        "verified": is_sound and not between,
        "ledgers": [
            {"file": str(finding.path), "verified": True, **_ledger_json(finding.audit)}
            if finding.audit is not None
            else {
                "file": str(finding.path),
                "verified": False,
                "code": finding.error.code if finding.error else "",
                "problem": finding.error.message if finding.error else "",
            }
            for finding in findings
        ],
        "statements": [
            {
                "file": str(one.path),
                "participant": one.statement.participant if one.statement else None,
                "verified": one.error is None,
                "code": one.error.code if one.error else None,
                "problem": one.error.message if one.error else None,
            }
            for one in statements
        ],
        "contradictions": [{"code": error.code, "problem": error.message} for error in between],
        "proofs": [
            {"file": str(file), "participant": head.participant, "public_key": head.public_key.hex()}
            for file, head in proofs
        ],
    }


def _ledger_json(audit: "LedgerAudit") -> dict[str, Any]:
    opening = audit.opening
    return {
        "participant": opening.participant,
        "public_key": opening.public_key.hex(),
        "data": opening.data.hex(),
        "unit": opening.unit,
        "delta": opening.delta,
        "epsilon": _finite(audit.epsilon),
        "epsilon_limit": audit.reservations[-1].epsilon_limit if audit.reservations else None,
        "entries": audit.head.size,
        "root": audit.head.root.hex(),
        "notes": list(audit.notes),
        "studies": {study: _finite(epsilon) for study, epsilon in audit.study_epsilon.items()},
        "rounds": [
            {
                "study": reservation.spending.study,
                "round": reservation.spending.round,
                "attempt": reservation.spending.attempt,
                "epsilon": _finite(epsilon),
                "committed": reservation.committed,
                "noise_multiplier": reservation.counted.noise_multiplier,
                "noise_contributors": reservation.counted.contributors,
                "sample_rate": reservation.spending.sample_rate,
                "steps": reservation.spending.steps,
                "line": reservation.line,
            }
            for reservation, epsilon in zip(audit.reservations, audit.round_epsilon, strict=True)
            if not reservation.purpose
        ],
        "charges": [
            {
                "purpose": reservation.purpose,
                "study": reservation.spending.study,
                "epsilon": _finite(epsilon),
                "noise_multiplier": reservation.spending.noise_multiplier,
                "sample_rate": reservation.spending.sample_rate,
                "steps": reservation.spending.steps,
                "line": reservation.line,
            }
            for reservation, epsilon in zip(audit.reservations, audit.round_epsilon, strict=True)
            if reservation.purpose
        ],
    }


def _place(reservation: "Reservation") -> str:
    """Name round and attempt, or what else was charged."""
    if reservation.purpose:
        return f"{reservation.purpose[:14]:14}"
    return f"{reservation.spending.round:5d}  {reservation.spending.attempt:7d}"


def _finding_words(finding: "Finding") -> str:
    if finding.audit is None:
        return f"NOT       {finding.path}: {finding.error.message if finding.error else ''}"
    audit = finding.audit
    words = [f"verified  {finding.path}: {audit.opening.participant}, {_epsilon_words(audit)}"]
    return "\n".join(words + [f"note      {note}" for note in audit.notes])


def _statement_words(one: "StatementFinding") -> str:
    if one.error is not None or one.statement is None:
        return f"NOT       {one.path}: {one.error.message if one.error else ''}"
    statement = one.statement
    return (
        f"verified  {one.path}: {statement.participant} states {len(statement.studies)} studies of data set"
        f" {statement.data_set!r}, signed after {statement.ledger.size} entries"
    )


def _epsilon_words(audit: "LedgerAudit") -> str:
    limit = audit.reservations[-1].epsilon_limit if audit.reservations else None
    bound = "without a limit" if limit is None else f"of {limit:g}"
    return f"epsilon {audit.epsilon:.3f} {bound} at delta {audit.opening.delta:g}, {audit.head.size} entries"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity


def _head(found: dict[str, Any]) -> "TreeHead":
    """Read a tree head, or the upload header in which another participant saw one."""
    from hansa.participant.seen_heads import SEEN_HEAD_SCHEMA, seen_head_of_json
    from hansa.privacy.ledger_head import head_of_json

    return seen_head_of_json(found) if found.get("schema") == SEEN_HEAD_SCHEMA else head_of_json(found)


def _json_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MOST + 1)
    except OSError as error:
        raise LedgerFileMissing(f"{str(path)!r} cannot be read: {error.strerror}") from error
    try:
        found = json.loads(data) if len(data) <= _FILE_BYTES_MOST else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ProofInvalid(f"{path.name} is no JSON object of a proof or tree head")
    return found
