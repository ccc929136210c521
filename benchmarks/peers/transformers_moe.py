"""The same expert layer in transformers, and with PEFT's adapters on its expert weights (`target_parameters`).

transformers stores weights as (E, out, in); PEFT stores A as (E·r, in) and B as (out, r·E), the expert minor.
"""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from peers import hansa_moe
from peers.moe_case import Call, MoeCase, runner


def _block(case: MoeCase, experts: str) -> Any:
    E, D, N = case.gate_up_EDN.shape
    config = Qwen3MoeConfig(
        hidden_size=D,
        moe_intermediate_size=N // 2,
        num_experts=E,
        num_experts_per_tok=case.top_k,
        norm_topk_prob=True,
    )
    config._experts_implementation = experts
    with torch.device("meta"):
        block: Any = Qwen3MoeSparseMoeBlock(config)
    block.gate.weight = nn.Parameter(case.router_DE.t().contiguous())
    block.experts.gate_up_proj = nn.Parameter(case.gate_up_EDN.transpose(1, 2).contiguous())
    block.experts.down_proj = nn.Parameter(case.down_EFD.transpose(1, 2).contiguous())
    return block.requires_grad_(False)


def _prepare(case: MoeCase, kind: str, experts: str) -> Call | None:
    """None for "lora": transformers has no adapters of its own."""
    if kind == "lora":
        return None
    block = _block(case, experts)

    def layer(x_TD: Tensor, factors: tuple[Tensor, ...] | None) -> Tensor:
        y_TD: Tensor = block(x_TD.unsqueeze(0)).squeeze(0)
        return y_TD

    _check(layer(case.x_TD, None), hansa_moe.layer(case, case.x_TD, None))
    return runner(case, kind, layer)


def prepare_eager(case: MoeCase, kind: str) -> Call | None:
    """A loop over the experts that were hit."""
    return _prepare(case, kind, "eager")


def prepare_grouped(case: MoeCase, kind: str) -> Call | None:
    """Sorted rows and `torch.nn.functional.grouped_mm`."""
    return _prepare(case, kind, "grouped_mm")


def prepare_peft(case: MoeCase, kind: str) -> Call | None:
    """PEFT over the grouped layer: "lora" only. PEFT forms W + A B of every expert in each pass."""
    if kind != "lora":
        return None
    rank = case.factors[0].shape[2]
    names = ["experts.gate_up_proj", "experts.down_proj"]
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=[], target_parameters=names)
    model: Any = get_peft_model(_block(case, "grouped_mm"), lora)
    outer = model.base_model.model.experts
    trained = []
    with torch.no_grad():
        for wrapper, (a, b) in ((outer.base_layer, case.factors[:2]), (outer, case.factors[2:])):
            wrapper.lora_A["default"].weight.copy_(a.transpose(1, 2).flatten(0, 1))
            wrapper.lora_B["default"].weight.copy_(b.permute(2, 1, 0).flatten(1))
            trained += [wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight]
    x_TD = case.x_TD.clone().requires_grad_()

    def both() -> None:
        for leaf in (x_TD, *trained):
            leaf.grad = None
        model(x_TD.unsqueeze(0)).backward(case.g_TD.unsqueeze(0))

    _check(model(case.x_TD.unsqueeze(0)).squeeze(0), hansa_moe.layer(case, case.x_TD, case.factors))
    return both


def _check(found: Tensor, expected: Tensor) -> None:
    """A peer that computes something else is no peer."""
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
