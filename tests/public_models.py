"""Tiny random models of the public families, made and saved by transformers: the oracle of the loader's tests."""

import contextlib
import io
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_BASE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_QWEN3 = {**_BASE, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 3, "head_dim": 16}
_DEEPSEEK = {
    **_BASE,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 0.707,
    "mscale_all_dim": 1.0,
}
_GROUPS = {"n_group": 4, "topk_group": 2}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _BASE),
    "llama-tied": ("llama", {**_BASE, "tie_word_embeddings": True}),
    "mixtral": ("mixtral", {**_BASE, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "mixtral-window": ("mixtral", {**_BASE, "num_local_experts": 4, "sliding_window": 7}),
    "olmoe": ("olmoe", {**_BASE, "num_experts": 8, "num_experts_per_tok": 3}),
    "qwen3": ("qwen3_moe", {**_QWEN3, "norm_topk_prob": True}),
    "qwen3-window": ("qwen3_moe", {**_QWEN3, "use_sliding_window": True, "sliding_window": 5}),
    "deepseek-v2-lite": ("deepseek_v2", {**_DEEPSEEK, "q_lora_rank": None, "routed_scaling_factor": 1.5}),
    "deepseek-v2": (
        "deepseek_v2",
        {**_DEEPSEEK, **_GROUPS, "topk_method": "group_limited_greedy", "rope_parameters": _YARN},
    ),
    "deepseek-v3": ("deepseek_v3", {**_DEEPSEEK, **_GROUPS, "rope_parameters": _YARN}),
}


@cache
def oracle(name: str) -> Any:
    """Make a model of transformers with every number away from its start."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, sizes = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval().float()
        with torch.no_grad():
            for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if "inv_freq" not in key:
                    tensor.normal_(0, 0.3)
                if key.endswith("norm.weight"):
                    tensor.add_(1)
    return model


def save(name: str, folder: Path, **options: Any) -> Path:
    """Save one with transformers' own function."""
    with contextlib.redirect_stderr(io.StringIO()):
        oracle(name).save_pretrained(folder, **options)
    return folder


def some_tokens(samples: int = 3, tokens: int = 40, seed: int = 0) -> Tensor:
    return torch.randint(0, 50, (samples, tokens), generator=torch.Generator().manual_seed(seed))
