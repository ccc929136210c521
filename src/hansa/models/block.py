"""One block of the transformer, for tables and for text: attention, then experts or a dense network, on the normalised stream.

    x += attention(norm(x));  x += experts(norm(x))

Source: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", figure 1b (norm first).

Shape suffixes: B samples, T tokens, Q queried tokens, D model width.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hansa.models.attention import Attention
from hansa.models.config import ModelConfig
from hansa.models.experts import Experts
from hansa.models.latent_attention import LatentAttention
from hansa.models.linear import DenseNetwork
from hansa.models.norms import Norm
from hansa.models.tape import Tape


class Block(nn.Module):
    """Attention, then experts, each on the normalised residual stream; the first `dense_layers` blocks have a dense network."""

    def __init__(self, name: str, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config.dim, config.norm_epsilon, gain=config.norm_gain)
        self.attention: Attention | LatentAttention
        if config.latent is None:
            self.attention = Attention(f"{name}.attention", config, layer)
        else:
            self.attention = LatentAttention(f"{name}.attention", config, config.latent, layer)
        self.experts_norm = Norm(config.dim, config.norm_epsilon, gain=config.norm_gain)
        self.routed = layer >= config.dense_layers
        if self.routed:
            self.experts = Experts(f"{name}.experts", config)
        else:
            self.dense = DenseNetwork(f"{name}.dense", config)

    def forward(self, x_BTD: Tensor, queries: int, tape: Tape | None) -> Tensor:
        """(B, T, D) -> (B, queries, D)."""
        x_BQD = x_BTD[:, :queries] + self.attention(self.attention_norm(x_BTD), queries, tape)
        network = self.experts if self.routed else self.dense
        result: Tensor = x_BQD + network(self.experts_norm(x_BQD), tape=tape)
        return result


def run_blocks(
    blocks: Iterable[nn.Module], x_BTD: Tensor, tape: Tape | None, *, last_queries: int | None, again: bool
) -> Tensor:
    """Run blocks one after the other.

    Args:
        blocks: The blocks.
        x_BTD: Input stream.
        tape: Receives the per-sample records.
        last_queries: Tokens that the last block computes; None for all.
        again: Whether each block's activations are computed again in the backward pass (Chen et al. 2016, section 4).

    Returns:
        (B, T or `last_queries`, D).
    """
    blocks = list(blocks)
    for i, block in enumerate(blocks):
        queries = x_BTD.shape[1]
        if last_queries is not None and i == len(blocks) - 1:
            queries = last_queries
        if again and torch.is_grad_enabled():
            x_BTD = checkpoint(block, x_BTD, queries, tape, use_reentrant=False)
        else:
            x_BTD = block(x_BTD, queries, tape)
    return x_BTD
