"""A checkpoint that is not what it should be ends in an error that names what is wrong, and nothing of it is run."""

import contextlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hansa import errors
from hansa.models.checkpoints import load_checkpoint

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(public: ModuleType, tmp_path: Path) -> Path:
    return public.save("qwen3", tmp_path)


@pytest.fixture
def shards(public: ModuleType, tmp_path: Path) -> Path:
    return public.save("qwen3", tmp_path, max_shard_size="40KB")


def refused(kind: type[errors.Error], words: str, folder: Path, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        load_checkpoint(folder, **options)
    assert words in caught.value.message
    assert isinstance(caught.value, errors.CheckpointError)


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS)


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


KEYS = [
    "model.layers.1.mlp.experts.3.up_proj.weight",
    "model.layers.2.self_attn.q_norm.weight",
    "model.layers.0.mlp.gate.weight",
    "lm_head.weight",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_tensor_is_named(folder: Path, key: str) -> None:
    change(folder, lambda state: state.pop(key))
    refused(errors.CheckpointKeyMissing, key, folder)


@pytest.mark.parametrize(
    "key", ["model.layers.3.mlp.gate.weight", "model.layers.0.mlp.experts.8.up_proj.weight"]
)
def test_a_tensor_without_a_place_is_named(folder: Path, key: str) -> None:
    change(folder, lambda state: state.update({key: torch.zeros(2)}))
    refused(errors.UnexpectedCheckpointKey, key, folder)


@pytest.mark.parametrize("key", KEYS)
def test_a_tensor_of_another_shape_is_named(folder: Path, key: str) -> None:
    change(folder, lambda state: state.update({key: state[key][..., :-1].contiguous()}))
    refused(errors.CheckpointShapeMismatch, key, folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int64], ids=str)
def test_a_tensor_of_another_type_is_named(folder: Path, dtype: torch.dtype) -> None:
    change(folder, lambda state: state.update({KEYS[0]: state[KEYS[0]].to(dtype)}))
    refused(errors.CheckpointTypeMismatch, KEYS[0], folder)


def test_experts_that_are_not_asked_for_need_not_be_there(folder: Path) -> None:
    """And a damaged one among them does not matter, for its bytes are not read."""
    change(folder, lambda state: [state.pop(key) for key in list(state) if ".experts.7." in key])
    refused(errors.CheckpointKeyMissing, ".experts.7.", folder)
    assert load_checkpoint(folder, experts="0-6").config.experts == 7


@pytest.mark.parametrize("length", [0, 7, 100, -1, -1000])
def test_a_truncated_file_is_named(folder: Path, length: int) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:length])
    refused(errors.CheckpointDamaged, WEIGHTS, folder)


def test_a_truncated_or_missing_shard_is_named(shards: Path) -> None:
    shard = sorted(shards.glob("model-*.safetensors"))[2]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    refused(errors.CheckpointDamaged, shard.name, shards)
    shard.unlink()
    refused(errors.CheckpointFileMissing, shard.name, shards)


def test_a_tensor_that_is_not_where_the_index_puts_it_is_named(shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    first = index["weight_map"]["model.norm.weight"]
    other = next(name for name in index["weight_map"].values() if name != first)
    index["weight_map"]["model.norm.weight"] = other
    (shards / INDEX).write_text(json.dumps(index))
    refused(errors.CheckpointKeyMissing, "model.norm.weight", shards)


@pytest.mark.parametrize(
    "name",
    [
        "../elsewhere/model.safetensors",
        "/etc/model.safetensors",
        "..\\model.safetensors",
        ".hidden.safetensors",
        "..",
        "config.json",
    ],
)
def test_an_index_that_leaves_the_folder_is_refused(shards: Path, name: str) -> None:
    index = json.loads((shards / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (shards / INDEX).write_text(json.dumps(index))
    refused(errors.UnsafeCheckpointPath, "model.norm.weight", shards)


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("pickle was read",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.pkl", "last.ckpt"])
def test_pickle_is_refused_by_name_and_never_read(folder: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    refused(errors.PickleRefused, name, folder)
    refused(errors.PickleRefused, name, folder / name)


def test_an_index_of_pickles_is_refused(shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "pytorch_model-1.bin"
    (shards / INDEX).write_text(json.dumps(index))
    refused(errors.PickleRefused, "pytorch_model-1.bin", shards)


def test_a_missing_folder_or_file_is_named(folder: Path) -> None:
    refused(errors.CheckpointFileMissing, "config.json", folder / "nowhere")
    (folder / WEIGHTS).unlink()
    refused(errors.CheckpointFileMissing, WEIGHTS, folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "nul", "[" * 100_000, '{"a": NaN'])
def test_a_config_that_is_not_json_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(errors.CheckpointDamaged, "config.json", folder)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_without_a_map_is_named(shards: Path, text: str) -> None:
    (shards / INDEX).write_text(text)
    refused(errors.CheckpointDamaged, INDEX, shards)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "bert"},
        {"model_type": None},
        {"model_type": ["qwen3_moe"]},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"num_attention_heads": 0},
        {"num_attention_heads": 4.0},
        {"num_hidden_layers": 10**9},
        {"vocab_size": -1},
        {"hidden_size": True},
        {"num_experts_per_tok": 9},
        {"mlp_only_layers": [1]},
        {"norm_topk_prob": "yes"},
        {"rms_norm_eps": 0},
        {"rms_norm_eps": "1e-6"},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
        {"rope_parameters": [1]},
        {"quantization_config": {"quant_method": "fp8"}},
        {"num_key_value_heads": 3},
        {"head_dim": 7},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1.0}},
    ],
    ids=str,
)
def test_a_foreign_config_names_the_key(folder: Path, values: dict[str, Any]) -> None:
    configure(folder, **values)
    with pytest.raises(errors.ForeignConfig) as caught:
        load_checkpoint(folder)
    words = {
        "num_experts_per_tok": "top_k",
        "num_key_value_heads": "kv_heads",
        "num_attention_heads": "heads",
        "rope_parameters": "r",
        "head_dim": "width of 7",
    }
    key = next(iter(values))
    assert words.get(key, key) in caught.value.message


