"""The words and units of the demo's output, the same on terminal and page; imports nothing heavy."""

import math
from dataclasses import dataclass

from hansa.reports.wording import LAYERS, Layer, delta_text, epsilon_text, layer_of, printable

__all__ = [
    "ARMS",
    "LAYERS",
    "Arm",
    "Layer",
    "bytes_text",
    "delta_text",
    "epsilon_text",
    "factor_text",
    "gain_text",
    "layer_of",
    "printable",
    "score_text",
    "seconds_text",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A way of training that is compared: its key in report.json, its name, and what it stands for."""

    key: str
    name: str
    meaning: str


ARMS = (
    Arm(key="joint", name="joint", meaning="all banks together, with the study's protections"),
    Arm(
        key="local_only",
        name="local only, better of two",
        meaning="the better of the two ways a bank can go alone; the baseline to beat",
    ),
    Arm(
        key="local_only_same_network",
        name="local only, same network",
        meaning="the same network at each bank alone, without noise, with early stopping; mean over banks",
    ),
    Arm(
        key="local_only_logistic_regression",
        name="local only, logistic regression",
        meaning="logistic regression at each bank alone, without noise; mean over banks",
    ),
    Arm(
        key="local_only_dp",
        name="local only, same privacy",
        meaning="the same network at each bank alone, under the same differential privacy; mean over banks",
    ),
    Arm(
        key="federated_no_dp",
        name="joint, without noise",
        meaning="what differential privacy costs: the joint model without clipping and noise",
    ),
    Arm(
        key="federated_no_compression",
        name="joint, without compression",
        meaning="what compression costs: the joint model with every entry sent in every round",
    ),
    Arm(
        key="pooled",
        name="pooled, no protection",
        meaning="everybody's rows in one place, no protection at all; the ceiling, and what banks may not do",
    ),
    Arm(key="base", name="base, untrained", meaning="the public base model before any bank trained it"),
)

NOT_RUN = "not run"


def bytes_text(count: float) -> str:
    """Write a number of bytes in decimal units: 98916 is "98.9 kB".

    Guarantees:
        - Three significant digits, and never 1000 of a unit that has a larger one.
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return (
                f"{count:.0f} {unit}"
                if unit == "B" or count >= 99.95
                else f"{count:.{1 + (count < 9.995)}f} {unit}"
            )
        count /= 1000
    return f"{count:.2f} TB"


def seconds_text(seconds: float) -> str:
    """Write a duration: 0.31 is "0.31 s", 42.3 is "42 s", 100 is "1 min 40 s"."""
    if round(seconds) >= 60:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.0f} s"


def score_text(score: float | None) -> str:
    """Write an AUC with three decimals, or say that the arm was not run."""
    return NOT_RUN if score is None else f"{score:.3f}"


def gain_text(gain: float | None) -> str:
    """Write a relative gain with its sign: 0.123 is "+12.3 %"."""
    return NOT_RUN if gain is None else f"{100 * gain:+.1f} %".replace("-", "\N{MINUS SIGN}")


def factor_text(epsilon: float) -> str:
    """Write e to the power ε with two significant digits: 8 is "3,000"."""
    factor = float(f"{math.exp(min(epsilon, 700)):.1e}")
    return f"{factor:,.0f}" if 10 <= factor < 1e9 else f"{factor:.2g}"
