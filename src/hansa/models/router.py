"""From router logits to experts and gates, with the rules of a model's configuration.

    s = softmax(logits) | sigmoid(logits) | logits;   choice = top-k of s + bias among the experts of the best groups
    gates = s of the chosen (softmax over them, if scores are logits), divided by their sum if wanted, times the scale

The routing itself, its guarantees and its sources are those of `hansa.kernels.routing`. The bias is a frozen number of the
checkpoint, for the rule that would move it (its load, over a batch) is a function of all samples.

Shape suffixes: T tokens, E experts.
"""

from torch import Tensor

from hansa.kernels.routing import Routing, route
from hansa.models.config import ModelConfig


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
    best = 2 if config.group_score == "top2" else 1
    return route(
        logits_TE,
        config.top_k,
        score=config.score,
        bias_E=bias_E,
        groups=config.groups,
        top_groups=config.top_groups,
        group_best=min(best, config.experts // config.groups),  # a group of one expert has no second best
        renormalise=config.renormalise,
        scaling=config.route_scale,
    )
