"""What the model did with an input, as plain tensors: which experts served each token, who attended to whom, and what would change.

The counterfactual is a question asked of the model, not of the world: it says what the model gives for another input, not what
would have happened. Attention weights say where values came from, not why.
Whoever reads a record of a private row reads of that row: a record stays where the row is.
Source: routing records as in Muennighoff et al. 2024, "OLMoE", section 5.1; counterfactuals: Wachter et al. 2018, section III.

Shape suffixes: B samples, T tokens, K chosen experts, E experts, H heads, D model width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hansa.errors import InvalidValue
from hansa.models.attention import Mixing
from hansa.models.experts import Experts
from hansa.models.text import TextTransformer
from hansa.models.transformer import FeatureTransformer

Model = TextTransformer | FeatureTransformer


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class LayerRecord:
    """What one block did.

    Attributes:
        layer: Number of the block, from 0.
        experts_BTK: Experts of every token, the heaviest first; None for a block without routing.
        gates_BTK: Their weights; None for a block without routing.
        attention_BHTT: Share of each token in what each token read, one map a head; each row sums to 1.
    """

    layer: int
    experts_BTK: Tensor | None
    gates_BTK: Tensor | None
    attention_BHTT: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Explanation:
    """What the model did with a batch.

    Attributes:
        output: Its logits: (B,) of a table, (B, C) of a classifier, (B, V) after the last token of a text.
        hidden_BD: Normalised stream that the output was read from.
        layers: One record a block.
    """

    output: Tensor
    hidden_BD: Tensor
    layers: tuple[LayerRecord, ...]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Counterfactual:
    """What another input would change.

    Attributes:
        before: The input as it is.
        after: The input as it might be.
        output_change: Logits after minus before.
        hidden_change_B: ℓ₂ distance of the two streams over the norm of the first.
        route_change_LBT: Share of each token's gate weight that went to other experts, in [0, 1]; one row a routed block.
        routed_layers: The blocks of these rows.
    """

    before: Explanation
    after: Explanation
    output_change: Tensor
    hidden_change_B: Tensor
    route_change_LBT: Tensor
    routed_layers: tuple[int, ...]


@torch.no_grad()
def explain(model: Model, inputs: Tensor) -> Explanation:
    """Run the model and write down what it did.

    Args:
        model: A model of tables or of texts.
        inputs: (B, J, Z) features, or (B, T) tokens.

    Returns:
        The record; of a table, token 0 is the class token and token j + 1 is feature token j.

    Guarantees:
        - A token's gates sum to the model's `route_scale` where gates are renormalised or a softmax over the chosen ones.
        - Nothing is recorded after the call, and the output is the one without recording.
    """
    layers: list[LayerRecord] = []
    with _observed(model, len(inputs), layers):
        if isinstance(model, FeatureTransformer):
            hidden_BTD = model.hidden(model.tokens(inputs), every_token=True)
            last_B = torch.zeros(len(inputs), dtype=torch.int64)
        else:
            hidden_BTD = model.hidden(inputs)
            last_B = (inputs >= 0).sum(dim=1).clamp(min=1) - 1
    output = model(inputs)
    each = torch.arange(len(inputs))
    return Explanation(
        output=output[each, last_B] if output.dim() == 3 else output,
        hidden_BD=hidden_BTD[each, last_B],
        layers=tuple(layers),
    )


def counterfactual(model: Model, inputs: Tensor, changed: Tensor) -> Counterfactual:
    """Say what another input would change in the output and in the routes.

    Args:
        model: A model.
        inputs: The inputs as they are.
        changed: The inputs as they might be, of the same shape.

    Raises:
        InvalidValue: The shapes differ.
    """
    if inputs.shape != changed.shape:
        raise InvalidValue(f"a changed input of shape {tuple(changed.shape)} is not {tuple(inputs.shape)}")
    before, after = explain(model, inputs), explain(model, changed)
    pairs = [(a, b) for a, b in zip(before.layers, after.layers, strict=True) if a.gates_BTK is not None]
    moved = [_moved(a, b, model.config.experts) for a, b in pairs]
    norms_B = before.hidden_BD.norm(dim=1)
    return Counterfactual(
        before=before,
        after=after,
        output_change=after.output - before.output,
        hidden_change_B=(after.hidden_BD - before.hidden_BD).norm(dim=1) / norms_B,
        route_change_LBT=torch.stack(moved) if moved else torch.zeros(0, len(inputs), 0),
        routed_layers=tuple(a.layer for a, _ in pairs),
    )


def gate_weights(record: LayerRecord, experts: int) -> Tensor:
    """Spread the gates of a routed block over all experts, (B, T, E), zero for those that were not chosen."""
    if record.gates_BTK is None or record.experts_BTK is None:
        raise InvalidValue(f"block {record.layer} has no routed experts")
    shape = (*record.gates_BTK.shape[:2], experts)
    return record.gates_BTK.new_zeros(shape).scatter(2, record.experts_BTK, record.gates_BTK)


def _moved(before: LayerRecord, after: LayerRecord, experts: int) -> Tensor:
    """Total variation distance of the two mixtures of each token, (B, T)."""
    first, second = (gate_weights(record, experts) for record in (before, after))
    first, second = (weights / weights.sum(dim=2, keepdim=True) for weights in (first, second))
    return (first - second).abs().sum(dim=2) / 2


@contextmanager
def _observed(model: Model, batch: int, layers: list[LayerRecord]) -> Iterator[None]:
    """Let every block leave its record while the model runs."""
    attention: list[Tensor] = []
    routes: list[tuple[Tensor, Tensor]] = []
    mixing = [module for module in model.modules() if isinstance(module, Mixing)]
    routed = [module for module in model.modules() if isinstance(module, Experts)]
    for mixer in mixing:
        mixer.observer = lambda weights: attention.append(weights.detach())
    for experts in routed:
        experts.observer = lambda chosen, gates: routes.append((chosen, gates.detach()))
    try:
        yield
    finally:
        for mixer in mixing:
            mixer.observer = None
        for experts in routed:
            experts.observer = None
    remaining = iter(routes)
    for layer, (block, weights) in enumerate(zip(model.blocks, attention, strict=True)):
        chosen, gates = next(remaining) if block.routed else (None, None)
        layers.append(
            LayerRecord(
                layer=layer,
                experts_BTK=None if chosen is None else chosen.view(batch, -1, chosen.shape[1]),
                gates_BTK=None if gates is None else gates.view(batch, -1, gates.shape[1]),
                attention_BHTT=weights,
            )
        )
