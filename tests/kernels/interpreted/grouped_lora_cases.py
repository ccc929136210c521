"""The grouped product with an adapter equals the reference, forward and as input gradient. Run by test_interpreted.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.kernels.grouped_lora import grouped_lora_reference
from hansa.kernels.grouped_lora_triton import launch

COUNTS = {
    "odd": [5, 123, 17],
    "empty experts": [0, 4, 0, 0, 9, 0],
    "one token": [0, 0, 1, 0],
    "all to one": [0, 131, 0],
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def assert_equal(
    counts: list[int], sizes: tuple[int, int, int], dtype: torch.dtype, *, transposed: bool
) -> None:
    (dim, width, rank), experts = sizes, len(counts)
    draws = torch.Generator().manual_seed(sum(counts))

    def drawn(*shape: int) -> torch.Tensor:
        *lead, rows, columns = shape
        if transposed and lead:
            return torch.randn(*lead, columns, rows, generator=draws).to(dtype).transpose(1, 2)
        return torch.randn(shape, generator=draws).to(dtype)

    x, w = drawn(sum(counts), dim), drawn(experts, dim, width) * dim**-0.5
    a, b = drawn(experts, dim, rank) * dim**-0.5, drawn(experts, rank, width)
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    y, z = launch(x, w, a, b, ends, 0.7)
    wide = [t.double() for t in (x, w, a, b)]
    for actual, expected in zip((y, z), grouped_lora_reference(*wide, ends, 0.7), strict=True):
        assert actual.dtype == dtype
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(actual.double() / scale, expected / scale, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_equals_the_reference(counts: list[int], dtype: torch.dtype, transposed: bool) -> None:
    assert_equal(counts, (100, 70, 8), dtype, transposed=transposed)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any),
    dim=st.integers(1, 40),
    width=st.integers(1, 140),
    rank=st.integers(1, 20),
)
def test_any_size(counts: list[int], dim: int, width: int, rank: int) -> None:
    assert_equal(counts, (dim, width, rank), torch.float32, transposed=False)
