"""For users of Opacus: how it gets the gradient of each sample from our layers, or only its norm.

Opacus' hooks see what goes into a layer and the gradient of what comes out. From these the sampler runs the layer once more with
a tape and reads the records: exact where hooks alone fail, for in an expert layer the tokens of all samples meet. hansa's own
engine (`hansa.privacy.per_sample`) needs no second run and no hooks; this is the bridge for people who have a loop with Opacus.

Opacus refuses layers with buffers unless told otherwise, and the factors A are buffers (public constants, no batch's statistics):

    register_with_opacus()
    model = GradSampleModule(model.train(), strict=False)      # then PrivacyEngine().make_private(module=model, ...)

Its ghost clipping takes adapters only: head and embeddings, where they are trained, are parameters of the model itself, and Opacus
mistakes a model that has both for one with tied parameters.

Source: Yousefpour et al. 2021, "Opacus", section 3.1 (hooks, one gradient a sample).
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from opacus.grad_sample import register_grad_sampler, register_norm_sampler
from torch import Tensor, nn

from hansa.kernels.segments import segment_outer
from hansa.models.experts import Experts
from hansa.models.linear import AdaptedLinear, DenseNetwork
from hansa.models.tape import DenseRecord, ExpertRecord, FeatureRecord, Record, Tape
from hansa.models.text import TextTransformer
from hansa.models.transformer import FeatureTransformer

_LAYERS = (AdaptedLinear, DenseNetwork, Experts, FeatureTransformer, TextTransformer)


def register_with_opacus() -> None:
    """Tell Opacus, in this process, how to treat our layers; calling it again changes nothing.

    Guarantees:
        - The gradients and norms that Opacus then computes are those of `hansa.privacy.per_sample`, up to rounding.
    """
    register_grad_sampler(_LAYERS)(_gradients)
    register_norm_sampler(_LAYERS)(_norms)


def _gradients(
    layer: nn.Module, activations: Sequence[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Gradient of every sample for each trained tensor of a layer's own, (B, ...)."""
    return {parameter: per_sample(record) for parameter, record in _records(layer, activations, backprops)}


def _norms(layer: nn.Module, activations: Sequence[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Its ℓ₂ norm only, (B,)."""
    return {
        parameter: record.square_norms(None).sqrt().to(backprops.dtype)
        for parameter, record in _records(layer, activations, backprops)
    }


def per_sample(record: Record) -> Tensor:
    """Form the gradient of each sample from a record, (B, shape of the factor): B times the memory of the factor."""
    if isinstance(record, DenseRecord):
        return torch.bmm(record.z_BTZ.transpose(1, 2), record.g_BTN)
    if isinstance(record, ExpertRecord):
        rows, segments = record.rows, record.rows.segments
        outer_SZN = segment_outer(record.z_RZ, record.g_RN, segments)
        gradient = outer_SZN.new_zeros(rows.samples, len(rows.ends_E), *outer_SZN.shape[1:])
        gradient[segments.sample_S, segments.expert_S] = outer_SZN
        return gradient
    if isinstance(record, FeatureRecord):
        token_U = record.used_JZ.nonzero()[:, 0]
        return record.z_BJZ[:, record.used_JZ].unsqueeze(2) * record.g_BJN[:, token_U]
    raise TypeError(f"a record of kind {type(record).__name__} is not known")


def _records(
    layer: nn.Module, activations: Sequence[Tensor], backprops: Tensor
) -> Iterator[tuple[nn.Parameter, Record]]:
    inputs = activations[0].detach()
    tape = Tape()
    with torch.enable_grad(), _without_hooks(layer):
        layer.forward(inputs, tape=tape).backward(backprops)
    for name, parameter in layer.named_parameters(recurse=False):
        full = name if isinstance(layer, FeatureTransformer | TextTransformer) else f"{layer.name}.{name}"
        if full in tape.records:
            yield parameter, tape.records[full]


@contextmanager
def _without_hooks(layer: nn.Module) -> Iterator[None]:
    """Keep Opacus from seeing the second run."""
    modules = list(layer.modules())
    kept = [(module._forward_hooks, module._backward_hooks) for module in modules]
    for module in modules:
        module._forward_hooks, module._backward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for module, (forward, backward) in zip(modules, kept, strict=True):
            module._forward_hooks, module._backward_hooks = forward, backward
