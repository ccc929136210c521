"""Exact per-sample clipping in one backward pass.

    S = Σ_b c_b · g_b|support,    c_b = C / max(C, (1 + 1e-6) ‖g_b|support‖₂)

with g_b the gradient of sample b's own loss. Where the unit of privacy is a person, g_b is the sum of the gradients of the person's
samples, and everything else is the same. The backward pass leaves the factors' inputs and output gradients on a tape
(hansa.models.tape); norms and the clipped sum follow from them, so no sample's gradient is ever formed as a whole.
Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1; book-keeping: Bu et al. 2023, section 3.

Shape suffixes: B samples, U units of privacy (samples, or their owners), P trained entries, K entries of the round's support.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hansa.errors import InvalidValue
from hansa.models.tape import Groups, Record, Tape
from hansa.models.trainable import TrainableLayout

# Float32 sums may exceed the bound by a few units in the last place; the coefficient leaves room for them.
_ROUNDING_ROOM = 1.0 + 1e-6

SampleLoss = Callable[[nn.Module, Tensor, Tensor, Tape], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class ClippedSum:
    """What one physical batch gives.

    Attributes:
        sum_K: Sum of the clipped gradients on the support, float64.
        norms_B: ℓ₂ norm of each unit's gradient on the support before clipping, with nothing dropped. Private: it must not leave.
        dropped: Samples left out because their loss or gradient was not finite. Private: it must not leave.
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
    unit_B: NDArray[np.int64] | None = None,
) -> ClippedSum:
    """Sum the clipped per-sample gradients of a batch.

    Args:
        model: The model, its trained part at the point where gradients are wanted.
        layout: Order of the trained part.
        features: One record each along the first dimension: (B, J, Z) of a table, (B, T) tokens of a text.
        labels: (B, ...).
        support_K: Positions that are trained in this round, ascending; None for all.
        clip_norm: ℓ₂ bound C of a unit's restricted gradient; None for no clipping (not private).
        loss: Gives one loss a sample; must not couple samples.
        unit_B: (B,) person of each sample, 0 to U - 1, ascending; all samples of a person are in the batch. None where every sample
            is a unit.

    Raises:
        InvalidValue: A trained tensor leaves no record, such as the embedding of a text model.

    Guarantees:
        - One unit more or less, with all its samples, changes `sum_K` by at most `clip_norm` in ℓ₂ norm, up to rounding of the sum.
        - An empty batch gives zeros of the same shape.
        - A sample with a NaN or infinite loss or gradient contributes zero, and changes nothing for the others.
        - Splitting a batch into parts and adding their sums gives the sum of the whole batch, up to rounding.
    """
    samples = len(features)
    if samples == 0:
        size = layout.size if support_K is None else len(support_K)
        return ClippedSum(sum_K=np.zeros(size), norms_B=np.zeros(0), dropped=0)
    masks = None if support_K is None else layout.masks(support_K)
    groups = None if unit_B is None else _groups(unit_B, samples)
    tape = Tape()
    losses_B = loss(model, features, labels, tape)
    losses_B.sum().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        records = _records(tape, layout, groups)
        norms_U = _norms(records, layout, samples if groups is None else groups.units, masks)
        finite_B = torch.isfinite(losses_B) & _finite(tape, layout, groups, norms_U, masks)
    dropped = int((~finite_B).sum())
    if dropped:
        kept = finite_B.nonzero().flatten()
        rest = clipped_sum(
            model,
            layout,
            features[kept],
            labels[kept],
            support_K=support_K,
            clip_norm=clip_norm,
            loss=loss,
            unit_B=None if unit_B is None else unit_B[kept.numpy()],
        )
        return ClippedSum(sum_K=rest.sum_K, norms_B=norms_U.numpy(), dropped=dropped + rest.dropped)
    weights_U = torch.ones(len(norms_U), dtype=torch.float64)
    if clip_norm is not None:
        weights_U = clip_norm / (norms_U * _ROUNDING_ROOM).clamp(min=clip_norm)
    with torch.no_grad():
        flat = _weighted_sum(records, layout, weights_U)
    on_support = flat if support_K is None else flat[support_K]
    return ClippedSum(sum_K=on_support, norms_B=norms_U.numpy(), dropped=0)


def _groups(unit_B: NDArray[np.int64], samples: int) -> Groups:
    if len(unit_B) != samples or unit_B[0] < 0 or (np.diff(unit_B) < 0).any():
        raise InvalidValue(
            "the persons of a batch's samples are not numbers from 0 in ascending order, one a sample"
        )
    return Groups(unit_B=torch.from_numpy(unit_B), units=int(unit_B[-1]) + 1)


def _records(tape: Tape, layout: TrainableLayout, groups: Groups | None) -> dict[str, Record]:
    """What each trained tensor left on the tape, by units."""
    left_out = [slot.name for slot in layout.slots if slot.name not in tape.records]
    if left_out:
        raise InvalidValue(f"{left_out[0]} leaves no record of single samples, so it cannot be clipped")
    found = {slot.name: tape.records[slot.name] for slot in layout.slots}
    return found if groups is None else {name: record.grouped(groups) for name, record in found.items()}


def _finite(
    tape: Tape,
    layout: TrainableLayout,
    groups: Groups | None,
    norms_U: Tensor,
    masks: dict[str, Tensor] | None,
) -> Tensor:
    """Tell which samples have a finite gradient, (B,)."""
    finite_U = torch.isfinite(norms_U)
    if groups is None:
        return finite_U
    unit_B = groups.unit_B
    if finite_U.all():
        return torch.ones_like(unit_B, dtype=torch.bool)
    # A person is left out whole only where each sample is finite and their sum is not.
    finite_B = torch.isfinite(_norms(_records(tape, layout, None), layout, len(unit_B), masks))
    bad_U = torch.zeros(groups.units, dtype=torch.int64).index_add_(0, unit_B, (~finite_B).long())
    return finite_B & (finite_U | (bad_U > 0))[unit_B]


def _norms(
    records: dict[str, Record], layout: TrainableLayout, units: int, masks: dict[str, Tensor] | None
) -> Tensor:
    """ℓ₂ norm of each unit's gradient over the trained tensors, (U,) float64."""
    squares_U = torch.zeros(units, dtype=torch.float64)
    for slot in layout.slots:
        squares_U += records[slot.name].square_norms(None if masks is None else masks[slot.name])
    return squares_U.sqrt()


def _weighted_sum(
    records: dict[str, Record], layout: TrainableLayout, weights_U: Tensor
) -> NDArray[np.float64]:
    """Weighted sum of the units' gradients as a flat vector, (P,)."""
    flat = torch.empty(layout.size, dtype=torch.float64)
    for slot in layout.slots:
        flat[slot.start : slot.stop] = records[slot.name].weighted_sum(weights_U).flatten()
    return flat.numpy()
