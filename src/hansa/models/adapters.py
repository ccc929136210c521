"""LoRA with a frozen public factor: y = x W + scale · (x A) B, where only B is trained.

Only one factor moves in a study, so a sum of updates over participants is exact: mean(A B_i) = A mean(B_i). With both factors
trained the mean of the products is not the product of the means, and noise on both multiplies. Outside of studies A may be trained.
Source: Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning" (FFA-LoRA), section 4; here A is orthonormal,
so that every direction of B has the same gain.

Shape suffixes: B samples, T tokens, D in, N out, r rank, R expert-sorted rows, E experts.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from hansa import labels
from hansa.kernels.grouped import grouped_matmul, grouped_outer_sum
from hansa.kernels.grouped_lora import grouped_lora_forward
from hansa.models.tape import DenseRecord, ExpertRecord, FeatureRecord, Record, Rows, Tape, spread_rows

_MERGED_TYPES = (torch.float32, torch.float64)
_SMALL_WEIGHT = 1 << 20  # numbers in the matrices of a layer's experts, below which merging is faster


def orthonormal_factor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw the public factor A of an adapter.

    Args:
        name: Name of the adapter; different names give independent factors.
        shape: (..., D, r) with D ≥ r.
        seed: Public seed, part of the study.

    Returns:
        float32 tensor whose last two dimensions have orthonormal columns: AᵀA = 1.
    """
    label = labels.ADAPTER_FACTOR + name.encode() + seed.to_bytes(8, "little", signed=True)
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(label).digest(), "little"))
    factor, _ = np.linalg.qr(generator.standard_normal(shape))
    return torch.from_numpy(factor.astype(np.float32))


# torch's own `Function` is untyped; the contract of each is its docstring.
class DenseFactor(torch.autograd.Function):
    """y = z W for a trainable W; the backward pass leaves (z, g) on the tape, or gives the plain gradient without one."""

    @staticmethod
    def forward(ctx, z_BTZ, w_ZN, name, tape):  # type: ignore[no-untyped-def]  # noqa: D102
        ctx.save_for_backward(z_BTZ, w_ZN)
        ctx.name, ctx.tape = name, tape
        return z_BTZ @ w_ZN.to(z_BTZ.dtype)

    @staticmethod
    def backward(ctx, g_BTN):  # type: ignore[no-untyped-def]  # noqa: D102
        z_BTZ, w_ZN = ctx.saved_tensors
        record = DenseRecord(name=ctx.name, z_BTZ=z_BTZ.detach(), g_BTN=g_BTN)
        grad_z = g_BTN @ w_ZN.to(g_BTN.dtype).t() if ctx.needs_input_grad[0] else None
        grad_w = _leave(ctx.tape, record, g_BTN.new_ones(len(g_BTN))) if ctx.needs_input_grad[1] else None
        return grad_z, grad_w, None, None


class AdaptedExperts(torch.autograd.Function):
    """y[r] = x[r] (W + scale · A B)[expert(r)] with B trainable, A if wanted; the backward pass works like `DenseFactor`'s.

    Map and adapter are those of `hansa.kernels.grouped_lora`, unless the experts of a layer are tiny. Then its calls, three an
    expert, cost more than the arithmetic, and the adapter is merged into the weights once a call; the product with A rides along in
    the same grouped product. Merged and transposed weights stay in the cache there; larger ones are copied through memory, which
    no number of rows makes up for. A half-precision weight would swallow the small product, so it is never merged.
    """

    @staticmethod
    def forward(ctx, x_RD, w_EDN, a_EDr, b_ErN, scale, names, rows, tape):  # type: ignore[no-untyped-def]  # noqa: D102
        a_EDr, b_ErN = a_EDr.to(x_RD.dtype), b_ErN.to(x_RD.dtype)
        ctx.merged = w_EDN.numel() <= _SMALL_WEIGHT and w_EDN.dtype in _MERGED_TYPES
        if ctx.merged:
            w_EDN = torch.baddbmm(w_EDN, a_EDr, b_ErN, alpha=scale)
            both = grouped_matmul(x_RD, torch.cat([w_EDN, a_EDr], dim=2), rows.ends_E)
            widths = [w_EDN.shape[2], a_EDr.shape[2]]
            y_RN, z_Rr = (part.contiguous() for part in torch.split(both, widths, dim=1))
        else:
            y_RN, z_Rr = grouped_lora_forward(x_RD, w_EDN, a_EDr, b_ErN, rows.ends_E, scale)
        of_w, of_a, of_b = ctx.needs_input_grad[1:4]
        ctx.save_for_backward(
            x_RD if of_w or of_a else None, z_Rr.mul_(scale) if of_b else None, w_EDN, a_EDr, b_ErN
        )
        ctx.scale, ctx.names, ctx.rows, ctx.tape = scale, names, rows, tape
        return y_RN

    @staticmethod
    def backward(ctx, g_RN):  # type: ignore[no-untyped-def]  # noqa: D102
        x_RD, z_Rr, w_EDN, a_EDr, b_ErN = ctx.saved_tensors
        g_RN, rows = g_RN.contiguous(), ctx.rows
        _, of_w, of_a, of_b, *_ = ctx.needs_input_grad
        back_END, back_ENr, back_ErD = (w.transpose(1, 2) for w in (w_EDN, b_ErN, a_EDr))
        if ctx.merged:
            grad_x = grouped_matmul(g_RN, back_END, rows.ends_E)
            u_Rr = grouped_matmul(g_RN, back_ENr, rows.ends_E) if of_a else None
        else:
            grad_x, u_Rr = grouped_lora_forward(g_RN, back_END, back_ENr, back_ErD, rows.ends_E, ctx.scale)
        grad_w = grouped_outer_sum(x_RD.contiguous(), g_RN, rows.ends_E) if of_w else None
        grad_a = grad_b = None
        if of_b:
            grad_b = _leave_rows(ctx.tape, ctx.names[1], z_Rr, g_RN, rows)
        if of_a:
            grad_a = _leave_rows(ctx.tape, ctx.names[0], x_RD.contiguous().detach(), u_Rr * ctx.scale, rows)
        return grad_x, grad_w, grad_a, grad_b, None, None, None, None


