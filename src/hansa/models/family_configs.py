"""From the config.json of a public checkpoint to the sizes of hansa's model; what hansa does not compute is refused by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hansa.errors import ForeignConfig, InvalidValue
from hansa.models.config import Latent, ModelConfig, Yarn

# Sizes beyond any published model: a foreign file must not make the loader build for hours.
_MOST = {
    "num_hidden_layers": 1024,
    "vocab_size": 1 << 21,
    "hidden_size": 1 << 17,
    "num_attention_heads": 1 << 12,
    "num_experts": 1 << 14,
    "num_local_experts": 1 << 14,
    "n_routed_experts": 1 << 14,
    "max_position_embeddings": 1 << 24,
    "original_max_position_embeddings": 1 << 24,
}
_MOST_OTHERS = 1 << 18


class Reader:
    """The values of a config.json, each checked as it is read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def size(self, key: str, default: int | None = None) -> int:
        """Read a size; `default` where it is missing or null."""
        value = self.values.get(key)
        value = default if value is None else value
        most = _MOST.get(key, _MOST_OTHERS)
        if type(value) is not int or not 0 <= value <= most:
            raise ForeignConfig(f"config.json: {key} is {value!r}, not an integer from 0 to {most}")
        return value

    def number(self, key: str, default: float) -> float:
        """Read a positive number."""
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise ForeignConfig(f"config.json: {key} is {value!r}, not a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Read a truth value."""
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not bool:
            raise ForeignConfig(f"config.json: {key} is {value!r}, not true or false")
        return value

    def expect(self, key: str, *allowed: object) -> None:
        """Refuse any other value than these; a missing key is null."""
        if self.values.get(key) not in allowed:
            known = ", ".join(repr(value) for value in allowed)
            raise ForeignConfig(f"config.json: {key} is {self.values[key]!r}, hansa computes {known}")


def read_config(values: Mapping[str, Any]) -> tuple[str, ModelConfig]:
    """Translate a config.json.

    Returns:
        Name of the family, and the sizes without adapters.

    Raises:
        ForeignConfig: The family is unknown, or a value is one that hansa does not compute; the message names the key.
    """
    family = values.get("model_type")
    if not isinstance(family, str) or family not in _READERS:
        raise ForeignConfig(f"config.json: model_type is {family!r}, known are {', '.join(sorted(_READERS))}")
    reader = Reader(values)
    try:
        return family, replace(ModelConfig(**_common(reader)), **_READERS[family](reader))
    except InvalidValue as error:
        raise ForeignConfig(f"config.json: {error.message}") from error


def _common(reader: Reader) -> dict[str, Any]:
    reader.expect("hidden_act", "silu", None)
    reader.expect("attention_bias", False, None)
    reader.expect("mlp_bias", False, None)
    reader.expect("clip_qkv", None)
    reader.expect("quantization_config", None)
    heads = reader.size("num_attention_heads")
    rope_base, yarn = _rope(reader)
    return {
        "dim": reader.size("hidden_size"),
        "layers": reader.size("num_hidden_layers"),
        "vocabulary": reader.size("vocab_size"),
        "context": reader.size("max_position_embeddings", 32_768),
        "heads": heads,
        "kv_heads": reader.size("num_key_value_heads", heads),
        "head_dim": reader.size("head_dim", 0),
        "position": "rope",
        "rope_base": rope_base,
        "yarn": yarn,
        "norm_gain": True,
        "norm_epsilon": reader.number("rms_norm_eps", 1e-6),
        "head": "causal_lm",
        "tied": reader.flag("tie_word_embeddings", False),
        "shared_expert_dim": 0,
        "targets": (),
    }


def _rope(reader: Reader) -> tuple[float, Yarn | None]:
    """Read the rotation, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`."""
    new = reader.values.get("rope_parameters") or {}
    old = reader.values.get("rope_scaling") or {}
    if not isinstance(new, dict) or not isinstance(old, dict):
        raise ForeignConfig("config.json: rope_parameters is not an object")
    rope = Reader({"rope_theta": reader.values.get("rope_theta"), **old, **new})
    base = rope.number("rope_theta", 10_000.0)
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    if kind == "default":
        return base, None
    if kind != "yarn":
        raise ForeignConfig(f"config.json: rope_type is {kind!r}, hansa computes 'default', 'yarn'")
    rope.expect("attention_factor", None)
    rope.expect("truncate", True, None)
    original = rope.size("original_max_position_embeddings")
    if not original:
        raise ForeignConfig("config.json: original_max_position_embeddings is 0")
    context = reader.size("max_position_embeddings", original)
    weights = {
        key: 0.0 if not rope.values.get(key) else rope.number(key, 1.0)
        for key in ("mscale", "mscale_all_dim")
    }
    return base, Yarn(
        factor=rope.number("factor", context / original),
        original_context=original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        **weights,
    )


def _llama(reader: Reader) -> dict[str, Any]:
    return {"dense_layers": reader.size("num_hidden_layers"), "dense_dim": reader.size("intermediate_size")}


def _mixtral(reader: Reader) -> dict[str, Any]:
    return {
        "experts": reader.size("num_local_experts"),
        "top_k": reader.size("num_experts_per_tok"),
        "expert_dim": reader.size("intermediate_size"),
        "window": reader.size("sliding_window", 0),
        "full_every": 0,
    }


def _olmoe(reader: Reader) -> dict[str, Any]:
    return {
        "experts": reader.size("num_experts"),
        "top_k": reader.size("num_experts_per_tok"),
        "expert_dim": reader.size("intermediate_size"),
        "score": "softmax",
        "renormalise": reader.flag("norm_topk_prob", False),
        "qk_norm": "width",
    }


def _qwen3_moe(reader: Reader) -> dict[str, Any]:
    reader.expect("decoder_sparse_step", 1, None)
    reader.expect("mlp_only_layers", [], None)
    windowed = reader.flag("use_sliding_window", False)
    # transformers 5 writes the key by its common name
    experts = reader.size("num_experts" if "num_experts" in reader.values else "num_local_experts")
    return {
        "experts": experts,
        "top_k": reader.size("num_experts_per_tok"),
        "expert_dim": reader.size("moe_intermediate_size"),
        "score": "softmax",
        "renormalise": reader.flag("norm_topk_prob", False),
        "qk_norm": "head",
        "window": reader.size("sliding_window", 0) if windowed else 0,
        "full_every": 0,
    }


def _deepseek(reader: Reader) -> dict[str, Any]:
    reader.expect("moe_layer_freq", 1, None)
    reader.expect("rope_interleave", True, None)
    expert_dim = reader.size("moe_intermediate_size")
    groups = reader.size("n_group", 1) or 1
    return {
        "head_dim": 0,
        "kv_heads": 0,
        "latent": Latent(
            kv_rank=reader.size("kv_lora_rank"),
            query_rank=reader.size("q_lora_rank", 0),
            plain_dim=reader.size("qk_nope_head_dim"),
            rope_dim=reader.size("qk_rope_head_dim"),
            value_dim=reader.size("v_head_dim"),
        ),
        "experts": reader.size("n_routed_experts"),
        "top_k": reader.size("num_experts_per_tok"),
        "expert_dim": expert_dim,
        "shared_expert_dim": expert_dim * reader.size("n_shared_experts", 0),
        "dense_layers": reader.size("first_k_dense_replace", 0),
        "dense_dim": reader.size("intermediate_size"),
        "groups": groups,
        "top_groups": reader.size("topk_group", 1) or 1,
        "route_scale": reader.number("routed_scaling_factor", 1.0),
    }


def _deepseek_v2(reader: Reader) -> dict[str, Any]:
    reader.expect("topk_method", "greedy", "group_limited_greedy", None)
    reader.expect("norm_topk_prob", False, None)
    reader.expect("scoring_func", "softmax", None)
    sizes = _deepseek(reader) | {"score": "softmax", "renormalise": False, "group_score": "max"}
    if reader.values.get("topk_method") != "group_limited_greedy":
        sizes |= {"groups": 1, "top_groups": 1}
    return sizes


def _deepseek_v3(reader: Reader) -> dict[str, Any]:
    reader.expect("topk_method", "noaux_tc", None)
    reader.expect("scoring_func", "sigmoid", None)
    return _deepseek(reader) | {
        "score": "sigmoid",
        "renormalise": reader.flag("norm_topk_prob", True),
        "group_score": "top2",
        "select_bias": True,
    }


_READERS: Mapping[str, Callable[[Reader], dict[str, Any]]] = {
    "llama": _llama,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
}
