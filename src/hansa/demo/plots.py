"""The figures of the report, as inline SVG that needs no script, no font file and no network.

Text stays text, so that a reader can search it and the page's font applies. Colours are names of CSS
variables of the page: the figures follow its light and dark scheme. Hues are told apart in every common form
of colour blindness (Okabe & Ito 2008), and every line is also named where it ends.
"""

import html
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hansa.demo.result import DemoResult
from hansa.demo.wording import ARMS, bytes_text, delta_text, epsilon_text, score_text, seconds_text

# Stand-ins that no figure uses otherwise; each becomes var(--plot-...) of the page.
_INK, _SOFT, _RULE = "#010101", "#020202", "#030303"
_MAIN, _SECOND, _LIMIT, _FILL = "#040404", "#050505", "#060606", "#070707"
_VARIABLES = {
    _INK: "ink",
    _SOFT: "soft",
    _RULE: "rule",
    _MAIN: "main",
    _SECOND: "second",
    _LIMIT: "limit",
    _FILL: "fill",
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}
_WIDTH_INCHES = 6.4
_LEFT, _RIGHT = 0.065, 0.69  # the right part is for the names of the lines


def auc_by_round(result: DemoResult) -> str:
    """Draw the joint model's AUC by round, and every other arm that was run as a level line."""
    joint = [(number, score) for number, score in enumerate(result.auc_by_round, 1) if score is not None]
    if result.auc.base is not None:
        joint.insert(0, (0, result.auc.base))
    others = [
        (arm.name, score)
        for arm in ARMS
        if arm.key not in ("joint", "base", "local_only") and (score := result.auc.get(arm.key)) is not None
    ]
    with mpl.rc_context(_style("auc")):
        figure, axes = _axes(3.1)
        axes.plot(*zip(*joint, strict=True), color=_MAIN, zorder=3) if joint else None
        axes.scatter([result.rounds], [result.auc.joint], s=22, color=_MAIN, zorder=4, clip_on=False)
        for _, score in others:
            axes.axhline(score, color=_SECOND, linewidth=1.2, dashes=(5, 2))
        values = [score for _, score in [*joint, *others, ("joint", result.auc.joint)]]
        margin = 0.06 * (max(values) - min(values) or 0.1)
        axes.set_ylim(min(values) - margin, max(values) + 2 * margin)
        names = [(f"joint {score_text(result.auc.joint)}", result.auc.joint, _MAIN)]
        names += [(f"{name} {score_text(score)}", score, _SECOND) for name, score in others]
        _rounds(axes, result.rounds)
        _name_lines(axes, names)
        spoken = "; ".join(f"{name} {score_text(score)}" for name, score in others) or "no other arm was run"
        end = score_text(result.auc.joint)
        return _svg(figure, f"Line chart: AUC of the joint model by round, ending at {end}; {spoken}.")


def epsilon_by_round(result: DemoResult) -> str:
    """Draw the largest ε over the banks by round, below the limit that none may pass."""
    spent, limit = result.epsilon.by_round, result.epsilon.limit
    with mpl.rc_context(_style("epsilon")):
        figure, axes = _axes(2.5)
        rounds, values = range(result.rounds + 1), [0.0, *spent]
        axes.fill_between(rounds, values, color=_FILL, linewidth=0)
        axes.plot(rounds, values, color=_MAIN, zorder=3)
        axes.scatter([result.rounds], [spent[-1]], s=22, color=_MAIN, zorder=4, clip_on=False)
        axes.axhline(limit, color=_LIMIT, linewidth=1.4, dashes=(5, 2))
        axes.set_ylim(0, 1.12 * max(limit, *spent))
        _rounds(axes, result.rounds)
        _name_lines(
            axes,
            [(f"limit {limit:g}", limit, _LIMIT), (f"spent {epsilon_text(spent[-1])}", spent[-1], _MAIN)],
        )
        label = (
            f"Line chart: epsilon spent by round, ending at {epsilon_text(spent[-1])} of the limit {limit:g},"
            f" at delta {delta_text(result.epsilon.delta)}."
        )
        return _svg(figure, label)


def traffic(result: DemoResult) -> str:
    """Draw what a bank sends and receives in a round beside the plain update in fp32."""
    amounts = result.traffic
    bars = [
        ("plain fp32, one way", amounts.fp32_bytes, _SECOND),
        ("received, encrypted", amounts.downlink_bytes, _MAIN),
        ("sent, encrypted", amounts.uplink_bytes, _MAIN),
    ]
    labels = [
        f"{bytes_text(count)}  ({count / amounts.trainable_parameters:.2f} B per parameter)"
        for _, count, _ in bars
    ]
    return _bars(bars, labels, "Bar chart: bytes of one bank in one round")


