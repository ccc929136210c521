"""The gated activation of an expert: y = silu(gate) ∘ up, gate and up side by side in one tensor.

    silu(a) = a σ(a),   d_gate = g ∘ up ∘ σ(a) (1 + a (1 − σ(a))),   d_up = g ∘ silu(a)

Shape suffixes: R rows, N = 2F columns of which the first F are the gate.
Bytes: 3·R·F entries forward, 5·R·F backward; bound by memory. Keeps its input only: plain autograd would keep silu(gate) and join
two gradients in a copy.
Source: Shazeer 2020, "GLU Variants Improve Transformer", equation 6 (SwiGLU).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_ROWS = 512  # the five intermediates of so many rows stay in the cache


def swiglu(gate_up_RN: Tensor) -> Tensor:
    """Apply the activation to the last dimension, (..., 2F) -> (..., F); differentiable."""
    y_RF: Tensor = SwiGLU.apply(gate_up_RN)  # type: ignore[no-untyped-call]
    return y_RF


# torch's own `Function` is untyped; the contract is that of `swiglu`.
class SwiGLU(torch.autograd.Function):
    """The activation, its silu computed again in the backward pass."""

    @staticmethod
    def forward(ctx, gate_up_RN):  # type: ignore[no-untyped-def]  # noqa: D102
        ctx.save_for_backward(gate_up_RN)
        gate, up = gate_up_RN.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, g_RF):  # type: ignore[no-untyped-def]  # noqa: D102
        (gate_up,) = ctx.saved_tensors
        width = gate_up.shape[-1]
        d_RN = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
        rows = _BLOCK_ROWS if gate_up.device.type == "cpu" else max(1, gate_up.numel() // max(1, width))
        parts = (x.reshape(-1, x.shape[-1]).split(rows) for x in (gate_up, g_RF, d_RN))
        for gate_up_block, g, d_block in zip(*parts, strict=True):
            (gate, up), (d_gate, d_up) = gate_up_block.chunk(2, dim=1), d_block.chunk(2, dim=1)
            sigmoid = torch.sigmoid(gate)
            silu = gate * sigmoid
            torch.mul(g, silu, out=d_up)
            # σ (1 + a (1 − σ)) = σ + silu(a) (1 − σ)
            torch.mul(torch.addcmul(sigmoid, silu, 1 - sigmoid).mul_(g), up, out=d_gate)
        return d_RN
