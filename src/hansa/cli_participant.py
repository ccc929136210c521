"""The group `hansa participant`: what an institution does at its own machine. Each part has its own file."""

import typer

from hansa import cli_dataset

app = typer.Typer(help="A participant's own machine.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cli_dataset.app, name="dataset")


@app.callback()
def _root() -> None:
    """Keep `dataset` a group of its own."""