def test_the_weights_of_another_model_are_refused(public: ModuleType, folder: Path, tmp_path: Path) -> None:
    other = public.save("olmoe", tmp_path / "other")
    (folder / "config.json").write_bytes((other / "config.json").read_bytes())
    with pytest.raises(errors.CheckpointError, match=r"model\."):
        load_checkpoint(folder)


def test_the_older_form_of_the_rotation_is_read_too(public: ModuleType, tmp_path: Path) -> None:
    folder = public.save("deepseek-v2", tmp_path)
    new = load_checkpoint(folder).config
    path = folder / "config.json"
    values = json.loads(path.read_text())
    rope = values.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    path.write_text(json.dumps(values | {"rope_theta": theta, "rope_scaling": rope}))
    assert load_checkpoint(folder).config == new


ODD = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        3,
        2**18,
        2**63,
        1e308,
        0.5,
        -1.5,
        "",
        "yarn",
        "x" * 99,
        [],
        [1],
        {},
        {"rope_type": "yarn"},
    ]
)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(data=st.data(), name=st.sampled_from(["qwen3", "mixtral", "deepseek-v2", "deepseek-v3"]))
def test_whatever_a_config_says_it_loads_or_ends_in_a_named_error(
    public: ModuleType, odd_folders: dict[str, Path], data: st.DataObject, name: str
) -> None:
    folder = odd_folders[name]
    values = json.loads((folder / "config.good.json").read_text())
    keys = data.draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=3))
    odd = {key: data.draw(ODD, key) for key in keys}
    if isinstance(values.get("rope_parameters"), dict) and data.draw(st.booleans()):
        inner = data.draw(st.sampled_from(sorted(values["rope_parameters"])))
        odd["rope_parameters"] = values["rope_parameters"] | {inner: data.draw(ODD, inner)}
    (folder / "config.json").write_text(json.dumps(values | odd))
    (folder / WEIGHTS).write_bytes((folder / "good.bytes").read_bytes())
    with contextlib.suppress(errors.CheckpointError):
        load_checkpoint(folder)(public.some_tokens(1, 1) * 0)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(data=st.data())
def test_whatever_a_file_holds_it_loads_or_ends_in_a_named_error(
    odd_folders: dict[str, Path], data: st.DataObject
) -> None:
    folder = odd_folders["qwen3"]
    (folder / "config.json").write_bytes((folder / "config.good.json").read_bytes())
    whole = bytearray((folder / "good.bytes").read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    (folder / WEIGHTS).write_bytes(whole[: data.draw(st.sampled_from([len(whole), header, header // 2]))])
    with contextlib.suppress(errors.CheckpointError):
        load_checkpoint(folder)


@pytest.fixture(scope="module")
def odd_folders(public: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name in ("qwen3", "mixtral", "deepseek-v2", "deepseek-v3"):
        folder = folders[name] = public.save(name, tmp_path_factory.mktemp(name))
        (folder / "config.good.json").write_bytes((folder / "config.json").read_bytes())
        (folder / "good.bytes").write_bytes((folder / WEIGHTS).read_bytes())
    return folders
