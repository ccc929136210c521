"""The command line: stdout carries the result, stderr everything else.

Exit status: 0 ok, 1 failed, 2 usage, 3 refused by policy, 65 data, 66 missing input, 78 configuration, 130 interrupted.
Heavy imports happen inside the commands, so that help and the first line of progress come at once.
"""

import contextlib
import io
import json
import os
import signal
import sys
import time
import traceback
from importlib.metadata import version as package_version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import click
import typer

from hansa import (
    cli_asking,
    cli_audit,
    cli_budget,
    cli_consortium,
    cli_coordinator,
    cli_decisions,
    cli_empirical,
    cli_model,
    cli_participant,
    cli_policy,
    cli_recipe,
    cli_studies,
)
from hansa.cli_asking import printable
from hansa.errors import Error, Interrupted, UsageError

if TYPE_CHECKING:
    from hansa.study import Study

# Before anything imports Flower: no telemetry, no question for updates.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
# Before anything imports gRPC: it writes a line about every handshake that fails, and anybody can make it fail.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# Before anything imports numpy or torch: workers are processes, so each linear-algebra library keeps to one thread.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

EPILOG = "Exit status: 0 ok, 1 failed, 2 usage, 3 refused by policy, 65 data, 66 missing input, 78 configuration, 130 interrupted."
CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLE = Path("examples") / "bank"

