"""Top-k routing of tokens to experts: choice, gates and the expert-sorted order of rows.

Shape suffixes: T tokens, E experts, K chosen experts a token, R = T·K rows.

    order = stable_argsort(experts_TK.flatten());  row r holds token order[r] // K

The sort is stable and tokens are sample-major, so inside one expert the rows of one sample are contiguous: the
(expert, sample) segments that per-sample clipping needs cost nothing more.
Dropless: every choice of every token is served, whatever the other samples of the batch choose. A capacity limit would let
one sample change what another one computes, and per-sample clipping would no longer bound its influence.

Bytes: reads 4·T·E of scores, writes about 24·R of indices. FLOPs: O(T·E·log K).
Source: Shazeer et al. 2017, "Outrageously Large Neural Networks", section 2.1 (top-k gating).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """Where each row goes.

    Attributes:
        gates_TK: Weight of each chosen expert, non-negative, sums to 1 over K.
        token_R: Token of each expert-sorted row, int64.
        inverse_R: Position of slot t·K + k among the sorted rows, int64.
        expert_R: Expert of each sorted row, ascending, int64.
        ends_E: End offset of each expert's rows, int32, as `torch.nn.functional.grouped_mm` wants it.
    """

    gates_TK: Tensor
    token_R: Tensor
    inverse_R: Tensor
    expert_R: Tensor
    ends_E: Tensor


def route(logits_TE: Tensor, top_k: int) -> Routing:
    """Choose the top-k experts of every token and sort the rows by expert.

    Args:
        logits_TE: Router logits, (T, E), any float type.
        top_k: Experts a token, 1 ≤ top_k ≤ E.

    Returns:
        The routing; gates are the softmax over the chosen logits and differentiable in `logits_TE`.

    Guarantees:
        - Dropless: each of the T·K choices appears in exactly one row.
        - A token's choice and gates depend on its own logits only.
        - Rows of one expert keep the order of their tokens.
    """
    chosen_TK = torch.topk(logits_TE, top_k, dim=-1, sorted=True)
    gates_TK = torch.softmax(chosen_TK.values, dim=-1)
    expert_of_slot = chosen_TK.indices.reshape(-1)
    expert_R, order_R = torch.sort(expert_of_slot, stable=True)
    inverse_R = torch.empty_like(order_R)
    inverse_R[order_R] = torch.arange(order_R.numel(), device=order_R.device)
    counts_E = torch.bincount(expert_of_slot, minlength=logits_TE.shape[-1])
    return Routing(
        gates_TK=gates_TK,
        token_R=order_R // top_k,
        inverse_R=inverse_R,
        expert_R=expert_R,
        ends_E=torch.cumsum(counts_E, dim=0).to(torch.int32),
    )
