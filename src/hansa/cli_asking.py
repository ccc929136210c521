"""What the admin commands of a consortium share: options, homes, and questions that are asked on a terminal only."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from hansa.errors import UsageError

EPILOG = (
    "Exit status: 0 ok, 1 failed, 2 usage, 4 authentication, 65 data, 66 missing input, 69 unreachable,"
    " 73 output, 75 try again, 78 configuration, 130 interrupted."
)


def option(text: str, *names: str) -> Any:
    """Make an option whose help names its default itself."""
    return typer.Option(*names, help=text, show_default=False)


def data_home(given: Path | None, side: str) -> Path:
    """Return the home of a coordinator or participant: the option, else HANSA_HOME, else the user's data folder."""
    if given is not None:
        return given
    named = os.environ.get("HANSA_HOME")
    if named:
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "hansa" / side


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone.

    Args:
        question: What is about to happen.
        yes: Whether the user has agreed by an option.

    Raises:
        UsageError: The user does not agree, or there is no terminal to ask on.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} needs your agreement", hint="add --yes; there is no terminal to ask on")
    typer.echo(printable(f"{question} [y/N] "), nl=False, err=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("not confirmed; nothing was changed", hint="answer y, or add --yes")


def printable(text: str) -> str:
    """Spell out what a terminal would act on or hide: control characters, line breaks, marks that turn the direction of writing.

    Names and purposes of studies, reasons and messages may be another party's words.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def show(found: Mapping[str, Any], lines: list[str], *, json_only: bool) -> None:
    """Print a result: one JSON object, or lines for people."""
    if json_only:
        typer.echo(json.dumps(found, sort_keys=True))
        return
    for line in lines:
        typer.echo(printable(line))


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Set rows in columns, the first one as headings."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
