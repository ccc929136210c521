"""The figures of a privacy report, drawn from its JSON form: what is drawn is what is written.

Each function gives a figure and an alternative text, for a page or for a document.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from hansa.reports.figures import (
    FILL,
    INK,
    LIMIT,
    MAIN,
    RULE,
    SOFT,
    name_lines,
    new_axes,
    round_axis,
    style,
    svg_file_of,
    svg_of,
)
from hansa.reports.wording import delta_text, epsilon_text

_COLUMNS_MOST = (
    120  # cells of a row of the participation figure; of longer studies each stands for several rounds
)
_SHADES = 4
Document = Mapping[str, Any]


class Drawn(NamedTuple):
    """A figure, what it says to somebody who cannot see it, and the name of its style."""

    figure: Figure
    label: str
    name: str

    def svg(self) -> str:
        """Give it as an element of a page."""
        with mpl.rc_context(style(self.name)):
            return svg_of(self.figure, self.label)

    def svg_file(self, colours: Mapping[str, str]) -> bytes:
        """Give it as a file, in these colours."""
        with mpl.rc_context(style(self.name)):
            return svg_file_of(self.figure, colours)


def epsilon_by_data_set(document: Document) -> Drawn | None:
    """Draw ε of every data set as a bar, with its limit as a line across; None if no ε is finite."""
    rows = [one for one in document["data_sets"] if one["spent"]["epsilon"] is not None]
    if not rows:
        return None
    names = _names(rows)
    spent = [one["spent"]["epsilon"] for one in rows]
    limits = [one["spent"]["limit"] for one in rows]
    with mpl.rc_context(style("data-sets", **{"axes.grid": False, "axes.spines.bottom": False})):
        figure, axes = new_axes(0.15 + 0.32 * len(rows), left=0.26, bottom_inches=0.05)
        places = range(len(rows))
        axes.barh(places, spent, height=0.62, color=MAIN)
        for place, limit in zip(places, limits, strict=True):
            if limit is not None:
                axes.plot(
                    [limit, limit], [place - 0.4, place + 0.4], color=LIMIT, linewidth=1.6, clip_on=False
                )
        axes.set_yticks(places, names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", labelcolor=INK, pad=6)
        axes.set_xticks([])
        most = max([*spent, *(limit for limit in limits if limit is not None)]) or 1.0
        axes.set_xlim(0, most)
        words = [_spent_words(one["spent"]) for one in rows]
        for place, text in zip(places, words, strict=True):
            axes.annotate(
                text, (most, place), (8, 0), textcoords="offset points", va="center", annotation_clip=False
            )
        spoken = "; ".join(f"{name} {text}" for name, text in zip(names, words, strict=True))
        label = f"Bar chart: epsilon spent by data set, with its limit: {spoken}."
        return Drawn(figure, label, "data-sets")


def epsilon_by_round(data_set: Document, number: int) -> Drawn | None:
    """Draw ε of one data set after every round that was paid for, below its limit; None if there is none that is finite."""
    values = [one["epsilon_after"] for one in data_set["rounds"]]
    if not values or values[-1] is None:
        return None
    limit = data_set["spent"]["limit"]
    with mpl.rc_context(style(f"data-set-{number}")):
        figure, axes = new_axes(2.3)
        places = range(len(values) + 1)
        curve = [0.0, *values]
        axes.fill_between(places, curve, color=FILL, linewidth=0)
        axes.plot(places, curve, color=MAIN, zorder=3)
        axes.scatter([len(values)], [values[-1]], s=22, color=MAIN, zorder=4, clip_on=False)
        top = max(values[-1], limit or 0.0) or 1.0
        axes.set_ylim(0, 1.12 * top)
        round_axis(axes, len(values))
        axes.set_xlabel("rounds paid for, all studies in their order")
        names = [(f"spent {epsilon_text(values[-1])}", values[-1], MAIN)]
        if limit is not None:
            axes.axhline(limit, color=LIMIT, linewidth=1.4, dashes=(5, 2))
            names.insert(0, (f"limit {limit:g}", limit, LIMIT))
        name_lines(axes, names)
        bound = "without a limit" if limit is None else f"of the limit {limit:g}"
        label = (
            f"Line chart: epsilon of {data_set['participant']} after each of {len(values)} rounds,"
            f" ending at {epsilon_text(values[-1])} {bound}, at delta {delta_text(data_set['delta'])}."
        )
        return Drawn(figure, label, f"data-set-{number}")


def participation(document: Document, study: Document, number: int) -> Drawn | None:
    """Draw which participant paid for which round of a study; None if none did."""
    rows = [
        (one["participant"], paid)
        for one in document["data_sets"]
        if (
            paid := {
                r["round"]: r["committed"]
                for r in one["rounds"]
                if r["study"] == study["study"] and not r["purpose"]
            }
        )
    ]
    last = max([study["rounds_planned"] or 0, *(max(paid) for _, paid in rows)], default=0)
    if not rows or last < 1:
        return None
    each = -(-last // _COLUMNS_MOST)
    columns = -(-last // each)
    with mpl.rc_context(style(f"study-{number}", **{"axes.grid": False, "axes.spines.bottom": False})):
        figure, axes = new_axes(0.5 + 0.24 * len(rows), left=0.17)
        for place, (_, paid) in enumerate(rows):
            for start, width, colour, shade in _runs(paid, last, each):
                axes.broken_barh(
                    [(start - 0.5, width)], (place - 0.38, 0.76), facecolors=colour, alpha=shade, linewidth=0
                )
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", labelcolor=INK, pad=6)
        round_axis(axes, max(last, 2))
        axes.set_xlim(0.5, last + 0.5)
        counts = "; ".join(
            f"{name} {len(paid)}, of which {sum(not sent for sent in paid.values())} are not known to be sent"
            for name, paid in rows
        )
        label = f"Heat map of {study['name'] or study['study'][:16]}: rounds paid for, of {last}: {counts}."
        for place, (colour, shade, text) in enumerate(
            ((MAIN, 1.0, "update sent"), (LIMIT, 1.0, "paid, not known"), (RULE, 0.5, "not there"))
        ):
            _legend(axes, place, colour, shade, text)
        if columns < last:
            axes.set_xlabel(
                f"round; a cell stands for {each} rounds, darker where more of them were taken part in"
            )
        return Drawn(figure, label, f"study-{number}")


def _legend(axes: Any, place: int, colour: str, shade: float, text: str) -> None:
    axes.annotate(
        "\N{BLACK SQUARE}",
        (1.06, 1.0),
        (0, -7 - 13 * place),
        xycoords="axes fraction",
        textcoords="offset points",
        color=colour,
        alpha=shade,
        va="center",
        annotation_clip=False,
    )
    axes.annotate(
        text,
        (1.06, 1.0),
        (13, -7 - 13 * place),
        xycoords="axes fraction",
        textcoords="offset points",
        color=SOFT,
        va="center",
        annotation_clip=False,
    )


def _runs(paid: Mapping[int, bool], last: int, each: int) -> list[tuple[int, int, str, float]]:
    """Cells of one row from round 1: first round, rounds, colour and shade, equal neighbours in one."""
    runs: list[tuple[int, int, str, float]] = []
    for start in range(1, last + 1, each):
        rounds = range(start, min(start + each, last + 1))
        sent = sum(paid.get(number, False) for number in rounds)
        open_ = sum(number in paid and not paid[number] for number in rounds)
        if sent:
            look = (MAIN, max(1, round(_SHADES * sent / len(rounds))) / _SHADES)
        elif open_:
            look = (LIMIT, 1.0)
        else:
            look = (RULE, 0.5)
        if runs and runs[-1][2:] == look and each == 1:
            first, width, *_ = runs.pop()
            runs.append((first, width + 1, *look))
        else:
            runs.append((start, len(rounds), *look))
    return runs


def _names(rows: Sequence[Document]) -> list[str]:
    several = [one["participant"] for one in rows]
    return [
        f"{one['participant']}, {one['name'] or one['data'][:8]}"
        if several.count(one["participant"]) > 1
        else one["participant"]
        for one in rows
    ]


def _spent_words(spent: Document) -> str:
    limit = spent["limit"]
    return f"{epsilon_text(spent['epsilon'])} " + ("no limit" if limit is None else f"of {limit:g}")
