"""Causal attention over a sliding window, with grouped key heads and linear position biases, at a cost linear in the length.

    y[i] = Σ_j softmax_j( scale · q[i]·k[j] − slope · |i − j| ) v[j]      over the keys j that query i sees

    causal:      i − window < j ≤ i          otherwise:  |i − j| < window          window None: no bound

Shape suffixes: B batch, H query heads, G key heads (H = G·M, query head h reads key head h div M), T tokens, D head width; inside
a block: Q queries, L keys.

FLOPs: 4·B·H·T·W·D forward and 10·B·H·T·W·D backward, W = min(window, T/2). Bytes: q, k, v and y once; the scores of one block of
queries at a time, which the backward pass computes again, so memory does not grow with T·W.
The softmax runs in float32 (float64 for float64), whatever the type of q, k and v.
Sources: Dao 2023, "FlashAttention-2", algorithm 1 and 2 (blocks, recomputation, delta = rowsum(y ∘ dy)); Press et al. 2022,
"Train Short, Test Long", section 3 (ALiBi); Ainslie et al. 2023, "GQA"; Beltagy et al. 2020, "Longformer", section 3.1 (window).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hansa.kernels.dispatch import on_triton

_QUERIES = 128  # a block's scores cover window + 127 keys for 128 queries: 20 % too much at a window of 512
_BLOCK_BYTES = 8 << 20  # scores of one block: small enough for the cache, large enough to hide the calls

_KERNEL_ROW_BYTES = 512  # wider heads would spill the kernel's registers: 256 of two bytes, 128 of four


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """Who sees whom, and from how far.

    Attributes:
        window: Keys that a query sees, its own included; None for all.
        causal: Whether later keys are hidden.
        scale: Factor of q·k.
    """

    window: int | None
    causal: bool
    scale: float


def window_attention(
    q_BHTD: Tensor,
    k_BGTD: Tensor,
    v_BGTD: Tensor,
    *,
    window: int | None,
    slopes_H: Tensor | None,
    scale: float,
    causal: bool = True,
) -> Tensor:
    """Attend to the keys of a sliding window.

    Args:
        q_BHTD: Queries.
        k_BGTD: Keys; G divides H.
        v_BGTD: Values.
        window: Keys that a query sees, its own included, at least 1; None for all of them. Without `causal` it counts to both
            sides: |i − j| < window.
        slopes_H: ALiBi slope of each query head; None for no bias. Not differentiated.
        scale: Factor of q·k, usually D^-0.5.
        causal: Whether later keys are hidden.

    Returns:
        (B, H, T, D), type of `q_BHTD`; differentiable in q, k and v.

    Raises:
        ValueError: Shapes that do not fit, or a window below 1.

    Guarantees:
        - Query i depends on the keys that it sees only; a sample of the batch on itself only.
        - Time and memory of a windowed layer are linear in T. Memory of a full layer is linear in T too, forward and backward.
    """
    batch, heads, tokens, width = q_BHTD.shape
    groups = k_BGTD.shape[1]
    if groups == 0 or heads % groups or k_BGTD.shape != (batch, groups, tokens, width):
        raise ValueError(f"keys of shape {tuple(k_BGTD.shape)} do not fit queries of {tuple(q_BHTD.shape)}")
    if v_BGTD.shape != k_BGTD.shape:
        raise ValueError(f"values of shape {tuple(v_BGTD.shape)} do not fit keys of {tuple(k_BGTD.shape)}")
    if slopes_H is not None and slopes_H.shape != (heads,):
        raise ValueError(f"slopes of shape {tuple(slopes_H.shape)} do not fit {heads} heads")
    if window is not None and window < 1:
        raise ValueError(f"window = {window} is not at least 1")
    pattern = Pattern(window=window, causal=causal, scale=scale)
    result: Tensor
    if on_triton(q_BHTD, k_BGTD, v_BGTD) and width * q_BHTD.dtype.itemsize <= _KERNEL_ROW_BYTES:
        from hansa.kernels.attention_triton import TritonAttention  # noqa: PLC0415

        result = TritonAttention.apply(q_BHTD, k_BGTD, v_BGTD, slopes_H, pattern)  # type: ignore[no-untyped-call]
    else:
        result = BlockAttention.apply(q_BHTD, k_BGTD, v_BGTD, slopes_H, pattern)  # type: ignore[no-untyped-call]
    return result


def window_attention_reference(
    q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, *, slopes_H: Tensor | None, pattern: Pattern
) -> Tensor:
    """Compute `window_attention` from the whole matrix of scores: the definition."""
    heads, tokens = q_BHTD.shape[1], q_BHTD.shape[2]
    repeats, wide = heads // k_BGTD.shape[1], softmax_type(q_BHTD)
    k_BHTD, v_BHTD = (x.to(wide).repeat_interleave(repeats, dim=1) for x in (k_BGTD, v_BGTD))
    scores_BHTT = pattern.scale * q_BHTD.to(wide) @ k_BHTD.transpose(2, 3)
    place_T = torch.arange(tokens, device=q_BHTD.device)
    distance_TT = place_T.unsqueeze(1) - place_T
    if slopes_H is not None:
        scores_BHTT = scores_BHTT - slopes_H.to(wide).view(-1, 1, 1) * distance_TT.abs()
    hidden_TT = distance_TT < 0 if pattern.causal else torch.zeros_like(distance_TT, dtype=torch.bool)
    if pattern.window is not None:
        hidden_TT = hidden_TT | (distance_TT.abs() >= pattern.window)
    weights_BHTT = torch.softmax(scores_BHTT.masked_fill(hidden_TT, -torch.inf), dim=-1)
    return (weights_BHTT @ v_BHTD).to(q_BHTD.dtype)


def softmax_type(x: Tensor) -> torch.dtype:
    """The type that scores and sums have: float64 for float64, float32 for the rest."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# torch's own `Function` is untyped; the contract is that of `window_attention`.