def time_by_step(result: DemoResult) -> str:
    """Draw the seconds of each step of a round, all banks added up, with its share."""
    steps = sorted(result.seconds.by_step.items(), key=lambda step: (step[1], step[0]))
    whole = sum(seconds for _, seconds in steps) or 1.0
    labels = [f"{seconds_text(seconds)}  ({100 * seconds / whole:.0f} %)" for _, seconds in steps]
    bars = [(name.replace("_", " "), seconds, _MAIN) for name, seconds in steps]
    return _bars(bars, labels, "Bar chart: seconds of each step of a round, all banks added up")


def _axes(height_inches: float, left: float = _LEFT, bottom_inches: float = 0.42) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches))
    FigureCanvasSVG(figure)
    bottom = bottom_inches / height_inches
    axes = figure.add_axes((left, bottom, _RIGHT - left, 0.97 - bottom))
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    return figure, axes


def _rounds(axes: Axes, rounds: int) -> None:
    axes.set_xlim(0, rounds)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("round")


def _name_lines(axes: Axes, names: Sequence[tuple[str, float, str]]) -> None:
    """Write every name to the right of its line, moved apart where lines are close, with a thin leader."""
    low, high = axes.get_ylim()
    height_points = axes.get_window_extent().height * 72 / axes.figure.dpi
    gap = (high - low) * 12.5 / height_points
    placed = _spread([value for _, value, _ in names], gap, low, high)
    for (name, value, colour), place in zip(names, placed, strict=True):
        axes.annotate(
            name,
            xy=(1.0, value),
            xytext=(1.06, place),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            color=colour,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "relpos": (0.0, 0.5),
                "shrinkA": 2,
                "shrinkB": 4,
            },
            annotation_clip=False,
        )


def _spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move values as little as needed for them to be `gap` apart and, where they fit, within low..high."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    placed = [0.0] * len(values)
    below = low - gap
    for place in order:
        below = placed[place] = max(values[place], below + gap)
    above = high + gap
    for place in reversed(order):
        above = placed[place] = min(placed[place], above - gap)
    return placed


def _bars(bars: Sequence[tuple[str, float, str]], labels: Sequence[str], subject: str) -> str:
    with mpl.rc_context(_style(subject, **{"axes.grid": False, "axes.spines.bottom": False})):
        figure, axes = _axes(0.1 + 0.32 * max(len(bars), 1), left=0.22, bottom_inches=0.05)
        names = [name for name, _, _ in bars]
        values = [value for _, value, _ in bars]
        axes.barh(range(len(bars)), values, height=0.62, color=[colour for _, _, colour in bars])
        axes.set_yticks(range(len(bars)), names)
        axes.set_ylim(-0.5, max(len(bars), 1) - 0.5)
        axes.tick_params(axis="y", labelcolor=_INK, pad=6)
        axes.set_xticks([])
        axes.set_xlim(0, max(values, default=0) or 1)
        for place, (value, label) in enumerate(zip(values, labels, strict=True)):
            axes.annotate(
                label, (value, place), (5, 0), textcoords="offset points", va="center", annotation_clip=False
            )
        spoken = "; ".join(
            f"{name} {label}" for name, label in zip(reversed(names), reversed(labels), strict=True)
        )
        return _svg(figure, f"{subject}: {spoken}.")


def _style(name: str, **changes: Any) -> Any:
    # The salt keeps ids the same in every run, and different from figure to figure.
    return {**_STYLE, "svg.hashsalt": f"hansa-{name}", **changes}


def _svg(figure: Figure, label: str) -> str:
    """Return the figure as an svg element with an alternative text, the same bytes every time."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    inner = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    # Ids must be unique in the page, nothing refers to those of groups; the rule would style the whole page.
    inner = re.sub(r'<g id="[^"]*"', "<g", inner)
    inner = re.sub(r"<style.*?</style>", "", inner, flags=re.DOTALL)
    for colour, name in _VARIABLES.items():
        inner = inner.replace(colour, f"var(--plot-{name})")
    width, height = (72 * inches for inches in figure.get_size_inches())
    return (
        f'<svg role="img" aria-label="{html.escape(label)}" viewBox="0 0 {width:g} {height:g}">{inner}</svg>'
    )
