"""Small models in float64 with every trained tensor away from its start, and the study that makes one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hansa.models.config import ModelConfig
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.study import Study, parse_study

SMALL_STUDY = """
schema = "hansa/study/v1"
name = "small"
purpose = "test"
[data]
label = "y"
columns = [
  { name = "a", kind = "numeric", minimum = -10, maximum = 10 },
  { name = "b", kind = "categorical", values = [3, 1] },
]
[model]
dim = 8
layers = 1
heads = 2
experts = 8
top_k = 2
expert_dim = 4
shared_expert_dim = 4
[adapters]
train_embeddings = EMBEDDINGS
train_head = HEAD
[privacy]
epsilon = 8
delta = 1e-5
clip_norm = 0.5
sample_rate = 0.2
nominal_records = 1000
[training]
rounds = 3
[training.server_optimizer]
learning_rate = 0.01
[aggregation]
participants = 3
"""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Work this small is slower on several threads, much slower on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_config() -> Callable[..., ModelConfig]:
    def make(**changes: Any) -> ModelConfig:
        sizes: dict[str, Any] = {
            "dim": 8,
            "heads": 2,
            "experts": 8,
            "top_k": 2,
            "expert_dim": 4,
            "shared_expert_dim": 4,
            "alpha": 4.0,
        }
        return ModelConfig(**(sizes | changes))

    return make


@pytest.fixture(scope="session")
def small_model(small_config: Callable[..., ModelConfig]) -> Callable[..., FeatureTransformer]:
    used_JZ = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)

    def make(seed: int = 0, *, dtype: torch.dtype = torch.float64, **changes: Any) -> FeatureTransformer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = FeatureTransformer(small_config(**changes), used_JZ).to(dtype).eval()
        layout = TrainableLayout(model, ["embedding", "class_token", "head"])
        layout.load(model, np.random.default_rng(seed).normal(size=layout.size) * 0.4)
        return model

    return make


@pytest.fixture(scope="session")
def small_rows() -> Callable[..., Tensor]:
    def make(count: int, seed: int = 0) -> Tensor:
        return torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return make


@pytest.fixture(scope="session")
def small_study() -> Callable[..., Study]:
    def make(*, train_embeddings: bool = True, train_head: bool = True) -> Study:
        text = SMALL_STUDY.replace("EMBEDDINGS", str(train_embeddings).lower())
        return parse_study(text.replace("HEAD", str(train_head).lower()))

    return make
