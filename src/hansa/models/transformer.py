"""A Mixture-of-Experts transformer over feature tokens, with adapters that are trained privately.

    x = [class token, feature tokens];  x += attention(norm(x));  x += experts(norm(x));  logit = head(norm(x[class]))

The base (attention, router, experts) is frozen once pretrained; trained are the adapters' factors B, the feature embeddings, the
class token and the head. No operation couples the samples of a batch: no batch statistics, no capacity limit, no batch loss.
Source: Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data", section 3.3 (FT-Transformer).

Shape suffixes: B samples, J feature tokens, T = J + 1 tokens, Z feature width, D model width, H heads, E experts, F expert width.
"""

import torch
from torch import Tensor, nn

from hansa.models.adapters import dense_factor, feature_factor
from hansa.models.block import Block, run_blocks
from hansa.models.config import ModelConfig
from hansa.models.norms import normalise
from hansa.models.tape import Tape


class FeatureTransformer(nn.Module):
    """The whole model: feature tokens in, one logit out.

    Args:
        config: Sizes.
        used_JZ: Which of the padded values of each feature token are used, bool (J, Z).
    """

    used_JZ: Tensor
    used_class: Tensor

    def __init__(self, config: ModelConfig, used_JZ: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("used_JZ", used_JZ, persistent=False)
        self.register_buffer("used_class", torch.ones(1, 1, dtype=torch.bool), persistent=False)
        per_token = used_JZ.sum(dim=1).float()
        spread = per_token.rsqrt().repeat_interleave(used_JZ.sum(dim=1))
        self.embedding = nn.Parameter(torch.randn(len(spread), config.dim) * spread.unsqueeze(1))
        self.class_token = nn.Parameter(torch.randn(1, config.dim))
        self.blocks = nn.ModuleList(Block(f"blocks.{i}", config, i) for i in range(config.layers))
        self.head = nn.Parameter(torch.zeros(config.dim + 1, 1))

    def tokens(self, features_BJZ: Tensor, tape: Tape | None = None) -> Tensor:
        """Embed the features and put the class token in front: (B, J, Z) -> (B, J + 1, D)."""
        ones_B11 = features_BJZ.new_ones(len(features_BJZ), 1, 1)
        class_B1D = feature_factor(ones_B11, self.class_token, self.used_class, "class_token", tape)
        tokens_BJD = feature_factor(features_BJZ, self.embedding, self.used_JZ, "embedding", tape)
        return torch.cat([class_B1D, tokens_BJD], dim=1)

    def hidden(self, x_BTD: Tensor, *, every_token: bool, tape: Tape | None = None) -> Tensor:
        """Run the blocks; the last one computes the class token only, unless every token is wanted."""
        queries = None if every_token else 1
        again = self.config.checkpointing
        return normalise(run_blocks(self.blocks, x_BTD, tape, last_queries=queries, again=again))

    def forward(self, features_BJZ: Tensor, tape: Tape | None = None) -> Tensor:
        """Compute the logits, (B, J, Z) -> (B,); a tape, where given, receives the per-sample records on backward."""
        h_B1D = self.hidden(self.tokens(features_BJZ, tape), every_token=False, tape=tape)[:, :1]
        z_B1Z = torch.cat([h_B1D, h_B1D.new_ones(len(h_B1D), 1, 1)], dim=2)
        return dense_factor(z_B1Z, self.head, "head", tape).view(-1)
