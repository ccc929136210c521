"""Per-sample gradients of grouped LoRA factors, over contiguous (expert, sample) segments.

Shape suffixes: R expert-sorted rows, S segments, r rank, N width, B samples, E experts.

    P[s] = sum over rows i of segment s of z[i]ᵀ g[i]            (r, N): gradient of one expert's factor from one sample
    n²[b] = sum over segments s of sample b of ‖mask[expert(s)] ∘ P[s]‖²
    C[e] = sum over rows i of expert e of c[i] · z[i]ᵀ g[i]       (r, N): the clipped sum, c[i] the coefficient of the row's sample

The rank is small, so P is formed directly: 2·R·r·N FLOPs, and the squares are summed in float64. The Gram identity (ghost clipping)
would need no P but loses all digits where rows cancel, and cannot take a mask.
The norms take one pass that forgets P block by block, the clipped sum another over the rows, which costs what the plain weight
gradient does. P kept would be 4·S·r·N bytes of float32: more than the rows, unless segments are longer than the rank.
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
    return _by_sample(_squares(outer_SrN.clone(), segments.expert_S, mask_ErN), segments, samples)


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
    if z_Rr.shape[1] > g_RN.shape[1]:  # the products want the narrow side first
        z_Rr, g_RN = g_RN, z_Rr
        mask_ErN = None if mask_ErN is None else mask_ErN.transpose(1, 2)
    if z_Rr.shape[1] * g_RN.numel() <= _SMALL_ENTRIES * len(ends_S):
        squares_S = _squares_of_small(z_Rr, g_RN, segments, ends_S, mask_ErN)
    else:
        squares_S = _squares_by_length(z_Rr, g_RN, segments.expert_S, ends_S, mask_ErN)
    return _by_sample(squares_S, segments, samples)


def _squares_of_small(
    z_Rr: Tensor, g_RN: Tensor, segments: Segments, ends_S: Tensor, mask_ErN: Tensor | None
) -> Tensor:
    """Squared norm of each segment from the outer products of its rows, some megabytes at a time."""
    squares_S = torch.empty(len(ends_S), dtype=torch.float64, device=z_Rr.device)
    at_once = max(1, _CACHED_BYTES // max(1, z_Rr.shape[1] * g_RN.shape[1] * z_Rr.dtype.itemsize))
    ends = ends_S.tolist()
    for first in range(0, len(ends), at_once):
        part = slice(first, first + at_once)
        rows = slice(ends[first - 1] if first else 0, ends[part][-1])
        expert_S = segments.expert_S[part]
        inside = Segments(
            segment_R=segments.segment_R[rows] - first, expert_S=expert_S, sample_S=segments.sample_S[part]
        )
        outer_SrN = segment_outer_reference(z_Rr[rows], g_RN[rows], inside)
        squares_S[part] = _squares(outer_SrN, expert_S, mask_ErN)
    return squares_S


def _squares_by_length(
    z_Rr: Tensor, g_RN: Tensor, expert_S: Tensor, ends_S: Tensor, mask_ErN: Tensor | None
) -> Tensor:
    """Squared norm of each segment, segments of one length together: one batched product for many, without padding."""
    (_, r), (_, N) = z_Rr.shape, g_RN.shape
    lengths_S = torch.diff(ends_S, prepend=ends_S.new_zeros(1))
    order_S = torch.argsort(lengths_S, stable=True)
    first_S = (ends_S - lengths_S).to(torch.int64)
    at_once = max(1, _CACHED_BYTES // (r * N * z_Rr.dtype.itemsize))
    # Every block of products takes the place of the last one, so it stays in the cache while it is squared.
    room = z_Rr.new_empty(min(at_once, len(order_S)) * r * N)
    squares, done = [], 0
    lengths, counts = torch.unique_consecutive(lengths_S[order_S], return_counts=True)
    for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
        for start in range(done, done + count, at_once):
            part_n = order_S[start : min(start + at_once, done + count)]
            n = len(part_n)
            row_R = (first_S[part_n].unsqueeze(1) + torch.arange(length, device=z_Rr.device)).flatten()
            z_nrL = z_Rr.index_select(0, row_R).view(n, length, r).transpose(1, 2)
            g_nLN = g_RN.index_select(0, row_R).view(n, length, N)
            outer_nrN = torch.bmm(z_nrL, g_nLN, out=room[: n * r * N].view(n, r, N))
            squares.append(_squares(outer_nrN, expert_S[part_n], mask_ErN))
        done += count
    squares_S = torch.empty(len(ends_S), dtype=torch.float64, device=z_Rr.device)
    squares_S[order_S] = torch.cat(squares)
    return squares_S


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


def _squares(outer_SrN: Tensor, expert_S: Tensor, mask_ErN: Tensor | None) -> Tensor:
    """Sum of each segment's squared entries, (S,) float64; writes over the entries."""
    squares = outer_SrN.square_()
    if mask_ErN is not None:
        squares = squares.mul_(mask_ErN.index_select(0, expert_S))
    # A row's sum is taken pairwise in its own type, within a few units of its last place; rows are added in float64.
    return squares.sum(dim=2).sum(dim=1, dtype=torch.float64)


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
