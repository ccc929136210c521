# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
"""Window attention on the GPU: one kernel forward, two backward (dk and dv by keys, dq by queries), all without atomics.

    s = scale · q·k − slope · |i − j|,  lse[i] = log2 Σ_j 2^(s · log2 e),  p = 2^(s · log2 e − lse)
    dv = pᵀ dy,  ds = p ∘ (dy vᵀ − delta),  dq = scale · ds k,  dk = scale · dsᵀ q,  delta[i] = y[i]·dy[i]

Only the key blocks that a block of queries sees are visited, so a window makes the cost linear in T. A key head's gradient is
summed over its query heads inside one program: every run gives the same result.
FLOPs and sources: see `hansa.kernels.attention`; the backward pass computes s and p twice, 14·B·H·T·W·D. With 32,768 tokens, 16
heads of width 128 and a window of 512 the forward bound of an H100 is 0.14 ms of arithmetic and 0.16 ms of bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hansa.kernels.attention import Pattern
from hansa.kernels.triton_support import dot_precision, upcast


@triton.jit
def _tile(ptr, rows, columns, stride, tokens, WIDTH: tl.constexpr, UPCAST: tl.constexpr):
    """Load (rows, columns), zero outside."""
    at = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    x = tl.load(ptr + at, mask=(rows < tokens)[:, None] & (columns < WIDTH)[None, :], other=0.0)
    return x.to(tl.float32) if UPCAST else x


@triton.jit
def _seen(i, j, tokens, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """Whether query i sees key j."""
    seen = (i < tokens) & (j < tokens)
    if CAUSAL:
        seen = seen & (j <= i)
    if WINDOWED:
        seen = seen & (i - j < window) & (j - i < window)
    return seen


@triton.jit
def _scores(qk, i, j, scale, slope, ALIBI: tl.constexpr):
    """Scores in units of log 2."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    s = qk * (scale * LOG2_E)
    if ALIBI:
        s -= (slope * LOG2_E) * tl.abs(i - j).to(tl.float32)
    return s


