"""Grouped product with a low-rank adapter: every row through its expert's matrix and its expert's adapter.

    z[r] = x[r] A[e],   y[r] = x[r] W[e] + scale · z[r] B[e],   e = expert(r)

    u = g Bᵀ,  dx = g Wᵀ + scale · u Aᵀ,  dA = scale · xᵀ u,  dB = scale · zᵀ g      (sums over the rows of an expert)

(dx, u) is the same product with transposed matrices, (g, Wᵀ, Bᵀ, Aᵀ), so one kernel serves both directions. A and B are never
multiplied: the product would cost 2·E·D·r·N FLOPs and as many bytes as all weights.

Shape suffixes: R expert-sorted rows, E experts, D in, N out, r rank.
FLOPs: 2·R·D·N + 2·R·r·(D + N) a direction. Bytes: x, y, z and the touched weights once.
Sources: Hu et al. 2021, "LoRA", section 4.1; the grouped layout is that of Gale et al. 2023, "MegaBlocks", section 4.
"""

import torch
from torch import Tensor

from hansa.kernels.dispatch import on_triton
from hansa.kernels.grouped import grouped_matmul
from hansa.kernels.segments import clipped_weight_gradient


def grouped_lora(
    x_RD: Tensor, w_EDN: Tensor, a_EDr: Tensor, b_ErN: Tensor, ends_E: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Send each row through its expert's matrix and adapter.

    Args:
        x_RD: Rows sorted by expert.
        w_EDN: One matrix an expert; a transposed view of (E, N, D) will do.
        a_EDr: First factor of each adapter; any float type, worked on in that of `x_RD`.
        b_ErN: Second factor, likewise.
        ends_E: End offset of each expert's rows, int32.
        scale: Factor of the adapter, usually alpha / rank.

    Returns:
        y (R, N), differentiable in x, W, A and B; and z = x A (R, r) for whoever keeps records, not differentiable.

    Guarantees:
        - Row r depends on x[r] and its expert's matrices only.
        - Gradients of what needs none are not computed, and what only they need is not kept.
    """
    y_RN, z_Rr = GroupedLoRA.apply(x_RD, w_EDN, a_EDr, b_ErN, ends_E, scale)  # type: ignore[no-untyped-call]
    return y_RN, z_Rr


def grouped_lora_forward(
    x_RD: Tensor, w_EDN: Tensor, a_EDr: Tensor, b_ErN: Tensor, ends_E: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute `grouped_lora` without a gradient; all operands of one type."""
    if on_triton(x_RD, w_EDN, a_EDr, b_ErN) and len(x_RD):
        from hansa.kernels.grouped_lora_triton import launch  # noqa: PLC0415

        return launch(x_RD, w_EDN, a_EDr, b_ErN, ends_E, scale)
    if x_RD.device.type == "cpu":
        return grouped_lora_by_expert(x_RD, w_EDN, a_EDr, b_ErN, ends_E, scale)
    return grouped_lora_reference(x_RD, w_EDN, a_EDr, b_ErN, ends_E, scale)


def grouped_lora_reference(
    x_RD: Tensor, w_EDN: Tensor, a_EDr: Tensor, b_ErN: Tensor, ends_E: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute `grouped_lora_forward` as three grouped products: the reference of the kernel."""
    y_RN = grouped_matmul(x_RD, w_EDN, ends_E)
    z_Rr = grouped_matmul(x_RD, a_EDr, ends_E)
    return y_RN.add_(grouped_matmul(z_Rr, b_ErN, ends_E), alpha=scale), z_Rr


def grouped_lora_by_expert(
    x_RD: Tensor, w_EDN: Tensor, a_EDr: Tensor, b_ErN: Tensor, ends_E: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute `grouped_lora_forward` one expert at a time: a CPU adds z B while the expert's rows of y are in its cache."""
    y_RN, z_Rr = x_RD.new_empty(len(x_RD), w_EDN.shape[2]), x_RD.new_empty(len(x_RD), a_EDr.shape[2])
    rows = torch.diff(ends_E, prepend=ends_E.new_zeros(1)).tolist()
    x_E, y_E, z_E = (t.split_with_sizes(rows) for t in (x_RD, y_RN, z_Rr))
    for x, y, z, w_DN, a_Dr, b_rN in zip(x_E, y_E, z_E, w_EDN, a_EDr, b_ErN, strict=True):
        torch.mm(x, w_DN, out=y)
        torch.mm(x, a_Dr, out=z)
        y.addmm_(z, b_rN, alpha=scale)
    return y_RN, z_Rr


# torch's own `Function` is untyped; the contract is that of `grouped_lora`.
class GroupedLoRA(torch.autograd.Function):
    """One call for a map and its adapter: keeps x and z, not what plain autograd would keep of three products."""

    @staticmethod
    def forward(ctx, x_RD, w_EDN, a_EDr, b_ErN, ends_E, scale):  # type: ignore[no-untyped-def]  # noqa: D102
        a, b = a_EDr.to(x_RD.dtype), b_ErN.to(x_RD.dtype)
        y_RN, z_Rr = grouped_lora_forward(x_RD, w_EDN, a, b, ends_E, scale)
        _, of_w, of_a, of_b, *_ = ctx.needs_input_grad
        ctx.save_for_backward(
            x_RD if of_w or of_a else None, z_Rr if of_b else None, w_EDN, a_EDr, b_ErN, ends_E
        )
        ctx.scale = scale
        ctx.mark_non_differentiable(z_Rr)
        ctx.set_materialize_grads(False)
        return y_RN, z_Rr

    @staticmethod
    def backward(ctx, g_RN, _):  # type: ignore[no-untyped-def]  # noqa: D102
        if g_RN is None:
            return None, None, None, None, None, None
        x_RD, z_Rr, w_EDN, a_EDr, b_ErN, ends_E = ctx.saved_tensors
        of_x, of_w, of_a, of_b, *_ = ctx.needs_input_grad
        g_RN = g_RN.contiguous()  # expanded gradients, such as those of a sum, are refused by `grouped_mm`
        back = b_ErN.to(g_RN.dtype).transpose(1, 2)
        dx_RD = dw_EDN = da_EDr = db_ErN = None
        u_Rr = g_RN  # replaced where it is needed
        if of_x:
            forth = a_EDr.to(g_RN.dtype).transpose(1, 2)
            dx_RD, u_Rr = grouped_lora_forward(g_RN, w_EDN.transpose(1, 2), back, forth, ends_E, ctx.scale)
        elif of_a:
            u_Rr = grouped_matmul(g_RN, back, ends_E)
        if of_w:
            dw_EDN = clipped_weight_gradient(x_RD.contiguous(), g_RN, None, ends_E).to(w_EDN.dtype)
        if of_a:
            da_EDr = (
                clipped_weight_gradient(x_RD.contiguous(), u_Rr, None, ends_E).to(a_EDr.dtype).mul_(ctx.scale)
            )
        if of_b:
            db_ErN = clipped_weight_gradient(z_Rr, g_RN, None, ends_E).to(b_ErN.dtype).mul_(ctx.scale)
        return dx_RD, dw_EDN, da_EDr, db_ErN, None, None
