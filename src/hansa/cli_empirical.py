"""The command `hansa audit empirical`: measure what a study's mechanism leaks. Nothing heavy is imported before it runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa.errors import OutputNotWritable

if TYPE_CHECKING:
    from hansa.empirical_audit import Check, EmpiricalAudit

EPILOG = (
    "Exit status: 0 every bound holds, 1 a bound is above its claim, 2 usage, 66 missing input, "
    "73 output not writable, 78 configuration, 130 interrupted."
)


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, show_default=False)


def empirical(
    study: Annotated[Path, typer.Argument(help="A study.toml (study.toml).", show_default=False)] = Path(
        "study.toml"
    ),
    quick: Annotated[bool, _option("Take fewer canaries and texts.", "--quick")] = False,
    json_only: Annotated[
        bool, _option("Print one JSON object on stdout and nothing else.", "--json")
    ] = False,
    output: Annotated[Path | None, _option("File for the JSON object (none).")] = None,
) -> None:
    """Measure by attacks what training leaks, beside the epsilon that is claimed for it.

    All records are synthetic, drawn from the study's public ranges: no data is read and no budget is charged.
    A lower bound above its claim is an error. One below it shows that these attacks found nothing, not that there is
    nothing to find.
    """
    from hansa.study import load_study

    agreement = load_study(study)
    if output is not None:
        _prepare(output)
    from hansa.empirical_audit import as_json, audit_study

    found = audit_study(
        agreement, quick=quick, progress=None if json_only else lambda line: typer.echo(line, err=True)
    )
    document = as_json(found)
    if output is not None:
        _write(output, json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n")
    if json_only:
        typer.echo(json.dumps(document, sort_keys=True, allow_nan=False))
    else:
        typer.echo(as_words(found, output), nl=False)
    if found.errors:
        raise found.errors[0]


def as_words(found: "EmpiricalAudit", output: Path | None) -> str:
    """Put an audit into words and a table."""
    from hansa.empirical_audit import ROWS

    privacy, mechanism = found.study.privacy, found.mechanism
    lines = [
        f"study {found.study.name}: epsilon {found.claimed:.3f} claimed at delta {privacy.delta:g}, unit {privacy.unit}",
        f"noise multiplier {mechanism.noise_multiplier:g}, sample rate {mechanism.sample_rate:g}, "
        f"clip norm {privacy.clip_norm:g}, {mechanism.steps} steps",
        f"records: {ROWS}",
        "",
        f"{'check':20}{'claimed':>9}{'shown':>9}{'confidence':>12}  verdict",
        *(_row(check) for check in found.checks),
        "",
        "shown: a lower bound of epsilon. It shows faults; it does not show that there are none",
        f"{found.seconds:.1f} seconds",
    ]
    if not found.errors:
        lines.append("no bound is above its claim")
    if output is not None:
        lines.append(f"written to {output.name}")
    return "\n".join(lines) + "\n"


def _row(check: "Check") -> str:
    from hansa.participant.one_run_audit import OneRunAudit
    from hansa.privacy.inversion_check import InversionCheck

    found, verdict = check.found, "holds" if check.error is None else "FAILS"
    if isinstance(found, InversionCheck):
        return (
            f"{check.name:20}{'-':>9}{'-':>9}{found.confidence:>12.1%}  {verdict}: of {found.tokens} tokens "
            f"{found.recovered_without_noise:.1%} found without noise, {found.recovered:.1%} with it, chance {found.chance:.1%}"
        )
    if isinstance(found, OneRunAudit):
        shown = found.shown
        words = (
            f": {found.rounds} rounds, {shown.correct} of {shown.guesses} guesses right about {shown.canaries} canaries, "
            f"{shown.true_positive_rate:.1%} found at 1% false alarms; could show {shown.epsilon_most:.1f} at most"
        )
        numbers = f"{found.claimed:>9.3f}{shown.epsilon:>9.3f}{shown.confidence:>12.1%}"
        return f"{check.name:20}{numbers}  {verdict}{words}"
    steps, rate = found.mechanism.steps, found.mechanism.sample_rate
    return (
        f"{check.name:20}{found.claimed:>9.3f}{found.largest:>9.3f}{found.confidence:>12.1%}  {verdict}: "
        f"{found.canaries} canaries, {steps} steps at rate {rate:g} and noise multiplier {found.mechanism.noise_multiplier:g}"
    )


def _prepare(output: Path) -> None:
    """Prove that the file can be written, before minutes are spent; what it holds stays."""
    try:
        with output.open("a"):
            pass
    except OSError as error:
        raise _not_writable(output, error) from error


def _write(output: Path, text: str) -> None:
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _not_writable(output, error) from error


def _not_writable(output: Path, error: OSError) -> OutputNotWritable:
    return OutputNotWritable(
        f"{str(output)!r} cannot be written: {(error.strerror or 'unknown reason').lower()}",
        hint="give a file in a folder that you may write to with --output",
    )
