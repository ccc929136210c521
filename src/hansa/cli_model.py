"""The commands of `hansa model`: train one on public data, look into one. Nothing heavy is imported before a command runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hansa.cli_train import model_train
from hansa.errors import UsageError

EPILOG = "Exit status: 0 ok, 1 failed, 2 usage, 65 data, 66 missing input, 73 output, 78 configuration, 130 interrupted."
EXAMPLE = Path("examples") / "bank"
CHECKOUT = Path(__file__).resolve().parents[2]

app = typer.Typer(
    help="Train a model on public data, or look into one.", no_args_is_help=True, rich_markup_mode=None
)


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, show_default=False)


app.command("train", epilog=EPILOG)(model_train)


@app.command("explain", epilog=EPILOG)
def model_explain(
    row: Annotated[int | None, _option("Row of the table to explain, from 0.")] = None,
    text: Annotated[str | None, _option("Text to explain; needs --base with a tokenizer.json.")] = None,
    tokens: Annotated[str | None, _option("Token numbers instead of a text, such as 5,17,2.")] = None,
    base: Annotated[
        Path | None, _option("Folder of a saved model or a public checkpoint (tables: a base of the study).")
    ] = None,
    study: Annotated[Path | None, _option("A study.toml (the bank example's).")] = None,
    data: Annotated[Path | None, _option("Table with the study's columns (the bank example's).")] = None,
    experts: Annotated[str | None, _option("Experts of a checkpoint to load, such as 0-15 (all).")] = None,
    change: Annotated[
        list[str] | None,
        _option("What if: COLUMN=VALUE of a row, POSITION=TOKEN of a text; may be repeated."),
    ] = None,
    plot: Annotated[Path | None, _option("Also draw the record into this file (.svg, .png, .pdf).")] = None,
    json_only: Annotated[
        bool, _option("Print one JSON object on stdout and nothing else.", "--json")
    ] = False,
) -> None:
    """Say which experts served each token, what each token read, and what a change of the input would change.

    A record tells of the row or text that it was made from: keep it where that belongs.
    """
    given = [value is not None for value in (row, text, tokens)]
    if sum(given) != 1:
        raise UsageError("give exactly one of --row, --text and --tokens")
    changes = _changes(change or [])
    from hansa import explaining

    if row is not None:
        from hansa.study import load_study

        agreement = load_study(study or _example_file("study.toml"))
        table = data or _example_file("data/credit_default.parquet")
        subject = explaining.subject_of_table(agreement, table, row, base=base, changes=changes)
    else:
        if base is None:
            raise UsageError("a text needs a model: give its folder with --base")
        subject = explaining.subject_of_text(base, text=text, tokens=tokens, experts=experts, changes=changes)
    explanation, found = explaining.record_of(subject)
    if plot is not None:
        from hansa.models.explain_plot import draw, save_plot

        save_plot(draw(explanation, subject.names, subject.model.config.experts), plot)
    if json_only:
        typer.echo(json.dumps(explaining.as_json(subject, explanation, found), sort_keys=True))
        return
    typer.echo(explaining.as_words(subject, explanation, found), nl=False)


def _changes(texts: Sequence[str]) -> dict[str, str]:
    """Read NAME=VALUE."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or name in pairs:
            raise UsageError(f"--change is {text!r}, not NAME=VALUE with a name of its own")
        pairs[name] = value
    return pairs


def _example_file(name: str) -> Path:
    """Find a file of the bank example: in the current folder's checkout, or in the one that hansa is installed from."""
    candidates = [root / EXAMPLE / name for root in (Path.cwd(), CHECKOUT)]
    return next((path for path in candidates if path.is_file()), candidates[0])
