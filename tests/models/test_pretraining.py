"""Pretraining of the base: learns, without labels, from its seed alone, and leaves what is trained privately at its start."""

import inspect
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hansa.models.pretraining import Base, PretrainingConfig, make_base, pretrain
from hansa.models.transformer import FeatureTransformer
from hansa.study import Study

USED = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
SHORT = PretrainingConfig(steps=5, batch_size=16)


def public_rows(count: int = 256) -> Tensor:
    """Three feature tokens that tell about each other."""
    draws = torch.Generator().manual_seed(0)
    cause = torch.randn(count, 1, 1, generator=draws)
    return (cause + 0.1 * torch.randn(count, 3, 4, generator=draws)) * USED


@pytest.fixture(scope="module")
def make(small_study: Callable[..., Study]) -> Callable[..., Base]:
    def made(seed: int = 7, config: PretrainingConfig = SHORT, **changes: bool) -> Base:
        return make_base(small_study(**changes), public_rows(), USED, seed=seed, pretraining=config)

    return made


def test_pretraining_lowers_its_loss_below_what_one_token_alone_tells(
    small_study: Callable[..., Study],
) -> None:
    losses: list[float] = []
    steps: list[int] = []

    def progress(step: int, loss: float) -> None:
        steps.append(step)
        losses.append(loss)

    config = PretrainingConfig(steps=150, batch_size=64, learning_rate=1e-2, balance_weight=0.0)
    make_base(small_study(), public_rows(), USED, seed=0, pretraining=config, progress=progress)
    assert steps == list(range(1, 151))
    # mean over the hidden tokens of the squared values: the loss of whoever predicts the mean
    ignorant = float(public_rows().square().sum((1, 2)).mean() / 3)
    late = np.mean(losses[-20:])
    assert late < 0.7 * np.mean(losses[:10])
    assert late < 0.5 * ignorant


def test_it_uses_no_labels() -> None:
    for function in (make_base, pretrain):
        assert not any(
            "label" in name or name in {"y", "target"} for name in inspect.signature(function).parameters
        )


def test_adapters_and_head_are_left_untouched_and_the_rest_learns(make: Callable[..., Base]) -> None:
    start, after = make(config=replace(SHORT, steps=0)).weights, make().weights
    for name, tensor in after.items():
        if name.endswith("_B") or name == "head":
            assert not tensor.any(), name
        elif "factor_A" in name:
            assert torch.equal(tensor, start[name]), name
        else:
            assert not torch.equal(tensor, start[name]), name


def test_the_same_seed_gives_the_same_weights_and_another_one_others(make: Callable[..., Base]) -> None:
    first = make().weights
    torch.manual_seed(999)  # whatever the global generator holds
    torch.rand(5)
    again, other = make().weights, make(seed=8).weights
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
        if tensor.any():  # the factors A have a seed of their own, the study's
            assert torch.equal(tensor, other[name]) == ("factor_A" in name), name


def test_the_weights_depend_on_the_arguments_only_and_the_global_generator_is_not_moved(
    make: Callable[..., Base], small_model: Callable[..., FeatureTransformer]
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    make().model()
    models = []
    for _ in range(2):
        model = small_model(dtype=torch.float32)
        pretrain(model, public_rows() * small_model().used_JZ, SHORT, 3)
        models.append(model.state_dict())
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
        torch.manual_seed(5 + len(models))
        before = torch.get_rng_state(), before[1]
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


def test_models_of_a_base_are_separate_frozen_copies(make: Callable[..., Base]) -> None:
    base = make()
    one, other = base.model(), base.model()
    assert not one.training
    trained = {name for name, parameter in one.named_parameters() if parameter.requires_grad}
    assert trained == {slot.name for slot in base.layout.slots}
    np.testing.assert_array_equal(base.layout.gather(one), base.layout.gather(other))
    base.layout.load(one, np.ones(base.layout.size))
    assert base.layout.gather(other)[-1] == 0.0
    assert all(torch.equal(tensor, base.weights[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("train_embeddings", [True, False])
@pytest.mark.parametrize("train_head", [True, False])
def test_the_study_says_what_is_trained(
    make: Callable[..., Base], train_embeddings: bool, train_head: bool
) -> None:
    layout = make(
        config=replace(SHORT, steps=1), train_embeddings=train_embeddings, train_head=train_head
    ).layout
    names = {slot.name for slot in layout.slots}
    assert ("head" in names) == train_head
    assert ("embedding" in names) == ("class_token" in names) == train_embeddings
    assert len([name for name in names if name.endswith("_B")]) == 6


def test_a_step_on_the_trained_part_is_possible_from_the_base(make: Callable[..., Base]) -> None:
    """The base starts at logit 0 with a gradient into the head."""
    model = make().model()
    logits = model(public_rows(8))
    assert not logits.detach().any()
    logits.sum().backward()
    assert model.head.grad.abs().min() > 0
