"""The record of a pass: gates that sum to 1, maps that sum to 1, the same output, and a counterfactual that says what moved."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from hansa.errors import InvalidValue, OutputNotWritable
from hansa.models.config import Latent
from hansa.models.experts import Experts
from hansa.models.explain import counterfactual, explain, gate_weights
from hansa.models.explain_plot import draw, save_plot
from hansa.models.transformer import FeatureTransformer

Make = Callable[..., FeatureTransformer]
Rows = Callable[..., Tensor]


def ones_like_sums(values: Tensor, dim: int = -1) -> None:
    sums = values.sum(dim=dim)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_of_a_table_every_token_and_block_is_recorded(small_model: Make, small_rows: Rows) -> None:
    model, rows = small_model(), small_rows(5)
    found = explain(model, rows)
    assert torch.equal(found.output, model(rows))
    assert [record.layer for record in found.layers] == [0, 1]
    for record in found.layers:
        assert record.gates_BTK is not None
        assert record.experts_BTK is not None
        assert record.gates_BTK.shape == record.experts_BTK.shape == (5, 4, 2)
        assert record.attention_BHTT.shape == (5, 2, 4, 4)
        ones_like_sums(record.gates_BTK)
        ones_like_sums(record.attention_BHTT)
        assert (record.gates_BTK[..., 0] >= record.gates_BTK[..., 1]).all()


def test_the_recorded_experts_are_those_of_the_router(small_model: Make, small_rows: Rows) -> None:
    model, rows = small_model(layers=1), small_rows(3)
    from hansa.models.norms import normalise

    tokens = model.tokens(rows)
    stream = tokens + model.blocks[0].attention(normalise(tokens), 4, None)
    logits = normalise(stream) @ model.blocks[0].experts.router
    (record,) = explain(model, rows).layers
    assert record.experts_BTK is not None
    assert torch.equal(record.experts_BTK, logits.topk(2).indices)
    torch.testing.assert_close(record.gates_BTK, logits.topk(2).values.softmax(-1))


@pytest.mark.parametrize(
    ("shape", "total"),
    [
        ({}, 1.0),
        ({"score": "softmax"}, 1.0),
        ({"score": "sigmoid", "route_scale": 2.5}, 2.5),
        ({"score": "softmax", "renormalise": False}, None),
        (
            {"latent": Latent(kv_rank=8, query_rank=0, plain_dim=4, rope_dim=4, value_dim=6), "kv_heads": 0},
            1.0,
        ),
    ],
    ids=str,
)
def test_of_a_text_gates_sum_to_1_where_they_are_normalised(
    texts: ModuleType, shape: dict[str, Any], total: float | None
) -> None:
    model, text = texts.text_model(**shape), texts.some_text(3, 6)
    found = explain(model, text)
    lengths = (text >= 0).sum(1)
    torch.testing.assert_close(found.output, model(text)[torch.arange(3), lengths - 1])
    first, *others = found.layers
    assert first.gates_BTK is first.experts_BTK is None  # the dense block
    for record in others:
        assert record.gates_BTK is not None
        sums = record.gates_BTK.sum(-1)
        assert record.gates_BTK.shape == (3, 6, 2)
        assert sums.lt(1).all() if total is None else torch.allclose(sums, torch.full_like(sums, total))
    for record in found.layers:
        ones_like_sums(record.attention_BHTT)
        assert record.attention_BHTT.triu(1).eq(0).all()
    assert found.layers[0].attention_BHTT.tril(-3).eq(0).all()  # a window of 3
    assert not found.layers[2].attention_BHTT.tril(-3).eq(0).all()


def test_the_maps_are_what_attention_uses(texts: ModuleType) -> None:
    """Mixing the values by the recorded map gives the output of the kernel."""
    model, text = texts.text_model(layers=1, position="alibi"), texts.some_text(1, 7)
    attention = model.blocks[0].attention
    x = model.blocks[0].attention_norm(model.embedding[text])
    record = explain(model, text).layers[0]
    values = attention.get_submodule("value")(x, None).unflatten(2, (2, 2)).transpose(1, 2)
    mixed = record.attention_BHTT @ values.repeat_interleave(2, dim=1)
    expected = attention.get_submodule("output")(mixed.transpose(1, 2).flatten(2), None)
    torch.testing.assert_close(attention(x, 7, None), expected)


def test_nothing_is_recorded_afterwards_even_after_an_error(texts: ModuleType) -> None:
    model = texts.text_model()
    explain(model, texts.some_text())
    with pytest.raises(InvalidValue):
        explain(model, torch.tensor([[99]]))
    layers = [module for module in model.modules() if hasattr(module, "observer")]
    assert len(layers) == 5
    assert all(layer.observer is None for layer in layers)


def test_a_counterfactual_says_what_moved(small_model: Make, small_rows: Rows) -> None:
    model, rows = small_model(), small_rows(4)
    changed = rows.clone()
    changed[1] += 1.0
    found = counterfactual(model, rows, changed)
    torch.testing.assert_close(found.output_change, model(changed) - model(rows))
    assert found.routed_layers == (0, 1)
    assert found.route_change_LBT.shape == (2, 4, 4)
    assert found.route_change_LBT[:, [0, 2, 3]].lt(1e-12).all()
    assert found.hidden_change_B[[0, 2, 3]].lt(1e-12).all()
    assert 0 < float(found.route_change_LBT[:, 1].max()) <= 1
    # by hand, for one token: half the sum of what every expert lost or won
    weights = [gate_weights(side.layers[0], 8)[1, 2] for side in (found.before, found.after)]
    torch.testing.assert_close(found.route_change_LBT[0, 1, 2], (weights[0] - weights[1]).abs().sum() / 2)


def test_a_counterfactual_of_a_text_reaches_only_what_comes_later(texts: ModuleType) -> None:
    model, text = texts.text_model(), texts.some_text(1, 6)
    changed = text.clone()
    changed[0, 3] = (text[0, 3] + 1) % 13
    found = counterfactual(model, text, changed)
    assert found.route_change_LBT[:, 0, :3].lt(1e-12).all()
    assert found.route_change_LBT[:, 0, 3].gt(0).all()
    with pytest.raises(InvalidValue, match="is not"):
        counterfactual(model, text, changed[:, :5])


def test_a_dense_model_has_no_routes(texts: ModuleType) -> None:
    model, text = texts.text_model(layers=1), texts.some_text(2, 5)
    assert not any(isinstance(module, Experts) for module in model.modules())
    found = counterfactual(model, text, text)
    assert found.route_change_LBT.shape == (0, 2, 0)
    with pytest.raises(InvalidValue, match="no routed experts"):
        gate_weights(found.before.layers[0], 4)


def test_the_repr_shows_no_value(small_model: Make, small_rows: Rows) -> None:
    found = counterfactual(small_model(), small_rows(2), small_rows(2, 1))
    for thing in (found, found.before, found.before.layers[0]):
        assert "tensor" not in repr(thing)


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_the_plot_shows_every_block_and_name(texts: ModuleType, tmp_path: Path, ending: str) -> None:
    model = texts.text_model()
    figure = draw(explain(model, texts.some_text(1, 5)), ["a", "b", "c", "d", "e"], 6)
    assert len(figure.axes) == 6
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "block 0: one dense network"
    assert titles[2:4] == ["block 1: experts of each token", "block 1: what each token read"]
    assert [label.get_text() for label in figure.axes[3].get_yticklabels()] == ["a", "b", "c", "d", "e"]
    save_plot(figure, tmp_path / f"plot.{ending}")
    assert (tmp_path / f"plot.{ending}").stat().st_size > 1000


def test_a_plot_that_cannot_be_written_is_named(texts: ModuleType, tmp_path: Path) -> None:
    figure = draw(explain(texts.text_model(), texts.some_text(1, 5)), ["a"] * 5, 6)
    for path in (tmp_path / "plot.xyz", tmp_path / "nowhere" / "plot.svg"):
        with pytest.raises(OutputNotWritable, match=r"plot\."):
            save_plot(figure, path)
