"""Public checkpoints: the same logits as transformers, for every family, from one file or from shards."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from hansa.errors import InvalidValue
from hansa.models.checkpoints import load_checkpoint
from hansa.models.config import ModelConfig


@pytest.fixture(scope="module")
def checkpoints(public: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: public.save(name, tmp_path_factory.mktemp(name)) for name in public.MODELS}


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


NAMES = [
    "llama",
    "llama-tied",
    "mixtral",
    "mixtral-window",
    "olmoe",
    "qwen3",
    "qwen3-window",
    "deepseek-v2-lite",
    "deepseek-v2",
    "deepseek-v3",
]


def test_every_model_is_looked_at(public: ModuleType) -> None:
    assert list(public.MODELS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_logits_are_those_of_transformers(
    public: ModuleType, checkpoints: dict[str, Path], name: str
) -> None:
    tokens = public.some_tokens()
    model = load_checkpoint(checkpoints[name])
    with torch.no_grad():
        expected, actual = public.oracle(name)(tokens).logits, model(tokens)
    assert expected.abs().max() > 2
    assert gap(actual, expected) < 1e-4
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["qwen3", "deepseek-v3"])
def test_shards_are_read_like_one_file(
    public: ModuleType, checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    public.save(name, tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole, parts = load_checkpoint(checkpoints[name]), load_checkpoint(tmp_path)
    assert all(torch.equal(parts.state_dict()[key], tensor) for key, tensor in whole.state_dict().items())


def test_only_the_experts_asked_for(checkpoints: dict[str, Path]) -> None:
    full = load_checkpoint(checkpoints["qwen3"])
    some = load_checkpoint(checkpoints["qwen3"], experts="1-2, 5,7")
    chosen = [1, 2, 5, 7]
    assert (some.config.experts, some.config.top_k) == (4, 3)
    for one, other in zip(some.blocks, full.blocks, strict=True):
        assert torch.equal(one.experts.router, other.experts.router[:, chosen])
        assert torch.equal(one.experts.gate_up, other.experts.gate_up[chosen])
        assert torch.equal(one.experts.down, other.experts.down[chosen])
        assert torch.equal(one.attention.query.weight, other.attention.query.weight)


def test_fewer_experts_than_a_token_asks_for(checkpoints: dict[str, Path], public: ModuleType) -> None:
    model = load_checkpoint(checkpoints["mixtral"], experts="3")
    assert (model.config.experts, model.config.top_k) == (1, 1)
    assert model(public.some_tokens()).isfinite().all()


def test_groups_are_kept_whole(checkpoints: dict[str, Path]) -> None:
    model = load_checkpoint(checkpoints["deepseek-v3"], experts="2-3,6-7")
    config = model.config
    assert (config.experts, config.groups, config.top_groups, config.top_k) == (4, 2, 2, 3)
    full = load_checkpoint(checkpoints["deepseek-v3"])
    assert torch.equal(model.blocks[1].experts.bias, full.blocks[1].experts.bias[[2, 3, 6, 7]])
    with pytest.raises(InvalidValue, match="groups of 2 experts"):
        load_checkpoint(checkpoints["deepseek-v3"], experts="2-4")


@pytest.mark.parametrize("experts", ["8", "3-1", "", "0-8", "a", "1-", "-1", "0,,1"])
def test_a_choice_of_experts_that_is_none_is_refused(checkpoints: dict[str, Path], experts: str) -> None:
    with pytest.raises(InvalidValue, match="no range within 0-7"):
        load_checkpoint(checkpoints["olmoe"], experts=experts)


@pytest.mark.parametrize("name", ["olmoe", "deepseek-v3"])
def test_with_fresh_adapters_the_logits_stay(
    public: ModuleType, checkpoints: dict[str, Path], name: str
) -> None:
    adapters = ModelConfig(targets=("attention", "router", "experts", "shared", "dense"), rank=8, alpha=4.0)
    plain, adapted = load_checkpoint(checkpoints[name]), load_checkpoint(checkpoints[name], adapters=adapters)
    tokens = public.some_tokens()
    assert torch.equal(plain(tokens), adapted(tokens))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.endswith("_B") for name in trained)


@pytest.mark.parametrize("name", ["qwen3", "deepseek-v3"])
def test_bfloat16_computes_the_sensitive_parts_in_float32(
    public: ModuleType, checkpoints: dict[str, Path], name: str
) -> None:
    model = load_checkpoint(
        checkpoints[name], dtype=torch.bfloat16, adapters=ModelConfig(targets=("router",))
    )
    types = {key: tensor.dtype for key, tensor in model.named_parameters()}
    experts = model.blocks[1].experts
    seen = []
    experts.observer = lambda chosen, gates: seen.append(gates.dtype)
    with torch.no_grad():
        logits, exact = model(public.some_tokens()), load_checkpoint(checkpoints[name])(public.some_tokens())
    assert logits.dtype == torch.bfloat16
    assert seen == [torch.float32]
    for part in ("experts.router", "experts.router_B", "attention_norm.gain"):
        assert types[f"blocks.1.{part}"] == torch.float32
    for part in ("experts.gate_up", "attention.output.weight"):
        assert types[f"blocks.1.{part}"] == torch.bfloat16
    # one different expert for one token moves its logits, so the middle is compared, not the largest
    assert float((logits.float() - exact).abs().median()) < 0.1


@pytest.mark.parametrize("name", ["qwen3", "llama-tied"])
def test_a_head_of_classes_takes_the_place_of_the_language_models(
    public: ModuleType, checkpoints: dict[str, Path], name: str
) -> None:
    model = load_checkpoint(checkpoints[name], classes=5, adapters=ModelConfig(targets=("attention",)))
    language, tokens = load_checkpoint(checkpoints[name]), public.some_tokens()
    assert model(tokens).shape == (3, 5)
    assert not model.head.any()
    assert model.head.dtype == torch.float32
    torch.testing.assert_close(model.hidden(tokens), language.hidden(tokens))
