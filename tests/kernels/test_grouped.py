"""Grouped products: the fast path equals the loop over experts, forward and backward, at every size."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.kernels.grouped import (
    grouped_matmul,
    grouped_matmul_reference,
    grouped_outer_sum,
    grouped_outer_sum_reference,
)

COUNTS = {
    "normal": [3, 5, 1, 7],
    "odd": [5, 123, 17],
    "empty experts": [0, 4, 0, 0, 9, 0],
    "one token": [0, 0, 1, 0],
    "all to one": [0, 31, 0],
    "no row": [0, 0],
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def operands(
    counts: list[int], dim: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    rows = sum(counts)
    x_RD = torch.randn(rows, dim, generator=draws).to(dtype)
    g_RN = torch.randn(rows, width, generator=draws).to(dtype)
    w_EDN = (torch.randn(len(counts), dim, width, generator=draws) * dim**-0.5).to(dtype)
    return x_RD, g_RN, w_EDN, torch.tensor(counts).cumsum(0).to(torch.int32)


def by_hand(x_RD: Tensor, w_EDN: Tensor, counts: list[int]) -> Tensor:
    """One row at a time, in float64: independent of both implementations."""
    experts = [expert for expert, count in enumerate(counts) for _ in range(count)]
    rows = [x.double() @ w_EDN[e].double() for x, e in zip(x_RD, experts, strict=True)]
    return torch.stack(rows) if rows else torch.zeros(0, w_EDN.shape[2], dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("dim", "width"), [(8, 16), (5, 3), (8, 3), (1, 1)])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_forward_equals_the_reference(counts: list[int], dim: int, width: int, dtype: torch.dtype) -> None:
    x_RD, g_RN, w_EDN, ends_E = operands(counts, dim, width, dtype)
    y_RN = grouped_matmul(x_RD, w_EDN, ends_E)
    assert (y_RN.shape, y_RN.dtype) == ((len(x_RD), width), dtype)
    close(y_RN, grouped_matmul_reference(x_RD, w_EDN, ends_E), dtype)
    close(y_RN, by_hand(x_RD, w_EDN, counts), dtype)

    s_EDN = grouped_outer_sum(x_RD, g_RN, ends_E)
    assert (s_EDN.shape, s_EDN.dtype) == (w_EDN.shape, dtype)
    scale = max(1.0, max(counts) ** 0.5)
    close(s_EDN / scale, grouped_outer_sum_reference(x_RD, g_RN, ends_E) / scale, dtype)
    for expert, count in enumerate(counts):
        assert count or not s_EDN[expert].any()  # zero for an expert without rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("dim", "width"), [(8, 16), (5, 3)])
@pytest.mark.parametrize(
    "counts", [c for c in COUNTS.values() if sum(c)], ids=[k for k in COUNTS if k != "no row"]
)
def test_gradients_equal_the_reference(counts: list[int], dim: int, width: int, dtype: torch.dtype) -> None:
    x_RD, g_RN, w_EDN, ends_E = operands(counts, dim, width, dtype)

    def gradients(product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        x, w = x_RD.clone().requires_grad_(), w_EDN.clone().requires_grad_()
        return torch.autograd.grad(product(x, w, ends_E), (x, w), g_RN)

    fast, reference = gradients(grouped_matmul), gradients(grouped_matmul_reference)
    for actual, expected in zip(fast, reference, strict=True):
        close(actual, expected, dtype)
    close(grouped_outer_sum(x_RD, g_RN, ends_E), reference[1], dtype)


@pytest.mark.parametrize(("dim", "width", "fast"), [(8, 16, True), (6, 16, False), (8, 6, False)])
def test_the_fast_path_serves_aligned_widths_only(
    dim: int, width: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x_RD, g_RN, w_EDN, ends_E = operands([2, 3], dim, width, torch.float32)
    calls, original = [], F.grouped_mm
    monkeypatch.setattr(F, "grouped_mm", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    grouped_matmul(x_RD, w_EDN, ends_E)
    grouped_outer_sum(x_RD, g_RN, ends_E)
    assert len(calls) == 2 * fast
    grouped_matmul(x_RD.double(), w_EDN.double(), ends_E)
    assert len(calls) == 2 * fast


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any),
    dim=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_row_r_depends_on_x_r_and_its_experts_matrix_only(
    counts: list[int], dim: int, width: int, seed: int, data: st.DataObject
) -> None:
    x_RD, _, w_EDN, ends_E = operands(counts, dim, width, torch.float32)
    row = data.draw(st.integers(0, len(x_RD) - 1))
    expert = int((ends_E <= row).sum())
    before = grouped_matmul(x_RD, w_EDN, ends_E)[row]
    others = torch.randn(x_RD.shape, generator=torch.Generator().manual_seed(seed)) * 100
    others[row] = x_RD[row]
    matrices = torch.full_like(w_EDN, float("nan"))
    matrices[expert] = w_EDN[expert]
    after = grouped_matmul(others, matrices, ends_E)[row]
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(after, x_RD[row] @ w_EDN[expert])
