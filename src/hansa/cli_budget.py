"""The commands of `hansa budget`: look ahead at what a data set will spend. Nothing heavy is imported before a command runs."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa.errors import UsageError

if TYPE_CHECKING:
    from hansa.privacy.forecast import Forecast
    from hansa.study import Study

EPILOG = "Exit status: 0 ok, 1 failed, 2 usage, 3 ledger damaged, 66 missing input, 78 configuration, 130 interrupted."
_ROUNDS_MOST = 10_000
_ROWS_WHOLE, _ROWS_THINNED = 100, 50

app = typer.Typer(help="Look ahead at privacy budgets.", no_args_is_help=True, rich_markup_mode=None)


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, show_default=False)


@app.callback()
def _root() -> None:
    """Keep `forecast` a command of its own; with one command only, typer would leave its name out."""


@app.command("forecast", epilog=EPILOG)
def budget_forecast(
    file: Annotated[Path, typer.Argument(help="A study.toml.")],
    spent: Annotated[
        Path | None, _option("Ledger of the data set; without it nothing was spent before.")
    ] = None,
    rounds: Annotated[
        int | None, _option("Further rounds (those of the study that are not reserved yet).")
    ] = None,
    limit: Annotated[float | None, _option("Privacy limit of the data set (the study's own).")] = None,
    json_only: Annotated[
        bool, _option("Print one JSON object on stdout and nothing else.", "--json")
    ] = False,
) -> None:
    """Say what epsilon will be after each further round, and which round would pass the limit.

    Without --spent the answer is the same for every participant: it follows from the study alone.
    """
    if rounds is not None and not 0 <= rounds <= _ROUNDS_MOST:
        raise UsageError(f"the number of rounds is {rounds}, not from 0 to {_ROUNDS_MOST}")
    if limit is not None and not 0 < limit < math.inf:
        raise UsageError(f"the limit is {limit:g}, not a number above 0")
    from hansa.study import load_study

    study = load_study(file)
    from hansa.privacy.forecast import forecast
    from hansa.privacy.spent import SpentSoFar, read_spent

    so_far = SpentSoFar(reservations=(), delta=None) if spent is None else read_spent(spent)
    found = forecast(study, rounds=rounds, reservations=so_far.reservations, delta=so_far.delta, limit=limit)
    if json_only:
        typer.echo(json.dumps(as_json(study, found), sort_keys=True, allow_nan=False))
        return
    typer.echo(as_words(study, found), nl=False)


def as_json(study: "Study", found: "Forecast") -> dict[str, Any]:
    """Put a forecast into its JSON form; an infinite ε is null."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    check = found.check
    return {
        "schema": "hansa/budget-forecast/v1",
        "study": study.id,
        "unit": study.privacy.unit,
        "neighbouring": study.privacy.neighbouring,
        "delta": found.delta,
        "noise_multiplier": found.round_mechanism.noise_multiplier,
        "sample_rate": found.round_mechanism.sample_rate,
        "steps_per_round": found.round_mechanism.steps,
        "limit": found.limit,
        "epsilon_before": number(found.epsilon_before),
        "rounds_before": found.rounds_before,
        "rounds": list(found.rounds),
        "epsilon_after_round": [number(value) for value in found.epsilons],
        "passes_limit_at": found.passes_at,
        "check": None
        if check is None
        else {"pld": check.pld, "prv_low": check.prv_low, "prv_high": check.prv_high, "rdp": check.rdp},
    }


def as_words(study: "Study", found: "Forecast") -> str:
    """Put a forecast into words and a table."""
    one, count = found.round_mechanism, found.rounds[-1] if found.rounds else 0
    lines = [
        f"study {study.name}: {count} further rounds, {found.rounds_before} reserved before",
        f"each round: {one.steps} steps, noise multiplier {one.noise_multiplier:g}, sample rate {one.sample_rate:g}",
        f"epsilon at delta {found.delta:g}, unit {study.privacy.unit}; limit {found.limit:g}",
        "",
        "further rounds  epsilon      left",
        _row(0, found.epsilon_before, found.limit),
    ]
    rows = [_row(n, e, found.limit) for n, e in zip(found.rounds, found.epsilons, strict=True)]
    shown = _shown(found)
    lines += [rows[place] for place in shown]
    if len(shown) < count:
        lines.append(f"({len(shown)} of {count} rounds shown; --json has {len(rows)})")
    lines.append("")
    if found.check is not None:
        check = found.check
        lines.append(
            f"checked: {check.pld:.3f} by PLD, from {check.prv_low:.3f} to {check.prv_high:.3f} by PRV, "
            f"at most {check.rdp:.3f} by RDP"
        )
    if found.passes_at is None:
        lines.append("no round of these passes the limit")
    else:
        lines.append(f"further round {found.passes_at} would pass the limit and would be refused")
    return "\n".join(lines) + "\n"


def _row(number: int, epsilon: float, limit: float) -> str:
    mark = "  passes the limit" if not epsilon <= limit else ""
    return f"{number:>14}  {epsilon:>7.3f}  {limit - epsilon:>8.3f}{mark}"


def _shown(found: "Forecast") -> list[int]:
    """Choose the rows: all of a short table, an even share of a long one, and always the ones around the limit."""
    count = len(found.rounds)
    if count <= _ROWS_WHOLE:
        return list(range(count))
    every = math.ceil(count / _ROWS_THINNED)
    passed = [place for place, epsilon in enumerate(found.epsilons) if not epsilon <= found.limit][:1]
    return sorted({0, count - 1, *range(every - 1, count, every), *passed})
