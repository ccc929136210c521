"""Tokens to rows and back: equal to indexing, one token at a time, forward and backward."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.kernels.routing import Routing, route
from hansa.kernels.rows import gather_rows, spread_tokens

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}


def routing_of(tokens: int, experts: int, top_k: int, dtype: torch.dtype) -> Routing:
    logits_TE = torch.randn(
        tokens, experts, generator=torch.Generator().manual_seed(tokens), dtype=torch.float64
    )
    return route(logits_TE.to(dtype), top_k)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(tokens=st.integers(0, 9), top_k=st.integers(1, 4), dtype=st.sampled_from(list(TOLERANCE)))
def test_rows_and_gradients_equal_one_token_at_a_time(tokens: int, top_k: int, dtype: torch.dtype) -> None:
    routing = routing_of(tokens, 4, top_k, dtype)
    draws = torch.Generator().manual_seed(0)
    x_TD, g_TD = (torch.randn(tokens, 5, generator=draws).to(dtype) for _ in range(2))
    y_RD, g_RD = (torch.randn(tokens * top_k, 5, generator=draws).to(dtype) for _ in range(2))

    def close(actual: Tensor, expected: Tensor) -> None:
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=3 * tolerance)

    x_TD.requires_grad_()
    rows_RD = spread_tokens(x_TD, routing)
    torch.testing.assert_close(rows_RD, x_TD[routing.token_R], rtol=0, atol=0)
    (dx_TD,) = torch.autograd.grad(rows_RD, x_TD, g_RD)
    slots = routing.inverse_R.view(tokens, top_k)
    assert dx_TD.dtype == dtype
    for token in range(tokens):
        close(dx_TD[token], g_RD[slots[token]].double().sum(0))

    gates_TK = routing.gates_TK.clone().requires_grad_()
    y_RD.requires_grad_()
    result_TD = gather_rows(y_RD, replace(routing, gates_TK=gates_TK))
    assert result_TD.dtype == dtype
    dy_RD, dgates_TK = torch.autograd.grad(result_TD, (y_RD, gates_TK), g_TD)
    assert (dy_RD.dtype, dgates_TK.dtype) == (dtype, gates_TK.dtype)
    for token in range(tokens):
        rows = y_RD[slots[token]].double()
        close(result_TD[token], gates_TK[token].double() @ rows)
        close(dy_RD[slots[token]], gates_TK[token].double().unsqueeze(1) * g_TD[token].double())
        close(dgates_TK[token], rows @ g_TD[token].double())


def test_gradients_equal_finite_differences() -> None:
    routing = routing_of(4, 3, 2, torch.float64)
    y_RD = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = (y_RD.requires_grad_(), routing.gates_TK.requires_grad_())
    assert torch.autograd.gradcheck(lambda y, gates: gather_rows(y, replace(routing, gates_TK=gates)), inputs)
    assert torch.autograd.gradcheck(lambda x: spread_tokens(x, routing), y_RD[:4].detach().requires_grad_())


@pytest.mark.parametrize("needs", ["rows", "gates"])
def test_only_what_is_needed_is_kept(needs: str) -> None:
    routing = routing_of(4, 3, 2, torch.float32)
    y_RD = torch.ones(8, 3, requires_grad=needs == "rows")
    gates_TK = routing.gates_TK.requires_grad_(needs == "gates")
    result_TD = gather_rows(y_RD, replace(routing, gates_TK=gates_TK))
    assert (result_TD.grad_fn.saved_tensors[0] is None) == (needs == "rows")  # type: ignore[union-attr]
    result_TD.sum().backward()
    assert (y_RD.grad is None) == (needs == "gates")


def test_a_tokens_result_depends_on_its_own_rows_only() -> None:
    routing = routing_of(5, 4, 2, torch.float32)
    y_RD = torch.full((10, 3), torch.nan)
    mine = routing.inverse_R.view(5, 2)[3]
    y_RD[mine] = 1.0
    torch.testing.assert_close(gather_rows(y_RD, routing)[3], torch.ones(3))
