"""Top-k routing of tokens to experts: choice, gates and the expert-sorted order of rows.

Shape suffixes: T tokens, E experts, K chosen experts a token, G groups of experts, R = T·K rows.

    order = stable_argsort(experts_TK.flatten());  row r holds token order[r] // K

The sort is stable and tokens are sample-major, so inside one expert the rows of one sample are contiguous: the
(expert, sample) segments that per-sample clipping needs cost nothing more.
Dropless: every choice of every token is served, whatever the other samples of the batch choose. A capacity limit would let
one sample change what another one computes, and per-sample clipping would no longer bound its influence. The selection bias is
read, never updated: an update from the load of the experts would carry every sample's choices into the next step.

Bytes: reads 4·T·E of scores, writes about 32·R of indices. FLOPs: O(T·E·log K).
Sources: Shazeer et al. 2017, "Outrageously Large Neural Networks", section 2.1 (top-k gating); DeepSeek-AI 2024, "DeepSeek-V3",
section 2.1.2 (sigmoid, bias in the choice only) and its inference code (groups).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hansa.kernels.dispatch import on_triton

Score = Literal["softmax", "sigmoid", "softmax_after_top_k"]
_SUM_FLOOR = (
    1e-20  # keeps gates finite where every chosen sigmoid is zero; far below the last digit of any other sum
)

_ROUNDS = 8  # up to so many choices, a round of `amax` for each is faster than `topk`
_LOWEST = -(2**63)


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """Where each row goes.

    Attributes:
        gates_TK: Weight of each chosen expert, non-negative, float32 at least; sums to the scaling over K where renormalised.
        expert_TK: Chosen experts of each token, the best first, int64.
        token_R: Token of each expert-sorted row, int64.
        inverse_R: Position of slot t·K + k among the sorted rows, int64.
        expert_R: Expert of each sorted row, ascending, int64.
        ends_E: End offset of each expert's rows, int32, as `torch.nn.functional.grouped_mm` wants it.
    """

    gates_TK: Tensor
    expert_TK: Tensor
    token_R: Tensor
    inverse_R: Tensor
    expert_R: Tensor
    ends_E: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """The limit to some groups of neighbouring experts.

    Attributes:
        count: Groups G, all of one size.
        top: Groups that a token may choose from.
        best: Best scores of a group whose sum ranks it: 2 in DeepSeek-V3, 1 in DeepSeek-V2.
    """

    count: int = 1
    top: int = 1
    best: int = 2


def route(
    logits_TE: Tensor,
    top_k: int,
    *,
    score: Score = "softmax_after_top_k",
    bias_E: Tensor | None = None,
    groups: int = 1,
    top_groups: int = 1,
    group_best: int = 2,
    renormalise: bool = True,
    scaling: float = 1.0,
) -> Routing:
    """Choose the top-k experts of every token and sort the rows by expert.

    Args:
        logits_TE: Router logits, (T, E), any float type; worked on in float32 at least.
        top_k: Experts a token, 1 ≤ top_k ≤ E.
        score: What the gates are made of: the softmax over all experts, the sigmoid, or the softmax over the chosen logits.
        bias_E: Added to the scores for the choice only (to the logits for "softmax_after_top_k"); the gates do not see it.
        groups: Groups of neighbouring experts.
        top_groups: Groups that a token may choose from; the others count as -inf.
        group_best: Best scores of a group whose sum ranks it, 1 or 2.
        renormalise: Divide the gates by their sum; "softmax_after_top_k" is normal already.
        scaling: Factor of the gates.

    Returns:
        The routing; gates are differentiable in `logits_TE`.

    Raises:
        ValueError: A number of experts, groups or choices that does not fit.

    Guarantees:
        - Dropless: each of the T·K choices appears in exactly one row, and a token's K experts differ, whatever the logits.
        - A token's choice and gates depend on its own logits only.
        - Equal scores: the expert, or group, of lowest index wins.
        - Rows of one expert keep the order of their tokens.
    """
    limit = Groups(count=groups, top=top_groups, best=group_best)
    _check(logits_TE.shape[1], top_k, limit, bias_E)
    logits_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
    with torch.no_grad():
        select_TE = _selection(logits_TE, score, bias_E, limit)
        if on_triton(select_TE) and len(select_TE):
            from hansa.kernels.routing_triton import choose_and_sort  # noqa: PLC0415

            expert_TK, token_R, inverse_R, expert_R, ends_E = choose_and_sort(select_TE, top_k, limit)
        else:
            expert_TK = choose(select_TE, top_k, limit)
            token_R, inverse_R, expert_R, ends_E = sort_rows(expert_TK, logits_TE.shape[1])
    return Routing(
        gates_TK=_gates(logits_TE, expert_TK, score, renormalise, scaling),
        expert_TK=expert_TK,
        token_R=token_R,
        inverse_R=inverse_R,
        expert_R=expert_R,
        ends_E=ends_E,
    )


def choose(select_TE: Tensor, top_k: int, limit: Groups) -> Tensor:
    """Return the k experts with the largest scores of each token, the best first, (T, K) int64: the reference of the kernel."""
    if limit.count > 1:
        select_TGP = select_TE.unflatten(1, (limit.count, -1))  # type: ignore[no-untyped-call]
        group_TG = torch.topk(select_TGP, limit.best, dim=2).values.sum(dim=2)
        open_TG = torch.zeros_like(group_TG, dtype=torch.bool).scatter_(
            1, _largest(group_TG, limit.top), True
        )
        select_TE = select_TGP.masked_fill(~open_TG.unsqueeze(2), -torch.inf).flatten(1)
    return _largest(select_TE, top_k)


def sort_rows(expert_TK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort the slots by expert, stably: `token_R`, `inverse_R`, `expert_R` and `ends_E` of a routing."""
    expert_R, order_R = torch.sort(expert_TK.flatten(), stable=True)
    inverse_R = torch.empty_like(order_R)
    inverse_R[order_R] = torch.arange(order_R.numel(), device=order_R.device)
    # A search instead of a count: `bincount` waits for the GPU.
    ends_E = torch.searchsorted(expert_R, torch.arange(experts, device=expert_R.device), right=True)
    return order_R // expert_TK.shape[1], inverse_R, expert_R, ends_E.to(torch.int32)


