"""How the numbers of a privacy report are written, the same on the page and in the document: by their key in the JSON form."""

from collections.abc import Callable, Mapping
from typing import Any

from hansa.reports.wording import delta_text, epsilon_text


def left_text(left: float) -> str:
    """Write what is left of a budget with two decimals, rounded down: never shown larger than it is."""
    return f"{int(round(100 * left, 6)) / 100:.2f}"


def _plainly(value: float) -> str:
    return f"{value:g}"


def _bound_text(value: float) -> str:
    return f"{value:.3f}"


def _count_text(value: int) -> str:
    return f"{value:,}"


def _percent_text(value: float) -> str:
    return f"{100 * value:.4g} %"


# Key: how its value is written, and what stands for null.
_FORMS: dict[str, tuple[Callable[[Any], str], str]] = {
    **dict.fromkeys(
        ("epsilon", "epsilon_after", "epsilon_max", "epsilon_everywhere"), (epsilon_text, "unbounded")
    ),
    **dict.fromkeys(("epsilon_each", "epsilon_at_least", "epsilon_claimed"), (_bound_text, "unbounded")),
    **dict.fromkeys(("prv_low", "prv_high", "rdp"), (_bound_text, "not compared")),
    **dict.fromkeys(("limit", "most_rounds"), (_plainly, "no limit")),
    "left": (left_text, "no limit"),
    **dict.fromkeys(("delta", "everywhere_delta"), (delta_text, "not known")),
    **dict.fromkeys(("noise_multiplier", "sample_rate", "clip_norm"), (_plainly, "not known")),
    **dict.fromkeys(
        ("confidence", "recovered", "recovered_without_noise", "chance"), (_percent_text, "not known")
    ),
}
_COUNT = (_count_text, "not known")


def write(key: str, value: float | None) -> str:
    """Write the number under a key; counts are the rule."""
    form, absent = _FORMS.get(key, _COUNT)
    return absent if value is None else form(value)


def written(document: Any, key: str = "") -> Any:
    """Give the JSON form with every number, and every null, as it is written."""
    if isinstance(document, Mapping):
        return {name: written(value, name) for name, value in document.items()}
    if isinstance(document, list):
        return [written(value, key) for value in document]
    if isinstance(document, str | bool):
        return document
    return write(key, document)
