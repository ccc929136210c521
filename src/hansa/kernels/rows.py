"""From tokens to expert-sorted rows and back, weighted by the gates.

    spread:   x_rows[r] = x[token(r)]                      backward:  dx[t] = Σ_k d_rows[row(t, k)]
    gather:   y[t] = Σ_k gate[t, k] · y_rows[row(t, k)]    backward:  d_rows[r] = gate(r) · dy[token(r)],
                                                                      d_gate[t, k] = y_rows[row(t, k)] · dy[token(r)]

Both directions read through the inverse order of `hansa.kernels.routing`, so every sum is taken in the order of k: the same bits in
every run, without an atomic addition. The K rows of a token are never laid side by side.

Shape suffixes: T tokens, K chosen experts a token, R = T·K expert-sorted rows, D width.
Bytes: the rows and the tokens once; FLOPs: 2·R·D. Bound by memory everywhere.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hansa.kernels.routing import Routing


def spread_tokens(x_TD: Tensor, routing: Routing) -> Tensor:
    """Copy each token to its rows, (T, D) -> (R, D); differentiable.

    Guarantees:
        - Row r is its token, exactly; the gradient of a token is the sum over its rows in the order of its choices.
    """
    inverse_TK = routing.inverse_R.view(routing.expert_TK.shape)
    rows: Tensor = SpreadTokens.apply(x_TD, routing.token_R, inverse_TK)  # type: ignore[no-untyped-call]
    return rows


def gather_rows(y_RD: Tensor, routing: Routing) -> Tensor:
    """Add up each token's rows, weighted by its gates, (R, D) -> (T, D); differentiable in the rows and the gates.

    Returns:
        (T, D), type of `y_RD`; products and sums in the wider of its type and that of the gates.

    Guarantees:
        - A token's result depends on its own rows and gates only.
    """
    inverse_TK = routing.inverse_R.view(routing.gates_TK.shape)
    y_TD: Tensor = GatherRows.apply(y_RD, routing.gates_TK, routing.token_R, inverse_TK)  # type: ignore[no-untyped-call]
    return y_TD


def weighted_row_sum(y_RD: Tensor, inverse_TK: Tensor, gates_TK: Tensor | None) -> Tensor:
    """Σ_k gate[t, k] · y[inverse[t, k]] without a gradient, (T, D)."""
    if len(inverse_TK) == 0:
        return y_RD.new_zeros(0, y_RD.shape[1])
    if gates_TK is None or gates_TK.dtype == y_RD.dtype:
        return F.embedding_bag(inverse_TK, y_RD, per_sample_weights=gates_TK, mode="sum")
    # Rows of half precision under float32 gates: one choice at a time, so that no wide copy of all rows is made.
    wide_TD = torch.zeros(len(inverse_TK), y_RD.shape[1], dtype=gates_TK.dtype, device=y_RD.device)
    for k in range(inverse_TK.shape[1]):
        wide_TD.addcmul_(y_RD.index_select(0, inverse_TK[:, k]).to(gates_TK.dtype), gates_TK[:, k : k + 1])
    return wide_TD.to(y_RD.dtype)


# torch's own `Function` is untyped; the contracts are those of `spread_tokens` and `gather_rows`.
class SpreadTokens(torch.autograd.Function):
    """Tokens to rows."""

    @staticmethod
    def forward(ctx, x_TD, token_R, inverse_TK):  # type: ignore[no-untyped-def]  # noqa: D102
        ctx.save_for_backward(inverse_TK)
        return x_TD.index_select(0, token_R)

    @staticmethod
    def backward(ctx, g_RD):  # type: ignore[no-untyped-def]  # noqa: D102
        return weighted_row_sum(g_RD.contiguous(), ctx.saved_tensors[0], None), None, None


class GatherRows(torch.autograd.Function):
    """Rows to tokens."""

    @staticmethod
    def forward(ctx, y_RD, gates_TK, token_R, inverse_TK):  # type: ignore[no-untyped-def]  # noqa: D102
        ctx.save_for_backward(y_RD if ctx.needs_input_grad[1] else None, gates_TK, token_R, inverse_TK)
        return weighted_row_sum(y_RD, inverse_TK, gates_TK)

    @staticmethod
    def backward(ctx, g_TD):  # type: ignore[no-untyped-def]  # noqa: D102
        y_RD, gates_TK, token_R, inverse_TK = ctx.saved_tensors
        d_rows, d_gates = g_TD.index_select(0, token_R), None
        if y_RD is not None:
            d_gates = (y_RD * d_rows).sum(dim=1, dtype=gates_TK.dtype)[inverse_TK]
        if ctx.needs_input_grad[0]:
            gate_R = torch.empty_like(gates_TK).flatten()
            gate_R[inverse_TK.flatten()] = gates_TK.flatten()
            same = gate_R.dtype == d_rows.dtype
            d_rows = (
                d_rows.mul_(gate_R.unsqueeze(1)) if same else (d_rows * gate_R.unsqueeze(1)).to(g_TD.dtype)
            )
        return d_rows if ctx.needs_input_grad[0] else None, d_gates, None, None
