"""From router logits to experts and gates: scores, groups, the bias of the choice, renormalisation, scaling.

    s = softmax(logits) | sigmoid(logits) | logits;   choice = top-k of s + bias among the experts of the best groups
    gates = s of the chosen (softmax over them, if scores are logits), divided by their sum if wanted, times the scale

Dropless. The bias only moves the choice; it is a frozen number of the checkpoint, for the rule that would move it (its load, over a
batch) is a function of all samples.
Source: Shazeer et al. 2017, section 2.1; DeepSeek-AI 2024, "DeepSeek-V2", section 2.2.2 (groups by their best expert) and
"DeepSeek-V3", section 2.1.2 (sigmoid, bias for the choice only, groups by their two best).

Shape suffixes: T tokens, E experts, K chosen experts, G groups, R = T·K rows.
"""

from dataclasses import replace

import torch
from torch import Tensor

from hansa.kernels.routing import Routing, route
from hansa.models.config import ModelConfig
from hansa.models.norms import widened


def route_tokens(logits_TE: Tensor, config: ModelConfig, bias_E: Tensor | None) -> Routing:
    """Choose the experts of every token and sort the rows by expert.

    Args:
        logits_TE: Router logits; half precision is widened to float32.
        config: Score, groups, renormalisation, scale, `top_k`.
        bias_E: Bias of the choice; None for none.

    Returns:
        The routing; its gates are differentiable in the logits.

    Guarantees:
        - A token's choice and gates depend on its own logits only.
        - Gates sum to `route_scale` where they are renormalised or a softmax over the chosen ones.
    """
    logits_TE = widened(logits_TE)
    if config.score == "softmax_after_top_k":
        scores_TE = logits_TE
    else:
        scores_TE = logits_TE.sigmoid() if config.score == "sigmoid" else torch.softmax(logits_TE, dim=-1)
    with torch.no_grad():
        choice_TE = scores_TE if bias_E is None else scores_TE + bias_E.to(scores_TE.dtype)
        if config.groups > 1:
            choice_TE = _best_groups(choice_TE, config)
        # the kernel's own gates are a softmax over what it sorts by; they stand below, from the scores
        routing = route(choice_TE, config.top_k)
    chosen_TK = chosen_experts(routing, config.top_k)
    gates_TK = scores_TE.gather(1, chosen_TK)
    if config.score == "softmax_after_top_k":
        gates_TK = torch.softmax(gates_TK, dim=-1)
    elif config.renormalise:
        gates_TK = gates_TK / (gates_TK.sum(dim=-1, keepdim=True) + torch.finfo(gates_TK.dtype).tiny)
    return replace(routing, gates_TK=gates_TK * config.route_scale if config.route_scale != 1.0 else gates_TK)


def chosen_experts(routing: Routing, top_k: int) -> Tensor:
    """Give the experts of every token in the order of its gates, (T, K) int64."""
    return routing.expert_R[routing.inverse_R].view(-1, top_k)


def _best_groups(choice_TE: Tensor, config: ModelConfig) -> Tensor:
    """Put −∞ on the experts outside of a token's best groups; 0 would beat a negative biased score."""
    grouped_TGe = choice_TE.view(len(choice_TE), config.groups, -1)
    best = min(2 if config.group_score == "top2" else 1, grouped_TGe.shape[2])
    score_TG = grouped_TGe.topk(best, dim=-1).values.sum(dim=-1)
    kept_TG = torch.zeros_like(score_TG, dtype=torch.bool)
    kept_TG.scatter_(1, score_TG.topk(config.top_groups, dim=-1).indices, True)
    return torch.where(kept_TG.unsqueeze(2), grouped_TGe, float("-inf")).flatten(1)
