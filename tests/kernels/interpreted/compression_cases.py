"""The compression kernel equals the reference bit by bit. Run by test_interpreted.py, with TRITON_INTERPRET=1."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.kernels.compression import compress_reference
from hansa.kernels.compression_triton import launch


def assert_equal(count: int, lanes: int, maximum_level: int, spare: int, dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(count)
    values = torch.randn(count + 20, generator=draws, dtype=torch.float64).to(dtype)
    values[:3] = torch.tensor([float("inf"), float("nan"), -0.0])
    support = torch.randperm(count + 20, generator=draws)[:count]
    uniforms = torch.rand(count, generator=draws, dtype=torch.float64)
    uniforms[::3] = 0.0
    sizes = {
        "bound": 0.1 * (count % 7 + 1),
        "maximum_level": maximum_level,
        "radix": 2 * maximum_level * 16 + 1,
        "lanes": lanes,
        "slots": -(-count // lanes) + spare,
    }
    actual = launch(values, support, uniforms, **sizes)
    assert torch.equal(actual, compress_reference(values, support, uniforms, **sizes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("count", "lanes", "level", "spare"), [(5000, 4, 127, 3), (1, 1, 1, 0), (700, 3, 32767, 600)]
)
def test_equals_the_reference(count: int, lanes: int, level: int, spare: int, dtype: torch.dtype) -> None:
    assert_equal(count, lanes, level, spare, dtype)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(count=st.integers(1, 900), lanes=st.integers(1, 4), spare=st.integers(0, 50))
def test_any_size(count: int, lanes: int, spare: int) -> None:
    assert_equal(count, lanes, 127, spare, torch.float32)
