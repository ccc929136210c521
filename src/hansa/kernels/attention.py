"""Causal attention over a sliding window, with grouped key heads and linear position biases, at a cost linear in the length.

    y[i] = Σ_j softmax_j( scale · q[i]·k[j] − slope · |i − j| ) v[j]      over the keys j that query i sees

    causal:      i − window < j ≤ i          otherwise:  |i − j| < window          window None: no bound

Shape suffixes: B batch, H query heads, G key heads (H = G·M, query head h reads key head h div M), N = B·G, T tokens, D head width;
inside a block: n of the N, Q queries, L keys.

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

_QUERIES = 64  # a block's scores cover window + 63 keys: an eighth too much at a window of 512
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
        groups = k_BGTD.shape[1]
        (q_NMTD,), (k_NTD, v_NTD) = _by_key_head(groups, q_BHTD), _key_heads(k_BGTD, v_BGTD)
        layer = _Layer(k_NTD=k_NTD, groups=groups, slopes_H=slopes_H, pattern=pattern)
        y_NMTD = torch.empty_like(q_NMTD)
        for block in _blocks(q_NMTD.shape, layer):
            y = layer.weights(q_NMTD, block) @ v_NTD[block.at_keys]
            y_NMTD[block.at_queries] = y.view(len(y), -1, block.queries, y.shape[2])
        y_BHTD = y_NMTD.view(q_BHTD.shape).to(q_BHTD.dtype)
        ctx.save_for_backward(q_BHTD, k_BGTD, v_BGTD, slopes_H, y_BHTD)
        ctx.pattern = pattern
        return y_BHTD

    @staticmethod
    def backward(ctx, g_BHTD):  # type: ignore[no-untyped-def]  # noqa: D102
        q_BHTD, k_BGTD, v_BGTD, slopes_H, y_BHTD = ctx.saved_tensors
        groups = k_BGTD.shape[1]
        q_NMTD, y_NMTD, g_NMTD = _by_key_head(groups, q_BHTD, y_BHTD, g_BHTD)
        k_NTD, v_NTD = _key_heads(k_BGTD, v_BGTD)
        layer = _Layer(k_NTD=k_NTD, groups=groups, slopes_H=slopes_H, pattern=ctx.pattern)
        delta_NMT = (g_NMTD * y_NMTD).sum(dim=-1)
        dq_NMTD, dk_NTD, dv_NTD = torch.empty_like(q_NMTD), torch.zeros_like(k_NTD), torch.zeros_like(v_NTD)
        for block in _blocks(q_NMTD.shape, layer):
            weights = layer.weights(q_NMTD, block)
            q, g = (x[block.at_queries].flatten(1, 2) for x in (q_NMTD, g_NMTD))
            dv_NTD[block.at_keys].baddbmm_(weights.transpose(1, 2), g)
            d_scores = g @ v_NTD[block.at_keys].transpose(1, 2)
            d_scores.sub_(delta_NMT[block.at_queries].flatten(1, 2).unsqueeze(2)).mul_(weights)
            # The scale goes to the narrow operands, so that the scores are passed over twice instead of three times.
            dq = (d_scores @ k_NTD[block.at_keys]).mul_(layer.pattern.scale)
            dq_NMTD[block.at_queries] = dq.view(len(dq), -1, block.queries, dq.shape[2])
            dk_NTD[block.at_keys].baddbmm_(d_scores.transpose(1, 2), q, alpha=layer.pattern.scale)
        dk, dv = dk_NTD.view(k_BGTD.shape), dv_NTD.view(v_BGTD.shape)
        return (
            dq_NMTD.view(q_BHTD.shape).to(q_BHTD.dtype),
            dk.to(k_BGTD.dtype),
            dv.to(v_BGTD.dtype),
            None,
            None,
        )


def _by_key_head(groups: int, *tensors: Tensor) -> Iterator[Tensor]:
    """(B, H, T, D) -> (N, M, T, D), in the type of the softmax."""
    for x in tensors:
        batch, heads, tokens, width = x.shape
        yield x.to(softmax_type(x)).reshape(batch * groups, heads // groups, tokens, width)


def _key_heads(*tensors: Tensor) -> Iterator[Tensor]:
    """(B, G, T, D) -> (N, T, D), in the type of the softmax."""
    for x in tensors:
        yield x.to(softmax_type(x)).flatten(0, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """Queries [start, stop) of the key heads [first, last) of all samples, and the keys [low, high) that any of them sees."""

    first: int
    last: int
    start: int
    stop: int
    low: int
    high: int

    @property
    def queries(self) -> int:
        return self.stop - self.start

    @property
    def at_queries(self) -> tuple[slice, slice, slice]:
        return slice(self.first, self.last), slice(None), slice(self.start, self.stop)

    @property
    def at_keys(self) -> tuple[slice, slice]:
        return slice(self.first, self.last), slice(self.low, self.high)


class _Layer:
    """What the blocks of one call share."""

    def __init__(self, *, k_NTD: Tensor, groups: int, slopes_H: Tensor | None, pattern: Pattern) -> None:
        self.k_NTD, self.groups, self.pattern = k_NTD, groups, pattern
        self.slopes_GM11 = None if slopes_H is None else slopes_H.to(k_NTD.dtype).view(groups, -1, 1, 1)
        self.templates: dict[tuple[int, ...], Tensor] = {}

    def weights(self, q_NMTD: Tensor, block: _Block) -> Tensor:
        """Softmax of one block, (n, M·Q, L)."""
        q = q_NMTD[block.at_queries].flatten(1, 2) * self.pattern.scale
        k = self.k_NTD[block.at_keys].transpose(1, 2)
        if self.pattern.window is not None:
            return torch.softmax(torch.baddbmm(self._template(block, q_NMTD.shape[1]), q, k), dim=-1)
        rows = q @ k
        scores = rows.view(len(rows), -1, block.queries, rows.shape[2])
        if self.slopes_GM11 is not None:
            scores.add_(self._heads(self._bias(block), block))
        if self.pattern.causal:  # only keys later than the first query are hidden from any
            hidden = self._distance(block, block.start) < 0
            scores[..., block.start :].masked_fill_(hidden, -torch.inf)
        return torch.softmax(rows, dim=-1)

    def _template(self, block: _Block, repeats: int) -> Tensor:
        """Bias and mask of a windowed block, (n, M·Q, L): the same for all blocks but those at the ends of the sequence."""
        heads = (block.first % self.groups, block.last - block.first)
        key = (*heads, block.queries, block.start - block.low, block.high - block.low)
        if key not in self.templates:
            distance = self._distance(block, block.low)
            hidden = distance.abs() >= (self.pattern.window or 0)
            if self.pattern.causal:
                hidden |= distance < 0
            bias = torch.zeros(
                self.groups, repeats, *distance.shape, dtype=self.k_NTD.dtype, device=distance.device
            )
            if self.slopes_GM11 is not None:
                bias -= self.slopes_GM11 * distance.abs()
            self.templates[key] = self._heads(bias.masked_fill_(hidden, -torch.inf), block).flatten(1, 2)
        return self.templates[key]

    def _heads(self, x_GMQL: Tensor, block: _Block) -> Tensor:
        """Pick the heads of a block, (n, M, ...): some of one sample's, or all of several samples'."""
        count, first = block.last - block.first, block.first % self.groups
        if count <= self.groups:
            return x_GMQL[first : first + count]
        return x_GMQL.repeat(count // self.groups, 1, 1, 1)

    def _bias(self, block: _Block) -> Tensor:
        """ALiBi of one block, (G, M, Q or 1, L)."""
        if not self.pattern.causal:
            return -self.slopes_GM11 * self._distance(block, block.low).abs()  # type: ignore[operator]
        # −slope·(i − j) = slope·j − slope·i, and the softmax does not see what is constant in a row: one row serves all.
        place_L = torch.arange(
            block.low - block.stop + 1, block.high - block.stop + 1, device=self.k_NTD.device
        )
        return self.slopes_GM11 * place_L  # type: ignore[operator]

    def _distance(self, block: _Block, low: int) -> Tensor:
        """i − j of the block's queries and the keys from `low` on, (Q, L)."""
        i_Q = torch.arange(block.start, block.stop, device=self.k_NTD.device)
        return i_Q.unsqueeze(1) - torch.arange(low, block.high, device=self.k_NTD.device)


