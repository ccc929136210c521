"""A model small enough for thousands of gradients, with every trained tensor away from its start."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hansa.models.config import ModelConfig
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer

TRAINED = ("embedding", "class_token", "head")


@dataclass(frozen=True, kw_only=True)
class Small:
    """A model, its layout, and rows."""

    model: FeatureTransformer
    layout: TrainableLayout
    features: Tensor
    labels: Tensor

    def support(self, share: float, seed: int = 0) -> NDArray[np.int64]:
        """Draw the positions of a round's support."""
        return np.flatnonzero(np.random.default_rng(seed).random(self.layout.size) < share)


def make_small(
    *,
    samples: int = 6,
    tokens: int = 3,
    experts: int = 8,
    top_k: int = 2,
    layers: int = 2,
    one_expert: bool = False,
    targets: tuple[str, ...] = ("attention", "experts"),
    trained: tuple[str, ...] = TRAINED,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Small:
    config = ModelConfig(
        dim=8,
        layers=layers,
        heads=2,
        experts=experts,
        top_k=top_k,
        expert_dim=4,
        shared_expert_dim=4,
        rank=4,
        alpha=4.0,
        targets=targets,
    )
    draws = torch.Generator().manual_seed(seed)
    used_JZ = torch.rand(tokens, 4, generator=draws) < 0.6
    used_JZ[:, 0] = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FeatureTransformer(config, used_JZ).to(dtype).eval()
    layout = TrainableLayout(model, trained)
    layout.freeze_rest(model)
    layout.load(model, np.random.default_rng(seed).normal(size=layout.size) * 0.4)
    if "head" not in trained:  # a head at zero would hide every other gradient
        model.head.data.normal_(generator=draws)
    if one_expert:  # equal logits everywhere: every token takes the same experts, all others are empty
        for block in model.blocks:
            block.experts.router.data.zero_()
    features = torch.randn(samples, tokens, 4, generator=draws, dtype=dtype) * used_JZ
    labels = (torch.rand(samples, generator=draws) < 0.5).to(dtype)
    return Small(model=model, layout=layout, features=features, labels=labels)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Work this small is slower on several threads, much slower on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small() -> Callable[..., Small]:
    return make_small