class BlockAttention(torch.autograd.Function):
    """Attention in blocks of queries, in plain torch."""

    @staticmethod
    def forward(ctx, q_BHTD, k_BGTD, v_BGTD, slopes_H, pattern):  # type: ignore[no-untyped-def]  # noqa: D102
        wide = softmax_type(q_BHTD)
        q_BGMTD, k, v = _grouped(q_BHTD, k_BGTD, wide), k_BGTD.to(wide), v_BGTD.to(wide)
        y_BGMTD = torch.empty_like(q_BGMTD)
        for block in _blocks(q_BGMTD.shape, pattern, wide.itemsize):
            weights = _weights(q_BGMTD, k, slopes_H, block, pattern)
            y_BGMTD[block.at_queries] = (weights @ v[block.at_keys]).unflatten(2, (-1, block.queries))
        y_BHTD = y_BGMTD.flatten(1, 2).to(q_BHTD.dtype)
        ctx.save_for_backward(q_BHTD, k_BGTD, v_BGTD, slopes_H, y_BHTD)
        ctx.pattern = pattern
        return y_BHTD

    @staticmethod
    def backward(ctx, g_BHTD):  # type: ignore[no-untyped-def]  # noqa: D102
        q_BHTD, k_BGTD, v_BGTD, slopes_H, y_BHTD = ctx.saved_tensors
        pattern, wide = ctx.pattern, softmax_type(q_BHTD)
        q_BGMTD, k, v = _grouped(q_BHTD, k_BGTD, wide), k_BGTD.to(wide), v_BGTD.to(wide)
        g_BGMTD = _grouped(g_BHTD, k_BGTD, wide)
        delta_BGMT = (g_BGMTD * _grouped(y_BHTD, k_BGTD, wide)).sum(dim=-1)
        dq_BGMTD = torch.empty_like(q_BGMTD)
        dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (k, v))
        for block in _blocks(q_BGMTD.shape, pattern, wide.itemsize):
            weights = _weights(q_BGMTD, k, slopes_H, block, pattern)
            q, g = (x[block.at_queries].flatten(2, 3) for x in (q_BGMTD, g_BGMTD))
            dv[block.at_keys] += weights.transpose(2, 3) @ g
            # The scale goes to the narrow operands, so that the scores are passed over twice instead of three times.
            d_scores = (g @ v[block.at_keys].transpose(2, 3)).sub_(
                delta_BGMT[block.at_queries].flatten(2, 3).unsqueeze(3)
            )
            d_scores.mul_(weights)
            dq = (d_scores @ k[block.at_keys]).mul_(pattern.scale)
            dq_BGMTD[block.at_queries] = dq.unflatten(2, (-1, block.queries))
            dk[block.at_keys] += d_scores.transpose(2, 3) @ (q * pattern.scale)
        return dq_BGMTD.flatten(1, 2).to(q_BHTD.dtype), dk.to(k_BGTD.dtype), dv.to(v_BGTD.dtype), None, None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """Queries [start, stop) of some samples and key heads, and the keys [low, high) that any of them sees."""

    samples: slice
    groups: slice
    start: int
    stop: int
    low: int
    high: int

    @property
    def queries(self) -> int:
        return self.stop - self.start

    @property
    def at_queries(self) -> tuple[slice, slice, slice, slice]:
        return self.samples, self.groups, slice(None), slice(self.start, self.stop)

    @property
    def at_keys(self) -> tuple[slice, slice, slice]:
        return self.samples, self.groups, slice(self.low, self.high)


