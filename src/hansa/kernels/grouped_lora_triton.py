# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
"""The grouped product with an adapter in one launch: y = x W + scale · (x A) B, and z = x A.

A program owns BLOCK_M rows of one expert and BLOCK_N columns. Each tile of x feeds two products, with W and with A; the rank-r
result meets B after the loop. The tiles of all experts are counted inside the kernel from the end offsets, in a grid of
cdiv(R, BLOCK_M) + E rows of programs of which the surplus returns at once: nothing waits for the GPU. Transposed operands come as
strides.
FLOPs: 2·R·D·N and, for z in every column block, 2·R·D·r·cdiv(N, BLOCK_N): 12 % more at r = 16.
Bytes: x and y once, the touched weights once from memory and cdiv(rows, BLOCK_M) times from the cache.
Bound on an H100, 131,072 rows, 2,048 -> 1,536, bf16: 0.83 ms of arithmetic, 0.52 ms of bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hansa.kernels.triton_support import dot_precision, upcast


@triton.jit
def grouped_lora_kernel(
    x_ptr, w_ptr, a_ptr, b_ptr, end_ptr, y_ptr, z_ptr,
    we, wd, wn, ae, ad, ar, be, br, bn, scale,
    EXPERTS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, RANK: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute one tile of y, and of z where the tile is the first of its rows."""
    blocks_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tile, block_n = tl.program_id(0) // blocks_n, tl.program_id(0) % blocks_n
    # Which expert's tile this is: experts whose tiles all come earlier are counted.
    e = tl.arange(0, BLOCK_E)
    ends = tl.load(end_ptr + e, mask=e < EXPERTS, other=0)
    starts = tl.load(end_ptr + e - 1, mask=(e > 0) & (e < EXPERTS), other=0)
    tiles = tl.where(e < EXPERTS, (ends - starts + BLOCK_M - 1) // BLOCK_M, 0)
    last_tile = tl.cumsum(tiles, axis=0)
    expert = tl.sum((last_tile <= tile).to(tl.int32), axis=0)
    if expert >= EXPERTS:
        return
    mine = e == expert
    stop = tl.sum(tl.where(mine, ends, 0), axis=0)
    start = tl.sum(tl.where(mine, starts + (tile - last_tile + tiles) * BLOCK_M, 0), axis=0)

    m, n = start + tl.arange(0, BLOCK_M), block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    d, r = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_R)
    inside_m, inside_n, inside_r = m < stop, n < N, r < RANK
    row, expert = m.to(tl.int64), expert.to(tl.int64)
    x_at = x_ptr + row[:, None] * D + d[None, :]
    w_at = w_ptr + expert * we + d[:, None] * wd + n[None, :] * wn
    a_at = a_ptr + expert * ae + d[:, None] * ad + r[None, :] * ar
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    z = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for first in range(0, D, BLOCK_D):
        inside_d = d < D - first
        x = tl.load(x_at, mask=inside_m[:, None] & inside_d[None, :], other=0.0)
        w = tl.load(w_at, mask=inside_d[:, None] & inside_n[None, :], other=0.0)
        a = tl.load(a_at, mask=inside_d[:, None] & inside_r[None, :], other=0.0)
        if UPCAST:
            x, w, a = x.to(tl.float32), w.to(tl.float32), a.to(tl.float32)
        y = tl.dot(x, w, y, input_precision=PRECISION)
        z = tl.dot(x, a, z, input_precision=PRECISION)
        x_at += BLOCK_D
        w_at += BLOCK_D * wd
        a_at += BLOCK_D * ad
    b_at = b_ptr + expert * be + r[:, None] * br + n[None, :] * bn
    b = tl.load(b_at, mask=inside_r[:, None] & inside_n[None, :], other=0.0)
    rounded = z.to(z_ptr.dtype.element_ty)  # what is kept for the backward pass is what y was made of
    if UPCAST:
        y += scale * tl.dot(rounded.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    else:
        y += scale * tl.dot(rounded, b, input_precision=PRECISION)
    y_at = y_ptr + row[:, None] * N + n[None, :]
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=inside_m[:, None] & inside_n[None, :])
    if block_n == 0:
        z_at = z_ptr + row[:, None] * RANK + r[None, :]
        tl.store(z_at, rounded, mask=inside_m[:, None] & inside_r[None, :])


def launch(
    x_RD: Tensor, w_EDN: Tensor, a_EDr: Tensor, b_ErN: Tensor, ends_E: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute y and z; see `hansa.kernels.grouped_lora.grouped_lora_forward`."""
    (rows, dim), (experts, _, width), rank = x_RD.shape, w_EDN.shape, a_EDr.shape[2]
    y_RN, z_Rr = x_RD.new_empty((rows, width)), x_RD.new_empty((rows, rank))
    tiles = _tiles(x_RD, rows // experts, rank)
    grid = ((triton.cdiv(rows, tiles["BLOCK_M"]) + experts) * triton.cdiv(width, tiles["BLOCK_N"]),)
    grouped_lora_kernel[grid](
        x_RD.contiguous(), w_EDN, a_EDr, b_ErN, ends_E, y_RN, z_Rr,
        *w_EDN.stride(), *a_EDr.stride(), *b_ErN.stride(), scale,
        EXPERTS=experts, D=dim, N=width, RANK=rank,
        BLOCK_E=triton.next_power_of_2(experts), BLOCK_R=max(16, triton.next_power_of_2(rank)),
        UPCAST=upcast(x_RD), PRECISION=dot_precision(x_RD), **tiles,
    )  # fmt: skip
    return y_RN, z_Rr


def _tiles(x_RD: Tensor, rows_an_expert: int, rank: int) -> dict[str, int]:
    """Sizes of blocks that spill nothing on sm_80 and sm_90 (tests/kernels/test_compiled.py)."""
    if x_RD.dtype == torch.float32:
        rows = 64 if rank <= 32 else 32
        return {"BLOCK_M": rows, "BLOCK_N": 64, "BLOCK_D": 32, "num_warps": 8, "num_stages": 2}
    few = rows_an_expert <= 96 or rank > 64
    return {"BLOCK_M": 64 if few else 128, "BLOCK_N": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3}
