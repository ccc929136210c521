"""Pretraining of the base on a small public sample, without labels: masked-feature modelling.

A share of the feature tokens of every row is replaced by a learned mask token; from the class token and from each token's own
output the encoded values of the hidden tokens are predicted (mean squared error). What is learned is how columns depend on each
other, not what a label means.
Source: masked modelling of tabular features as in Yoon et al. 2020, "VIME", section 4.1; here with whole tokens hidden.

Shape suffixes: B samples, J feature tokens, T = J + 1 tokens, Z feature width, D model width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hansa.models.config import ModelConfig
from hansa.models.experts import Experts
from hansa.models.saving import fill, tensors_of
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.study import Study


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingConfig:
    """How the base is made.

    Attributes:
        steps: Optimizer steps.
        batch_size: Rows a step.
        learning_rate: Peak rate of AdamW, decayed to zero along a cosine.
        hidden_share: Share of the feature tokens that are hidden.
        balance_weight: Weight of the load-balance loss; the rows are public, so coupling them is harmless here.
    """

    steps: int = 300
    batch_size: int = 128
    learning_rate: float = 3e-3
    hidden_share: float = 0.3
    balance_weight: float = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A pretrained base that all participants start from.

    Attributes:
        config: Sizes of the model.
        used_JZ: Which encoded values are used.
        weights: Every parameter by name, and the frozen factors A: drawn anew, they could differ in the last bit.
        layout: Order of the trained part.
    """

    config: ModelConfig
    used_JZ: Tensor
    weights: Mapping[str, Tensor]
    layout: TrainableLayout

    def model(self) -> FeatureTransformer:
        """Make a copy, its trained part at the start and everything else frozen."""
        with torch.random.fork_rng(devices=[]):
            model = FeatureTransformer(self.config, self.used_JZ)
        fill(model, {name: tensor.clone() for name, tensor in self.weights.items()})
        self.layout.freeze_rest(model)
        return model.eval()


def make_base(
    study: Study,
    features: Tensor,
    used_JZ: Tensor,
    *,
    seed: int,
    pretraining: PretrainingConfig,
    progress: Callable[[int, float], None] | None = None,
) -> Base:
    """Initialise and pretrain the base of a study on public rows without labels.

    Args:
        study: Sizes and what is trained.
        features: Encoded public rows, (n, J, Z).
        used_JZ: Which encoded values are used.
        seed: Public seed of initialisation, batches and hidden tokens.
        pretraining: How long and how fast.
        progress: Called with the number of steps done and the latest loss.
    """
    config = ModelConfig.of_study(study)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FeatureTransformer(config, used_JZ)
    pretrain(model, features, pretraining, seed, progress=progress)
    weights = {name: tensor.detach().clone() for name, tensor in weights_of(model).items()}
    return Base(config=config, used_JZ=used_JZ, weights=weights, layout=layout_of(study, model))


def weights_of(model: FeatureTransformer) -> dict[str, Tensor]:
    """Give what a base keeps of a model."""
    return {name: tensor for name, tensor in tensors_of(model).items() if name != "used_JZ"}


def layout_of(study: Study, model: FeatureTransformer) -> TrainableLayout:
    """Say what of a model a study trains, and in which order."""
    trained = ["embedding", "class_token"] if study.adapters.train_embeddings else []
    trained += ["head"] if study.adapters.train_head else []
    return TrainableLayout(model, trained)


class _Decoder(nn.Module):
    """Predicts a token's encoded values from the token's own output and the class token; thrown away afterwards."""

    def __init__(self, tokens: int, width: int, dim: int, draws: torch.Generator) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(tokens, dim))
        own, pooled = torch.randn(2, tokens, dim, width, generator=draws) * 0.5 * dim**-0.5
        self.own, self.pooled = nn.Parameter(own), nn.Parameter(pooled)

    def forward(self, h_BTD: Tensor) -> Tensor:
        own = torch.einsum("bjd,jdz->bjz", h_BTD[:, 1:], self.own)
        return own + torch.einsum("bd,jdz->bjz", h_BTD[:, 0], self.pooled)


def pretrain(
    model: FeatureTransformer,
    features: Tensor,
    config: PretrainingConfig,
    seed: int,
    *,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Train every weight of the base but adapters and head, in place.

    Args:
        model: The model; its adapters stay zero and its head stays untouched.
        features: Public rows, (n, J, Z).
        config: How.
        seed: Public seed of the decoder, batches and hidden tokens.
        progress: Called with the number of steps done and the latest loss.

    Guarantees:
        - The weights afterwards depend on the arguments only; torch's global generator is neither read nor moved.
    """
    draws = np.random.default_rng(seed)
    tokens, width = features.shape[1:]
    decoder_draws = torch.Generator().manual_seed(int(draws.integers(2**63)))
    decoder = _Decoder(tokens, width, model.config.dim, decoder_draws)
    adapters = [p for name, p in model.named_parameters() if name.endswith("_B") or name == "head"]
    for parameter in model.parameters():
        parameter.requires_grad_(all(parameter is not adapter for adapter in adapters))
    trained = [p for p in [*model.parameters(), *decoder.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    model.train()
    for step in range(config.steps):
        rows = torch.from_numpy(draws.integers(len(features), size=config.batch_size))
        hidden = torch.from_numpy(draws.random((config.batch_size, tokens)) < config.hidden_share)
        loss = _loss(model, decoder, features[rows], hidden, config.balance_weight)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, loss.item())
    model.eval()


def _loss(
    model: FeatureTransformer, decoder: _Decoder, x_BJZ: Tensor, hidden_BJ: Tensor, balance_weight: float
) -> Tensor:
    x_BTD = model.tokens(x_BJZ)
    shown = torch.where(hidden_BJ.unsqueeze(2), decoder.mask_token, x_BTD[:, 1:])
    h_BTD = model.hidden(torch.cat([x_BTD[:, :1], shown], dim=1), every_token=True)
    errors = (decoder(h_BTD) - x_BJZ).square() * model.used_JZ
    loss: Tensor = (errors * hidden_BJ.unsqueeze(2)).sum() / (hidden_BJ.sum() + 1)
    balance = [
        m.balance_loss for m in model.modules() if isinstance(m, Experts) and m.balance_loss is not None
    ]
    total: Tensor = loss + balance_weight * torch.stack(balance).sum() if balance else loss
    return total