def _blocks(shape: torch.Size, pattern: Pattern, itemsize: int) -> Iterator[_Block]:
    """Cut the work into blocks whose scores take about `_BLOCK_BYTES`: first fewer samples, then heads, then queries."""
    batch, groups, repeats, tokens, _ = shape
    start = 0
    while start < tokens:
        row = max(1, repeats * itemsize * min(tokens, (pattern.window or tokens) + _QUERIES))
        queries = max(16, min(_QUERIES, _BLOCK_BYTES // row))
        stop = min(tokens, start + queries)
        low = 0 if pattern.window is None else max(0, start - pattern.window + 1)
        high = stop if pattern.causal else tokens
        if not pattern.causal and pattern.window is not None:
            high = min(tokens, stop + pattern.window - 1)
        heads_at_once = max(1, _BLOCK_BYTES // ((stop - start) * repeats * itemsize * (high - low)))
        samples_at_once = max(1, heads_at_once // groups)
        heads_at_once = min(heads_at_once, groups)
        for sample in range(0, batch, samples_at_once):
            for group in range(0, groups, heads_at_once):
                yield _Block(
                    samples=slice(sample, sample + samples_at_once),
                    groups=slice(group, group + heads_at_once),
                    start=start,
                    stop=stop,
                    low=low,
                    high=high,
                )
        start = stop


def _grouped(x_BHTD: Tensor, k_BGTD: Tensor, wide: torch.dtype) -> Tensor:
    """(B, H, T, D) -> (B, G, M, T, D), in the type of the softmax."""
    batch, heads, tokens, width = x_BHTD.shape
    groups = k_BGTD.shape[1]
    return x_BHTD.to(wide).view(batch, groups, heads // groups, tokens, width)


def _weights(
    q_BGMTD: Tensor, k_BGTD: Tensor, slopes_H: Tensor | None, block: _Block, pattern: Pattern
) -> Tensor:
    """Softmax of one block: (b, g, M·Q, L)."""
    q = q_BGMTD[block.at_queries].flatten(2, 3) * pattern.scale
    rows = q @ k_BGTD[block.at_keys].transpose(2, 3)
    scores = rows.view(*rows.shape[:2], -1, block.queries, rows.shape[3])
    if slopes_H is not None:
        scores.add_(_bias(slopes_H.to(scores.dtype), q_BGMTD.shape, block, pattern))
    # Only the two edges of the band need a mask: keys out of reach of the last queries, keys later than the first.
    if pattern.window is not None:
        edge = max(0, block.stop - pattern.window - block.low)
        distance = _distance(block, block.low, block.low + edge, scores.device)
        scores[..., :edge].masked_fill_(distance >= pattern.window, -torch.inf)
    reach = 1 if pattern.causal else pattern.window
    if reach is not None:
        edge = min(max(block.low, block.start + reach), block.high)
        distance = _distance(block, edge, block.high, scores.device)
        scores[..., edge - block.low :].masked_fill_(-distance >= reach, -torch.inf)
    return torch.softmax(rows, dim=-1)


def _distance(block: _Block, low: int, high: int, device: torch.device) -> Tensor:
    """i − j of the block's queries and the keys [low, high), (Q, high − low)."""
    i_Q = torch.arange(block.start, block.stop, device=device)
    return i_Q.unsqueeze(1) - torch.arange(low, high, device=device)


def _bias(slopes_H: Tensor, shape: torch.Size, block: _Block, pattern: Pattern) -> Tensor:
    """ALiBi of one block, (g, M, Q or 1, L)."""
    slopes_GM11 = slopes_H.view(shape[1], shape[2], 1, 1)[block.groups]
    if not pattern.causal:
        return -slopes_GM11 * _distance(block, block.low, block.high, slopes_H.device).abs()
    # −slope·(i − j) = slope·j − slope·i, and the softmax does not see what is constant in a row: one row serves all queries.
    return slopes_GM11 * torch.arange(
        block.low - block.stop + 1, block.high - block.stop + 1, device=slopes_H.device
    )
