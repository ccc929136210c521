"""Grouped matrix products over expert-sorted rows.

Shape suffixes: R rows, E experts, D in, N out.

    grouped_matmul:      y[r] = x[r] @ w[expert(r)]                     (R, D) x (E, D, N) -> (R, N)
    grouped_outer_sum:   s[e] = sum over rows r of e of x[r]ᵀ g[r]      (R, D) x (R, N)    -> (E, D, N)

FLOPs: 2·R·D·N each. Bytes: x, the touched weights and the result once.
`torch.nn.functional.grouped_mm` is the fast path on CPU and GPU (float32, bfloat16); other types, and widths that its 16-byte
stride rule refuses, take the reference loop, which is the definition.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_FAST_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_ALIGNMENT_BYTES = 16


def grouped_matmul(x_RD: Tensor, w_EDN: Tensor, ends_E: Tensor) -> Tensor:
    """Multiply each row by its expert's matrix.

    Args:
        x_RD: Rows sorted by expert.
        w_EDN: One matrix an expert.
        ends_E: End offset of each expert's rows, int32.

    Returns:
        (R, N), same type as `x_RD`; differentiable in `x_RD` and `w_EDN`.

    Guarantees:
        - Row r depends on x[r] and its expert's matrix only.
    """
    if is_aligned(x_RD.dtype, w_EDN.shape[-1], w_EDN.shape[-2]):
        return F.grouped_mm(x_RD, w_EDN, offs=ends_E)
    return grouped_matmul_reference(x_RD, w_EDN, ends_E)


def grouped_matmul_reference(x_RD: Tensor, w_EDN: Tensor, ends_E: Tensor) -> Tensor:
    """Compute `grouped_matmul` one expert at a time."""
    parts = [
        x_RD[start:end] @ w_DN for w_DN, (start, end) in zip(w_EDN.unbind(0), _spans(ends_E), strict=True)
    ]
    return torch.cat(parts)


def grouped_outer_sum(x_RD: Tensor, g_RN: Tensor, ends_E: Tensor) -> Tensor:
    """Sum the outer products of the rows of each expert: the weight gradient of `grouped_matmul`.

    Args:
        x_RD: Rows sorted by expert.
        g_RN: One gradient row each.
        ends_E: End offset of each expert's rows, int32.

    Returns:
        (E, D, N); zero for an expert without rows.
    """
    if len(x_RD) and is_aligned(x_RD.dtype, x_RD.shape[-1], g_RN.shape[-1]):
        return F.grouped_mm(x_RD.t(), g_RN, offs=ends_E)
    return grouped_outer_sum_reference(x_RD, g_RN, ends_E)


def grouped_outer_sum_reference(x_RD: Tensor, g_RN: Tensor, ends_E: Tensor) -> Tensor:
    """Compute `grouped_outer_sum` one expert at a time."""
    return torch.stack([x_RD[start:end].t() @ g_RN[start:end] for start, end in _spans(ends_E)])


def is_aligned(dtype: torch.dtype, *widths: int) -> bool:
    """Whether `torch.nn.functional.grouped_mm` takes rows of these widths."""
    return dtype in _FAST_TYPES and all(width * dtype.itemsize % _ALIGNMENT_BYTES == 0 for width in widths)


def _spans(ends_E: Tensor) -> list[tuple[int, int]]:
    ends = ends_E.tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))
