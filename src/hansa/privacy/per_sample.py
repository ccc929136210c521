"""Exact per-sample clipping in one backward pass.

    S = Σ_b c_b · g_b|support,    c_b = C / max(C, (1 + 1e-6) ‖g_b|support‖₂)

with g_b the gradient of sample b's own loss. The backward pass leaves the factors' inputs and output gradients on a tape
(hansa.models.tape); norms and the clipped sum follow from them, so no sample's gradient is ever formed as a whole.
Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1; book-keeping: Bu et al. 2023, section 3.

Shape suffixes: B samples, P trained entries, K entries of the round's support.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hansa.errors import InvalidValue
from hansa.models.tape import Tape
from hansa.models.trainable import TrainableLayout

# Float32 sums may exceed the bound by a few units in the last place; the coefficient leaves room for them.
_ROUNDING_ROOM = 1.0 + 1e-6

SampleLoss = Callable[[nn.Module, Tensor, Tensor, Tape], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class ClippedSum:
    """What one physical batch gives.

    Attributes:
        sum_K: Sum of the clipped gradients on the support, float64.
        norms_B: ℓ₂ norm of each sample's gradient on the support before clipping. Private: it must not leave.
        dropped: Samples left out because their gradient was not finite. Private: it must not leave.
    """

    sum_K: NDArray[np.float64]
    norms_B: NDArray[np.float64]
    dropped: int


def binary_loss(model: nn.Module, features: Tensor, labels: Tensor, tape: Tape) -> Tensor:
    """Logistic loss of each sample, (B,)."""
    logits = model(features, tape)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def clipped_sum(
    model: nn.Module,
    layout: TrainableLayout,
    features: Tensor,
    labels: Tensor,
    *,
    support_K: NDArray[np.int64] | None,
    clip_norm: float | None,
    loss: SampleLoss = binary_loss,
) -> ClippedSum:
    """Sum the clipped per-sample gradients of a batch.

    Args:
        model: The model, its trained part at the point where gradients are wanted.
        layout: Order of the trained part.
        features: One record each along the first dimension: (B, J, Z) of a table, (B, T) tokens of a text.
        labels: (B, ...).
        support_K: Positions that are trained in this round, ascending; None for all.
        clip_norm: ℓ₂ bound C of a sample's restricted gradient; None for no clipping (not private).
        loss: Gives one loss a sample; must not couple samples.

    Raises:
        InvalidValue: A trained tensor leaves no record, such as the embedding of a text model.

    Guarantees:
        - One sample more or less changes `sum_K` by at most `clip_norm` in ℓ₂ norm, up to rounding of the sum.
        - An empty batch gives zeros of the same shape.
        - A sample with a NaN or infinite gradient contributes zero.
        - Splitting a batch into parts and adding their sums gives the sum of the whole batch, up to rounding.
    """
    samples = len(features)
    if samples == 0:
        size = layout.size if support_K is None else len(support_K)
        return ClippedSum(sum_K=np.zeros(size), norms_B=np.zeros(0), dropped=0)
    masks = None if support_K is None else layout.masks(support_K)
    tape = Tape()
    loss(model, features, labels, tape).sum().backward()  # type: ignore[no-untyped-call]

    with torch.no_grad():
        norms_B = _norms(tape, layout, samples, masks)
    finite_B = torch.isfinite(norms_B)
    dropped = int((~finite_B).sum())
    if dropped:
        kept = finite_B.nonzero().flatten()
        rest = clipped_sum(
            model, layout, features[kept], labels[kept], support_K=support_K, clip_norm=clip_norm, loss=loss
        )
        return ClippedSum(sum_K=rest.sum_K, norms_B=norms_B.numpy(), dropped=dropped)

    weights_B = torch.ones(samples, dtype=torch.float64)
    if clip_norm is not None:
        weights_B = clip_norm / (norms_B * _ROUNDING_ROOM).clamp(min=clip_norm)
    with torch.no_grad():
        flat = _weighted_sum(tape, layout, weights_B)
    on_support = flat if support_K is None else flat[support_K]
    return ClippedSum(sum_K=on_support, norms_B=norms_B.numpy(), dropped=0)


def _norms(tape: Tape, layout: TrainableLayout, samples: int, masks: dict[str, Tensor] | None) -> Tensor:
    """ℓ₂ norm of each sample's gradient over the trained tensors, (B,) float64."""
    left_out = [slot.name for slot in layout.slots if slot.name not in tape.records]
    if left_out:
        raise InvalidValue(f"{left_out[0]} leaves no record of single samples, so it cannot be clipped")
    squares_B = torch.zeros(samples, dtype=torch.float64)
    for slot in layout.slots:
        squares_B += tape.records[slot.name].square_norms(None if masks is None else masks[slot.name])
    return squares_B.sqrt()


def _weighted_sum(tape: Tape, layout: TrainableLayout, weights_B: Tensor) -> NDArray[np.float64]:
    """Weighted sum of the samples' gradients as a flat vector, (P,)."""
    flat = torch.empty(layout.size, dtype=torch.float64)
    for slot in layout.slots:
        flat[slot.start : slot.stop] = tape.records[slot.name].weighted_sum(weights_B).flatten()
    return flat.numpy()
