"""A picture of what the model did with one input: every block's routing beside what its tokens attended to.

Each block is a row of two panels. Left, tokens against the experts that served any of them, darker for more gate weight; right,
tokens against the tokens that they read, mean over heads. Drawn with matplotlib's own objects, so no global state and no window.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from hansa.errors import OutputNotWritable
from hansa.models.explain import Explanation, LayerRecord, gate_weights

_LABELS_MOST = 40


def draw(explanation: Explanation, names: Sequence[str], experts: int, sample: int = 0) -> Figure:
    """Draw one sample's record.

    Args:
        explanation: The record.
        names: Name of each token.
        experts: Routed experts a block.
        sample: Which sample of the batch.
    """
    layers = explanation.layers
    height = 0.9 + 0.22 * min(len(names), _LABELS_MOST)
    figure = Figure(figsize=(11.0, height * len(layers)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(layers), 2, squeeze=False)
    for record, (left, right) in zip(layers, panels, strict=True):
        _draw_routes(left, record, names, experts, sample)
        attention_TT = record.attention_BHTT[sample].float().mean(dim=0)
        _panel(right, attention_TT, f"block {record.layer}: what each token read", names, list(names))
    return figure


def save_plot(figure: Figure, path: Path) -> None:
    """Save a figure; the ending says the format.

    Raises:
        OutputNotWritable: The file cannot be written, or matplotlib has no such format.
    """
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        reason = (error.strerror or "") if isinstance(error, OSError) else str(error)
        raise OutputNotWritable(
            f"the plot cannot be written to {path.name!r}: {reason.lower()}",
            hint="give a name that ends in .svg, .png or .pdf",
        ) from error


def _draw_routes(axes: Axes, record: LayerRecord, names: Sequence[str], experts: int, sample: int) -> None:
    if record.gates_BTK is None:
        axes.set_axis_off()
        axes.set_title(f"block {record.layer}: one dense network", fontsize=9)
        return
    weights_TE = gate_weights(record, experts)[sample].float()
    used = torch.nonzero(weights_TE.sum(dim=0)).flatten().tolist()
    _panel(
        axes,
        weights_TE[:, used],
        f"block {record.layer}: experts of each token",
        names,
        [str(expert) for expert in used],
    )


def _panel(axes: Axes, values: Tensor, title: str, rows: Sequence[str], columns: Sequence[str]) -> None:
    axes.imshow(values.cpu().numpy(), cmap="Blues", aspect="auto", vmin=0.0)
    axes.set_title(title, fontsize=9)
    for axis, labels, turned in ((axes.yaxis, rows, False), (axes.xaxis, columns, True)):
        if len(labels) <= _LABELS_MOST:
            axis.set_ticks(range(len(labels)), labels, fontsize=6, rotation=90 if turned else 0)
