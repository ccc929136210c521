"""AUC against its definition, pair by pair."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa import errors
from hansa.demo.metrics import auc

rows = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=30)


@given(rows)
def test_is_the_share_of_ordered_pairs(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([float(score) for score, _ in pairs])
    labels = np.array([float(label) for _, label in pairs])
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in scores[labels == 1]
        for low in scores[labels == 0]
    ]
    expected = np.mean(wins) if wins else 0.5
    assert auc(scores, labels) == pytest.approx(expected, abs=1e-12)


@given(rows)
def test_reflects_and_ignores_increasing_maps(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([float(score) for score, _ in pairs])
    labels = np.array([float(label) for _, label in pairs])
    assert 0 <= auc(scores, labels) <= 1
    assert auc(-scores, labels) == pytest.approx(1 - auc(scores, labels), abs=1e-12)
    assert auc(np.exp(scores), labels) == auc(scores, labels)


def test_infinite_scores_are_ordered() -> None:
    assert auc(np.array([-np.inf, 0.0, np.inf]), np.array([0.0, 0.0, 1.0])) == 1.0


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_gives_a_half(label: float) -> None:
    assert auc(np.array([1.0, 2.0]), np.array([label, label])) == 0.5


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, np.nan], [0.0, 1.0], "1 of 2 scores are NaN"),
        ([1.0], [0.0, 1.0], "shape"),
        ([[1.0, 2.0]], [[0.0, 1.0]], r"must be \(n,\)"),
        ([1.0, 2.0], [0.0, 2.0], "neither 0 nor 1"),
        ([1.0, 2.0], [0.0, np.nan], "neither 0 nor 1"),
    ],
)
def test_refuses_what_has_no_auc(scores: list[float], labels: list[float], message: str) -> None:
    with pytest.raises(errors.DataError, match=message):
        auc(np.array(scores), np.array(labels))
