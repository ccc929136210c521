"""The logistic regression baseline: that it is the optimum it claims, and a strong one."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from hansa.demo import baselines
from hansa.demo.baselines import LabelledRows, local_logistic_auc, logistic_regression, public_scaling

SEED = 5


def drawn(count: int, random: np.random.Generator, width: int = 12, signal: float = 1.0) -> LabelledRows:
    features = random.normal(size=(count, width)) * np.linspace(1, 50, width) + 7
    logits = signal * (features[:, 0] - 7) - 1
    return LabelledRows(features=features, labels=(random.random(count) < expit(logits)).astype(np.float64))


def scaling(width: int = 12) -> baselines.Scaling:
    return public_scaling(drawn(500, np.random.default_rng(0), width).features)


def test_scaling_is_public_and_keeps_constant_features() -> None:
    public = np.array([[1.0, 5.0], [3.0, 5.0]])
    np.testing.assert_array_equal(public_scaling(public).apply(np.array([[4.0, 6.0]])), [[2.0, 1.0]])


def test_solution_is_the_minimum_at_the_chosen_penalty() -> None:
    rows = drawn(300, np.random.default_rng(1))
    model = logistic_regression(rows, scaling(), seed=SEED)
    assert model.penalty in baselines.PENALTIES
    # gradient of: sum of log-losses + penalty / 2 · |weights|², intercept free
    residual = expit(model.scores(rows.features)) - rows.labels
    gradient = model.scaling.apply(rows.features).T @ residual + model.penalty * model.weights
    assert np.abs(gradient).max() / len(rows.labels) <= 1.1e-5
    assert abs(residual.sum()) / len(rows.labels) <= 1.1e-5


def test_penalty_is_chosen_per_bank() -> None:
    random = np.random.default_rng(2)
    clear = logistic_regression(drawn(1000, random, signal=3.0), scaling(), seed=SEED)
    noise = logistic_regression(drawn(60, random, signal=0.0), scaling(), seed=SEED)
    assert clear.penalty < noise.penalty


def test_penalty_beats_a_weak_one_at_a_small_skewed_bank() -> None:
    random = np.random.default_rng(3)
    pool, test = drawn(20_000, random, width=60), drawn(20_000, random, width=60)
    positive, negative = np.flatnonzero(pool.labels == 1)[:12], np.flatnonzero(pool.labels == 0)[:200]
    index = np.concatenate([positive, negative])
    rows = LabelledRows(features=pool.features[index], labels=pool.labels[index])
    tuned = logistic_regression(rows, scaling(60), seed=SEED)
    weak = baselines._fit(tuned.scaling.apply(rows.features), rows.labels, 1e-3, np.zeros(61))
    weak_scores = tuned.scaling.apply(test.features) @ weak[:-1]
    tuned_auc = baselines.auc(tuned.scores(test.features), test.labels)
    assert tuned_auc > baselines.auc(weak_scores, test.labels) + 0.02


def test_folds_are_stratified_and_cover_all_rows() -> None:
    labels = np.array([1.0] * 10 + [0.0] * 53)
    fold = baselines._folds(labels, np.random.default_rng(0))
    assert [int(((fold == number) & (labels == 1)).sum()) for number in range(5)] == [2] * 5
    assert sorted(np.bincount(fold)) == [12, 12, 13, 13, 13]


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_rows_of_one_class_give_zero_weights(label: float) -> None:
    rows = drawn(40, np.random.default_rng(4))
    model = logistic_regression(
        LabelledRows(features=rows.features, labels=np.full(40, label)), scaling(), seed=0
    )
    assert not model.weights.any()
    test = drawn(100, np.random.default_rng(5))
    assert baselines.auc(model.scores(test.features), test.labels) == 0.5


@pytest.mark.parametrize("positives", [1, 2, 4])
def test_folds_without_both_classes_are_left_out(positives: int) -> None:
    features = drawn(60, np.random.default_rng(6)).features
    labels: NDArray[np.float64] = np.zeros(60)
    labels[:positives] = 1
    model = logistic_regression(LabelledRows(features=features, labels=labels), scaling(), seed=SEED)
    assert np.isfinite(model.scores(features)).all()
    if positives == 1:  # no split has the positive on both sides
        assert model.penalty == baselines._PENALTY_UNTUNED


def test_local_auc_is_the_mean_over_banks_on_both_test_sets() -> None:
    random = np.random.default_rng(7)
    banks = [drawn(200, random), drawn(80, random), drawn(100, random)]
    test, own = drawn(400, random), [drawn(50, random), drawn(50, random), drawn(50, random)]
    own[1] = LabelledRows(features=own[1].features, labels=np.zeros(50))
    public = drawn(500, np.random.default_rng(0)).features
    result = local_logistic_auc(banks, public_features=public, test=test, own=own, seed=SEED)
    first = logistic_regression(banks[0], public_scaling(public), seed=SEED)
    assert result.test[0] == baselines.auc(first.scores(test.features), test.labels)
    assert result.own[0] == baselines.auc(first.scores(own[0].features), own[0].labels)
    assert result.own[1] is None
    assert result.own[2] is not None
    assert result.mean_test == pytest.approx(sum(result.test) / 3)
    assert result.mean_own == pytest.approx((result.own[0] + result.own[2]) / 2)
    assert min(result.test) > 0.6
