"""The launches that must compile, at sizes of a real model. Run by test_compiled.py."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH keeps it out

from compiler import main

from hansa.kernels.attention import Pattern
from hansa.kernels.attention_triton import TritonAttention
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


CASES = {
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
