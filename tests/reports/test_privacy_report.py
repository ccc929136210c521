"""hansa/privacy-report/v1: exactly these keys, plain types only."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.errors import ReportValueInvalid
from hansa.reports.privacy_report import PrivacyReport

DOCUMENT = Path(__file__).parents[2] / "docs" / "privacy.md"


def test_json_holds_plain_types_only(document: dict[str, Any]) -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert all(type(key) is str for key in value)
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (str, bool, int, float)

    check(document)
    assert document["schema"] == "hansa/privacy-report/v1"


@pytest.mark.parametrize("value", [float("nan"), np.float64(1.0), b"x", {1}])
def test_a_value_that_json_does_not_have_is_refused(report: PrivacyReport, value: Any) -> None:
    with pytest.raises(ReportValueInvalid):
        dataclasses.replace(report, time=value).to_json()


def test_an_infinite_epsilon_is_null(report: PrivacyReport) -> None:
    overall = dataclasses.replace(report.overall, epsilon_max=float("inf"))
    assert dataclasses.replace(report, overall=overall).to_json()["overall"]["epsilon_max"] is None


def test_every_key_is_documented_and_no_other(document: dict[str, Any]) -> None:
    """A key that is renamed or added needs its place in docs/privacy.md, and a key that is removed loses it."""
    text = DOCUMENT.read_text().split("### The JSON report")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    named = {
        ("" if place == "top" else f"{place}.") + key
        for first, keys, _ in rows
        for place in [first.strip("| `")]
        for key in re.findall(r"`(\w+)`", keys)
    }

    def keys(value: Any, place: str) -> set[str]:
        if isinstance(value, list):
            return {key for item in value for key in keys(item, f"{place}[]")}
        if not isinstance(value, dict) or place.rsplit(".", maxsplit=1)[-1] in (
            "spent",
            "protections",
            "limits",
        ):
            return set()
        return {
            key
            for name, item in value.items()
            for inside in [f"{place}.{name}" if place else name]
            for key in {inside} | keys(item, inside)
        }

    assert named - keys(document, "") == {"problems[].file", "problems[].code", "problems[].message"}
    assert keys(document, "") <= named
