"""LoRA with a frozen public factor: y = x W + scale · (x A) B, where only B is trained.

Only one factor moves, so a sum of updates over participants is exact: mean(A B_i) = A mean(B_i). With both factors trained the
mean of the products is not the product of the means, and noise on both multiplies.
Source: Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning" (FFA-LoRA), section 4; here A is orthonormal,
so that every direction of B has the same gain.

Shape suffixes: B samples, T tokens, D in, N out, r rank, R expert-sorted rows, E experts.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hansa import labels
from hansa.kernels.grouped import grouped_matmul
from hansa.kernels.segments import Segments
from hansa.models.tape import DenseRecord, ExpertRecord, FeatureRecord, Record, Tape, spread_rows


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


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Expert-sorted rows and whose they are."""

    ends_E: Tensor
    sample_R: Tensor
    samples: int
    segments: Segments


# torch's own `Function` is untyped; the contract of each is its docstring.
class DenseFactor(torch.autograd.Function):
    """y = z W for a trainable W; the backward pass leaves (z, g) on the tape, or gives the plain gradient without one."""

    @staticmethod
    def forward(ctx, z_BTZ, w_ZN, name, tape):  # type: ignore[no-untyped-def]  # noqa: D102
        ctx.save_for_backward(z_BTZ, w_ZN)
        ctx.name, ctx.tape = name, tape
        return z_BTZ @ w_ZN

    @staticmethod
    def backward(ctx, g_BTN):  # type: ignore[no-untyped-def]  # noqa: D102
        z_BTZ, w_ZN = ctx.saved_tensors
        record = DenseRecord(name=ctx.name, z_BTZ=z_BTZ.detach(), g_BTN=g_BTN)
        grad_z = g_BTN @ w_ZN.t() if ctx.needs_input_grad[0] else None
        return grad_z, _leave(ctx, record, g_BTN.new_ones(len(g_BTN))), None, None


class ExpertFactor(torch.autograd.Function):
    """y[r] = z[r] W[expert(r)] for a trainable W; the backward pass works like `DenseFactor`'s."""

    @staticmethod
    def forward(ctx, z_RZ, w_EZN, name, rows, tape):  # type: ignore[no-untyped-def]  # noqa: D102
        ctx.save_for_backward(z_RZ, w_EZN)
        ctx.name, ctx.rows, ctx.tape = name, rows, tape
        return grouped_matmul(z_RZ, w_EZN, rows.ends_E)

    @staticmethod
    def backward(ctx, g_RN):  # type: ignore[no-untyped-def]  # noqa: D102
        z_RZ, w_EZN = ctx.saved_tensors
        g_RN, rows = g_RN.contiguous(), ctx.rows
        record = ExpertRecord(
            name=ctx.name,
            z_RZ=z_RZ.detach(),
            g_RN=g_RN,
            sample_R=rows.sample_R,
            samples=rows.samples,
            segments=rows.segments,
            ends_E=rows.ends_E,
        )
        grad_z = grouped_matmul(g_RN, w_EZN.transpose(1, 2).contiguous(), rows.ends_E)
        return grad_z, _leave(ctx, record, g_RN.new_ones(rows.samples)), None, None, None


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
        return None, _leave(ctx, record, g_BJN.new_ones(len(g_BJN))), None, None, None


def _leave(ctx: Any, record: Record, ones_B: Tensor) -> Tensor | None:
    """Put the record on the tape, or give the plain summed gradient where no tape runs; nothing for a frozen factor."""
    if not ctx.needs_input_grad[1]:
        return None
    if ctx.tape is not None:
        ctx.tape.add(record)
        return None
    return record.weighted_sum(ones_B)


def dense_factor(z_BTZ: Tensor, w_ZN: Tensor, name: str, tape: Tape | None) -> Tensor:
    """Apply a trainable matrix to every token: (B, T, Z) -> (B, T, N)."""
    result: Tensor = DenseFactor.apply(z_BTZ, w_ZN, name, tape)  # type: ignore[no-untyped-call]
    return result


def expert_factor(z_RZ: Tensor, w_EZN: Tensor, name: str, rows: Rows, tape: Tape | None) -> Tensor:
    """Apply each row's trainable expert matrix: (R, Z) -> (R, N)."""
    result: Tensor = ExpertFactor.apply(z_RZ, w_EZN, name, rows, tape)  # type: ignore[no-untyped-call]
    return result


def feature_factor(z_BJZ: Tensor, w_UN: Tensor, used_JZ: Tensor, name: str, tape: Tape | None) -> Tensor:
    """Apply each feature token's trainable matrix: (B, J, Z) -> (B, J, N); W holds the used rows only, (U, N)."""
    result: Tensor = FeatureFactor.apply(z_BJZ, w_UN, used_JZ, name, tape)  # type: ignore[no-untyped-call]
    return result
