"""The segment kernels equal the reference. Run by test_interpreted.py, with TRITON_INTERPRET=1."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.kernels.segments_triton import square_norms, weight_gradient

COUNTS = {
    "odd": [5, 123, 17],
    "empty": [0, 4, 0, 0, 9, 0],
    "one row": [0, 0, 1, 0],
    "all to one": [0, 131, 0],
}


def assert_equal(counts: list[int], rank: int, width: int, dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(sum(counts))
    rows, experts = sum(counts), 3
    z, g = (torch.randn(rows, w, generator=draws).to(dtype) for w in (rank, width))
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    outer = torch.zeros(len(counts), rank, width, dtype=torch.float64)
    outer.index_add_(0, owner, z.double().unsqueeze(2) * g.double().unsqueeze(1))
    expert_S = torch.arange(len(counts)) % experts
    mask = (torch.rand(experts, rank, width, generator=draws) < 0.5).float()
    squares = outer.square()
    tolerance = 1e-5
    for given_mask, expected in ((None, squares), (mask, squares * mask[expert_S])):
        actual = square_norms(z, g, ends, expert_S, given_mask)
        assert actual.dtype == torch.float64
        torch.testing.assert_close(actual, expected.sum((1, 2)), rtol=tolerance, atol=1e-9)

    def close(actual: Tensor, expected: Tensor, absolute: float) -> None:
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=absolute)

    close(weight_gradient(z, g, None, ends), outer, 1e-4)
    weights = torch.rand(rows, generator=draws)
    weighted = torch.zeros_like(outer)
    weighted.index_add_(
        0, owner, (z.double() * weights.double().unsqueeze(1)).unsqueeze(2) * g.double().unsqueeze(1)
    )
    close(weight_gradient(z, g, weights, ends), weighted, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rank", "width"), [(16, 64), (5, 3)])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_equals_the_reference(counts: list[int], rank: int, width: int, dtype: torch.dtype) -> None:
    assert_equal(counts, rank, width, dtype)


def test_several_blocks_of_the_gradient() -> None:
    assert_equal([3, 0, 8], 70, 130, torch.float32)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any), rank=st.integers(1, 9))
def test_any_counts(counts: list[int], rank: int) -> None:
    assert_equal(counts, rank, 7, torch.float32)


def test_one_segments_nan_stays_there() -> None:
    z, g = torch.ones(6, 4), torch.ones(6, 4)
    g[1] = torch.nan
    squares = square_norms(z, g, torch.tensor([2, 6], dtype=torch.int32), torch.tensor([0, 1]), None)
    assert squares[0].isnan()
    assert squares[1] == 16 * 16
