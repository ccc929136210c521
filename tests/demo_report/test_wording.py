import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.demo import wording
from hansa.demo.result import Scores
from hansa.study import load_study


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.00 kB"),
        (98_916, "98.9 kB"),
        (99_960, "100 kB"),
        (999_600, "1.00 MB"),
        (1_420_000_000, "1.42 GB"),
        (3_000_000_000_000, "3.00 TB"),
    ],
)
def test_bytes_have_three_digits_and_never_1000_of_a_unit(count, text):
    assert wording.bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.312, "0.31 s"), (9.996, "10 s"), (42.3, "42 s"), (59.6, "1 min 0 s"), (100, "1 min 40 s")],
)
def test_seconds(seconds, text):
    assert wording.seconds_text(seconds) == text


@given(st.floats(min_value=0, max_value=1000))
def test_epsilon_is_never_shown_smaller_than_it_is(epsilon):
    shown = float(wording.epsilon_text(epsilon))
    assert epsilon - 1e-7 <= shown <= epsilon + 0.0101


@pytest.mark.parametrize(
    ("epsilon", "text"), [(7.98, "7.98"), (7.9801, "7.99"), (8.0, "8.00"), (0.0, "0.00")]
)
def test_epsilon_is_rounded_up(epsilon, text):
    assert wording.epsilon_text(epsilon) == text


@pytest.mark.parametrize(("gain", "text"), [(0.1225, "+12.2 %"), (-0.03, "−3.0 %"), (None, "not run")])
def test_gain_has_a_sign(gain, text):
    assert wording.gain_text(gain) == text


def test_delta_and_factor():
    assert [wording.delta_text(delta) for delta in (1e-5, 2.5e-6, 0.001)] == ["1e-5", "2.5e-6", "0.001"]
    assert [wording.factor_text(epsilon) for epsilon in (0.0, 1.0, 8.0, 100.0)] == [
        "1",
        "2.7",
        "3,000",
        "2.7e+43",
    ]


def test_every_arm_of_the_report_has_words():
    named = [arm.key for arm in wording.ARMS]
    assert sorted(named) == sorted([*(field.name for field in dataclasses.fields(Scores)), "local_only"])


def test_an_unknown_layer_is_named_by_its_key():
    assert wording.layer_of("post_quantum_keys").name == "Post quantum keys"


def test_printable_text_cannot_steer_a_terminal():
    assert wording.printable("a\x1b[2J\r\nb\u202ec é") == "a?[2J??b?c é"


def test_the_example_has_every_layer_on():
    study = load_study(Path(__file__).parents[2] / "examples" / "bank" / "study.toml")
    assert {layer.key for layer in wording.LAYERS} == set(study.protections())
    assert all(study.protections().values())


def test_every_layer_says_what_on_and_off_mean():
    for layer in wording.LAYERS:
        assert layer.on.endswith(".")
        assert layer.off.endswith(".")
