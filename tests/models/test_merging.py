"""Folding adapters in and taking them out; upcycling a dense model: the function stays."""

from types import ModuleType

import pytest
import torch

from hansa.errors import InvalidValue
from hansa.models.checkpoints import load_checkpoint
from hansa.models.config import ModelConfig
from hansa.models.merging import adapters_of, merge_adapters, unmerge_adapters
from hansa.models.objectives import without_adapters
from hansa.models.transformer import FeatureTransformer
from hansa.models.upcycling import upcycle


def test_a_folded_model_computes_the_same_without_its_adapters(texts: ModuleType) -> None:
    model, text = texts.text_model(), texts.some_text()
    with without_adapters(model):
        base = model(text)
    before = model(text)
    assert (before - base).abs().max() > 1e-2
    factors = merge_adapters(model)
    assert set(factors) == {adapter.name for adapter in adapters_of(model)}
    assert not any(adapter.factor_B.any() for adapter in adapters_of(model))
    torch.testing.assert_close(model(text), before, rtol=1e-11, atol=1e-11)
    with without_adapters(model):
        torch.testing.assert_close(model(text), before, rtol=1e-11, atol=1e-11)


def test_taking_them_out_gives_the_base_back(texts: ModuleType) -> None:
    model, text = texts.text_model(), texts.some_text()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unmerge_adapters(model, merge_adapters(model))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-12, atol=1e-12)
    with without_adapters(model):
        base = model(text)
    assert (model(text) - base).abs().max() > 1e-2


def test_a_table_model_is_folded_too(small_model: object, small_rows: object) -> None:
    model: FeatureTransformer = small_model(targets=("attention", "router", "experts", "shared"))  # type: ignore[operator]
    rows = small_rows(5)  # type: ignore[operator]
    before = model(rows)
    assert len(merge_adapters(model)) == 2 * (4 + 5)
    torch.testing.assert_close(model(rows), before, rtol=1e-11, atol=1e-11)


def test_the_factors_of_another_model_are_refused(texts: ModuleType) -> None:
    factors = merge_adapters(texts.text_model(targets=("attention",)))
    with pytest.raises(InvalidValue, match="is not in both"):
        unmerge_adapters(texts.text_model(), factors)


@pytest.mark.parametrize(("experts", "top_k", "kept"), [(4, 1, 0), (4, 2, 0), (8, 8, 0), (6, 3, 2)])
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_an_upcycled_model_has_the_logits_of_the_dense_one(
    public: ModuleType, tmp_path: object, name: str, experts: int, top_k: int, kept: int
) -> None:
    dense, tokens = load_checkpoint(public.save(name, tmp_path), dtype=torch.float64), public.some_tokens()
    adapters = ModelConfig(targets=("experts", "router"), rank=4, alpha=4.0)
    model = upcycle(dense, experts=experts, top_k=top_k, seed=0, keep_dense=kept, adapters=adapters)
    torch.testing.assert_close(model(tokens), dense(tokens), rtol=1e-10, atol=1e-10)
    assert [block.routed for block in model.blocks] == [i >= kept for i in range(3)]
    # trained further, the copies drift apart and the routing begins to count
    with torch.no_grad():
        model.blocks[2].experts.gate_up_B.normal_()
    assert (model(tokens) - dense(tokens)).abs().max() > 1e-3


def test_routers_are_a_function_of_the_seed(public: ModuleType, tmp_path: object) -> None:
    dense = load_checkpoint(public.save("llama", tmp_path))
    routers = [upcycle(dense, experts=4, top_k=2, seed=seed).blocks[0].experts.router for seed in (0, 0, 1)]
    assert torch.equal(routers[0], routers[1])
    assert not torch.equal(routers[0], routers[2])


def test_a_routed_model_is_not_upcycled_again(texts: ModuleType) -> None:
    with pytest.raises(InvalidValue, match="block 1 is routed already"):
        upcycle(texts.text_model(), experts=4, top_k=2, seed=0)
