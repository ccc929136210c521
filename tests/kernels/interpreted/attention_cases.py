"""The attention kernels equal the reference, forward and backward. Run by test_interpreted.py, with TRITON_INTERPRET=1."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.kernels.attention import Pattern, window_attention_reference
from hansa.kernels.attention_triton import TritonAttention

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def assert_equal(
    shape: tuple[int, int, int, int],
    groups: int,
    window: int | None,
    causal: bool,
    alibi: bool,
    dtype: torch.dtype,
) -> None:
    batch, heads, tokens, width = shape
    draws = torch.Generator().manual_seed(tokens)
    q, g = (torch.randn(shape, generator=draws).to(dtype) for _ in range(2))
    k, v = (torch.randn(batch, groups, tokens, width, generator=draws).to(dtype) for _ in range(2))
    slopes_H = 2.0 ** -torch.arange(1, heads + 1) if alibi else None
    pattern = Pattern(window=window, causal=causal, scale=width**-0.5)

    def outcome(kernel: bool) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        if kernel:
            y = TritonAttention.apply(*leaves, slopes_H, pattern)
        else:
            y = window_attention_reference(*leaves, slopes_H=slopes_H, pattern=pattern)
        return [y, *torch.autograd.grad(y, leaves, g)]

    for actual, expected in zip(outcome(True), outcome(False), strict=True):
        assert (actual.shape, actual.dtype) == (expected.shape, dtype)
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(
            actual.float() / scale, expected.float() / scale, rtol=0, atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("shape", "groups", "window", "causal", "alibi"),
    [
        ((1, 1, 1, 1), 1, None, True, False),
        ((2, 2, 70, 16), 1, None, True, True),
        ((1, 2, 131, 20), 2, 17, True, True),
        ((1, 2, 131, 20), 1, 40, False, True),
        ((1, 1, 65, 7), 1, None, False, False),
        ((1, 1, 64, 32), 1, 1, True, False),
    ],
)
def test_equals_the_reference(
    shape: tuple[int, int, int, int],
    groups: int,
    window: int | None,
    causal: bool,
    alibi: bool,
    dtype: torch.dtype,
) -> None:
    assert_equal(shape, groups, window, causal, alibi, dtype)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    groups=st.integers(1, 2),
    repeats=st.integers(1, 2),
    tokens=st.integers(1, 80),
    width=st.integers(1, 17),
    window=st.none() | st.integers(1, 90),
    causal=st.booleans(),
    alibi=st.booleans(),
)
def test_any_size(
    groups: int, repeats: int, tokens: int, width: int, window: int | None, causal: bool, alibi: bool
) -> None:
    assert_equal((1, groups * repeats, tokens, width), groups, window, causal, alibi, torch.float32)


def test_operands_in_any_layout_of_memory() -> None:
    q, k, v = (torch.randn(2, 40, 2, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    pattern = Pattern(window=9, causal=True, scale=0.3)
    views = [x.transpose(1, 2) for x in (q, k, v)]
    y = TritonAttention.apply(*views, None, pattern)
    torch.testing.assert_close(y, window_attention_reference(*views, slopes_H=None, pattern=pattern))
