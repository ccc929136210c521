"""Per-sample gradients of grouped LoRA factors, over contiguous (expert, sample) segments.

Shape suffixes: R expert-sorted rows, S segments, r rank, N width, B samples, E experts.

    P[s] = sum over rows i of segment s of z[i]ᵀ g[i]            (r, N): gradient of one expert's factor from one sample
    n²[b] = sum over segments s of sample b of ‖mask[expert(s)] ∘ P[s]‖²
    C[e] = sum over rows i of expert e of c[i] · z[i]ᵀ g[i]       (r, N): the clipped sum, c[i] the coefficient of the row's sample

The rank is small, so P is formed directly: 2·R·r·N FLOPs, and the squares are summed in float64. The Gram identity (ghost clipping)
would need no P but loses all digits where rows cancel, and cannot take a mask.
Two ways to the clipped sum: norms in one pass that forgets P block by block, then C from the rows (reads z and g twice); or P kept,
8·S·r·N bytes of float32, and C[e] = Σ c·P. `keeping_pays` says which moves fewer bytes.
Everything is deterministic, on a GPU too: no sum is taken in the order in which threads arrive.
Source: per-sample gradients as segment sums follow from the stable order of `hansa.kernels.routing`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hansa.kernels.dispatch import on_triton
from hansa.kernels.grouped import grouped_outer_sum, is_aligned

_CACHED_BYTES = (
    2 << 20
)  # of segments' gradients at a time: they are squared while they are still in the cache
_SMALL_ENTRIES = (
    3000  # below so many entries a segment the call of a product costs more than plain outer products
)


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


def segment_ends(segments: Segments) -> Tensor:
    """End offset of each segment's rows, (S,) int32."""
    places_S = torch.arange(segments.expert_S.numel(), device=segments.segment_R.device)
    return torch.searchsorted(segments.segment_R, places_S, right=True).to(torch.int32)