@triton.jit
def _key_range(
    first,
    tokens,
    window,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """Keys that the queries [first, first + BLOCK_Q) see, the lower end on a block's border."""
    low = 0
    high = tokens
    if WINDOWED:
        low = tl.maximum(first - window + 1, 0) // BLOCK_K * BLOCK_K
        high = tl.minimum(high, first + BLOCK_Q - 1 + window)
    if CAUSAL:
        high = tl.minimum(high, first + BLOCK_Q)
    return low, high


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, slope_ptr, y_ptr, lse_ptr,
    qb, qh, qt, kb, kh, kt, vb, vh, vt,
    tokens, window, scale,
    HEADS: tl.constexpr, REPEATS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, ALIBI: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend for BLOCK_Q queries of one head."""
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // HEADS, bh % HEADS
    first = tl.program_id(1) * BLOCK_Q
    i, d = first + tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_D)
    q = _tile(q_ptr + b * qb + h * qh, i, d, qt, tokens, WIDTH, UPCAST)
    k_ptr += b * kb + h // REPEATS * kh
    v_ptr += b * vb + h // REPEATS * vh
    slope = tl.load(slope_ptr + h) if ALIBI else 0.0
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    y = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    low, high = _key_range(first, tokens, window, BLOCK_Q, BLOCK_K, CAUSAL, WINDOWED)
    for start in range(low, high, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        k = _tile(k_ptr, j, d, kt, tokens, WIDTH, UPCAST)
        v = _tile(v_ptr, j, d, vt, tokens, WIDTH, UPCAST)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s = _scores(s, i[:, None], j[None, :], scale, slope, ALIBI)
        s = tl.where(_seen(i[:, None], j[None, :], tokens, window, CAUSAL, WINDOWED), s, float("-inf"))
        above = tl.maximum(top, tl.max(s, axis=1))
        # A row that sees nothing of this block keeps -inf; -inf - -inf would be NaN.
        shift = tl.where(above == float("-inf"), 0.0, above)
        p = tl.exp2(s - shift[:, None])
        fade = tl.exp2(top - shift)
        total = total * fade + tl.sum(p, axis=1)
        y = y * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        top = above
    inside = i < tokens
    y = tl.where(inside[:, None], y / total[:, None], 0.0)
    at = (bh * tokens + i)[:, None] * WIDTH + d[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside[:, None] & (d < WIDTH)[None, :])
    tl.store(lse_ptr + bh * tokens + i, top + tl.log2(total), mask=inside)


@triton.jit
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, slope_ptr, g_ptr, lse_ptr, delta_ptr, dq_ptr,
    qb, qh, qt, kb, kh, kt, vb, vh, vt,
    tokens, window, scale,
    HEADS: tl.constexpr, REPEATS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, ALIBI: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dq of BLOCK_Q queries of one head."""
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // HEADS, bh % HEADS
    first = tl.program_id(1) * BLOCK_Q
    i, d = first + tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_D)
    inside = i < tokens
    q = _tile(q_ptr + b * qb + h * qh, i, d, qt, tokens, WIDTH, UPCAST)
    g = _tile(g_ptr + bh * tokens * WIDTH, i, d, WIDTH, tokens, WIDTH, UPCAST)
    lse = tl.load(lse_ptr + bh * tokens + i, mask=inside, other=0.0)
    delta = tl.load(delta_ptr + bh * tokens + i, mask=inside, other=0.0)
    k_ptr += b * kb + h // REPEATS * kh
    v_ptr += b * vb + h // REPEATS * vh
    slope = tl.load(slope_ptr + h) if ALIBI else 0.0
    dq = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    low, high = _key_range(first, tokens, window, BLOCK_Q, BLOCK_K, CAUSAL, WINDOWED)
    for start in range(low, high, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        k = _tile(k_ptr, j, d, kt, tokens, WIDTH, UPCAST)
        v = _tile(v_ptr, j, d, vt, tokens, WIDTH, UPCAST)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s = _scores(s, i[:, None], j[None, :], scale, slope, ALIBI)
        seen = _seen(i[:, None], j[None, :], tokens, window, CAUSAL, WINDOWED)
        p = tl.where(seen, tl.exp2(s - lse[:, None]), 0.0)
        dp = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dq += tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
    at = (bh * tokens + i)[:, None] * WIDTH + d[None, :]
    tl.store(
        dq_ptr + at, (dq * scale).to(dq_ptr.dtype.element_ty), mask=inside[:, None] & (d < WIDTH)[None, :]
    )


@triton.jit
def key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, slope_ptr, g_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    qb, qh, qt, kb, kh, kt, vb, vh, vt,
    tokens, window, scale,
    HEADS: tl.constexpr, REPEATS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, ALIBI: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv of BLOCK_K keys of one key head, summed over the query heads that read it."""
    bg = tl.program_id(0).to(tl.int64)
    groups: tl.constexpr = HEADS // REPEATS
    b, group = bg // groups, bg % groups
    first = tl.program_id(1) * BLOCK_K
    j, d = first + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    k = _tile(k_ptr + b * kb + group * kh, j, d, kt, tokens, WIDTH, UPCAST)
    v = _tile(v_ptr + b * vb + group * vh, j, d, vt, tokens, WIDTH, UPCAST)
    dk = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    low, high = 0, tokens
    if CAUSAL:
        low = first // BLOCK_Q * BLOCK_Q
    if WINDOWED:
        low = tl.maximum(low, tl.maximum(first - window + 1, 0) // BLOCK_Q * BLOCK_Q)
        high = tl.minimum(high, first + BLOCK_K - 1 + window)
    for repeat in range(REPEATS):
        h = group * REPEATS + repeat
        bh = b * HEADS + h
        slope = tl.load(slope_ptr + h) if ALIBI else 0.0
        for start in range(low, high, BLOCK_Q):
            i = start + tl.arange(0, BLOCK_Q)
            inside = i < tokens
            q = _tile(q_ptr + b * qb + h * qh, i, d, qt, tokens, WIDTH, UPCAST)
            g = _tile(g_ptr + bh * tokens * WIDTH, i, d, WIDTH, tokens, WIDTH, UPCAST)
            lse = tl.load(lse_ptr + bh * tokens + i, mask=inside, other=0.0)
            delta = tl.load(delta_ptr + bh * tokens + i, mask=inside, other=0.0)
            s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            s = _scores(s, i[None, :], j[:, None], scale, slope, ALIBI)
            seen = _seen(i[None, :], j[:, None], tokens, window, CAUSAL, WINDOWED)
            p = tl.where(seen, tl.exp2(s - lse[None, :]), 0.0)
            dv += tl.dot(p.to(g.dtype), g, input_precision=PRECISION)
            dp = tl.dot(v, tl.trans(g), input_precision=PRECISION)
            ds = p * (dp - delta[None, :])
            dk += tl.dot(ds.to(q.dtype), q, input_precision=PRECISION)
    at = (bg * tokens + j)[:, None] * WIDTH + d[None, :]
    mask = (j < tokens)[:, None] & (d < WIDTH)[None, :]
    tl.store(dk_ptr + at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=mask)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=mask)


# torch's own `Function` is untyped; the contract is that of `window_attention`.
class TritonAttention(torch.autograd.Function):
    """Attention in blocks of queries and keys, on the GPU."""

    @staticmethod
    def forward(ctx, q_BHTD, k_BGTD, v_BGTD, slopes_H, pattern):  # noqa: D102
        q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q_BHTD, k_BGTD, v_BGTD))
        slopes = None if slopes_H is None else slopes_H.to(torch.float32).contiguous()
        y_BHTD = q.new_empty(q.shape)
        lse_BHT = q.new_empty(q.shape[:3], dtype=torch.float32)
        shared, constants = _arguments(q, k, v, slopes, pattern)
        tiles = _tiles(q, backward=False)
        grid = (q.shape[0] * q.shape[1], triton.cdiv(q.shape[2], tiles["BLOCK_Q"]))
        if q.numel():
            forward_kernel[grid](q, k, v, slopes, y_BHTD, lse_BHT, *shared, **constants, **tiles)
        ctx.save_for_backward(q, k, v, slopes, y_BHTD, lse_BHT)
        ctx.pattern = pattern
        return y_BHTD

    @staticmethod
    def backward(ctx, g_BHTD):  # noqa: D102
        q, k, v, slopes, y_BHTD, lse_BHT = ctx.saved_tensors
        g = g_BHTD.contiguous()
        delta_BHT = (g.float() * y_BHTD.float()).sum(dim=3)
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        shared, constants = _arguments(q, k, v, slopes, ctx.pattern)
        tiles = _tiles(q, backward=True)
        tokens = q.shape[2]
        if q.numel():
            read = (q, k, v, slopes, g, lse_BHT, delta_BHT)
            grid = (k.shape[0] * k.shape[1], triton.cdiv(tokens, tiles["BLOCK_K"]))
            key_gradient_kernel[grid](*read, dk, dv, *shared, **constants, **tiles)
            grid = (q.shape[0] * q.shape[1], triton.cdiv(tokens, tiles["BLOCK_Q"]))
            query_gradient_kernel[grid](*read, dq, *shared, **constants, **tiles)
        return dq, dk, dv, None, None


def _arguments(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, pattern: Pattern
) -> tuple[tuple[float, ...], dict[str, object]]:
    """What all three kernels are told."""
    heads, tokens, width = q.shape[1:]
    strides = (stride for x in (q, k, v) for stride in x.stride()[:3])
    constants: dict[str, object] = {
        "HEADS": heads,
        "REPEATS": heads // k.shape[1],
        "WIDTH": width,
        "BLOCK_D": max(16, triton.next_power_of_2(width)),
        "CAUSAL": pattern.causal,
        "WINDOWED": pattern.window is not None and pattern.window < tokens,
        "ALIBI": slopes is not None,
        "UPCAST": upcast(q),
        "PRECISION": dot_precision(q),
    }
    return (*strides, tokens, min(pattern.window or tokens, tokens), pattern.scale), constants


def _tiles(q: Tensor, *, backward: bool) -> dict[str, int]:
    """Sizes of blocks that spill nothing on sm_80 and sm_90 (tests/kernels/test_compiled.py)."""
    narrow = q.shape[3] <= 64
    if q.dtype == torch.float32:
        side = 32 if narrow or not backward else 16
        return {"BLOCK_Q": side, "BLOCK_K": side, "num_warps": 4 if narrow else 8, "num_stages": 1}
    if q.shape[3] > 128:
        return {"BLOCK_Q": 32 if backward else 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_Q": 64 if backward else 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2}
