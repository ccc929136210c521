"""Per-sample clipping of a text model with every kind of adapter: equal to a loop over single texts."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hansa.errors import InvalidValue
from hansa.models import adapters
from hansa.models.objectives import class_loss, next_token_loss, preference_loss
from hansa.models.tape import Tape
from hansa.models.trainable import TrainableLayout
from hansa.privacy.per_sample import clipped_sum

ROOM = 1.0 + 1e-6


def gradients(layout: TrainableLayout, model: nn.Module, losses: list[Tensor]) -> NDArray[np.float64]:
    """Gradient of every sample by plain autograd, (B, P)."""
    parameters = dict(model.named_parameters())
    trained = [parameters[slot.name] for slot in layout.slots]
    rows = []
    for loss in losses:
        parts = torch.autograd.grad(loss, trained, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, parts, strict=True)]
        rows.append(np.concatenate([g.double().flatten().numpy() for g in flat]))
    return np.stack(rows)


def check(
    model: nn.Module,
    layout: TrainableLayout,
    x: Tensor,
    y: Tensor,
    loss: Any,
    expected_BP: NDArray[np.float64],
) -> None:
    norms = np.linalg.norm(expected_BP, axis=1)
    assert norms.min() > 1e-3
    support = np.flatnonzero(np.random.default_rng(0).random(layout.size) < 0.4)
    for positions in (None, support):
        rows = expected_BP if positions is None else expected_BP[:, positions]
        norms = np.linalg.norm(rows, axis=1)
        for clip_norm in (None, float(np.median(norms))):
            factor = 1.0 if clip_norm is None else clip_norm / np.maximum(clip_norm, norms * ROOM)
            expected = (np.ones(len(rows)) * factor) @ rows
            actual = clipped_sum(model, layout, x, y, support_K=positions, clip_norm=clip_norm, loss=loss)
            np.testing.assert_allclose(actual.norms_B, norms, rtol=1e-12)
            assert np.linalg.norm(actual.sum_K - expected) <= 1e-12 * np.linalg.norm(expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def choose_form(monkeypatch: pytest.MonkeyPatch, merged: bool) -> None:
    """Small adapters are merged into the experts' weights for a call; large ones are not."""
    if not merged:
        real = adapters.AdaptedExperts.forward

        def forward(ctx: Any, x: Tensor, w: Tensor, *rest: Any) -> Tensor:
            result: Tensor = real(ctx, x, w, *rest)
            assert not ctx.merged
            return result

        monkeypatch.setattr(adapters, "_MERGED_TYPES", ())
        monkeypatch.setattr(adapters.AdaptedExperts, "forward", staticmethod(forward))


SHAPES: list[dict[str, Any]] = [
    {},
    {"position": "alibi", "window": 2, "full_every": 2},
    {"kv_heads": 1, "heads": 2, "layers": 2, "dense_layers": 0, "top_k": 4},
    {"checkpointing": True},
]


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_a_loop_over_texts_tokens_heads_and_experts(
    texts: ModuleType, monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any], merged: bool
) -> None:
    """Grouped queries, windows, routed and shared experts, a dense block, adapters on all of them and on the router."""
    choose_form(monkeypatch, merged)
    model = texts.text_model(**shape)
    layout = texts.layout_of(model, "head")
    endings = {slot.name.rpartition(".")[2] for slot in layout.slots}
    assert endings >= {
        "factor_B",
        "gate_up_B",
        "down_B",
        "router_B",
        "shared_gate_up_B",
        "shared_down_B",
        "head",
    }
    text = texts.some_text()
    expected = gradients(layout, model, [texts.loop_loss(model, row) for row in text])
    check(model, layout, text, text, next_token_loss, expected)


