"""Every Triton kernel against its torch reference, on whatever device it is given.

A check returns the largest error over the largest entry of the reference. `float64` references run on the same device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hansa.kernels.attention import Pattern, window_attention_reference
from hansa.kernels.attention_triton import TritonAttention
from hansa.kernels.compression import compress_reference
from hansa.kernels.compression_triton import launch as compress
from hansa.kernels.grouped_lora import grouped_lora_reference
from hansa.kernels.grouped_lora_triton import launch as grouped_lora
from hansa.kernels.routing import Groups, choose, sort_rows
from hansa.kernels.routing_triton import choose_and_sort
from hansa.kernels.segments_triton import square_norms, weight_gradient

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
COUNTS = {
    "odd": [5, 123, 17, 300],
    "empty experts": [0, 4, 0, 0, 9, 0],
    "one token": [0, 0, 1, 0],
    "all to one": [0, 700, 0],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison.

    Attributes:
        name: Kernel and sizes.
        error: Largest error over the largest entry of the reference.
        tolerance: What is accepted; 0 where all bits must agree.
    """

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is accepted; NaN is not."""
        return self.error <= self.tolerance


def normal(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """Normal numbers from a fixed seed, drawn on the CPU so that every device gets the same."""
    draws = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=draws).to(device, dtype)


def error_of(actual: Tensor, expected: Tensor) -> float:
    """Largest error over the largest entry; 1 at least, so that nothing is divided by zero."""
    if actual.numel() == 0:
        return 0.0
    scale = max(1.0, expected.double().abs().max().item())
    return (actual.double() - expected.double()).abs().max().item() / scale


def worst(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Largest error of several tensors."""
    return max(error_of(a, e) for a, e in zip(actual, expected, strict=True))


def check_routing(device: torch.device) -> Iterator[Check]:
    """Ties included, bit by bit."""
    sizes = [(2049, 128, 4, Groups()), (777, 256, 8, Groups(count=8, top=4)), (1, 7, 7, Groups())]
    for tokens, experts, top_k, limit in sizes:
        select = (normal(device, torch.float32, tokens, experts) * 4).round() / 4
        expert_TK = choose(select, top_k, limit)
        expected = [expert_TK, *sort_rows(expert_TK, experts)]
        actual = choose_and_sort(select, top_k, limit)
        yield Check(
            name=f"routing, {tokens} x {experts}, top-{top_k}",
            error=worst([*actual], expected),
            tolerance=0.0,
        )


def check_lora(device: torch.device) -> Iterator[Check]:
    """Both directions: plain and transposed matrices."""
    for dtype, tolerance in TOLERANCE.items():
        for label, counts in COUNTS.items():
            ends = torch.tensor(counts).cumsum(0).to(device, torch.int32)
            for dim, width, rank in ((256, 384, 16), (100, 70, 5)):
                x = normal(device, dtype, sum(counts), dim)
                w, a = (normal(device, dtype, len(counts), n, dim).transpose(1, 2) for n in (width, rank))
                w, a, b = w * dim**-0.5, a * dim**-0.5, normal(device, dtype, len(counts), rank, width)
                for spread in (lambda t: t.contiguous(), lambda t: t.mT.contiguous().mT):
                    actual = grouped_lora(x, spread(w), spread(a), spread(b), ends, 0.5)
                    expected = grouped_lora_reference(*(t.double() for t in (x, w, a, b)), ends, 0.5)
                    yield Check(
                        name=f"grouped LoRA, {label}, {dim} -> {width}, r = {rank}, {dtype}",
                        error=worst([*actual], [*expected]),
                        tolerance=tolerance,
                    )


def check_segments(device: torch.device) -> Iterator[Check]:
    """Norms and weighted gradients."""
    for dtype in TOLERANCE:
        for label, counts in COUNTS.items():
            rows, ends = sum(counts), torch.tensor(counts).cumsum(0).to(device, torch.int32)
            for rank, width in ((16, 512), (70, 130), (5, 3)):
                z, g = normal(device, dtype, rows, rank), normal(device, dtype, rows, width)
                starts = [0, *ends.tolist()[:-1]]
                spans = list(zip(starts, ends.tolist(), strict=True))
                outer = torch.stack([z[a:b].double().t() @ g[a:b].double() for a, b in spans])
                experts = torch.arange(len(counts), device=device)
                norms = square_norms(z, g, ends, experts, None)
                error = worst(
                    [norms.sqrt(), weight_gradient(z, g, None, ends)], [outer.flatten(1).norm(dim=1), outer]
                )
                # Products of bfloat16 numbers are exact in float32, so both types have one tolerance.
                yield Check(
                    name=f"segments, {label}, {rank} x {width}, {dtype}",
                    error=error,
                    tolerance=TOLERANCE[torch.float32],
                )


def check_attention(device: torch.device) -> Iterator[Check]:
    """Forward and all three gradients."""
    for dtype, tolerance in TOLERANCE.items():
        for tokens, width, window, causal in (
            (300, 64, 100, True),
            (1023, 128, None, True),
            (257, 20, 40, False),
            (1, 16, 5, True),
        ):
            q, g = (normal(device, dtype, 2, 4, tokens, width + i)[..., :width] for i in range(2))
            k, v = (normal(device, dtype, 2, 2, tokens, width + i)[..., :width] for i in range(2))
            slopes = 2.0 ** -torch.arange(1, 5, device=device)
            pattern = Pattern(window=window, causal=causal, scale=width**-0.5)
            outcomes = []
            for kernel in (True, False):
                leaves = [x.to(dtype if kernel else torch.float64).requires_grad_() for x in (q, k, v)]
                if kernel:
                    y = TritonAttention.apply(*leaves, slopes, pattern)  # type: ignore[no-untyped-call]
                else:
                    y = window_attention_reference(*leaves, slopes_H=slopes, pattern=pattern)
                outcomes.append([y.detach(), *torch.autograd.grad(y, leaves, g.to(y.dtype))])
            yield Check(
                name=f"attention, {tokens} x {width}, window {window}, causal {causal}, {dtype}",
                error=worst(*outcomes),
                tolerance=tolerance,
            )


def check_compression(device: torch.device) -> Iterator[Check]:
    """Bit by bit."""
    for dtype in (torch.float32, torch.float64):
        for count in (1, 4097, 100_003):
            values = normal(device, dtype, count + 7)
            draws = torch.Generator().manual_seed(count)
            support = torch.randperm(count + 7, generator=draws)[:count].to(device)
            uniforms = torch.rand(count, generator=draws, dtype=torch.float64).to(device)
            sizes = {
                "bound": 0.7,
                "maximum_level": 127,
                "radix": 4065,
                "lanes": 4,
                "slots": -(-count // 4) + 3,
            }
            same = torch.equal(
                compress(values, support, uniforms, **sizes),
                compress_reference(values, support, uniforms, **sizes),
            )
            yield Check(name=f"compression, {count}, {dtype}", error=0.0 if same else 1.0, tolerance=0.0)


CHECKS: dict[str, Callable[[torch.device], Iterator[Check]]] = {
    "routing": check_routing,
    "grouped LoRA": check_lora,
    "segments": check_segments,
    "attention": check_attention,
    "compression": check_compression,
}
