"""The figures of docs/utility.md, as SVG with the same bytes for the same results."""

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from utility import Results

# Okabe & Ito 2008: told apart in every common form of colour blindness.
_COLOURS = {"local": "#0072b2", "distributed": "#d55e00"}
_MARKERS = {"local": "o", "distributed": "s"}
_GREY, _INK = "#888888", "#222222"
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "hansa",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "text.parse_math": False,
}


def draw(results: "Results", folder: Path) -> None:
    """Draw one figure a partition: AUC over ε for either consortium and either noise, beside none and alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for partition in results.matrix.partitions:
        with mpl.rc_context(_STYLE):
            sizes = results.matrix.banks
            figure = Figure(figsize=(4.2 * len(sizes), 3.4), layout="constrained")
            panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
            for panel, banks in zip(panels, sizes, strict=True):
                _panel(panel, results, partition, banks)
            panels[0].set_ylabel("AUC, consortium-wide test rows")
            panels[0].legend(frameon=False, fontsize=8, loc="lower right")
            path = folder / f"utility-{partition}.svg"
            FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None, "Creator": "hansa"})


def _panel(panel: Axes, results: "Results", partition: str, banks: int) -> None:
    epsilons = results.matrix.epsilons
    places = range(len(epsilons))
    for shift, (mode, colour) in zip((-0.04, 0.04), _COLOURS.items(), strict=True):
        runs = [results.joint(partition, banks, epsilon, mode) for epsilon in epsilons]
        panel.errorbar(
            [place + shift for place in places],
            [statistics.fmean(run) for run in runs],
            yerr=[statistics.stdev(run) if len(run) > 1 else 0.0 for run in runs],
            color=colour, marker=_MARKERS[mode], capsize=3, linewidth=1.6, label=f"joint, {mode} noise",
        )  # fmt: skip
    free = statistics.fmean(results.joint(partition, banks, math.inf, ""))
    panel.axhline(free, color=_INK, linewidth=1.2, label="joint, without privacy")
    dashes = ((4, 3), (1, 2))
    for (model, values), dash in zip(sorted(results.alone(partition, banks).items()), dashes, strict=True):
        panel.axhline(
            statistics.fmean(values),
            color=_GREY,
            linewidth=1.4,
            dashes=dash,
            label=f"{model}, each bank alone",
        )
    panel.set_xticks(list(places), [f"{epsilon:g}" for epsilon in epsilons])
    panel.set_xlabel("privacy limit ε of each bank")
    panel.set_title(f"{partition}, {banks} banks", fontsize=9, loc="left")
    panel.margins(x=0.12)
