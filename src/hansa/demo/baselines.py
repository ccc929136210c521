"""Logistic regression at one bank alone: the baseline that a joint model has to beat.

It is meant to be strong. It gets the same encoded features as the network, standardised with public
statistics, and each bank chooses its own L2 penalty from a wide grid by cross-validation on its own rows. A
weakly penalised baseline would flatter the joint model: at banks with few rows or skewed classes the penalty
is worth several points of AUC. There is no privacy noise in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from hansa.demo.metrics import auc

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
FOLDS = 5
_PENALTY_UNTUNED = 100.0  # for a bank whose rows cannot be split with both classes on either side
_ITERATIONS_MOST = 500
_GRADIENT_TOLERANCE = 1e-5

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class LabelledRows:
    """Encoded rows: features (n, d), labels (n,) in {0, 1}."""

    features: Array
    labels: Array


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Scaling:
    """Public mean and standard deviation of every feature, (d,) each; a constant feature has deviation 1."""

    mean: Array
    deviation: Array

    def apply(self, features: Array) -> Array:
        """Standardise features, (n, d) -> (n, d)."""
        return (features - self.mean) / self.deviation


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class LogisticModel:
    """A fitted model: weights (d,) and intercept over standardised features, and the chosen penalty."""

    scaling: Scaling
    weights: Array
    intercept: float
    penalty: float

    def scores(self, features: Array) -> Array:
        """Compute the log-odds of the positive class, (n, d) -> (n,)."""
        logits: Array = self.scaling.apply(features) @ self.weights + self.intercept
        return logits


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalAuc:
    """AUC of every bank's own model.

    Attributes:
        test: On the consortium-wide test rows, one a bank.
        own: On rows like the bank's own customers, one a bank; None where these have one class only.
    """

    test: tuple[float, ...]
    own: tuple[float | None, ...]

    @property
    def mean_test(self) -> float:
        """Mean over the banks."""
        return float(np.mean(self.test))

    @property
    def mean_own(self) -> float:
        """Mean over the banks whose own rows have both classes; 0.5 if there is none."""
        known = [value for value in self.own if value is not None]
        return float(np.mean(known)) if known else 0.5


def public_scaling(public_features: Array) -> Scaling:
    """Take mean and deviation of every feature, (n, d), from the public sample."""
    deviation = public_features.std(axis=0)
    return Scaling(mean=public_features.mean(axis=0), deviation=np.where(deviation > 0, deviation, 1.0))


def logistic_regression(
    rows: LabelledRows, scaling: Scaling, *, seed: int, penalty: float | None = None
) -> LogisticModel:
    """Fit L2 logistic regression and choose its penalty on the rows themselves, unless one is given.

    1. Deal each class evenly to 5 folds; each fold is a stratified 20 % validation split.
    2. Take the penalty of the least mean validation log-loss; folds with one class on a side are left out.
    3. Fit all rows with it.

    Args:
        rows: The bank's rows.
        scaling: Public statistics of the features.
        seed: Seed of the folds.
        penalty: Fixed penalty; a baseline that nobody tuned, for comparison.

    Guarantees:
        - Minimises sum of log-losses + penalty / 2 · |weights|² (intercept free) to a gradient of 1e-5 a row.
        - Rows of one class give zero weights, so an AUC of 0.5.
    """
    features = scaling.apply(rows.features)
    if len(np.unique(rows.labels)) < 2:
        return LogisticModel(
            scaling=scaling, weights=np.zeros(features.shape[1]), intercept=0.0, penalty=np.inf
        )
    if penalty is None:
        penalty = _chosen_penalty(features, rows.labels, seed)
    solution = _fit(features, rows.labels, penalty, np.zeros(features.shape[1] + 1))
    return LogisticModel(
        scaling=scaling, weights=solution[:-1], intercept=float(solution[-1]), penalty=penalty
    )


def local_logistic_auc(
    banks: Sequence[LabelledRows],
    *,
    public_features: Array,
    test: LabelledRows,
    own: Sequence[LabelledRows],
    seed: int,
    penalty: float | None = None,
) -> LocalAuc:
    """Fit every bank alone and score it on the consortium-wide test rows and on rows like its own."""
    scaling = public_scaling(public_features)
    test_aucs: list[float] = []
    own_aucs: list[float | None] = []
    for rows, own_rows in zip(banks, own, strict=True):
        model = logistic_regression(rows, scaling, seed=seed, penalty=penalty)
        test_aucs.append(auc(model.scores(test.features), test.labels))
        both = len(np.unique(own_rows.labels)) == 2
        own_aucs.append(auc(model.scores(own_rows.features), own_rows.labels) if both else None)
    return LocalAuc(test=tuple(test_aucs), own=tuple(own_aucs))


def _chosen_penalty(features: Array, labels: Array, seed: int) -> float:
    fold = _folds(labels, np.random.Generator(np.random.PCG64(seed)))
    losses = []
    for number in range(FOLDS):
        held = fold == number
        if len(np.unique(labels[held])) < 2 or len(np.unique(labels[~held])) < 2:
            continue
        losses.append(_path_losses(features, labels, held))
    return PENALTIES[int(np.mean(losses, axis=0).argmin())] if losses else _PENALTY_UNTUNED


def _path_losses(features: Array, labels: Array, held: NDArray[np.bool_]) -> list[float]:
    """Compute the validation loss of every penalty; each fit starts at the solution of the stronger one."""
    solution = np.zeros(features.shape[1] + 1)
    losses = []
    for penalty in reversed(PENALTIES):
        solution = _fit(features[~held], labels[~held], penalty, solution)
        logits = features[held] @ solution[:-1] + solution[-1]
        losses.append(float(np.mean(np.logaddexp(0.0, logits) - labels[held] * logits)))
    return losses[::-1]


def _folds(labels: Array, random: np.random.Generator) -> NDArray[np.int64]:
    fold = np.zeros(len(labels), dtype=np.int64)
    for label in (0.0, 1.0):
        rows = random.permutation(np.flatnonzero(labels == label))
        fold[rows] = np.arange(len(rows)) % FOLDS
    return fold


def _fit(features: Array, labels: Array, penalty: float, start: Array) -> Array:
    """Minimise mean log-loss + penalty / (2 n) · |weights|² by L-BFGS; the last entry is the intercept."""
    count = len(labels)

    def loss_and_gradient(solution: Array) -> tuple[float, Array]:
        weights = solution[:-1]
        logits = features @ weights + solution[-1]
        loss = (
            np.mean(np.logaddexp(0.0, logits) - labels * logits) + penalty / (2 * count) * weights @ weights
        )
        residual = (expit(logits) - labels) / count
        return float(loss), np.append(features.T @ residual + penalty / count * weights, residual.sum())

    options = {"maxiter": _ITERATIONS_MOST, "gtol": _GRADIENT_TOLERANCE, "ftol": 0.0}
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, dtype=np.float64)
