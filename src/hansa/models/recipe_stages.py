"""One phase of a recipe: which parts move, what is minimised, and what came of it.

    pretraining, specialisation   mean over the batch of L_b = − mean_t log p(x[t+1] | x[≤ t]),  + w · balance
    alignment                     mean over the batch of the preference loss against the model as it was at the phase's start

There is no privacy here: the loss may couple samples, gradients are neither clipped sample by sample nor noised.
Source: Rafailov et al. 2023, "Direct Preference Optimization", equation 7; Fedus et al. 2022, equation 4 (balance).

Shape suffixes: B samples, T tokens, P = 2: chosen and rejected.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hansa.errors import InvalidValue, TrainingDiverged
from hansa.models.checkpoints import choose_experts
from hansa.models.experts import Experts
from hansa.models.merging import merge_adapters
from hansa.models.objectives import (
    next_token_loss,
    preference_loss,
    token_log_probabilities,
    without_adapters,
)
from hansa.models.pretraining import PretrainingConfig, pretrain
from hansa.models.recipe_texts import Samples
from hansa.models.recipes import Phase
from hansa.models.text import TextTransformer
from hansa.models.trainable import is_adapter
from hansa.models.transformer import FeatureTransformer

MEASURED_MOST = 512  # samples that the loss before and after a phase is taken on
_GRADIENT_NORM_MOST = 1.0
_ENDINGS = {
    "router": (".router",),
    "experts": (".experts.gate_up", ".experts.down"),
    "shared": (".shared_gate_up", ".shared_down"),
}
_ROUTED = (".experts.gate_up", ".experts.down", ".experts.gate_up_B", ".experts.down_B")

Progress = Callable[[int, float], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a model makes of a phase's data.

    Attributes:
        loss: Mean loss of a sample, nats.
        margin: How much more the model moved towards the chosen answer than towards the rejected one since the start of the phase,
            nats, mean over pairs; None for texts and tables.
    """

    loss: float
    margin: float | None = None


def train_on_texts(
    model: TextTransformer, phase: Phase, data: Samples, held: Samples, seed: int, progress: Progress
) -> tuple[Measured, Measured]:
    """Run a phase over texts or pairs, in place.

    Args:
        model: The model.
        phase: The phase.
        data: What is learned.
        held: What is measured on.
        seed: Of the order of the samples.
        progress: Called with the number of steps done and the latest loss.

    Returns:
        What the model makes of `held` before and after.

    Raises:
        InvalidValue: The phase moves a part or an expert that the model has not.
        TrainingDiverged: The loss is not finite.

    Guarantees:
        - Nothing but the phase's parts moves; of the routed experts only those that it names. Alignment first folds the adapters
          into the weights, so that its reference is the model as it was.
        - The weights afterwards depend on the arguments only; torch's global generator is neither read nor moved.
    """
    aligning = phase.stage == "alignment"
    if aligning:
        merge_adapters(model)
    before = _measure(model, phase, held)
    loss_of = preference_loss(phase.beta) if aligning else next_token_loss
    with _only_moving(model, phase) as moving:
        optimizer = torch.optim.AdamW(moving, lr=phase.learning_rate, weight_decay=phase.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, phase.steps)
        order = _order(len(data), phase.batch_size, np.random.default_rng(seed))
        model.train()
        for step in range(phase.steps):
            tokens, targets = data.batch(next(order))
            loss = loss_of(model, tokens, targets, None).mean()
            total = loss + phase.balance_weight * _balance(model) if phase.balance_weight else loss
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(moving, _GRADIENT_NORM_MOST)
            optimizer.step()
            schedule.step()
            _verify_finite(phase, loss.item())
            progress(step + 1, loss.item())
    after = _measure(model, phase, held)
    _verify_finite(phase, after.loss)
    return before, after


