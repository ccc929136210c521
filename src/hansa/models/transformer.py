"""A Mixture-of-Experts transformer over feature tokens, with adapters that are trained privately.

    x = [class token, feature tokens];  x += attention(norm(x));  x += experts(norm(x));  logit = head(norm(x[class]))

The base (attention, router, experts) is frozen once pretrained; trained are the adapters' factors B, the feature embeddings, the
class token and the head. No operation couples the samples of a batch: no batch statistics, no capacity limit, no batch loss.
Source: Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data", section 3.3 (FT-Transformer).

Shape suffixes: B samples, J feature tokens, T = J + 1 tokens, Z feature width, D model width, H heads, E experts, F expert width.
"""

import torch
from torch import Tensor, nn

from hansa.models.adapters import dense_factor, feature_factor, orthonormal_factor
from hansa.models.config import ModelConfig
from hansa.models.experts import Experts
from hansa.models.tape import Tape


def normalise(x: Tensor) -> Tensor:
    """RMSNorm without gain over the last dimension, in the type of x (Zhang & Sennrich 2019, equation 4)."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)


class AdaptedLinear(nn.Module):
    """y = x W + scale · (x A) B with W and A frozen; B starts at zero."""

    factor_A: Tensor

    def __init__(
        self, name: str, width_in: int, width_out: int, config: ModelConfig, *, adapted: bool
    ) -> None:
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(torch.randn(width_in, width_out) * width_in**-0.5)
        self.scale = config.alpha / config.rank
        if adapted:
            factor = orthonormal_factor(name, (width_in, config.rank), config.factor_seed)
            self.register_buffer("factor_A", factor, persistent=False)
            self.factor_B = nn.Parameter(torch.zeros(config.rank, width_out))
        self.adapted = adapted

    def forward(self, x_BTD: Tensor, tape: Tape | None) -> Tensor:
        """(B, T, D) -> (B, T, N)."""
        y_BTN = x_BTD @ self.weight
        if not self.adapted:
            return y_BTN
        z_BTr = (x_BTD @ self.factor_A) * self.scale
        return y_BTN + dense_factor(z_BTr, self.factor_B, f"{self.name}.factor_B", tape)


class Attention(nn.Module):
    """Multi-head attention among the tokens of one sample; keys and values of all tokens, queries of those asked for."""

    def __init__(self, name: str, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        adapted = "attention" in config.targets
        for part in ("query", "key", "value", "output"):
            linear = AdaptedLinear(f"{name}.{part}", config.dim, config.dim, config, adapted=adapted)
            self.add_module(part, linear)

    def forward(self, x_BTD: Tensor, queries: int, tape: Tape | None) -> Tensor:
        """Attend from the first `queries` tokens: (B, T, D) -> (B, queries, D)."""
        batch, _, dim = x_BTD.shape

        def split(y_BTD: Tensor) -> Tensor:
            return y_BTD.view(batch, y_BTD.shape[1], self.heads, dim // self.heads).transpose(1, 2)

        query = split(self.get_submodule("query")(x_BTD[:, :queries], tape))
        key, value = (split(self.get_submodule(part)(x_BTD, tape)) for part in ("key", "value"))
        weights = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, dim=-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, queries, dim)
        output: Tensor = self.get_submodule("output")(mixed, tape)
        return output


class Block(nn.Module):
    """Attention, then experts, each on the normalised residual stream."""

    def __init__(self, name: str, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(f"{name}.attention", config)
        self.experts = Experts(f"{name}.experts", config)

    def forward(self, x_BTD: Tensor, queries: int, tape: Tape | None) -> Tensor:
        """(B, T, D) -> (B, queries, D)."""
        x_BQD = x_BTD[:, :queries] + self.attention(normalise(x_BTD), queries, tape)
        result: Tensor = x_BQD + self.experts(normalise(x_BQD), tape)
        return result


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
        self.blocks = nn.ModuleList(Block(f"blocks.{i}", config) for i in range(config.layers))
        self.head = nn.Parameter(torch.zeros(config.dim + 1, 1))

    def tokens(self, features_BJZ: Tensor, tape: Tape | None = None) -> Tensor:
        """Embed the features and put the class token in front: (B, J, Z) -> (B, J + 1, D)."""
        ones_B11 = features_BJZ.new_ones(len(features_BJZ), 1, 1)
        class_B1D = feature_factor(ones_B11, self.class_token, self.used_class, "class_token", tape)
        tokens_BJD = feature_factor(features_BJZ, self.embedding, self.used_JZ, "embedding", tape)
        return torch.cat([class_B1D, tokens_BJD], dim=1)

    def hidden(self, x_BTD: Tensor, *, every_token: bool, tape: Tape | None = None) -> Tensor:
        """Run the blocks; the last one computes the class token only, unless every token is wanted."""
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            x_BTD = block(x_BTD, 1 if last and not every_token else x_BTD.shape[1], tape)
        return normalise(x_BTD)

    def forward(self, features_BJZ: Tensor, tape: Tape | None = None) -> Tensor:
        """Compute the logits, (B, J, Z) -> (B,); a tape, where given, receives the per-sample records on backward."""
        h_B1D = self.hidden(self.tokens(features_BJZ, tape), every_token=False, tape=tape)[:, :1]
        z_B1Z = torch.cat([h_B1D, h_B1D.new_ones(len(h_B1D), 1, 1)], dim=2)
        return dense_factor(z_B1Z, self.head, "head", tape).view(-1)
