"""The commands of `hansa policy`: what a participant's own rules say. Nothing heavy is imported before a command runs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hansa.errors import PolicyRefusal

EPILOG = "Exit status: 0 allowed, 1 failed, 2 usage, 3 refused by policy, 78 configuration, 130 interrupted."

app = typer.Typer(help="Read and try a participant's own rules.", no_args_is_help=True, rich_markup_mode=None)


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, show_default=False)


@app.callback()
def _root() -> None:
    """Keep `check` a command of its own; with one command only, typer would leave its name out."""


@app.command("check", epilog=EPILOG)
def policy_check(
    policy_file: Annotated[Path, typer.Argument(help="A policy.toml.")],
    study_file: Annotated[Path, typer.Argument(help="A study.toml.")],
    model_hash: Annotated[str | None, _option("SHA-256 of the study's base model.")] = None,
    submitter: Annotated[str | None, _option("Who submits the study.")] = None,
    json_only: Annotated[
        bool, _option("Print one JSON object on stdout and nothing else.", "--json")
    ] = False,
) -> None:
    """Say whether a data set's rules allow a study. Nothing is read but the two files, and nothing is spent."""
    from hansa.participant.policy_file import load_policy
    from hansa.study import load_study

    policy, study = load_policy(policy_file), load_study(study_file)
    refusal: PolicyRefusal | None = None
    try:
        policy.verify_study(study, model_hash=model_hash, submitter=submitter)
    except PolicyRefusal as error:
        refusal = error
    warnings = policy.warnings()
    if json_only:
        found = {
            "schema": "hansa/policy-check/v1",
            "data_set": policy.data_set,
            "study": study.id,
            "allowed": refusal is None,
            "code": refusal.code if refusal else None,
            "reason": refusal.message if refusal else None,
            "warnings": list(warnings),
        }
        typer.echo(json.dumps(found, sort_keys=True))
    else:
        verdict = "allowed" if refusal is None else f"refused [{refusal.code}]"
        typer.echo(f"data set {policy.data_set}, study {study.name} ({study.id[:16]}): {verdict}")
        for warning in warnings:
            typer.echo(f"hansa: warning: {warning}", err=True)
    if refusal is not None:
        raise refusal