def train_on_table(
    model: FeatureTransformer, phase: Phase, features: Tensor, seed: int, progress: Progress
) -> tuple[Measured, Measured]:
    """Pretrain on encoded rows without labels, in place; see hansa.models.pretraining.

    Returns:
        The mean training loss of the first and of the last tenth of the steps: hidden values are drawn anew in each.

    Raises:
        TrainingDiverged: The loss is not finite.
    """
    losses: list[float] = []

    def note(done: int, loss: float) -> None:
        _verify_finite(phase, loss)
        losses.append(loss)
        progress(done, loss)

    config = PretrainingConfig(
        steps=phase.steps,
        batch_size=phase.batch_size,
        learning_rate=phase.learning_rate,
        balance_weight=phase.balance_weight,
    )
    pretrain(model, features, config, seed, progress=note)
    tenth = max(1, len(losses) // 10)
    return Measured(loss=float(np.mean(losses[:tenth]))), Measured(loss=float(np.mean(losses[-tenth:])))


def moving_names(model: nn.Module, phase: Phase) -> set[str]:
    """Name the parameters that a phase moves.

    Raises:
        InvalidValue: A part is none of the model's.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for part in phase.moves:
        found = {name for name in names if _belongs(name, part)}
        if not found:
            raise InvalidValue(f"phase {phase.name!r} moves {part!r}, which the model has not")
        chosen |= found
    return chosen


def _belongs(name: str, part: str) -> bool:
    if is_adapter(name) or part == "adapters":
        return is_adapter(name) and part == "adapters"
    if part == "everything":
        return True
    if part == "attention":
        return ".attention." in name
    return name == part or name.endswith(_ENDINGS.get(part, "\0"))


@contextmanager
def _only_moving(model: TextTransformer, phase: Phase) -> Iterator[list[nn.Parameter]]:
    """Switch gradients on for what moves; the rows of experts that stand still get none."""
    names = moving_names(model, phase)
    moving, hooks = [], []
    masked = False
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if name not in names:
            continue
        moving.append(parameter)
        if phase.experts and name.endswith(_ROUTED):
            mask = torch.zeros(len(parameter), 1, 1, dtype=parameter.dtype)
            mask[list(choose_experts(phase.experts, model.config))] = 1.0
            hooks.append(parameter.register_hook(mask.mul))  # type: ignore[no-untyped-call]
            masked = True
    if phase.experts and not masked:
        raise InvalidValue(f"phase {phase.name!r} names experts and moves none")
    try:
        yield moving
    finally:
        for hook in hooks:
            hook.remove()
        model.eval().requires_grad_(False)


def _order(samples: int, batch_size: int, draws: np.random.Generator) -> Iterator[Tensor]:
    """Pass over all samples again and again, each time in another order."""
    waiting = np.zeros(0, dtype=np.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, draws.permutation(samples)])
        yield torch.from_numpy(waiting[:batch_size])
        waiting = waiting[batch_size:]


def _balance(model: nn.Module) -> Tensor:
    found = [m.balance_loss for m in model.modules() if isinstance(m, Experts)]
    return torch.stack([loss for loss in found if loss is not None]).sum()


@torch.no_grad()
def _measure(model: TextTransformer, phase: Phase, held: Samples) -> Measured:
    count = min(len(held), MEASURED_MOST)
    losses, margins = [], []
    for rows in torch.split(torch.arange(count), phase.batch_size):
        tokens, targets = held.batch(rows)
        if phase.stage != "alignment":
            losses.append(next_token_loss(model, tokens, targets, None))
            continue
        margins.append(preference_margins(model, tokens, targets))
        losses.append(-nn.functional.logsigmoid(phase.beta * margins[-1]))
    margin = torch.cat(margins).mean().item() if margins else None
    return Measured(loss=torch.cat(losses).mean().item(), margin=margin)


@torch.no_grad()
def preference_margins(model: nn.Module, tokens_BPT: Tensor, targets_BPT: Tensor) -> Tensor:
    """How much more the adapters raise the log-probability of the chosen answer than of the rejected one, (B,)."""
    tokens, targets = tokens_BPT.flatten(0, 1), targets_BPT.flatten(0, 1)
    with without_adapters(model):
        reference_B = token_log_probabilities(model(tokens, None), targets).sum(dim=1)
    gain_BP = (token_log_probabilities(model(tokens, None), targets).sum(dim=1) - reference_B).view(-1, 2)
    return gain_BP[:, 0] - gain_BP[:, 1]


def _verify_finite(phase: Phase, loss: float) -> None:
    if not math.isfinite(loss):
        raise TrainingDiverged(f"phase {phase.name!r}: the loss is {loss}")
