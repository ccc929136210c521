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


def attention(width: int, dtype: torch.dtype, window: int | None) -> None:
    q = torch.zeros(1, 4, 256, width, dtype=dtype, requires_grad=True)
    k = torch.zeros(1, 2, 256, width, dtype=dtype)
    pattern = Pattern(window=window, causal=True, scale=width**-0.5)
    TritonAttention.apply(q, k, k, torch.ones(4), pattern).backward(torch.zeros_like(q))


CASES = {
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
