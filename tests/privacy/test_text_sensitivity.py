"""One text more or less changes the clipped sum by at most the clip norm; three coupled designs of MoE training break that."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hansa.models.experts as experts_module
from hansa.kernels.routing import Routing
from hansa.models.experts import Experts
from hansa.models.objectives import next_token_loss
from hansa.models.router import route_tokens
from hansa.models.tape import Tape
from hansa.models.trainable import TrainableLayout
from hansa.privacy.per_sample import clipped_sum


def largest_change(
    model: nn.Module, layout: TrainableLayout, text: Tensor, clip_norm: float, loss: Any = next_token_loss
) -> float:
    """Largest ‖S(D) − S(D without j)‖₂ / C over all texts j."""

    def step(kept: Tensor) -> Any:
        return clipped_sum(
            model, layout, text[kept], text[kept], support_K=None, clip_norm=clip_norm, loss=loss
        ).sum_K

    everyone = torch.arange(len(text))
    whole = step(everyone)
    return max(float(np.linalg.norm(whole - step(everyone[everyone != j]))) for j in everyone) / clip_norm


def smallest_norm(model: nn.Module, layout: TrainableLayout, text: Tensor) -> float:
    found = clipped_sum(model, layout, text, text, support_K=None, clip_norm=None, loss=next_token_loss)
    return float(found.norms_B.min())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clip_norm", [0.01, 0.5, 100.0])
def test_one_text_more_or_less_changes_the_sum_by_at_most_clip_norm(
    texts: ModuleType, seed: int, clip_norm: float
) -> None:
    model = texts.text_model(seed)
    layout = texts.layout_of(model, "head")
    assert largest_change(model, layout, texts.some_text(6, seed=seed), clip_norm) <= 1 + 1e-9


def test_the_bound_is_tight(texts: ModuleType) -> None:
    model = texts.text_model()
    layout = texts.layout_of(model)
    text = texts.some_text(1).repeat(4, 1)
    ratio = largest_change(model, layout, text, smallest_norm(model, layout, text) / 2)
    assert 1 - 1e-5 <= ratio <= 1 + 1e-9


def capacity_limited(capacity: int) -> Callable[..., Routing]:
    """Routing that serves the first `capacity` rows of an expert and drops the rest, as Switch Transformers do."""

    def route(logits: Tensor, config: Any, bias: Tensor | None) -> Routing:
        routing = route_tokens(logits, config, bias)
        first_R = torch.searchsorted(routing.expert_R, routing.expert_R)
        place_R = torch.arange(len(first_R)) - first_R
        kept = (place_R < capacity)[routing.inverse_R].view(-1, config.top_k)
        assert not kept.all()
        return replace(routing, gates_TK=routing.gates_TK * kept)

    return route


def test_negative_control_dropping_beyond_a_capacity_breaks_the_bound(
    texts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = texts.text_model()
    layout = texts.layout_of(model)
    text = texts.some_text(12)
    clip_norm = smallest_norm(model, layout, text) / 2
    assert largest_change(model, layout, text, clip_norm) <= 1 + 1e-9
    monkeypatch.setattr(experts_module, "route_tokens", capacity_limited(8))
    assert largest_change(model, layout, text, clip_norm) > 1.2


def balanced_over_the_batch(model: nn.Module, text: Tensor, targets: Tensor, tape: Tape) -> Tensor:
    """A load-balance loss over the tokens of all samples (Fedus et al. 2022, equation 4) beside each sample's own loss."""
    losses: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, Experts)]

    def observe(chosen_TK: Tensor, gates_TK: Tensor) -> None:
        load_E = torch.bincount(chosen_TK.flatten(), minlength=6) / chosen_TK.numel()
        weight_E = gates_TK.new_zeros(6).index_add(0, chosen_TK.flatten(), gates_TK.flatten()) / len(gates_TK)
        losses.append(6 * (load_E * weight_E).sum())

    for layer in layers:
        layer.observer = observe
    own = next_token_loss(model, text, targets, tape)
    for layer in layers:
        layer.observer = None
    return own + 10 * torch.stack(losses).sum()


def test_negative_control_a_balance_loss_over_the_batch_breaks_the_bound(texts: ModuleType) -> None:
    model = texts.text_model(2, targets=("router",))
    layout = texts.layout_of(model)
    text = texts.some_text(8)
    text[:-1] = text[0]  # seven alike, whose balance the last one decides
    clip_norm = smallest_norm(model, layout, text)
    assert largest_change(model, layout, text, clip_norm) <= 1 + 1e-9
    assert largest_change(model, layout, text, clip_norm, balanced_over_the_batch) > 1.5


def signed(model: nn.Module, text: Tensor, targets: Tensor, tape: Tape) -> Tensor:
    """Each text's own loss, the last one's turned round: the gradients of equal texts lie on one line."""
    losses = next_token_loss(model, text, targets.abs(), tape)
    return losses * torch.where(targets[:, 0] < 0, -1.0, 1.0)


def batch_mean(model: nn.Module, text: Tensor, targets: Tensor, tape: Tape) -> Tensor:
    """Each loss over the size of the batch, as mean reduction does before clipping."""
    return signed(model, text, targets, tape) / len(text)


def batch_mean_over_tokens(model: nn.Module, text: Tensor, targets: Tensor, tape: Tape) -> Tensor:
    """Each loss over the number of tokens of the whole batch, as language models are usually trained."""
    lengths = (text[:, 1:] >= 0).sum(dim=1)
    return signed(model, text, targets, tape) * lengths / lengths.sum()


@pytest.mark.parametrize("coupled", [batch_mean, batch_mean_over_tokens])
def test_negative_control_a_mean_over_the_batch_breaks_the_bound(texts: ModuleType, coupled: Any) -> None:
    model = texts.text_model()
    layout = texts.layout_of(model)
    text = (texts.some_text(1) % 12 + 1).repeat(8, 1)
    targets = text.clone()
    targets[-1] *= -1
    clip_norm = smallest_norm(model, layout, text) / 7  # what each of the seven others has without the last

    def step(count: int, loss: Any) -> Any:
        arguments: dict[str, Any] = {"support_K": None, "clip_norm": clip_norm, "loss": loss}
        return clipped_sum(model, layout, text[:count], targets[:count], **arguments).sum_K

    changes = {loss: np.linalg.norm(step(8, loss) - step(7, loss)) / clip_norm for loss in (signed, coupled)}
    assert changes[signed] <= 1 + 1e-9
    assert changes[coupled] > 1.5