class FeatureFactor(torch.autograd.Function):
    """y[b,j] = z[b,j] W[j] for a trainable W; the backward pass works like `DenseFactor`'s, z needs no gradient."""

    @staticmethod
    def forward(ctx, z_BJZ, w_UN, used_JZ, name, tape):  # type: ignore[no-untyped-def]  # noqa: D102
        ctx.save_for_backward(z_BJZ, used_JZ)
        ctx.name, ctx.tape = name, tape
        return torch.bmm(z_BJZ.transpose(0, 1), spread_rows(w_UN, used_JZ)).transpose(0, 1)

    @staticmethod
    def backward(ctx, g_BJN):  # type: ignore[no-untyped-def]  # noqa: D102
        z_BJZ, used_JZ = ctx.saved_tensors
        record = FeatureRecord(name=ctx.name, z_BJZ=z_BJZ.detach(), g_BJN=g_BJN, used_JZ=used_JZ)
        grad_w = _leave(ctx.tape, record, g_BJN.new_ones(len(g_BJN))) if ctx.needs_input_grad[1] else None
        return None, grad_w, None, None, None


def _leave_rows(tape: Tape | None, name: str, z_RZ: Tensor, g_RN: Tensor, rows: Rows) -> Tensor | None:
    record = ExpertRecord(
        name=name,
        z_RZ=z_RZ,
        g_RN=g_RN,
        rows=rows,
    )
    return _leave(tape, record, g_RN.new_ones(rows.samples))


def _leave(tape: Tape | None, record: Record, ones_B: Tensor) -> Tensor | None:
    """Put the record on the tape, or give the plain summed gradient where no tape runs."""
    if tape is not None:
        tape.add(record)
        return None
    return record.weighted_sum(ones_B)


def dense_factor(z_BTZ: Tensor, w_ZN: Tensor, name: str, tape: Tape | None) -> Tensor:
    """Apply a trainable matrix to every token: (B, T, Z) -> (B, T, N)."""
    result: Tensor = DenseFactor.apply(z_BTZ, w_ZN, name, tape)  # type: ignore[no-untyped-call]
    return result


def adapted_experts(
    x_RD: Tensor,
    w_EDN: Tensor,
    a_EDr: Tensor,
    b_ErN: Tensor,
    *,
    scale: float,
    names: tuple[str, str],
    rows: Rows,
    tape: Tape | None,
) -> Tensor:
    """Apply each row's expert with its adapter, whose factors A and B are called `names`: (R, D) -> (R, N)."""
    result: Tensor = AdaptedExperts.apply(x_RD, w_EDN, a_EDr, b_ErN, scale, names, rows, tape)  # type: ignore[no-untyped-call]
    return result


def feature_factor(z_BJZ: Tensor, w_UN: Tensor, used_JZ: Tensor, name: str, tape: Tape | None) -> Tensor:
    """Apply each feature token's trainable matrix: (B, J, Z) -> (B, J, N); W holds the used rows only, (U, N)."""
    result: Tensor = FeatureFactor.apply(z_BJZ, w_UN, used_JZ, name, tape)  # type: ignore[no-untyped-call]
    return result
