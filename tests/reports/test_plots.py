"""The figures: inline, described in words, the same bytes, and true to the JSON."""

from typing import Any
from xml.etree import ElementTree

import pytest

from hansa.reports import plots


def text_of(svg: str) -> str:
    return " ".join(ElementTree.fromstring(svg.replace("xlink:href", "href")).itertext())


def drawn(found: plots.Drawn | None) -> str:
    assert found is not None
    return found.svg()


def test_figures_are_the_same_bytes_every_time_and_say_what_they_show(document: dict[str, Any]) -> None:
    def all_of() -> list[str]:
        return [
            drawn(plots.epsilon_by_data_set(document)),
            drawn(plots.epsilon_by_round(document["data_sets"][0], 0)),
            drawn(plots.participation(document, document["studies"][0], 0)),
        ]

    first, second = all_of(), all_of()
    assert first == second
    assert 'aria-label="Bar chart: epsilon spent by data set, with its limit: bank-1 2.41 of 4;' in first[0]
    assert "ending at 2.41 of the limit 4, at delta 1e-5" in first[1]
    assert (
        "credit-default: rounds paid for, of 12: bank-1 12, of which 0 are not known to be sent" in first[2]
    )
    assert "limit 4" in text_of(first[1])
    assert all(name in text_of(first[2]) for name in ("bank-1", "clinic-4", "paid, not known"))


def test_nothing_is_drawn_of_what_is_not_there(document: dict[str, Any]) -> None:
    one = document["data_sets"][0]
    unbounded = {**one, "rounds": [{**one["rounds"][0], "epsilon_after": None}]}
    assert plots.epsilon_by_round(unbounded, 0) is None
    assert plots.epsilon_by_round({**one, "rounds": []}, 0) is None
    assert plots.epsilon_by_data_set({"data_sets": []}) is None
    assert plots.participation({"data_sets": []}, document["studies"][0], 0) is None


@pytest.mark.parametrize(("last", "cells"), [(12, 3), (120, 3), (1200, 120)])
def test_a_long_study_is_drawn_in_few_cells(last: int, cells: int) -> None:
    paid = {number: True for number in range(1, last + 1) if number != last // 2}
    each = -(-last // 120)
    runs = plots._runs(paid, last, each)
    assert len(runs) == cells
    assert sum(width for _, width, _, _ in runs) == last
    assert sum(colour != plots.MAIN for _, _, colour, _ in runs) == (each == 1)


def test_cells_tell_sent_paid_and_absent_apart() -> None:
    runs = plots._runs({1: True, 2: False, 4: True}, 4, 1)
    assert [(start, colour) for start, _, colour, _ in runs] == [
        (1, plots.MAIN), (2, plots.LIMIT), (3, plots.RULE), (4, plots.MAIN),
    ]  # fmt: skip
