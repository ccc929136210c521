"""Per-sample gradients of grouped LoRA factors, over contiguous (expert, sample) segments.

Shape suffixes: R expert-sorted rows, S segments, r rank, N width, B samples, E experts.

    P[s] = sum over rows i of segment s of z[i]ᵀ g[i]            (r, N): gradient of one expert's factor from one sample
    n²[b] = sum over segments s of sample b of ‖mask[expert(s)] ∘ P[s]‖²

The rank is small, so P is formed directly: 2·R·r·N FLOPs and at most 8·R·r·N bytes, and the squares are summed in float64. The Gram
identity (ghost clipping) would need no P but loses all digits where rows cancel, and cannot take a mask.
Source: per-sample gradients as segment sums follow from the stable order of `hansa.kernels.routing`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Segments:
    """The contiguous runs of rows that share expert and sample.

    Attributes:
        segment_R: Segment of each row, ascending, int64.
        expert_S: Expert of each segment, int64.
        sample_S: Sample of each segment, int64.
    """

    segment_R: Tensor
    expert_S: Tensor
    sample_S: Tensor


def find_segments(expert_R: Tensor, sample_R: Tensor) -> Segments:
    """Find the (expert, sample) segments of expert-sorted rows.

    Args:
        expert_R: Expert of each row, ascending.
        sample_R: Sample of each row, ascending inside an expert.

    Guarantees:
        - Two rows share a segment exactly if they share expert and sample.
    """
    starts_R = torch.ones_like(expert_R, dtype=torch.bool)
    starts_R[1:] = (expert_R[1:] != expert_R[:-1]) | (sample_R[1:] != sample_R[:-1])
    first_S = torch.nonzero(starts_R).flatten()
    return Segments(
        segment_R=torch.cumsum(starts_R, dim=0) - 1,
        expert_S=expert_R[first_S],
        sample_S=sample_R[first_S],
    )


def segment_outer(z_Rr: Tensor, g_RN: Tensor, segments: Segments) -> Tensor:
    """Sum the outer products of each segment's rows.

    Returns:
        (S, r, N), the gradient of each segment.
    """
    outer = torch.zeros(
        segments.expert_S.numel(), z_Rr.shape[1], g_RN.shape[1], dtype=z_Rr.dtype, device=z_Rr.device
    )
    return outer.index_add_(0, segments.segment_R, z_Rr.unsqueeze(2) * g_RN.unsqueeze(1))


def segment_square_norms(
    outer_SrN: Tensor, segments: Segments, samples: int, mask_ErN: Tensor | None
) -> Tensor:
    """Sum the squared entries of each sample's segments, restricted to a mask.

    Args:
        outer_SrN: Gradient of each segment.
        segments: Expert and sample of each segment.
        samples: Number of samples B.
        mask_ErN: 1 where an entry is trained in this round and 0 elsewhere; None for all.

    Returns:
        (B,) float64.
    """
    squares = outer_SrN.square()
    if mask_ErN is not None:
        squares = squares * mask_ErN[segments.expert_S]
    norms_B = torch.zeros(samples, dtype=torch.float64, device=outer_SrN.device)
    return norms_B.index_add_(0, segments.sample_S, squares.flatten(1).sum(dim=1, dtype=torch.float64))
