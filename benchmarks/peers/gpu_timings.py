"""Every Triton kernel at the size of a large model, beside torch's own operations and what the card allows.

Sizes: 32,768 tokens, d = 2,048, ff = 768, 128 experts, top-4, r = 16, bfloat16: 131,072 rows.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from hansa.kernels.attention import Pattern
from hansa.kernels.attention_triton import TritonAttention
from hansa.kernels.compression_triton import launch as compress
from hansa.kernels.grouped_lora_triton import launch as grouped_lora
from hansa.kernels.routing import Groups, choose, sort_rows
from hansa.kernels.routing_triton import choose_and_sort
from hansa.kernels.segments_triton import square_norms, weight_gradient
from peers.gpu_checks import normal

TOKENS, DIM, FF, EXPERTS, TOP_K, RANK = 32_768, 2048, 768, 128, 4, 16
ROWS = TOKENS * TOP_K
Call = Callable[[], object]
# name, the call of the kernel, the calls of others, floating point operations, bytes
Timing = tuple[str, Call, dict[str, Call], float, float]


def timings(device: torch.device) -> Iterator[Timing]:
    """What is timed, one after the other, so that memory is given back in between."""
    yield routing(device)
    yield lora(device, forward=True)
    yield lora(device, forward=False)
    yield from segments(device)
    for window in (512, None):
        yield from attention(device, window)
    yield compression(device)


def routing(device: torch.device) -> Timing:
    """Bound by launches."""
    select = normal(device, torch.float32, TOKENS, EXPERTS)
    others = {"torch": lambda: sort_rows(choose(select, TOP_K, Groups()), EXPERTS)}
    ours = lambda: choose_and_sort(select, TOP_K, Groups())  # noqa: E731
    return "routing, 32,768 x 128, top-4", ours, others, 0.0, 4.0 * TOKENS * EXPERTS + 36 * ROWS


def lora(device: torch.device, *, forward: bool) -> Timing:
    """The product of the first projection, or its input gradient by transposed strides."""
    dtype, width = torch.bfloat16, 2 * FF
    w, a, b = (
        normal(device, dtype, EXPERTS, *s) * s[0] ** -0.5 for s in ((DIM, width), (DIM, RANK), (RANK, width))
    )
    x, name = normal(device, dtype, ROWS, DIM), "grouped LoRA, 2,048 -> 1,536"
    if not forward:
        x, name = normal(device, dtype, ROWS, width), "grouped LoRA, input gradient"
        w, a, b = w.mT, b.mT, a.mT
    ends = torch.arange(1, EXPERTS + 1, device=device, dtype=torch.int32) * (ROWS // EXPERTS)

    def three() -> object:
        z = F.grouped_mm(x, a, offs=ends)
        return F.grouped_mm(x, w, offs=ends).add_(F.grouped_mm(z, b, offs=ends), alpha=0.5)

    others = {"3 x F.grouped_mm": three, "F.grouped_mm, no LoRA": lambda: F.grouped_mm(x, w, offs=ends)}
    flops = 2.0 * ROWS * (DIM * width + RANK * (DIM + width))
    moved = 2.0 * (ROWS * (DIM + width + RANK) + EXPERTS * (DIM * width + RANK * (DIM + width)))
    return name, lambda: grouped_lora(x, w, a, b, ends, 0.5), others, flops, moved


def segments(device: torch.device) -> Iterator[Timing]:
    """16 samples, so 64 rows a segment."""
    z, g = normal(device, torch.bfloat16, ROWS, RANK), normal(device, torch.bfloat16, ROWS, DIM)
    step = ROWS // EXPERTS
    ends_E = torch.arange(1, EXPERTS + 1, device=device, dtype=torch.int32) * step
    ends_S = torch.arange(1, 16 * EXPERTS + 1, device=device, dtype=torch.int32) * (step // 16)
    expert_S = torch.arange(16 * EXPERTS, device=device) // 16
    weights = torch.rand(ROWS, device=device)
    flops, moved = 2.0 * ROWS * RANK * DIM, 2.0 * ROWS * (RANK + DIM)

    def norms() -> object:
        return F.grouped_mm(z.t(), g, offs=ends_S).float().square().sum((1, 2))

    def weighted() -> object:
        return F.grouped_mm((z * weights.to(z.dtype).unsqueeze(1)).t(), g, offs=ends_E)

    ours = lambda: square_norms(z, g, ends_S, expert_S, None)  # noqa: E731
    yield "segment norms, 16 x 2,048", ours, {"F.grouped_mm": norms}, flops, moved
    ours = lambda: weight_gradient(z, g, weights, ends_E)  # noqa: E731
    yield "clipped weight gradient, 16 x 2,048", ours, {"F.grouped_mm": weighted}, flops, moved


def attention(device: torch.device, window: int | None) -> Iterator[Timing]:
    """16 heads of 128; torch's flash attention knows neither window nor slopes, so it does the full causal matrix."""
    tokens, heads, width = 32_768 if window else 8192, 16, 128
    q, k, v = (
        normal(device, torch.bfloat16, 1, heads, tokens, width + i)[..., :width].contiguous().requires_grad_()
        for i in range(3)
    )
    g, slopes = torch.ones_like(q), 2.0 ** -torch.arange(1, heads + 1, device=device)
    pattern = Pattern(window=window, causal=True, scale=width**-0.5)
    pairs = tokens * (window or tokens / 2)
    ours = lambda: TritonAttention.apply(q, k, v, slopes, pattern)  # type: ignore[no-untyped-call]  # noqa: E731
    flash = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
    name, moved = f"attention, {tokens:,} tokens, window {window}", 2.0 * 4 * q.numel()
    yield name, ours, {"SDPA, full causal": flash}, 4.0 * heads * width * pairs, moved

    def backward(attend: Call) -> Call:
        y = attend()
        return lambda: torch.autograd.grad(y, (q, k, v), g, retain_graph=True)  # type: ignore[arg-type]

    name = f"{name}, backward"
    yield (
        name,
        backward(ours),
        {"SDPA, full causal": backward(flash)},
        10.0 * heads * width * pairs,
        2 * moved,
    )


def compression(device: torch.device) -> Timing:
    """30 % of 100 million entries."""
    total, count = 100_000_000, 30_000_000
    values = torch.randn(total, device=device)
    support = torch.arange(count, device=device) * total // count
    uniforms = torch.rand(count, device=device, dtype=torch.float64)
    sizes = {"bound": 1.0, "maximum_level": 127, "radix": 4065, "lanes": 4, "slots": count // 4}
    return (
        "compression, 30 of 100 million",
        lambda: compress(values, support, uniforms, **sizes),
        {},
        0.0,
        20.0 * count + 8 * count / 4,
    )
