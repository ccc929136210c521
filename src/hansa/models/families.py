"""One table of names: where each tensor of hansa's model stands in the checkpoints of the public families.

A value is one key, or the two halves of a fused matrix (gate, up). "{e}" is the expert; keys that hold it are stacked.
Matrices stand transposed in the files, (out, in), but for the embedding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hansa.models.config import ModelConfig

Names = Mapping[str, tuple[str, ...]]

_TOP: Names = {
    "embedding": ("model.embed_tokens.weight",),
    "final_norm.gain": ("model.norm.weight",),
    "head": ("lm_head.weight",),
}
_BLOCK: Names = {
    "attention_norm.gain": ("input_layernorm.weight",),
    "experts_norm.gain": ("post_attention_layernorm.weight",),
    "attention.query.weight": ("self_attn.q_proj.weight",),
    "attention.key.weight": ("self_attn.k_proj.weight",),
    "attention.value.weight": ("self_attn.v_proj.weight",),
    "attention.output.weight": ("self_attn.o_proj.weight",),
    "dense.gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "dense.down": ("mlp.down_proj.weight",),
}
_EXPERTS: Names = {
    "experts.router": ("mlp.gate.weight",),
    "experts.gate_up": ("mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight"),
    "experts.down": ("mlp.experts.{e}.down_proj.weight",),
}
_QK_NORMS: Names = {
    "attention.query_norm.gain": ("self_attn.q_norm.weight",),
    "attention.key_norm.gain": ("self_attn.k_norm.weight",),
}
_DEEPSEEK: Names = {
    "attention.query_down.weight": ("self_attn.q_a_proj.weight",),
    "attention.query_norm.gain": ("self_attn.q_a_layernorm.weight",),
    "attention.query_up.weight": ("self_attn.q_b_proj.weight",),
    "attention.latent_down.weight": ("self_attn.kv_a_proj_with_mqa.weight",),
    "attention.latent_norm.gain": ("self_attn.kv_a_layernorm.weight",),
    "attention.latent_up.weight": ("self_attn.kv_b_proj.weight",),
    "experts.bias": ("mlp.gate.e_score_correction_bias",),
    "experts.shared_gate_up": ("mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight"),
    "experts.shared_down": ("mlp.shared_experts.down_proj.weight",),
}
_MIXTRAL: Names = {
    "experts.router": ("block_sparse_moe.gate.weight",),
    "experts.gate_up": ("block_sparse_moe.experts.{e}.w1.weight", "block_sparse_moe.experts.{e}.w3.weight"),
    "experts.down": ("block_sparse_moe.experts.{e}.w2.weight",),
}

FAMILIES: Mapping[str, Names] = {
    "llama": _BLOCK,
    "mixtral": {**_BLOCK, **_MIXTRAL},
    "olmoe": {**_BLOCK, **_EXPERTS, **_QK_NORMS},
    "qwen3_moe": {**_BLOCK, **_EXPERTS, **_QK_NORMS},
    "deepseek_v2": {**_BLOCK, **_EXPERTS, **_DEEPSEEK},
    "deepseek_v3": {**_BLOCK, **_EXPERTS, **_DEEPSEEK},
}
LAYERS = "model.layers."


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One tensor of a checkpoint and its place in one of ours.

    Attributes:
        key: Name in the checkpoint.
        expert: Place among the stacked experts; None where nothing is stacked.
        half: Which half of the last dimension it fills, 0 or 1; None for all of it.
        transposed: Whether the file holds (out, in).
    """

    key: str
    expert: int | None
    half: int | None
    transposed: bool


def keys_of(family: str, name: str) -> tuple[str, ...]:
    """Give the keys of one of our tensors; those of experts hold "{e}".

    Raises:
        KeyError: The family has no such tensor.
    """
    if not name.startswith("blocks."):
        return _TOP[name]
    _, layer, inner = name.split(".", 2)
    return tuple(f"{LAYERS}{layer}.{key}" for key in FAMILIES[family][inner])


def sources_of(family: str, name: str, dimensions: int, experts: tuple[int, ...]) -> Iterator[Source]:
    """Give the checkpoint tensors that one of our tensors is made of.

    Args:
        family: Name of the family.
        name: Our name.
        dimensions: Number of our dimensions, the experts' among them.
        experts: Experts that are wanted, by their numbers in the checkpoint.
    """
    keys = keys_of(family, name)
    for half, key in enumerate(keys):
        stacked = "{e}" in key
        for place, expert in enumerate(experts if stacked else (0,)):
            yield Source(
                key=key.format(e=expert),
                expert=place if stacked else None,
                half=half if len(keys) > 1 else None,
                transposed=dimensions - stacked == 2 and name != "embedding",
            )


def is_ignored(family: str, key: str, config: ModelConfig) -> bool:
    """Say whether a key has no place in our model by design: rotary tables, another head, blocks that predict further tokens."""
    if key == "lm_head.weight" and (config.tied or config.head == "classes"):
        return True
    if key.endswith(".rotary_emb.inv_freq"):
        return True
    return family == "deepseek_v3" and key.startswith(f"{LAYERS}{config.layers}.")
