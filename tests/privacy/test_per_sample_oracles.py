"""Per-sample clipping against oracles that share no code with it.

A dense re-implementation of the model in plain torch operations: every expert serves every token and the gates choose. Its
per-sample gradients come from `torch.func` (everything trained) and from Opacus' hooks (adapters on attention only; hooks cannot
see single samples inside routed experts). It also computes the whole last block, of which the model computes the class token only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from opacus import GradSampleModule
from torch import Tensor, nn

from hansa.models.config import ModelConfig
from hansa.privacy.per_sample import clipped_sum

ROOM = 1.0 + 1e-6
Adapter = Callable[[str, Tensor], Tensor]


def rms(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def swiglu(x: Tensor) -> Tensor:
    gate, up = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return gate * torch.sigmoid(gate) * up


class Dense:
    """The model's equations for any leading dimensions, as a function of its tensors by name."""

    def __init__(self, model: nn.Module) -> None:
        self.config: ModelConfig = model.config
        self.used: Tensor = model.used_JZ
        self.tensors = {k: v.detach().clone() for k, v in [*model.named_parameters(), *model.named_buffers()]}
        self.scale = self.config.alpha / self.config.rank

    def logit(self, trained: dict[str, Tensor], x: Tensor, adapter: Adapter | None = None) -> Tensor:
        """(..., J, Z) -> (...)"""
        p = {**self.tensors, **trained}
        apply = adapter or (lambda name, z: z @ p[f"{name}.factor_B"])
        x = self.tokens(p, x)
        for i in range(self.config.layers):
            x = x + self.attention(p, f"blocks.{i}.attention", rms(x), apply)
            x = x + self.experts(p, f"blocks.{i}.experts", rms(x))
        h = rms(x)[..., 0, :]
        return (h @ p["head"][:-1] + p["head"][-1])[..., 0]

    def tokens(self, p: dict[str, Tensor], x: Tensor) -> Tensor:
        token, place = self.used.nonzero(as_tuple=True)
        belongs = F.one_hot(token, len(self.used)).to(x.dtype)
        embedded = belongs.t() @ (x[..., token, place].unsqueeze(-1) * p["embedding"])
        return torch.cat([p["class_token"].expand(*embedded.shape[:-2], 1, -1), embedded], dim=-2)

    def attention(self, p: dict[str, Tensor], name: str, x: Tensor, apply: Adapter) -> Tensor:
        def linear(part: str, x: Tensor) -> Tensor:
            y = x @ p[f"{name}.{part}.weight"]
            if "attention" in self.config.targets:
                y = y + apply(f"{name}.{part}", x @ p[f"{name}.{part}.factor_A"] * self.scale)
            return y

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.config.heads, -1)).transpose(-2, -3)

        query, key, value = (heads(linear(part, x)) for part in ("query", "key", "value"))
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        return linear("output", (weights @ value).transpose(-2, -3).flatten(-2))

    def experts(self, p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        # Not `topk`, which leaves open who wins where logits are equal.
        values, indices = (x @ p[f"{name}.router"]).sort(dim=-1, descending=True, stable=True)
        chosen, gates = slice(self.config.top_k), torch.zeros_like(values)
        gates = gates.scatter(-1, indices[..., chosen], values[..., chosen].softmax(-1))
        every = x.unsqueeze(-3)  # (..., 1, T, D) against (E, D, N)
        inner = every @ p[f"{name}.gate_up"]
        adapted = "experts" in self.config.targets
        if adapted:
            inner = inner + every @ p[f"{name}.factor_A_in"] @ p[f"{name}.gate_up_B"] * self.scale
        hidden = swiglu(inner)
        y = hidden @ p[f"{name}.down"]
        if adapted:
            y = y + hidden @ p[f"{name}.factor_A_down"] @ p[f"{name}.down_B"] * self.scale
        mixed = (gates.transpose(-1, -2).unsqueeze(-1) * y).sum(-3)
        return mixed + swiglu(x @ p[f"{name}.shared_gate_up"]) @ p[f"{name}.shared_down"]


class Hooked(nn.Module):
    """The dense model with its attention adapters as `nn.Linear`, the only form that Opacus' hooks see."""

    def __init__(self, dense: Dense) -> None:
        super().__init__()
        self.dense = dense
        rank, dim = dense.config.rank, dense.config.dim
        self.linears = nn.ModuleDict()
        for name, tensor in dense.tensors.items():
            if name.endswith(".factor_B"):
                linear = nn.Linear(rank, dim, bias=False, dtype=tensor.dtype)
                linear.weight.data.copy_(tensor.t())
                self.linears[name.removesuffix(".factor_B").replace(".", "/")] = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.dense.logit({}, x, lambda name, z: self.linears[name.replace(".", "/")](z))


def expected_sum(gradients_BP: NDArray[np.float64], clip_norm: float) -> NDArray[np.float64]:
    norms = np.linalg.norm(gradients_BP, axis=1)
    return (clip_norm / np.maximum(clip_norm, norms * ROOM)) @ gradients_BP


def close(actual: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    assert np.linalg.norm(actual - expected) <= 1e-12 * np.linalg.norm(expected)


def check(case: Any, gradients_BP: NDArray[np.float64]) -> None:
    assert np.linalg.norm(gradients_BP, axis=1).min() > 1e-3
    for support in (None, case.support(0.3)):
        on_support = gradients_BP if support is None else gradients_BP[:, support]
        norms = np.linalg.norm(on_support, axis=1)
        clip_norm = float(np.median(norms))
        result = clipped_sum(
            case.model, case.layout, case.features, case.labels, support_K=support, clip_norm=clip_norm
        )
        close(result.norms_B, norms)
        close(result.sum_K, expected_sum(on_support, clip_norm))


SHAPES = [
    {},
    {"experts": 16, "top_k": 4, "samples": 8},
    {"top_k": 1, "one_expert": True},
    {"samples": 1, "tokens": 1, "layers": 1},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_logits_equal_the_dense_model_that_computes_every_token_in_every_expert(
    small: Callable[..., Any], shape: dict[str, Any]
) -> None:
    case = small(**shape)
    expected = Dense(case.model).logit({}, case.features)
    torch.testing.assert_close(case.model(case.features).detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_torch_func_on_the_dense_model(small: Callable[..., Any], shape: dict[str, Any]) -> None:
    case = small(**shape)
    dense = Dense(case.model)
    trained = {slot.name: dense.tensors[slot.name] for slot in case.layout.slots}

    def loss(trained: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(dense.logit(trained, x), y)

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    gradients = per_sample(trained, case.features, case.labels)
    check(case, np.hstack([gradients[slot.name].flatten(1).numpy() for slot in case.layout.slots]))


# Opacus hooks inputs that need no gradient themselves; torch warns of it, and the first adapter sees such inputs.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_equals_opacus_hooks_for_adapters_on_attention_only(small: Callable[..., Any]) -> None:
    case = small(targets=("attention",), trained=())
    hooked = GradSampleModule(Hooked(Dense(case.model)), loss_reduction="sum")
    loss = F.binary_cross_entropy_with_logits(hooked(case.features), case.labels, reduction="sum")
    loss.backward()
    linears = hooked._module.linears
    gradients = []
    for slot in case.layout.slots:
        linear = linears[slot.name.removesuffix(".factor_B").replace(".", "/")]
        gradients.append(linear.weight.grad_sample.transpose(1, 2).flatten(1).detach().numpy())
    check(case, np.hstack(gradients))
