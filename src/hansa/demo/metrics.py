"""How well scores order two classes."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from hansa import errors


def auc(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    """Area under the receiver operating characteristic, as the Mann-Whitney statistic.

    The share of (positive, negative) pairs in which the positive has the higher score; a tie counts one half
    (Hanley and McNeil 1982, "The meaning and use of the area under a receiver operating characteristic
    curve", Radiology 143).

    Args:
        scores: (n,) any real scores, higher for the positive class; infinities are allowed.
        labels: (n,) 0 or 1.

    Raises:
        DataError: The arrays differ in length, a score is NaN, or a label is neither 0 nor 1.

    Guarantees:
        - The result is in [0, 1] and does not change under a strictly increasing map of the scores.
        - auc(-s, y) = 1 - auc(s, y). Labels of one class give 0.5.
    """
    if scores.shape != labels.shape or scores.ndim != 1:
        raise errors.DataError(f"scores have shape {scores.shape}, labels {labels.shape}, both must be (n,)")
    undefined = int(np.isnan(scores).sum())
    if undefined:
        raise errors.DataError(f"{undefined} of {len(scores)} scores are NaN")
    positive = labels == 1
    if not np.all(positive | (labels == 0)):
        raise errors.DataError("labels are neither 0 nor 1")
    positives = int(positive.sum())
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return 0.5
    rank_sum = float(rankdata(scores)[positive].sum())  # ties share their mean rank
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