def _blocks(shape: torch.Size, layer: _Layer) -> Iterator[_Block]:
    """Cut the work into blocks whose scores take about `_BLOCK_BYTES`: first fewer samples, then heads, then queries."""
    heads, repeats, tokens, _ = shape
    window, causal = layer.pattern.window, layer.pattern.causal
    key_bytes = repeats * layer.k_NTD.dtype.itemsize  # of one key's scores, for one query of each head
    row_bytes = key_bytes * max(1, min(tokens, (window or tokens) + _QUERIES))
    step = max(16, min(_QUERIES, _BLOCK_BYTES // row_bytes))
    for start in range(0, tokens, step):
        stop = min(tokens, start + step)
        low = 0 if window is None else max(0, start - window + 1)
        high = stop if causal else tokens if window is None else min(tokens, stop + window - 1)
        at_once = max(1, _BLOCK_BYTES // ((stop - start) * key_bytes * (high - low)))
        # Whole samples, or heads of one sample in equal parts, so that a block's heads are a run of one template.
        if at_once >= layer.groups:
            at_once -= at_once % layer.groups
        else:
            at_once = next(size for size in range(at_once, 0, -1) if layer.groups % size == 0)
        for first in range(0, heads, at_once):
            last = min(heads, first + at_once)
            yield _Block(first=first, last=last, start=start, stop=stop, low=low, high=high)
