"""The transformer: samples never meet, padding does not count, and the last block computes what is needed only."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.models.config import ModelConfig
from hansa.models.transformer import FeatureTransformer, normalise
from hansa.study import Study

PROPERTY = settings(deadline=None, max_examples=25, derandomize=True)
Maker = Callable[..., FeatureTransformer]
Rows = Callable[..., Tensor]


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@PROPERTY
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 6),
    extreme=st.sampled_from([1.0, 1e3, float("nan")]),
    data=st.data(),
)
def test_one_samples_logit_does_not_depend_on_the_rest_of_the_batch(
    small_model: Maker, small_rows: Rows, seed: int, count: int, extreme: float, data: st.DataObject
) -> None:
    model = small_model(seed % 5, experts=16, top_k=3)
    sample = data.draw(st.integers(0, count - 1))
    rows = small_rows(count, seed)
    others = small_rows(count, seed + 1) * extreme
    others[sample] = rows[sample]
    alone = model(rows[sample : sample + 1])[0]
    assert alone.isfinite()
    same(model(rows)[sample], alone)
    same(model(others)[sample], alone)


@PROPERTY
@given(seed=st.integers(0, 2**31), one_expert=st.booleans(), training=st.booleans())
def test_experts_a_samples_output_depends_on_that_sample_only(
    small_model: Maker, seed: int, one_expert: bool, training: bool
) -> None:
    experts = small_model().blocks[0].experts.train(training)
    if one_expert:  # every token of every sample asks for the same experts: nothing is dropped
        experts.router.data.zero_()
    draws = torch.Generator().manual_seed(seed)
    x_BTD, other_BTD = torch.randn(2, 5, 4, 8, generator=draws, dtype=torch.float64)
    other_BTD[2] = x_BTD[2]
    alone = experts(x_BTD[2:3], None)[0]
    same(experts(x_BTD, None)[2], alone)
    same(experts(other_BTD, None)[2], alone)


@pytest.mark.parametrize("frozen", ["nothing", "adapters", "base"])
def test_experts_and_all_their_gradients_equal_a_loop_over_tokens(small_model: Maker, frozen: str) -> None:
    experts = small_model().blocks[0].experts
    x_BTD = torch.randn(3, 4, 8, dtype=torch.float64, requires_grad=True)
    for name, parameter in experts.named_parameters():
        kind = "adapters" if name.endswith("_B") else "base"
        parameter.requires_grad_(kind != frozen)

    def swiglu(gate_up: Tensor) -> Tensor:
        gate, up = gate_up[: len(gate_up) // 2], gate_up[len(gate_up) // 2 :]
        return gate * gate.sigmoid() * up

    def serve(x: Tensor) -> Tensor:
        values, chosen = (x @ experts.router).topk(experts.config.top_k)
        y = swiglu(x @ experts.shared_gate_up) @ experts.shared_down
        for gate, e in zip(values.softmax(0), chosen, strict=True):
            up = experts.gate_up[e] + experts.scale * experts.factor_A_in[e] @ experts.gate_up_B[e]
            down = experts.down[e] + experts.scale * experts.factor_A_down[e] @ experts.down_B[e]
            y = y + gate * (swiglu(x @ up) @ down)
        return y

    actual = experts(x_BTD, None)
    expected = torch.stack([torch.stack([serve(x) for x in sample]) for sample in x_BTD])
    same(actual, expected)
    learners = [x_BTD, *(parameter for parameter in experts.parameters() if parameter.requires_grad)]
    assert len(learners) == {"nothing": 8, "adapters": 6, "base": 3}[frozen]
    direction = torch.randn_like(expected)
    pairs = zip(*(torch.autograd.grad(y, learners, direction) for y in (actual, expected)), strict=True)
    for one, other in pairs:
        same(one, other)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_last_block_computes_the_class_token_only_and_the_same(
    small_model: Maker, small_rows: Rows, layers: int
) -> None:
    model = small_model(layers=layers)
    tokens = model.tokens(small_rows(4))
    short, full = model.hidden(tokens, every_token=False), model.hidden(tokens, every_token=True)
    assert (short.shape, full.shape) == ((4, 1, 8), (4, 4, 8))
    same(short[:, 0], full[:, 0])
    h = torch.cat([full[:, 0], torch.ones(4, 1, dtype=torch.float64)], dim=1)
    same(model(small_rows(4)), (h @ model.head)[:, 0])


@pytest.mark.parametrize(
    "changes",
    [
        {"shared_expert_dim": 0},
        {"targets": ()},
        {"targets": ("attention",)},
        {"experts": 1, "top_k": 1},
        {"targets": ("attention", "router", "experts", "shared")},
        {"kv_heads": 1, "qk_norm": "head", "norm_gain": True, "head_dim": 8},
        {"score": "sigmoid", "groups": 4, "top_groups": 2, "select_bias": True, "route_scale": 2.5},
        {"dense_layers": 1, "dense_dim": 8, "targets": ("dense", "experts"), "checkpointing": True},
    ],
    ids=str,
)
def test_every_configuration_computes(small_model: Maker, small_rows: Rows, changes: dict[str, Any]) -> None:
    logits = small_model(**changes)(small_rows(5))
    assert logits.shape == (5,)
    assert logits.isfinite().all()
    assert logits.unique().numel() == 5


def test_an_empty_batch_gives_no_logits(small_model: Maker, small_rows: Rows) -> None:
    assert small_model()(small_rows(0)).shape == (0,)
    assert small_model(dtype=torch.float32)(small_rows(0).float()).shape == (0,)


def test_padded_values_do_not_count(small_model: Maker, small_rows: Rows) -> None:
    model, rows = small_model(), small_rows(4)
    changed = torch.where(model.used_JZ, rows, torch.full_like(rows, 1e6))
    same(model(changed), model(rows))


def test_float32_and_float64_agree(small_model: Maker, small_rows: Rows) -> None:
    """float32 takes the fast kernels, float64 the reference loops."""
    rows = small_rows(20)
    expected = small_model()(rows)
    actual = small_model(dtype=torch.float32)(rows.float())
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


def test_rows_are_normalised_without_a_batch_statistic() -> None:
    x = torch.randn(5, 3, 8, dtype=torch.float64) * 10
    mean_square = x.square().mean(-1)
    same(normalise(x).square().mean(-1), mean_square / (mean_square + 1e-6))
    assert normalise(torch.zeros(1, 8)).eq(0).all()


def test_the_balance_loss_exists_in_public_pretraining_only(small_model: Maker, small_rows: Rows) -> None:
    model = small_model()
    experts = model.blocks[0].experts
    model(small_rows(3))
    assert experts.balance_loss is None  # evaluating
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model(small_rows(3))
    assert experts.balance_loss is None  # the router is frozen, as in every private step
    experts.router.requires_grad_(True)
    model(small_rows(3))
    assert experts.balance_loss >= 1 - 1e-12


def test_the_sizes_are_those_of_the_study(small_study: Callable[..., Study]) -> None:
    study = small_study()
    config = ModelConfig.of_study(study)
    for name in ("dim", "layers", "heads", "experts", "top_k", "expert_dim", "shared_expert_dim"):
        assert getattr(config, name) == getattr(study.model, name)
    for name in ("rank", "alpha", "targets", "factor_seed"):
        assert getattr(config, name) == getattr(study.adapters, name)
    # what a study does not set is the same by default
    assert ModelConfig() == ModelConfig(targets=tuple(type(study.adapters)().targets))
