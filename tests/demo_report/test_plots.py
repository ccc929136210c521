import itertools
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.demo import plots
from hansa.demo.result import Scores, Seconds
from hansa.reports import figures

DRAWERS = [plots.auc_by_round, plots.epsilon_by_round, plots.traffic, plots.time_by_step]


def text_of(svg: str) -> str:
    return " ".join(ElementTree.fromstring(svg.replace("xlink:href", "href")).itertext())


@pytest.mark.parametrize("draw", DRAWERS)
def test_a_figure_is_inline_svg_with_an_alternative_text_and_the_same_bytes_every_time(draw, result):
    svg = draw(result)
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert root.attrib["role"] == "img"
    assert len(root.attrib["aria-label"]) > 40
    assert svg == draw(result)
    assert "<metadata" not in svg
    assert "<style" not in svg
    assert "http" not in svg


@pytest.mark.parametrize("draw", DRAWERS)
def test_colours_are_those_of_the_page(draw, result):
    assert not re.search(r"#0[0-9]{5}", draw(result))
    assert "var(--plot-main)" in draw(result)


def test_every_arm_that_was_run_is_named_on_its_line(make_result):
    scores = Scores(joint=0.733, local_only_dp=0.55, federated_no_dp=0.76, pooled=0.77, base=0.5)
    text = text_of(plots.auc_by_round(make_result(auc=scores)))
    for name in (
        "joint 0.733",
        "local only, same privacy 0.550",
        "joint, without noise 0.760",
        "pooled, no protection 0.770",
    ):
        assert name in text
    assert "logistic" not in text


def test_a_run_without_other_arms_and_without_scores_by_round_is_drawn(make_result):
    svg = plots.auc_by_round(make_result(auc=Scores(joint=0.7), auc_by_round=(None,) * 4))
    assert "joint 0.700" in text_of(svg)
    assert "no other arm was run" in svg


def test_epsilon_is_drawn_with_its_limit(result):
    text = text_of(plots.epsilon_by_round(result))
    assert "limit 8" in text
    assert "spent 7.98" in text


def test_traffic_and_time_carry_their_amounts(result):
    traffic, time = text_of(plots.traffic(result)), text_of(plots.time_by_step(result))
    assert "99.4 kB  (0.61 B per parameter)" in traffic
    assert "652 kB  (4.00 B per parameter)" in traffic
    assert "4.10 s  (89 %)" in time


def test_a_name_cannot_break_out_of_a_figure(make_result):
    seconds = Seconds(total=1.0, per_round=1.0, by_step={'</svg><script a="$x$">': 1.0})
    svg = plots.time_by_step(make_result(seconds=seconds))
    assert "<script" not in svg
    assert '</svg><script a="$x$">' in text_of(svg)


def test_no_steps_give_an_empty_figure(make_result):
    svg = plots.time_by_step(make_result(seconds=Seconds(total=1.0, per_round=1.0, by_step={})))
    assert svg.startswith("<svg")


@given(st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=8))
def test_names_of_close_lines_are_moved_apart_and_keep_their_order(values):
    placed = figures.spread(values, 0.1, 0.0, 1.0)
    order = sorted(range(len(values)), key=lambda place: values[place])
    for lower, upper in itertools.pairwise(order):
        assert placed[upper] - placed[lower] >= 0.1 - 1e-9
    assert max(placed) <= 1.1 + 1e-9