def segment_outer(z_Rr: Tensor, g_RN: Tensor, segments: Segments) -> Tensor:
    """Sum the outer products of each segment's rows.

    Returns:
        (S, r, N), the gradient of each segment.
    """
    entries = z_Rr.shape[1] * g_RN.numel()
    count = segments.expert_S.numel()
    small = entries <= min(_SMALL_ENTRIES * count, 2 * _CACHED_BYTES // z_Rr.dtype.itemsize)
    if count == 0 or small or not is_aligned(z_Rr.dtype, z_Rr.shape[1], g_RN.shape[1]):
        return segment_outer_reference(z_Rr, g_RN, segments)
    return grouped_outer_sum(z_Rr, g_RN, segment_ends(segments))


def segment_outer_reference(z_Rr: Tensor, g_RN: Tensor, segments: Segments) -> Tensor:
    """Compute `segment_outer` from the outer product of every row, R·r·N entries of them."""
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
    return _by_sample(_squares(outer_SrN, segments.expert_S, mask_ErN), segments, samples)


def sample_square_norms(
    z_Rr: Tensor, g_RN: Tensor, segments: Segments, samples: int, mask_ErN: Tensor | None
) -> Tensor:
    """Compute `segment_square_norms(segment_outer(z, g), ...)` without keeping the segments' gradients.

    Args:
        z_Rr: Inputs of the factor, rows sorted by expert.
        g_RN: Gradients at its output.
        segments: The rows' segments.
        samples: Number of samples B.
        mask_ErN: 1 where an entry is trained in this round and 0 elsewhere; None for all.

    Returns:
        (B,) float64.

    Guarantees:
        - A sample's norm depends on its own rows only, NaN and infinities included.
        - Memory beyond the operands is a few megabytes, or one segment's gradient.
    """
    ends_S = segment_ends(segments)
    if on_triton(z_Rr, g_RN) and len(ends_S):
        from hansa.kernels.segments_triton import square_norms  # noqa: PLC0415

        return _by_sample(square_norms(z_Rr, g_RN, ends_S, segments.expert_S, mask_ErN), segments, samples)
    squares_S = torch.empty(len(ends_S), dtype=torch.float64, device=z_Rr.device)
    bytes_each = z_Rr.shape[1] * g_RN.shape[1] * z_Rr.dtype.itemsize
    at_once = max(1, _CACHED_BYTES // max(1, bytes_each))
    ends = ends_S.tolist()
    for first in range(0, len(ends), at_once):
        part = slice(first, first + at_once)
        rows = slice(ends[first - 1] if first else 0, ends[part][-1])
        expert_S = segments.expert_S[part]
        inside = Segments(
            segment_R=segments.segment_R[rows] - first, expert_S=expert_S, sample_S=segments.sample_S[part]
        )
        squares_S[part] = _squares(segment_outer(z_Rr[rows], g_RN[rows], inside), expert_S, mask_ErN)
    return _by_sample(squares_S, segments, samples)


def clipped_weight_gradient(
    z_RP: Tensor, g_RN: Tensor, coefficient_R: Tensor | None, ends_E: Tensor
) -> Tensor:
    """Sum the outer products of each expert's rows, each row times its coefficient.

    Args:
        z_RP: Rows sorted by expert: the inputs of a factor, or of the whole map.
        g_RN: One gradient row each.
        coefficient_R: Factor of each row, such as the clipping coefficient of its sample; None for 1.
        ends_E: End offset of each expert's rows, int32.

    Returns:
        (E, P, N), type of `z_RP`; zero for an expert without rows.
    """
    if on_triton(z_RP, g_RN) and len(z_RP):
        from hansa.kernels.segments_triton import weight_gradient  # noqa: PLC0415

        return weight_gradient(z_RP, g_RN, coefficient_R, ends_E).to(z_RP.dtype)
    if coefficient_R is not None:
        factor_R1 = coefficient_R.to(z_RP.dtype).unsqueeze(1)
        # The coefficient goes to the narrow side: fewer entries to write.
        if z_RP.shape[1] <= g_RN.shape[1]:
            z_RP = z_RP * factor_R1
        else:
            g_RN = g_RN * factor_R1
    return grouped_outer_sum(z_RP, g_RN, ends_E)


def weighted_segment_sum(outer_SrN: Tensor, weight_S: Tensor, segments: Segments, experts: int) -> Tensor:
    """Sum kept segments' gradients by expert, each times its weight: `clipped_weight_gradient` where P was kept.

    Returns:
        (E, r, N); zero for an expert without rows.
    """
    weighted_SrN = outer_SrN * weight_S.to(outer_SrN.dtype).view(-1, 1, 1)
    return ordered_sum(weighted_SrN, segments.expert_S, experts)


def keeping_pays(rows: int, segments: int, rank: int, width: int) -> bool:
    """Whether keeping every segment's gradient moves fewer bytes than reading all rows a second time."""
    # Kept: written once and read twice. Not kept: z and g are read once more.
    return 3 * segments * rank * width < rows * (rank + width)


def _squares(outer_SrN: Tensor, expert_S: Tensor, mask_ErN: Tensor | None) -> Tensor:
    """Sum of each segment's squared entries, (S,) float64."""
    squares = outer_SrN.square()
    if mask_ErN is not None:
        squares = squares * mask_ErN[expert_S]
    return squares.flatten(1).sum(dim=1, dtype=torch.float64)


def _by_sample(squares_S: Tensor, segments: Segments, samples: int) -> Tensor:
    """Add up each sample's segments, (B,) float64."""
    order_S = torch.argsort(segments.sample_S, stable=True)
    return ordered_sum(squares_S[order_S], segments.sample_S[order_S], samples)


def ordered_sum(values_S: Tensor, owner_S: Tensor, owners: int) -> Tensor:
    """Add up the values of each owner, owners ascending, in the order of the values: the same bits in every run."""
    if not values_S.is_cuda:
        return values_S.new_zeros(owners, *values_S.shape[1:]).index_add_(0, owner_S, values_S)
    return ordered_sum_by_lengths(values_S, owner_S, owners)


def ordered_sum_by_lengths(values_S: Tensor, owner_S: Tensor, owners: int) -> Tensor:
    """Compute `ordered_sum` on a GPU, where `index_add_` adds in the order in which threads arrive."""
    ends = torch.searchsorted(owner_S, torch.arange(owners, device=owner_S.device), right=True)
    lengths = torch.diff(ends, prepend=ends.new_zeros(1))
    return torch.segment_reduce(values_S, "sum", lengths=lengths, axis=0, initial=0.0)
