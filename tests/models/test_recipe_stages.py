"""One phase: it lowers its own loss, and moves what it names and nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hansa import errors
from hansa.models.config import ModelConfig
from hansa.models.objectives import token_log_probabilities
from hansa.models.recipe_stages import moving_names, train_on_texts
from hansa.models.recipe_texts import Samples
from hansa.models.recipes import Phase
from hansa.models.text import TextTransformer

SIZES: dict[str, Any] = {"dim": 16, "layers": 2, "heads": 2, "experts": 8, "top_k": 2, "expert_dim": 8}


def model_of(**changes: Any) -> TextTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = SIZES | {"shared_expert_dim": 8, "rank": 4, "context": 12} | changes
        return TextTransformer(ModelConfig.of_text(11, **sizes)).eval()


def phase_of(stage: str = "specialisation", **changes: Any) -> Phase:
    values = {"name": "p", "stage": stage, "data": "d", "steps": 30, "batch_size": 4, "learning_rate": 0.01}
    return Phase.model_validate(values | changes)


def texts() -> Samples:
    """Each text counts upwards from its own start."""
    tokens = (torch.arange(8).unsqueeze(1) + torch.arange(6)) % 11
    return Samples(tokens=tokens, targets=tokens)


def pairs() -> Samples:
    tokens = texts().tokens.repeat_interleave(2, 0).view(8, 2, 6).clone()
    tokens[:, 1, 3:] = tokens[:, 1, 3:].flip(1)
    targets = tokens.clone()
    targets[:, :, :3] = -1
    return Samples(tokens=tokens, targets=targets)


def train(model: TextTransformer, phase: Phase, data: Samples, seed: int = 0) -> Any:
    return train_on_texts(model, phase, data, data, seed, lambda done, loss: None)


def state(model: TextTransformer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("stage", ["pretraining", "specialisation"])
def test_texts_lower_their_loss(stage: str) -> None:
    weight = 0.01 if stage == "pretraining" else 0.0
    before, after = train(model_of(), phase_of(stage, balance_weight=weight), texts())
    assert after.loss < 0.6 * before.loss
    assert after.margin is None


def test_alignment_lowers_its_loss_and_raises_the_margin_of_the_chosen_answer() -> None:
    """The margin is taken here from the model before and the model after, not from its adapters."""
    model, data = model_of(), pairs()
    train(model, phase_of(moves=["adapters"]), texts())  # adapters that are not zero when alignment starts

    def log_p() -> Tensor:
        with torch.no_grad():
            tokens, targets = data.tokens.flatten(0, 1), data.targets.flatten(0, 1)
            return token_log_probabilities(model(tokens), targets).sum(1).view(-1, 2)

    start = log_p()
    before, after = train(model, phase_of("alignment"), data)
    gain = log_p() - start
    assert before.loss == pytest.approx(0.6931, abs=1e-3)
    assert before.margin == pytest.approx(0.0, abs=1e-4)
    assert after.loss < 0.8 * before.loss
    assert after.margin == pytest.approx((gain[:, 0] - gain[:, 1]).mean().item(), abs=1e-3)
    assert after.margin > 1.0


@pytest.mark.parametrize(
    ("moves", "endings"),
    [
        (["experts"], (".experts.gate_up", ".experts.down")),
        (["router", "head"], (".router", "head")),
        (["adapters"], ("_B",)),
        (["embedding", "shared"], ("embedding", ".shared_gate_up", ".shared_down")),
    ],
)
def test_only_what_is_named_moves(moves: list[str], endings: tuple[str, ...]) -> None:
    model = model_of()
    before = state(model)
    train(model, phase_of(moves=moves, steps=3), texts())
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.endswith(endings) or (name.endswith("factor_B") and "_B" in endings) for name in moved)


def test_everything_is_everything_but_the_adapters() -> None:
    model = model_of()
    adapters = {name for name, _ in model.named_parameters() if name.endswith("_B")}
    assert moving_names(model, phase_of()) == {name for name, _ in model.named_parameters()} - adapters


@pytest.mark.parametrize("moves", [["experts"], ["adapters"]])
def test_experts_that_are_not_named_stand_still(moves: list[str]) -> None:
    model = model_of()
    before = state(model)
    train(model, phase_of(moves=moves, experts="0-2,5", steps=5), texts())
    for name, tensor in model.state_dict().items():
        if name.endswith((".experts.gate_up", ".experts.down", ".experts.gate_up_B", ".experts.down_B")):
            moved = {e for e in range(8) if not torch.equal(tensor[e], before[name][e])}
            assert moved <= {0, 1, 2, 5}
            assert moved or name.endswith("_B") != (moves == ["adapters"])


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    found = []
    for seed in (0, 0, 1):
        model = model_of()
        torch.rand(1)  # the global generator plays no part
        train(model, phase_of(steps=3), texts(), seed)
        found.append(state(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_what_the_model_has_not_is_named() -> None:
    with pytest.raises(errors.InvalidValue, match="moves 'shared'"):
        train(model_of(shared_expert_dim=0), phase_of(moves=["shared"]), texts())
    with pytest.raises(errors.InvalidValue, match="moves 'adapters'"):
        train(model_of(targets=()), phase_of("alignment"), pairs())
    with pytest.raises(errors.InvalidValue, match="0-7"):
        train(model_of(), phase_of(moves=["experts"], experts="0-8"), texts())
    with pytest.raises(errors.InvalidValue, match="names experts and moves none"):
        train(model_of(), phase_of(moves=["head"], experts="0-3"), texts())


def test_a_loss_that_is_not_finite_ends_the_phase() -> None:
    model = model_of()
    with torch.no_grad():
        model.head.fill_(float("inf"))
    with pytest.raises(errors.TrainingDiverged, match="'p'"):
        train(model, phase_of(), texts())
