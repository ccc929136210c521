"""What the gradient of one text in a Mixture-of-Experts layer says about its tokens: the span test.

The gradient of expert e's second factor is G_e = Σ_t z_t g_tᵀ over the tokens t that e serves, z_t = A_eᵀ x_t. Few tokens share
an expert, fewer than the rank r, so the columns of G_e span a proper subspace of R^r that holds every z_t; the z of another token
lies in it with probability 0. A dense layer sees all tokens, more than r, and its gradient spans everything. In layer 0, x_t
follows from the tokens up to t by the frozen base, so whoever holds the base tests candidate tokens from left to right.

    evidence(v) = − Σ over experts e of v   (r − Σ_i w_i) · ln ‖z − U_w z‖ / ‖z‖

with U_w the left singular vectors of G_e, each weighted by w_i = max(0, 1 − φ / s_i²): the share of its energy above the floor
φ = τ² (√n + √r)², the most that noise of deviation τ in n columns reaches. The attacker takes τ from the gradient itself, from the
directions that no token fills, so noise that is smaller than claimed helps it. Without noise this is the exact span test.
Source: Petrov et al. 2024, "DAGER: Exact Gradient Inversion for Large Language Models", section 4, for the span test on dense
layers, which a low rank defeats; here each expert has a span of its own.

Shape suffixes: E experts, r rank, N columns of a factor, V candidates, K experts of a candidate.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

_ROUNDING = 1e-5  # share of the largest singular value below which one counts as rounding of float32
_RESIDUAL_LEAST = 1e-4  # of ‖z‖: nearer than this is as near as float32 tells


@dataclass(frozen=True, kw_only=True, slots=True)
class Spans:
    """What each expert's gradient spans.

    Attributes:
        directions_Err: Left singular vectors, as columns.
        weights_Er: Share of each direction's energy that is signal, in [0, 1].
    """

    directions_Err: NDArray[np.float64]
    weights_Er: NDArray[np.float64]


def gradient_spans(gradient_ErN: NDArray[np.float64]) -> Spans:
    """Find the directions that the tokens of each expert span.

    Args:
        gradient_ErN: Gradient of the second factors, noised or not, in any scale.

    Raises:
        ValueError: A factor has no more columns than its rank.

    Guarantees:
        - Without noise the weights are 1 for as many directions as the gradient has rank, and 0 for the others, where at least half
          of the experts serve fewer tokens than the rank.
        - Noise alone has weights near 0, whatever its size.
    """
    rank, columns = gradient_ErN.shape[1:]
    if columns <= rank:
        raise ValueError(f"a factor of rank {rank} has {columns} columns, no more than its rank")
    directions, values_Er, _ = np.linalg.svd(gradient_ErN, full_matrices=False)
    # The least singular value of a matrix of noise is about τ (√n − √r) (Davidson & Szarek 2001, theorem 2.13).
    deviation = float(np.median(values_Er[:, -1])) / (math.sqrt(columns) - math.sqrt(rank))
    noise = (deviation * (math.sqrt(columns) + math.sqrt(rank))) ** 2
    floor_E1 = np.maximum(noise, (_ROUNDING * values_Er[:, :1]) ** 2) + np.finfo(np.float64).tiny
    weights = 1.0 - floor_E1 / np.maximum(values_Er**2, floor_E1)
    return Spans(directions_Err=directions, weights_Er=weights)


def span_evidence(
    spans: Spans, inputs_VKr: NDArray[np.float64], expert_VK: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Say of each candidate how well its experts' inputs lie in what their gradients span.

    Args:
        spans: Of the gradient.
        inputs_VKr: A_eᵀ x of each candidate at each of its experts.
        expert_VK: Its experts.

    Returns:
        (V,) evidence, 0 where nothing is known; an expert whose gradient spans everything or nothing says nothing.

    Guarantees:
        - Does not change with the length of the inputs.
        - Without noise, a token that was served has more evidence than any whose inputs are not in the spans.
    """
    directions_VKrr = spans.directions_Err[expert_VK]
    weights_VKr = spans.weights_Er[expert_VK]
    along_VKr = np.einsum("vkij,vki->vkj", directions_VKrr, inputs_VKr)
    squares_VK = np.maximum((inputs_VKr**2).sum(axis=2), np.finfo(np.float64).tiny)
    # what is left of z once each direction is taken away by its weight: Σ (1 − w_i)² (uᵢ·z)² / ‖z‖²
    left_VK = ((1.0 - weights_VKr) ** 2 * along_VKr**2).sum(axis=2) / squares_VK
    residual_VK = np.clip(np.sqrt(left_VK), _RESIDUAL_LEAST, 1.0)
    free_VK = spans.weights_Er.shape[1] - weights_VKr.sum(axis=2)
    evidence: NDArray[np.float64] = -(free_VK * np.log(residual_VK)).sum(axis=1)
    return evidence


def chance_p_value(hits: int, trials: int, chance: float) -> float:
    """Compute the probability that guesses which know nothing are right at least so often: P[Binomial(trials, chance) ≥ hits]."""
    if not 0 <= hits <= trials or not 0.0 < chance < 1.0:
        raise ValueError(f"{hits} hits of {trials} at chance {chance} cannot be")
    return 1.0 if hits == 0 else float(special.betainc(hits, trials - hits + 1, chance))
