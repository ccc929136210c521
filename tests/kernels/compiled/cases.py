"""The launches that must compile, at sizes of a real model. Run by test_compiled.py."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH keeps it out

from compiler import main

from hansa.kernels.attention import Pattern
from hansa.kernels.attention_triton import TritonAttention
from hansa.kernels.compression_triton import launch as compress
from hansa.kernels.grouped_lora_triton import launch
from hansa.kernels.routing import Groups
from hansa.kernels.routing_triton import choose_and_sort
from hansa.kernels.segments_triton import square_norms, weight_gradient


def attention(width: int, dtype: torch.dtype, window: int | None) -> None:
    q = torch.zeros(1, 4, 256, width, dtype=dtype, requires_grad=True)
    k = torch.zeros(1, 2, 256, width, dtype=dtype)
    pattern = Pattern(window=window, causal=True, scale=width**-0.5)
    TritonAttention.apply(q, k, k, torch.ones(4), pattern).backward(torch.zeros_like(q))


def segments(rank: int, width: int, dtype: torch.dtype) -> None:
    z, g = torch.zeros(256, rank, dtype=dtype), torch.zeros(256, width, dtype=dtype)
    ends, expert_S = torch.full((4,), 256, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)
    square_norms(z, g, ends, expert_S, None)
    square_norms(z, g, ends, expert_S, torch.ones(1, rank, width))
    weight_gradient(z, g, torch.ones(256), ends)


def lora(dim: int, width: int, rank: int, rows: int, dtype: torch.dtype, *, transposed: bool = False) -> None:
    x, experts = torch.zeros(rows, dim, dtype=dtype), 4
    if transposed:
        w, a = torch.zeros(experts, width, dim, dtype=dtype), torch.zeros(experts, rank, dim, dtype=dtype)
        w, a, b = (
            w.transpose(1, 2),
            a.transpose(1, 2),
            torch.zeros(experts, width, rank, dtype=dtype).transpose(1, 2),
        )
    else:
        w, a = torch.zeros(experts, dim, width, dtype=dtype), torch.zeros(experts, dim, rank, dtype=dtype)
        b = torch.zeros(experts, rank, width, dtype=dtype)
    launch(x, w, a, b, torch.full((experts,), rows, dtype=torch.int32), 0.5)


def compression(dtype: torch.dtype) -> None:
    entries, positions = torch.zeros(4096, dtype=dtype), torch.arange(4096)
    sizes = {"bound": 0.1, "maximum_level": 127, "radix": 4065, "lanes": 4, "slots": 1024}
    compress(entries, positions, torch.zeros(4096, dtype=torch.float64), **sizes)


CASES = {
    "compression, fp32": lambda: compression(torch.float32),
    "compression, fp64": lambda: compression(torch.float64),
    "lora, bf16": lambda: lora(2048, 1536, 16, 4096, torch.bfloat16),
    "lora, bf16, input gradient": lambda: lora(1536, 2048, 16, 4096, torch.bfloat16, transposed=True),
    "lora, bf16, few rows": lambda: lora(2048, 1536, 16, 200, torch.bfloat16),
    "lora, bf16, rank 128": lambda: lora(2048, 1536, 128, 4096, torch.bfloat16),
    "lora, fp32": lambda: lora(512, 512, 16, 4096, torch.float32),
    "lora, fp32, rank 64, transposed": lambda: lora(512, 512, 64, 4096, torch.float32, transposed=True),
    "segments, 16 by 2048, bf16": lambda: segments(16, 2048, torch.bfloat16),
    "segments, 2048 by 64, bf16": lambda: segments(2048, 64, torch.bfloat16),
    "segments, 16 by 512, fp32": lambda: segments(16, 512, torch.float32),
    "routing, 128 experts": lambda: choose_and_sort(torch.zeros(64, 128), 4, Groups()),
    "routing, groups of 256 experts": lambda: choose_and_sort(
        torch.zeros(64, 256), 8, Groups(count=8, top=4)
    ),
    "attention, 64, bf16": lambda: attention(64, torch.bfloat16, 100),
    "attention, 128, bf16": lambda: attention(128, torch.bfloat16, 100),
    "attention, 128, bf16, full": lambda: attention(128, torch.bfloat16, None),
    "attention, 256, bf16": lambda: attention(256, torch.bfloat16, 100),
    "attention, 64, fp32": lambda: attention(64, torch.float32, 100),
    "attention, 128, fp32": lambda: attention(128, torch.float32, 100),
}

if __name__ == "__main__":
    main(CASES)
