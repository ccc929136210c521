"""The figures of the demo's report; what they have in common with those of other reports is in `reports.figures`."""

from collections.abc import Sequence

import matplotlib as mpl

from hansa.demo.result import DemoResult
from hansa.demo.wording import ARMS, bytes_text, delta_text, epsilon_text, score_text, seconds_text
from hansa.reports.figures import (
    FILL,
    INK,
    LIMIT,
    MAIN,
    SECOND,
    name_lines,
    new_axes,
    round_axis,
    style,
    svg_of,
)


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
    with mpl.rc_context(style("auc")):
        figure, axes = new_axes(3.1)
        axes.plot(*zip(*joint, strict=True), color=MAIN, zorder=3) if joint else None
        axes.scatter([result.rounds], [result.auc.joint], s=22, color=MAIN, zorder=4, clip_on=False)
        for _, score in others:
            axes.axhline(score, color=SECOND, linewidth=1.2, dashes=(5, 2))
        values = [score for _, score in [*joint, *others, ("joint", result.auc.joint)]]
        margin = 0.06 * (max(values) - min(values) or 0.1)
        axes.set_ylim(min(values) - margin, max(values) + 2 * margin)
        names = [(f"joint {score_text(result.auc.joint)}", result.auc.joint, MAIN)]
        names += [(f"{name} {score_text(score)}", score, SECOND) for name, score in others]
        round_axis(axes, result.rounds)
        name_lines(axes, names)
        spoken = "; ".join(f"{name} {score_text(score)}" for name, score in others) or "no other arm was run"
        end = score_text(result.auc.joint)
        return svg_of(figure, f"Line chart: AUC of the joint model by round, ending at {end}; {spoken}.")


def epsilon_by_round(result: DemoResult) -> str:
    """Draw the largest ε over the banks by round, below the limit that none may pass."""
    spent, limit = result.epsilon.by_round, result.epsilon.limit
    with mpl.rc_context(style("epsilon")):
        figure, axes = new_axes(2.5)
        rounds, values = range(result.rounds + 1), [0.0, *spent]
        axes.fill_between(rounds, values, color=FILL, linewidth=0)
        axes.plot(rounds, values, color=MAIN, zorder=3)
        axes.scatter([result.rounds], [spent[-1]], s=22, color=MAIN, zorder=4, clip_on=False)
        axes.axhline(limit, color=LIMIT, linewidth=1.4, dashes=(5, 2))
        axes.set_ylim(0, 1.12 * max(limit, *spent))
        round_axis(axes, result.rounds)
        name_lines(
            axes,
            [(f"limit {limit:g}", limit, LIMIT), (f"spent {epsilon_text(spent[-1])}", spent[-1], MAIN)],
        )
        label = (
            f"Line chart: epsilon spent by round, ending at {epsilon_text(spent[-1])} of the limit {limit:g},"
            f" at delta {delta_text(result.epsilon.delta)}."
        )
        return svg_of(figure, label)


def traffic(result: DemoResult) -> str:
    """Draw what a bank sends and receives in a round beside the plain update in fp32."""
    amounts = result.traffic
    bars = [
        ("plain fp32, one way", amounts.fp32_bytes, SECOND),
        ("received, encrypted", amounts.downlink_bytes, MAIN),
        ("sent, encrypted", amounts.uplink_bytes, MAIN),
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
    bars = [(name.replace("_", " "), seconds, MAIN) for name, seconds in steps]
    return _bars(bars, labels, "Bar chart: seconds of each step of a round, all banks added up")


def _bars(bars: Sequence[tuple[str, float, str]], labels: Sequence[str], subject: str) -> str:
    with mpl.rc_context(style(subject, **{"axes.grid": False, "axes.spines.bottom": False})):
        figure, axes = new_axes(0.1 + 0.32 * max(len(bars), 1), left=0.22, bottom_inches=0.05)
        names = [name for name, _, _ in bars]
        values = [value for _, value, _ in bars]
        axes.barh(range(len(bars)), values, height=0.62, color=[colour for _, _, colour in bars])
        axes.set_yticks(range(len(bars)), names)
        axes.set_ylim(-0.5, max(len(bars), 1) - 0.5)
        axes.tick_params(axis="y", labelcolor=INK, pad=6)
        axes.set_xticks([])
        axes.set_xlim(0, max(values, default=0) or 1)
        for place, (value, label) in enumerate(zip(values, labels, strict=True)):
            axes.annotate(
                label, (value, place), (5, 0), textcoords="offset points", va="center", annotation_clip=False
            )
        spoken = "; ".join(
            f"{name} {label}" for name, label in zip(reversed(names), reversed(labels), strict=True)
        )
        return svg_of(figure, f"{subject}: {spoken}.")
