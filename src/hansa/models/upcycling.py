"""Sparse upcycling: a dense language model becomes a Mixture of Experts that computes the same at the start.

Every expert starts as a copy of the dense network, the router is random, and the gates of a token sum to 1; so whichever experts
are chosen, their weighted sum is the dense network's output. Training then lets the copies drift apart.
Source: Komatsuzaki et al. 2023, "Sparse Upcycling", sections 3 and 4.2.2 (gates that sum to 1 keep the function).
"""

from dataclasses import replace

import torch
from torch import Tensor

from hansa.errors import InvalidValue
from hansa.models.checkpoints import empty_model, fill_model
from hansa.models.config import ModelConfig
from hansa.models.text import TextTransformer
from hansa.models.trainable import TrainableLayout, is_adapter

_ROUTER_SPREAD = (
    0.02  # deviation of the router's weights: small, so that all experts are about as likely at the start
)


@torch.no_grad()
def upcycle(
    dense: TextTransformer,
    *,
    experts: int,
    top_k: int,
    seed: int,
    adapters: ModelConfig | None = None,
    keep_dense: int = 0,
) -> TextTransformer:
    """Make a Mixture of Experts of a dense model.

    Args:
        dense: A model whose blocks all have a dense network; its adapters are left behind.
        experts: Copies of the network a block.
        top_k: Experts that serve a token.
        seed: Public seed of the routers.
        adapters: Takes the adapters' sizes and targets from here; None for no adapters.
        keep_dense: First blocks that stay dense.

    Returns:
        A new model, evaluating, everything frozen but its adapters; weights that did not change are shared with `dense`.

    Raises:
        InvalidValue: The model has routed blocks already, or the sizes contradict each other.

    Guarantees:
        - The logits are those of the dense model, up to rounding.
    """
    old = dense.config
    if old.dense_layers < old.layers:
        raise InvalidValue(f"only dense models are upcycled, block {old.dense_layers} is routed already")
    config = replace(
        old,
        dense_layers=keep_dense,
        experts=experts,
        top_k=top_k,
        expert_dim=old.dense_dim,
        shared_expert_dim=0,
        score="softmax_after_top_k",
        route_scale=1.0,
    ).with_adapters_of(adapters)
    draws = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, tensor in dense.state_dict().items():
        block, inner = _split(name)
        if is_adapter(name):
            continue
        if inner in ("dense.gate_up", "dense.down") and block >= keep_dense:
            stacked = tensor.unsqueeze(0).repeat(experts, 1, 1)
            state[f"blocks.{block}.experts.{inner.removeprefix('dense.')}"] = stacked
        else:
            state[name] = tensor.detach()
    for block in range(keep_dense, config.layers):
        router = torch.randn(config.dim, experts, generator=draws) * _ROUTER_SPREAD
        state[f"blocks.{block}.experts.router"] = router
    model = empty_model(config)
    fill_model(model, state)
    TrainableLayout(model, ()).freeze_rest(model)
    return model.eval()


def _split(name: str) -> tuple[int, str]:
    """Take a name apart into block and rest; −1 outside of the blocks."""
    if not name.startswith("blocks."):
        return -1, name
    _, block, inner = name.split(".", 2)
    return int(block), inner