@pytest.mark.parametrize("merged", [True, False])
def test_both_factors_are_clipped_together(
    texts: ModuleType, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    choose_form(monkeypatch, merged)
    model = texts.text_model(train_factor_A=True)
    layout = texts.layout_of(model, both_factors=True)
    firsts = [slot.name for slot in layout.slots if "factor_A" in slot.name]
    assert len(firsts) * 2 == len(layout.slots)
    text = texts.some_text()
    expected = gradients(layout, model, [texts.loop_loss(model, row) for row in text])
    check(model, layout, text, text, next_token_loss, expected)


@pytest.mark.parametrize(
    "shape",
    [
        {"score": "sigmoid", "groups": 3, "top_groups": 2, "group_score": "top2", "select_bias": True},
        {"score": "softmax", "renormalise": False, "route_scale": 1.5, "qk_norm": "head"},
        {"qk_norm": "width", "tied": True},
    ],
    ids=str,
)
def test_every_gate_and_norm_equals_the_model_one_text_at_a_time(
    texts: ModuleType, shape: dict[str, Any]
) -> None:
    model = texts.text_model(**shape)
    layout = texts.layout_of(model)
    text = texts.some_text()
    losses = [next_token_loss(model, row[None], row[None], None)[0] for row in text]
    check(model, layout, text, text, next_token_loss, gradients(layout, model, losses))


@pytest.mark.parametrize("value_dim", [6, 8, 12])
def test_latent_attention_too(texts: ModuleType, value_dim: int) -> None:
    from hansa.models.config import Latent

    sizes = Latent(kv_rank=8, query_rank=8, plain_dim=4, rope_dim=4, value_dim=value_dim)
    model = texts.text_model(latent=sizes, kv_heads=0)
    layout = texts.layout_of(model)
    text = texts.some_text()
    losses = [next_token_loss(model, row[None], row[None], None)[0] for row in text]
    check(model, layout, text, text, next_token_loss, gradients(layout, model, losses))


def test_classes_of_texts(texts: ModuleType) -> None:
    model = texts.text_model(head="classes", classes=3)
    layout = texts.layout_of(model, "head")
    text, classes = texts.some_text(), torch.tensor([0, 2, 1, 2])
    # without padding: what stands after the end of a text must not count
    losses = [
        class_loss(model, row[row >= 0][None], label[None], None)[0]
        for row, label in zip(text, classes, strict=True)
    ]
    check(model, layout, text, classes, class_loss, gradients(layout, model, losses))


def test_a_pair_of_texts_is_one_sample(texts: ModuleType) -> None:
    model = texts.text_model()
    layout = texts.layout_of(model)
    pairs = texts.some_text(samples=6).view(3, 2, -1)
    targets = pairs.clone()
    targets[:, :, 0] = -1
    loss = preference_loss(0.5)
    losses = [loss(model, x[None], y[None], None)[0] for x, y in zip(pairs, targets, strict=True)]
    check(model, layout, pairs, targets, loss, gradients(layout, model, losses))


def test_half_precision_records_give_a_bounded_sum(texts: ModuleType) -> None:
    """Norms and sums are taken in float32 from the same records, so the bound holds although the gradients are rounded."""
    from hansa.models.text import use_compute_type

    model = texts.text_model(dtype=torch.float32)
    use_compute_type(model, torch.bfloat16)
    layout = texts.layout_of(model)
    text = texts.some_text(samples=3)
    for row in text:
        part = clipped_sum(
            model, layout, row[None], row[None], support_K=None, clip_norm=0.01, loss=next_token_loss
        )
        assert 0.0099 < np.linalg.norm(part.sum_K) <= 0.01


def test_what_leaves_no_record_is_refused_and_never_trained_unclipped(texts: ModuleType) -> None:
    model = texts.text_model()
    layout, text = texts.layout_of(model, "embedding"), texts.some_text()
    with pytest.raises(InvalidValue, match="embedding leaves no record"):
        clipped_sum(model, layout, text, text, support_K=None, clip_norm=1.0, loss=next_token_loss)


@pytest.mark.parametrize("extra", [(), ("head",)])
def test_every_trained_factor_leaves_exactly_one_record(texts: ModuleType, extra: tuple[str, ...]) -> None:
    for again in (False, True):
        model = texts.text_model(checkpointing=again)
        layout = texts.layout_of(model, *extra)
        tape, text = Tape(), texts.some_text()
        next_token_loss(model, text, text, tape).sum().backward()
        assert set(tape.records) == {slot.name for slot in layout.slots}
