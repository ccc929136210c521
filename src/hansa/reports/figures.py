"""What the figures of every report have in common: inline SVG that needs no script, no font file and no network.

Text stays text, so that a reader can search it and the page's font applies. Colours are names of CSS
variables of the page: the figures follow its light and dark scheme. Hues are told apart in every common form
of colour blindness (Okabe & Ito 2008), and every line is also named where it ends.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Stand-ins that no figure uses otherwise; each becomes var(--plot-...) of the page.
INK, SOFT, RULE = "#010101", "#020202", "#030303"
MAIN, SECOND, LIMIT, FILL = "#040404", "#050505", "#060606", "#070707"
_VARIABLES = {
    INK: "ink",
    SOFT: "soft",
    RULE: "rule",
    MAIN: "main",
    SECOND: "second",
    LIMIT: "limit",
    FILL: "fill",
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}
WIDTH_INCHES = 6.4
LEFT, RIGHT = 0.065, 0.69  # the right part is for the names of the lines


def new_axes(height_inches: float, left: float = LEFT, bottom_inches: float = 0.42) -> tuple[Figure, Axes]:
    """Make a figure of the width of a page with one pair of axes in it."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches))
    FigureCanvasSVG(figure)
    bottom = bottom_inches / height_inches
    axes = figure.add_axes((left, bottom, RIGHT - left, 0.97 - bottom))
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    return figure, axes


def round_axis(axes: Axes, rounds: int) -> None:
    """Let the horizontal axis count rounds."""
    axes.set_xlim(0, rounds)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("round")


def name_lines(axes: Axes, names: Sequence[tuple[str, float, str]]) -> None:
    """Write every name to the right of its line, moved apart where lines are close, with a thin leader."""
    low, high = axes.get_ylim()
    height_points = axes.get_window_extent().height * 72 / axes.figure.dpi
    gap = (high - low) * 12.5 / height_points
    placed = spread([value for _, value, _ in names], gap, low, high)
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


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
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


def style(name: str, **changes: Any) -> Any:
    """Give matplotlib's settings for a figure; each figure of a page has a name of its own."""
    # The salt keeps ids the same in every run, and different from figure to figure.
    return {**_STYLE, "svg.hashsalt": f"hansa-{name}", **changes}


def svg_of(figure: Figure, label: str) -> str:
    """Return the figure as an svg element with an alternative text, the same bytes every time."""
    inner = _elements(figure)
    for colour, name in _VARIABLES.items():
        inner = inner.replace(colour, f"var(--plot-{name})")
    width, height = (72 * inches for inches in figure.get_size_inches())
    return (
        f'<svg role="img" aria-label="{html.escape(label)}" viewBox="0 0 {width:g} {height:g}">{inner}</svg>'
    )


def svg_file_of(figure: Figure, colours: Mapping[str, str]) -> bytes:
    """Return the figure as an SVG file for print.

    Args:
        figure: The figure.
        colours: Colour of each variable, #rrggbb.
    """
    inner = _elements(figure)
    for stand_in, name in _VARIABLES.items():
        inner = inner.replace(stand_in, colours[name])
    width, height = (72 * inches for inches in figure.get_size_inches())
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' width="{width:g}pt" height="{height:g}pt" viewBox="0 0 {width:g} {height:g}">{inner}</svg>'
    ).encode()


def _elements(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    inner = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    # Ids must be unique in the page, nothing refers to those of groups; the rule would style the whole page.
    inner = re.sub(r'<g id="[^"]*"', "<g", inner)
    return re.sub(r"<style.*?</style>", "", inner, flags=re.DOTALL)
