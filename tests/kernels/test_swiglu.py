"""The gated activation: equal to its formula, forward and backward, at every size."""

import pytest
import torch
import torch.nn.functional as F

from hansa.kernels.swiglu import swiglu


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 8), (0, 4), (1, 2), (1100, 6), (2, 3, 10)], ids=str)
def test_equals_the_formula_forward_and_backward(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(shape, generator=draws, dtype=torch.float64)).to(dtype).requires_grad_()
    gate, up = x.double().chunk(2, dim=-1)
    expected = F.silu(gate) * up
    g = torch.randn(expected.shape, generator=draws, dtype=torch.float64).to(dtype)
    y = swiglu(x)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    (wanted,) = torch.autograd.grad(expected, x, g.double())
    (actual,) = torch.autograd.grad(y, x, g)
    assert (y.dtype, actual.dtype) == (dtype, dtype)
    torch.testing.assert_close(actual.double(), wanted.double(), rtol=tolerance, atol=4 * tolerance)


def test_gradients_equal_finite_differences() -> None:
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(swiglu, x.requires_grad_())
    assert torch.autograd.gradcheck(lambda y: swiglu(y.t()), x[:2].detach().requires_grad_())