app = typer.Typer(
    name="hansa",
    help="Institutions that may not share data fine-tune one Mixture-of-Experts model together.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
demo_app = typer.Typer(
    help="See the whole system work on this machine.", no_args_is_help=True, rich_markup_mode=None
)
study_app = typer.Typer(
    help="Read and check training agreements.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(demo_app, name="demo")
study_app.add_typer(cli_studies.app)
study_app.add_typer(cli_decisions.decisions)
study_app.command("recipe", epilog=cli_asking.EPILOG)(cli_recipe.recipe)
app.add_typer(study_app, name="study")
app.add_typer(cli_model.app, name="model")
cli_audit.app.command("empirical", epilog=cli_empirical.EPILOG)(cli_empirical.empirical)
app.add_typer(cli_audit.app, name="audit")
app.add_typer(cli_budget.app, name="budget")
app.add_typer(cli_policy.app, name="policy")
app.add_typer(cli_consortium.app, name="consortium")
app.add_typer(cli_coordinator.app, name="coordinator")
app.add_typer(cli_participant.app, name="participant")


def _option(text: str, *names: str) -> Any:
    """Make an option whose help names its default itself."""
    return typer.Option(*names, help=text, show_default=False)


Json = Annotated[bool, _option("Print one JSON object on stdout and nothing else.", "--json")]


@app.callback()
def _root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")] = False,
) -> None:
    global _verbose  # noqa: PLW0603
    _verbose = verbose


_verbose = False


@demo_app.command("bank", epilog=EPILOG)
def demo_bank(
    participants: Annotated[int, _option("Banks, at least 3 (15); fewer are the first of the fifteen.")] = 15,
    epsilon: Annotated[float, _option("Privacy limit of each bank over all rounds (8).")] = 8.0,
    rounds: Annotated[int | None, _option("Rounds (the study's own number).")] = None,
    partition: Annotated[
        str, _option("How rows are dealt: dirichlet, label skew (default), or segments, limit x age.")
    ] = "dirichlet",
    seed: Annotated[
        int,
        _option("Seed of the split, the partition and the start (0). Noise and keys come from the system."),
    ] = 0,
    compare: Annotated[
        bool,
        _option(
            "Also train pooled, without noise, without compression, and alone with privacy.", "--compare"
        ),
    ] = False,
    drop: Annotated[int, _option("Banks that vanish in every round, each at a random stage (0).")] = 0,
    study: Annotated[Path | None, _option("Another study.toml over the same columns.")] = None,
    output: Annotated[Path, _option("Folder for report.html and report.json (hansa-demo).")] = Path(
        "hansa-demo"
    ),
    json_only: Json = False,
) -> None:
    """Let banks fine-tune one model on the UCI credit-default data, every layer of protection on."""
    from hansa.demo.display import make_display
    from hansa.demo.report import report_json, write_report
    from hansa.reports.files import prepare_directory

    started = time.monotonic()
    if seed < 0:
        raise UsageError(f"the seed is {seed}, below 0")
    if drop < 0:
        raise UsageError(f"the number of banks that vanish is {drop}, below 0")
    signal.signal(signal.SIGTERM, _on_terminate)
    agreement, parquet = (
        _agreement(study).with_changes(participants=participants, epsilon=epsilon, rounds=rounds),
        _example_file("data/credit_default.parquet"),
    )
    prepare_directory(output)
    display = make_display("silent" if json_only else "auto")
    display.start(
        f"hansa demo bank: {participants} banks fine-tune one model together",
        {
            "data": "UCI default of credit card clients, 30,000 rows (CC BY 4.0)",
            "privacy": f"epsilon {epsilon:g}, delta {agreement.privacy.delta:g}, one record",
            "rounds": str(agreement.training.rounds),
            "partition": partition,
        },
    )
    try:
        display.phase("loading")
        from hansa.demo.bank import BankDemo, DemoOptions, with_total_seconds, workers_here

        options = DemoOptions(
            partition=partition, seed=seed, compare=compare, workers=workers_here(), drop=drop
        )
        result = BankDemo(agreement, parquet, options, display).run()
        result = with_total_seconds(result, time.monotonic() - started)
        paths = write_report(result, output)
    finally:
        display.finish()
    if json_only:
        typer.echo(report_json(result), nl=False)
        return
    from hansa.demo.display import summary

    typer.echo(summary(result, paths, f"open {paths[0]} in a browser"), nl=False)


@demo_app.command("cluster", epilog=EPILOG)
def demo_cluster(
    participants: Annotated[int, _option("Banks, each an agent of its own, at least 3 (5).")] = 5,
    epsilon: Annotated[float, _option("Privacy limit of each bank over all rounds (8).")] = 8.0,
    rounds: Annotated[int | None, _option("Rounds (the study's own number).")] = None,
    output: Annotated[
        Path, _option("Folder for homes, logs and tables; new or empty (hansa-cluster).")
    ] = Path("hansa-cluster"),
    json_only: Json = False,
) -> None:
    """Set up a whole consortium on this machine: a coordinator and agents as processes, TLS on, every step a command."""
    from hansa.demo.display import make_display

    agreement = _agreement(None).with_changes(participants=participants, epsilon=epsilon, rounds=rounds)
    parquet = _example_file("data/credit_default.parquet")
    signal.signal(signal.SIGTERM, _on_terminate)
    display = make_display("silent" if json_only else "auto")
    length = str(agreement.training.rounds)
    facts = {"doors": "TLS on loopback", "rounds": length, "privacy": f"epsilon {epsilon:g}, one record"}
    display.start(
        f"hansa demo cluster: a coordinator and {participants} agents, each a process of its own", facts
    )
    try:
        display.phase("loading")
        from hansa.demo.cluster_demo import ClusterDemo

        result = ClusterDemo(agreement, parquet, output.absolute(), display, run_here).run()
    finally:
        display.finish()
    typer.echo(
        json.dumps(result.as_json(), sort_keys=True) if json_only else result.as_words(output), nl=json_only
    )


@study_app.command("validate", epilog=EPILOG)
def study_validate(
    file: Annotated[Path, typer.Argument(help="A study.toml.")], json_only: Json = False
) -> None:
    """Check a study file and say what it protects."""
    from hansa.study import load_study

    agreement = load_study(file)
    if json_only:
        found = {
            "schema": "hansa/study-check/v1",
            "id": agreement.id,
            "protections": agreement.protections(),
            "warnings": list(agreement.warnings()),
        }
        typer.echo(json.dumps(found, sort_keys=True))
        return
    typer.echo(f"study {agreement.name} is valid")
    typer.echo(f"id    {agreement.id}")
    for layer, on in agreement.protections().items():
        typer.echo(f"{'on ' if on else 'OFF'}   {layer.replace('_', ' ')}")
    for warning in agreement.warnings():
        typer.echo(f"hansa: warning: {warning}", err=True)


@app.command("explain", epilog=EPILOG)
def explain(code: Annotated[str, typer.Argument(help="Code of an error, such as budget_exhausted.")]) -> None:
    """Say what an error code means and what to do."""
    for error in _tree(Error):
        if error.code == code:
            typer.echo(f"{code}: {(error.__doc__ or '').strip()}")
            typer.echo(f"hint: {error.default_hint}")
            typer.echo(f"exit status: {error.exit_status}")
            return
    known = ", ".join(sorted(error.code for error in _tree(Error)))
    raise UsageError(f"there is no error code {code!r}", hint=f"codes: {known}")


@app.command("version", epilog=EPILOG)
def version(json_only: Json = False) -> None:
    """Print the version."""
    found = package_version("hansa")
    typer.echo(
        json.dumps({"schema": "hansa/version/v1", "version": found}) if json_only else f"hansa {found}"
    )


def main() -> NoReturn:
    """Run the command line and end the process with its exit status."""
    try:
        status = _run()
    except KeyboardInterrupt:
        status = _tell(Interrupted("stopped"))
    sys.exit(status)


def run_here(arguments: list[str]) -> tuple[int, str, str]:
    """Run a command line in this process; give status, stdout and stderr. It spares the imports of a process."""
    out, words = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(words):
        status = _run(arguments)
    return status, out.getvalue(), words.getvalue()


def _run(arguments: list[str] | None = None) -> int:
    try:
        status = app(arguments, standalone_mode=False)
    except Error as error:
        if _verbose:
            traceback.print_exc()
        return _tell(error)
    except click.exceptions.NoArgsIsHelpError as error:
        typer.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return UsageError.exit_status
    except click.ClickException as error:
        return _tell(UsageError(error.format_message()[:1].lower() + error.format_message()[1:].rstrip(".")))
    except click.Abort:
        raise KeyboardInterrupt from None
    if status == Interrupted.exit_status:  # typer turns Ctrl-C into this status without a word
        raise KeyboardInterrupt
    return status if isinstance(status, int) else 0


def _tell(error: Error) -> int:
    typer.echo(printable(f"hansa: error: {error.message} [{error.code}]"), err=True)
    typer.echo(printable(f"hansa: hint: {error.hint}"), err=True)
    return error.exit_status


def _on_terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _agreement(study: Path | None) -> "Study":
    from hansa.study import load_study

    return load_study(_example_file("study.toml") if study is None else study)


def _example_file(name: str) -> Path:
    """Find a file of the bank example: in the current folder's checkout, or in the one that hansa is installed from."""
    candidates = [root / EXAMPLE / name for root in (Path.cwd(), CHECKOUT)]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _tree(root: type[Error]) -> list[type[Error]]:
    return [root, *(error for child in root.__subclasses__() for error in _tree(child))]
