# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
"""Gather, stochastic rounding and packing in one launch; see `hansa.kernels.compression`.

A program owns BLOCK slots and walks down their lanes, so every word is written once and nothing else is.
Bytes: 20·K + 8·S, of which the gather of 4·K is scattered: 0.7 ms for 100 million entries on an H100. Rounding is float64 as in the
definition: about 8 operations an entry, a tenth of that time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512


@triton.jit
def compress_kernel(
    value_ptr, support_ptr, uniform_ptr, bound_ptr, packed_ptr, count, slots,
    MAXIMUM_LEVEL: tl.constexpr, RADIX: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill BLOCK slots."""
    slot = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = slot < slots
    bound = tl.load(bound_ptr)  # from memory: as an argument it would be rounded to float32
    packed = tl.zeros((BLOCK,), tl.int64)
    for step in range(LANES):
        entry = (LANES - 1 - step) * slots.to(tl.int64) + slot
        used = inside & (entry < count)
        at = tl.load(support_ptr + entry, mask=used, other=0)
        value = tl.load(value_ptr + at, mask=used, other=0.0).to(tl.float64)
        value = tl.where(value != value, 0.0, value)  # noqa: PLR0124 - NaN is what differs from itself
        scaled = tl.minimum(tl.maximum(value, -bound), bound) / bound * MAXIMUM_LEVEL
        floor = tl.floor(scaled)
        up = tl.load(uniform_ptr + entry, mask=used, other=1.0) < scaled - floor
        packed = packed * RADIX + floor.to(tl.int64) + up.to(tl.int64) + MAXIMUM_LEVEL
    tl.store(packed_ptr + slot, packed, mask=inside)


def launch(
    values_P: Tensor,
    support_K: Tensor,
    uniforms_K: Tensor,
    *,
    bound: float,
    maximum_level: int,
    radix: int,
    lanes: int,
    slots: int,
) -> Tensor:
    """Pack (S,) int64; see `hansa.kernels.compression.compress_reference`."""
    packed_S = torch.empty(slots, dtype=torch.int64, device=values_P.device)
    compress_kernel[(triton.cdiv(slots, _BLOCK),)](
        values_P.contiguous(), support_K.contiguous(), uniforms_K.to(torch.float64).contiguous(),
        torch.tensor([bound], dtype=torch.float64, device=values_P.device), packed_S, len(support_K), slots,
        MAXIMUM_LEVEL=maximum_level, RADIX=radix, LANES=lanes, BLOCK=_BLOCK,
        enable_fp_fusion=False,
    )  # fmt: skip
    return packed_S
