"""The grouped product with an adapter: one row at a time in float64, finite differences, and what the backward pass keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.kernels.grouped_lora import grouped_lora, grouped_lora_by_expert, grouped_lora_reference

COUNTS = {
    "odd": [5, 23, 17],
    "empty experts": [0, 4, 0, 0, 9, 0],
    "one token": [0, 0, 1, 0],
    "all to one": [0, 31, 0],
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def operands(
    counts: list[int], sizes: tuple[int, int, int], dtype: torch.dtype
) -> tuple[list[Tensor], Tensor, Tensor]:
    (dim, width, rank), experts, draws = sizes, len(counts), torch.Generator().manual_seed(0)
    shapes = [(sum(counts), dim), (experts, dim, width), (experts, dim, rank), (experts, rank, width)]
    leaves = [
        (torch.randn(s, generator=draws, dtype=torch.float64) * max(1, s[-2]) ** -0.5).to(dtype)
        for s in shapes
    ]
    g_RN = torch.randn(sum(counts), width, generator=draws, dtype=torch.float64).to(dtype)
    return leaves, torch.tensor(counts).cumsum(0).to(torch.int32), g_RN


def by_hand(x: Tensor, w: Tensor, a: Tensor, b: Tensor, counts: list[int], scale: float) -> Tensor:
    """One row at a time through the merged matrix."""
    experts = [expert for expert, count in enumerate(counts) for _ in range(count)]
    return torch.stack([row @ (w[e] + scale * a[e] @ b[e]) for row, e in zip(x, experts, strict=True)])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", [(16, 24, 8), (5, 3, 2)])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_forward_and_gradients_equal_one_row_at_a_time(
    counts: list[int], sizes: tuple[int, int, int], dtype: torch.dtype
) -> None:
    leaves, ends_E, g_RN = operands(counts, sizes, dtype)
    fast = [leaf.clone().requires_grad_() for leaf in leaves]
    slow = [leaf.double().requires_grad_() for leaf in leaves]
    y_RN, z_Rr = grouped_lora(*fast, ends_E, 0.5)
    assert not z_Rr.requires_grad
    expected = by_hand(*slow, counts, 0.5)
    actual = [y_RN, *torch.autograd.grad(y_RN, fast, g_RN)]
    wanted = [expected, *torch.autograd.grad(expected, slow, g_RN.double())]
    for a, w in zip(actual, wanted, strict=True):
        assert (a.shape, a.dtype) == (w.shape, dtype)
        scale = max(1.0, w.abs().max().item())
        torch.testing.assert_close(a.double() / scale, w / scale, rtol=0, atol=TOLERANCE[dtype])


def test_gradients_equal_finite_differences() -> None:
    leaves, ends_E, _ = operands([2, 0, 3], (4, 3, 2), torch.float64)
    inputs = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(lambda *leaf: grouped_lora(*leaf, ends_E, 0.5)[0], inputs, fast_mode=True)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(needed=st.lists(st.booleans(), min_size=4, max_size=4).filter(any))
def test_gradients_of_what_needs_none_are_not_computed(needed: list[bool]) -> None:
    leaves, ends_E, g_RN = operands([3, 4], (8, 16, 4), torch.float32)
    everything = [leaf.clone().requires_grad_() for leaf in leaves]
    expected = torch.autograd.grad(grouped_lora(*everything, ends_E, 0.5)[0], everything, g_RN)
    some = [leaf.clone().requires_grad_(wanted) for leaf, wanted in zip(leaves, needed, strict=True)]
    y_RN, _ = grouped_lora(*some, ends_E, 0.5)
    saved = y_RN.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert (saved[0] is not None) == (needed[1] or needed[2])
    assert (saved[1] is not None) == needed[3]
    y_RN.backward(g_RN)
    for leaf, gradient, wanted in zip(some, expected, needed, strict=True):
        assert (leaf.grad is not None) == wanted
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, gradient)


def test_no_rows_give_gradients_of_zero() -> None:
    leaves, ends_E, _ = operands([0, 0], (8, 16, 4), torch.float32)
    inputs = [leaf.requires_grad_() for leaf in leaves]
    y_RN, z_Rr = grouped_lora(*inputs, ends_E, 0.5)
    assert (y_RN.shape, z_Rr.shape) == ((0, 16), (0, 4))
    y_RN.sum().backward()
    assert all(
        leaf.grad is not None and leaf.grad.shape == leaf.shape and not leaf.grad.any() for leaf in inputs
    )


def test_a_sum_sends_an_expanded_gradient_back() -> None:
    leaves, ends_E, _ = operands([3, 4], (8, 16, 4), torch.float32)
    x_RD = leaves[0].requires_grad_()
    grouped_lora(*leaves, ends_E, 0.5)[0].sum().backward()
    assert x_RD.grad is not None


def test_factors_may_be_wider_than_the_rows() -> None:
    leaves, ends_E, g_RN = operands([3, 4], (8, 16, 8), torch.bfloat16)
    factors = [leaf.float().requires_grad_() for leaf in leaves[2:]]
    y_RN, _ = grouped_lora(*leaves[:2], *factors, ends_E, 0.5)
    y_RN.backward(g_RN)
    assert y_RN.dtype == torch.bfloat16
    assert all(factor.grad is not None and factor.grad.dtype == torch.float32 for factor in factors)


def test_row_r_depends_on_x_r_and_its_experts_matrices_only() -> None:
    leaves, ends_E, _ = operands([3, 4], (8, 16, 4), torch.float32)
    before = grouped_lora(*leaves, ends_E, 0.5)[0]
    x, w, a, b = (leaf.clone() for leaf in leaves)
    x[:3], w[0], a[0], b[0] = torch.nan, torch.nan, torch.nan, torch.nan
    torch.testing.assert_close(grouped_lora(x, w, a, b, ends_E, 0.5)[0][3:], before[3:])


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_one_expert_at_a_time_equals_three_grouped_products(counts: list[int]) -> None:
    leaves, ends_E, _ = operands(counts, (16, 24, 8), torch.float32)
    for actual, expected in zip(
        grouped_lora_by_expert(*leaves, ends_E, 0.5),
        grouped_lora_reference(*leaves, ends_E, 0.5),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)
