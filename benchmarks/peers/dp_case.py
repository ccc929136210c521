"""One text model and one batch, stepped with and without per-sample clipping: by hansa, Opacus and torch.func.

Opacus runs our model through our samplers; torch.func, which cannot batch the routing of rows, a dense twin.

A call gives the clipped sum as one vector in the order of the layout, so that every system can be held against ours.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from torch import Tensor

from hansa.models.config import ModelConfig
from hansa.models.objectives import next_token_loss
from hansa.models.opacus_samplers import register_with_opacus
from hansa.models.text import TextTransformer
from hansa.models.trainable import TrainableLayout
from hansa.privacy.per_sample import clipped_sum
from peers.dense_text import DenseText

CLIP_NORM = 0.1
Step = Callable[[], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class DpCase:
    """A model, its trained part and its batch."""

    model: TextTransformer
    layout: TrainableLayout
    tokens_BT: Tensor


def make_case(*, both: bool, experts: int = 128, samples: int = 16, tokens: int = 128) -> DpCase:
    """Draw a model of four blocks and a batch; the seed is fixed."""
    torch.manual_seed(20261122)
    config = ModelConfig(
        vocabulary=256,
        head="causal_lm",
        dim=256,
        layers=4,
        heads=4,
        position="alibi",
        experts=experts,
        top_k=4,
        expert_dim=256,
        shared_expert_dim=0,
        rank=8,
        alpha=8.0,
        targets=("attention", "router", "experts"),
        train_factor_A=both,
    )
    model = TextTransformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_B"):
                parameter.normal_(0.0, 0.05)
    layout = TrainableLayout(model, (), both_factors=both)
    layout.freeze_rest(model)
    return DpCase(model=model, layout=layout, tokens_BT=torch.randint(0, 256, (samples, tokens)))


def _flat(case: DpCase, model: torch.nn.Module, attribute: str) -> Tensor:
    parameters = dict(model.named_parameters())
    return torch.cat([getattr(parameters[slot.name], attribute).flatten() for slot in case.layout.slots])


def prepare_plain(case: DpCase) -> Callable[[], None]:
    """The same step without privacy: forward, backward, gradients in `.grad`."""

    def step() -> None:
        case.model.zero_grad(set_to_none=True)
        next_token_loss(case.model, case.tokens_BT, case.tokens_BT, None).sum().backward()

    return step


def prepare_ours(case: DpCase) -> Step:
    """hansa's engine."""

    def step() -> Tensor:
        x = case.tokens_BT
        result = clipped_sum(
            case.model, case.layout, x, x, support_K=None, clip_norm=CLIP_NORM, loss=next_token_loss
        )
        return torch.from_numpy(result.sum_K)

    return step


def _losses(wrapped: Any, x: Tensor) -> Tensor:
    return next_token_loss(lambda tokens, _tape: wrapped(tokens), x, x, None)  # type: ignore[arg-type]


def prepare_hooks(case: DpCase) -> Step:
    """Opacus with hooks: every sample's gradient formed, by our samplers."""
    register_with_opacus()
    model = copy.deepcopy(case.model).train()
    wrapped = GradSampleModule(model, strict=False, loss_reduction="sum")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = DPOptimizer(
        torch.optim.SGD(trained, lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=None,
        loss_reduction="sum",
    )

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        _losses(wrapped, case.tokens_BT).sum().backward()
        optimizer.clip_and_accumulate()
        return _flat(case, model, "summed_grad")

    return step


def prepare_ghost(case: DpCase) -> Step:
    """Opacus with ghost clipping: norms in one backward pass, the clipped sum in another."""
    register_with_opacus()
    model = copy.deepcopy(case.model).train()
    wrapped = GradSampleModuleFastGradientClipping(
        model, strict=False, loss_reduction="sum", max_grad_norm=CLIP_NORM, use_ghost_clipping=True
    )

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        losses_B = _losses(wrapped, case.tokens_BT)
        losses_B.sum().backward(retain_graph=True)
        model.zero_grad(set_to_none=True)
        wrapped.disable_hooks()
        (wrapped.get_clipping_coef() * losses_B).sum().backward()
        wrapped.enable_hooks()
        return _flat(case, model, "grad")

    return step


def prepare_func(case: DpCase) -> Step:
    """torch.func over the samples, one at a time, on a model in which every expert serves every token."""
    dense, x = DenseText(case.model), case.tokens_BT
    trained = {slot.name: dense.tensors[slot.name] for slot in case.layout.slots}

    def loss(trained: dict[str, Tensor], text_T: Tensor) -> Tensor:
        return next_token_loss(
            lambda row, _tape: dense.logits(trained, row[0])[None], text_T[None], text_T[None], None
        )[0]

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), chunk_size=1)

    def step() -> Tensor:
        gradients = per_sample(trained, x)
        flat_BP = torch.cat([gradients[slot.name].flatten(1) for slot in case.layout.slots], dim=1)
        norms_B = flat_BP.norm(dim=1)
        return (CLIP_NORM / norms_B.clamp(min=CLIP_NORM)) @ flat_BP

    return step
