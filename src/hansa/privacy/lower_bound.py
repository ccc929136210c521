"""From how often a test of membership errs to a lower bound of ε, with confidence.

A test that calls "in" whenever a score passes a threshold errs with some false positive rate α and false negative rate β. Bounds of
both from above (Clopper & Pearson 1934) give two lower bounds:

    Gaussian   μ ≥ Φ⁻¹(1 − α) − Φ⁻¹(β), and ε(δ) of a μ-Gaussian mechanism   (Dong et al. 2022, corollary 2.13; Nasr et al. 2023)
    free       e^ε ≥ (1 − β − δ) / α, and with α and β exchanged               (Kairouz et al. 2015, theorem 2.1)

The Gaussian one needs the trade-off curve to lie, towards its ends, no higher than a Gaussian one through the point that was
measured. Sums of Poisson-subsampled Gaussian steps do where ε is 0.1 or more, for their loss grows faster towards the tail; below,
the bound may be a tenth too high, which no audit of fewer than millions of canaries can resolve. The free one needs nothing and is
weak.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special


@dataclass(frozen=True, kw_only=True, slots=True)
class LowerBound:
    """What a set of scores shows at least.

    Attributes:
        mu: μ of the Gaussian mechanism that is at least shown.
        epsilon: Its ε.
        epsilon_free: ε that is shown whatever the mechanism.
    """

    mu: float
    epsilon: float
    epsilon_free: float


def lower_bound(
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
    thresholds: Sequence[float],
    *,
    delta: float,
    confidence: float,
) -> LowerBound:
    """Bound ε from below by the scores of records that were in and of such that were not.

    Args:
        inside: Independent scores of records that were in the data.
        outside: The same of records that were not.
        thresholds: Where "in" begins, chosen without looking at the scores.
        delta: δ.
        confidence: Probability that all bounds of error rates hold at once.

    Guarantees:
        - For a mechanism as the module's text says, each bound is at most the true value with probability `confidence` or more,
          however many thresholds there are.
    """
    share = (1.0 - confidence) / (2 * len(thresholds))  # Bonferroni: two rates a threshold
    mu, free = 0.0, 0.0
    for threshold in thresholds:
        false_positives = _rate_at_most(int((outside >= threshold).sum()), len(outside), share)
        false_negatives = _rate_at_most(int((inside < threshold).sum()), len(inside), share)
        mu = max(mu, -float(special.ndtri(false_positives)) - float(special.ndtri(false_negatives)))
        for one, other in ((false_positives, false_negatives), (false_negatives, false_positives)):
            if 1.0 - other - delta > one:
                free = max(free, math.log((1.0 - other - delta) / one))
    return LowerBound(mu=mu, epsilon=gaussian_epsilon(mu, delta), epsilon_free=free)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Compute ε of the μ-Gaussian mechanism at δ (Balle & Wang 2018, theorem 8).

    Guarantees:
        - Grows with μ; 0 where δ alone suffices.
    """

    def excess(epsilon: float) -> float:
        beyond = math.exp(epsilon + float(special.log_ndtr(-mu / 2 - epsilon / mu)))
        return float(special.ndtr(mu / 2 - epsilon / mu)) - beyond - delta

    if mu <= 0.0 or excess(0.0) <= 0.0:
        return 0.0
    most = mu * mu / 2 + mu * (
        math.sqrt(-2 * math.log(delta)) + 1
    )  # the first term alone is below δ from here on
    return float(optimize.brentq(excess, 0.0, most, xtol=1e-9))


def _rate_at_most(events: int, trials: int, share: float) -> float:
    """Upper end of the one-sided Clopper-Pearson interval of a rate."""
    return 1.0 if events >= trials else float(special.betaincinv(events + 1, trials - events, 1.0 - share))