def _largest(x_TN: Tensor, count: int) -> Tensor:
    """Positions of the largest entries of each row, the largest first; of equal ones the lower position."""
    if x_TN.dtype == torch.float64:
        return torch.sort(x_TN, dim=1, descending=True, stable=True).indices[:, :count]
    # `topk` leaves ties open, a stable sort takes four times as long. Keys that sort like (score, -position) have no ties.
    bits = (x_TN + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)
    places = torch.arange(x_TN.shape[1], device=x_TN.device)
    keys_TN = (ordered << 32) | (0x7FFFFFFF - places)
    if count > _ROUNDS:
        return torch.topk(keys_TN, count, dim=1).indices
    chosen_TK = torch.empty(len(x_TN), count, dtype=torch.int64, device=x_TN.device)
    for k in range(count):
        chosen = 0x7FFFFFFF - (torch.amax(keys_TN, dim=1, keepdim=True) & 0xFFFFFFFF)
        chosen_TK[:, k : k + 1] = chosen
        keys_TN.scatter_(1, chosen, _LOWEST)
    return chosen_TK


def _selection(logits_TE: Tensor, score: Score, bias_E: Tensor | None, limit: Groups) -> Tensor:
    """What the choice goes by."""
    # Softmax and sigmoid keep the order of the logits, so the scores are needed only where something is added to them.
    select_TE = logits_TE.detach()
    if score != "softmax_after_top_k" and (bias_E is not None or limit.count > 1):
        select_TE = torch.softmax(select_TE, dim=1) if score == "softmax" else torch.sigmoid(select_TE)
    return select_TE if bias_E is None else select_TE + bias_E


def _gates(logits_TE: Tensor, expert_TK: Tensor, score: Score, renormalise: bool, scaling: float) -> Tensor:
    if score == "softmax":
        gates_TK = torch.softmax(logits_TE, dim=1).gather(1, expert_TK)
    elif score == "sigmoid":
        gates_TK = torch.sigmoid(logits_TE.gather(1, expert_TK))
    else:
        gates_TK = torch.softmax(logits_TE.gather(1, expert_TK), dim=1)
    if renormalise and score != "softmax_after_top_k":
        gates_TK = gates_TK / (gates_TK.sum(dim=1, keepdim=True) + _SUM_FLOOR)
    return gates_TK if scaling == 1.0 else gates_TK * scaling


def _check(experts: int, top_k: int, limit: Groups, bias_E: Tensor | None) -> None:
    if limit.count < 1 or experts % limit.count or not 1 <= limit.top <= limit.count:
        raise ValueError(f"{limit.top} of {limit.count} groups do not fit {experts} experts")
    size = experts // limit.count
    if limit.best not in (1, 2) or (limit.count > 1 and limit.best > size):
        raise ValueError(f"a group of {size} experts cannot be ranked by its best {limit.best}: 1 or 2 can")
    if not 1 <= top_k <= size * limit.top:
        raise ValueError(f"top_k = {top_k} is not in 1..{size * limit.top}")
    if bias_E is not None and bias_E.shape != (experts,):
        raise ValueError(f"a bias of shape {tuple(bias_E.shape)} does not fit {experts} experts")
