"""Objectives: by hand, averaged inside a sample, deaf to the rest of the batch."""

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from hansa.models.objectives import (
    class_loss,
    next_token_loss,
    preference_loss,
    preference_terms,
    token_log_probabilities,
    without_adapters,
)


class Fixed(nn.Module):
    """Gives the logits it was made with, whatever the tokens."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, tokens: Tensor, tape: object) -> Tensor:
        return self.logits[: len(tokens)]


def log_odds(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_next_token_by_hand() -> None:
    """Three tokens of a vocabulary of two; each position gives its own probabilities to the next token."""
    rows = [log_odds(0.5, 0.5), log_odds(0.2, 0.8), log_odds(0.9, 0.1)]
    model = Fixed(torch.tensor([rows, rows]))
    text = torch.tensor([[0, 1, 1], [1, 0, -1]])
    # sample 0 predicts 1 after 0 (0.5), then 1 (0.8); sample 1 predicts 0 (0.5) and ends
    expected = [-(math.log(0.5) + math.log(0.8)) / 2, -math.log(0.5)]
    assert next_token_loss(model, text, text, None).tolist() == pytest.approx(expected)


def test_a_prompt_is_not_learned_and_a_text_without_targets_has_loss_zero(texts: ModuleType) -> None:
    model, text = texts.text_model(), texts.some_text(2, 5)
    text[:] = text[0]
    targets = text.clone()
    targets[0, :3], targets[1, :] = -1, -1
    full = token_log_probabilities(model(text), text)
    losses = next_token_loss(model, text, targets, None)
    torch.testing.assert_close(losses[0], -full[0, 2:].mean())
    assert losses[1] == 0
    assert torch.autograd.grad(losses[1], model.head)[0].eq(0).all()


def test_classes_by_hand() -> None:
    model = Fixed(torch.tensor([log_odds(0.2, 0.3, 0.5), log_odds(0.7, 0.2, 0.1)]))
    losses = class_loss(model, torch.zeros(2, 4, dtype=torch.int64), torch.tensor([2, 1]), None)
    assert losses.tolist() == pytest.approx([-math.log(0.5), -math.log(0.2)])


def test_the_preference_loss_equals_a_hand_worked_case() -> None:
    """Rafailov et al. 2023, equation 7, with numbers that a pocket calculator can follow.

    π(y₊) = 0.5, π₀(y₊) = 0.25: the policy likes the preferred answer twice as much as the reference, log ratio ln 2.
    π(y₋) = 0.2, π₀(y₋) = 0.4: half as much, log ratio −ln 2. With β = 0.5 the margin is 0.5 · 2 ln 2 = ln 2,
    σ(ln 2) = 2/3, so the loss is −ln(2/3) = 0.405465…
    """
    policy, reference = torch.tensor([log_odds(0.5, 0.2)]), torch.tensor([log_odds(0.25, 0.4)])
    loss = preference_terms(policy.double(), reference.double(), 0.5)
    assert loss.item() == pytest.approx(math.log(1.5), abs=1e-7)
    # where policy and reference agree, the loss is ln 2 whatever β
    assert preference_terms(policy, policy, 3.0).item() == pytest.approx(math.log(2))


def test_the_whole_preference_loss_from_token_probabilities(texts: ModuleType) -> None:
    model = texts.text_model()
    pairs = texts.some_text(4, 6).view(2, 2, 6)
    targets = pairs.clone()
    targets[:, :, :2] = -1  # the prompt
    losses = preference_loss(0.3)(model, pairs, targets, None)
    for pair, target, loss in zip(pairs, targets, losses, strict=True):
        margins = []
        for text, wanted in zip(pair, target, strict=True):
            with without_adapters(model):
                reference = model(text[None])[0].log_softmax(1)
            policy = model(text[None])[0].log_softmax(1)
            places = [t for t in range(1, 6) if wanted[t] >= 0]
            margins.append(sum(policy[t - 1, text[t]] - reference[t - 1, text[t]] for t in places))
        expected = -torch.log(torch.sigmoid(0.3 * (margins[0] - margins[1])))
        torch.testing.assert_close(loss, expected)


def test_at_the_start_the_preference_loss_is_ln_2_and_training_it_prefers(texts: ModuleType) -> None:
    model = texts.text_model()
    layout = texts.layout_of(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_B"):
                parameter.zero_()
    pairs = texts.some_text(4, 6).abs().view(2, 2, 6)
    loss = preference_loss(0.5)
    losses = loss(model, pairs, pairs, None)
    assert losses.tolist() == pytest.approx([math.log(2)] * 2)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(10):
        optimizer.zero_grad()
        loss(model, pairs, pairs, None).sum().backward()
        optimizer.step()
    assert (loss(model, pairs, pairs, None) < 0.6).all()
    assert layout.size > 0


@pytest.mark.parametrize("objective", ["next", "class", "preference"])
def test_a_samples_loss_depends_on_that_sample_only(texts: ModuleType, objective: str) -> None:
    model = texts.text_model(head="classes" if objective == "class" else "causal_lm", classes=2)

    def losses(text: Tensor) -> Tensor:
        if objective == "class":
            return class_loss(model, text, text[:, 0] % 2, None)
        if objective == "next":
            return next_token_loss(model, text, text, None)
        return preference_loss(0.5)(model, text.view(-1, 2, 6), text.view(-1, 2, 6), None)

    text, others = texts.some_text(6, 6), texts.some_text(6, 6, seed=1)
    others[2:4] = text[2:4]
    place = 1 if objective == "preference" else 2
    torch.testing.assert_close(losses(text)[place], losses(others)[place], rtol=1e-11, atol=1e-11)


def test_losses_are_computed_in_float32_from_half_precision() -> None:
    logits = torch.randn(1, 3, 5).bfloat16()
    text = torch.tensor([[1, 2, 3]])
    assert next_token_loss(Fixed(logits), text, text, None).dtype == torch.float32


def test_adapters_come_back_after_an_error(texts: ModuleType) -> None:
    model, text = texts.text_model(), texts.some_text()
    before = model(text)
    with pytest.raises(KeyError), without_adapters(model):
        raise KeyError
    assert torch.equal(model(text), before)
