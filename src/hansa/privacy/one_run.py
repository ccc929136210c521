"""A lower bound of ε from one training run: records that were put in by coins, and guesses of the coins.

Each of m canaries is in the data with probability ½, by a coin of its own. Whoever sees the result of the run guesses r of the
coins, those that it is most sure of, and v guesses are right. Under (ε, δ)-differential privacy

    P[at least v right] ≤ P[W ≥ v] + 2 m δ · max_i P[v − i ≤ W < v] / i,    W ~ Binomial(r, e^ε / (1 + e^ε)),  i = 1 .. v

whatever the run, the other records and the way of guessing are, so an ε for which the right side is at most 1 − confidence is
refuted. The bound cannot show more than its number of guesses allows: r right ones of r refute no ε above about
ln(r / ln(1 / (1 − confidence))).
Source: Steinke, Nasr & Jagielski 2023, "Privacy Auditing with One (1) Training Run", theorem 5.2 and appendix D.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

# Shares of the canaries that are guessed to be in (the highest scores) and out (the lowest), chosen before any score is seen.
GUESSED_SHARES = ((0.02, 0.0), (0.1, 0.0), (0.05, 0.05), (0.25, 0.25), (0.5, 0.5))
_EPSILON_MOST = 60.0  # e^60 guesses would be needed to refute it
_FALSE_POSITIVES = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class OneRunBound:
    """What the guesses of one run show at least.

    Attributes:
        epsilon: Lower bound of ε; 0 where nothing is shown.
        confidence: Probability with which it holds.
        canaries: m.
        guesses: r of the number of guesses that shows most.
        correct: v of them.
        true_positive_rate: Share of the canaries inside whose score is above all but 1 % of those outside.
        epsilon_most: What could be shown if every guess were right; a claim above it cannot be refuted by so few canaries.
    """

    epsilon: float
    confidence: float
    canaries: int
    guesses: int
    correct: int
    true_positive_rate: float
    epsilon_most: float


def p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Bound the probability that so many guesses are right under (ε, δ)-differential privacy.

    Args:
        canaries: m, each of them in with probability ½.
        guesses: r.
        correct: v.
        epsilon: ε.
        delta: δ.

    Raises:
        ValueError: 0 ≤ correct ≤ guesses ≤ canaries does not hold, or ε or δ is out of its range.

    Guarantees:
        - At least the probability that any (ε, δ)-private run gives; equal to it for randomised response and δ = 0.
        - Grows with ε as long as 2 m δ ≤ 1, with δ and with m; falls as `correct` grows.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} of {guesses} guesses about {canaries} canaries cannot be right")
    if not (epsilon >= 0.0 and 0.0 <= delta <= 1.0):
        raise ValueError(f"epsilon {epsilon} is below 0 or delta {delta} is not from 0 to 1")
    if correct == 0:
        return 1.0
    right = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(special.betainc(correct, guesses - correct + 1, right))  # P[W ≥ v]
    below = np.arange(correct - 1, -1, -1)  # v − 1, v − 2, .. 0
    log_chance = (
        special.gammaln(guesses + 1)
        - special.gammaln(below + 1)
        - special.gammaln(guesses - below + 1)
        + special.xlogy(below, right)
        - (guesses - below) * np.logaddexp(0.0, epsilon)
    )
    near = float((np.cumsum(np.exp(log_chance)) / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2.0 * canaries * delta * near)


def epsilon_refuted(*, canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """Find the ε up to which a number of right guesses refutes (ε, δ)-differential privacy.

    Returns:
        The largest ε whose `p_value` is at most 1 − confidence; 0 where there is none.

    Raises:
        ValueError: 2 m δ is above 1, so that the p-value need not grow with ε; or as `p_value`.

    Guarantees:
        - Grows with the number of right guesses; falls with confidence and δ.
    """
    if 2.0 * canaries * delta > 1.0:
        raise ValueError(
            f"delta {delta:g} is too large for {canaries} canaries: twice their product is above 1"
        )

    def excess(epsilon: float) -> float:
        found = p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
        return found - (1.0 - confidence)

    if excess(0.0) >= 0.0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, _EPSILON_MOST, xtol=1e-9))


def one_run_bound(
    scores: NDArray[np.float64],
    inside: NDArray[np.bool_],
    *,
    delta: float,
    confidence: float,
    shares: Sequence[tuple[float, float]] = GUESSED_SHARES,
) -> OneRunBound:
    """Guess the coins by scores, and bound ε from below.

    Args:
        scores: (m,) larger where a canary looks as if it was in.
        inside: (m,) the coins.
        delta: δ.
        confidence: Probability with which the bound holds, over all `shares` at once (Bonferroni).
        shares: Shares of the canaries to guess in and out, chosen without looking at coins or scores.

    Raises:
        ValueError: The arrays do not fit each other, or as `epsilon_refuted`.

    Guarantees:
        - At most the true ε with probability `confidence` or more, however the scores were made.
        - Does not change when scores are mapped by a growing function; NaN counts as the lowest score.
    """
    if scores.shape != inside.shape or scores.ndim != 1 or not len(scores):
        raise ValueError(f"{scores.shape} scores do not fit {inside.shape} coins")
    canaries = len(scores)
    # Equal scores stand in an order that the coins do not know.
    falling = np.argsort(-np.where(np.isnan(scores), -np.inf, scores), kind="stable")
    each = 1.0 - (1.0 - confidence) / len(shares)
    best, most = (0.0, 0, 0), 0.0
    for share_in, share_out in shares:
        above, below = round(share_in * canaries), round(share_out * canaries)
        below = min(below, canaries - above)
        guesses = above + below
        correct = int(inside[falling[:above]].sum()) + int((~inside[falling[canaries - below :]]).sum())
        found, limit = (
            epsilon_refuted(canaries=canaries, guesses=guesses, correct=right, delta=delta, confidence=each)
            for right in (correct, guesses)
        )
        best, most = max(best, (found, guesses, correct)), max(most, limit)
    return OneRunBound(
        epsilon=best[0],
        confidence=confidence,
        canaries=canaries,
        guesses=best[1],
        correct=best[2],
        true_positive_rate=true_positive_rate(scores, inside),
        epsilon_most=most,
    )


def true_positive_rate(
    scores: NDArray[np.float64], inside: NDArray[np.bool_], *, false_positive_rate: float = _FALSE_POSITIVES
) -> float:
    """Give the share of the canaries inside that a threshold finds which takes so many of those outside for inside at most.

    Source: Carlini et al. 2022, "Membership Inference Attacks From First Principles", section 4.
    """
    if not inside.any() or inside.all():
        return 0.0
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    outside = np.sort(ranked[~inside])[::-1]
    allowed = math.floor(false_positive_rate * len(outside) + 1e-9)
    return float((ranked[inside] > outside[allowed]).mean()) if allowed < len(outside) else 1.0
