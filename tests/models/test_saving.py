"""Own models on disk: every bit comes back, a crash leaves the old model or the new one, and damage is named."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hansa import errors
from hansa.models import saving
from hansa.models.config import Latent, Yarn
from hansa.models.saving import load_model, save_model
from hansa.models.text import TextTransformer
from hansa.models.transformer import FeatureTransformer

LATENT = Latent(kv_rank=8, query_rank=8, plain_dim=4, rope_dim=4, value_dim=6)
SHAPES: list[dict[str, Any]] = [
    {},
    {"latent": LATENT, "kv_heads": 0, "yarn": Yarn(factor=2.0, original_context=8)},
    {"position": "alibi", "tied": True, "select_bias": True},
    {"head": "classes", "train_factor_A": True},
]


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("model-*.safetensors")
    return path


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_every_bit_of_a_text_model_comes_back(
    texts: ModuleType, tmp_path: Path, shape: dict[str, Any], dtype: torch.dtype
) -> None:
    model = texts.text_model(dtype=dtype, **shape)
    save_model(model, tmp_path / "new" / "folder")
    again = load_model(tmp_path / "new" / "folder")
    assert isinstance(again, TextTransformer)
    assert again.config == model.config
    for find in (TextTransformer.named_parameters, TextTransformer.named_buffers):
        found = dict(find(again))
        for name, tensor in find(model):
            assert torch.equal(found[name], tensor), name
            assert found[name].dtype == tensor.dtype
    text = texts.some_text()
    if dtype != torch.bfloat16:
        assert torch.equal(again(text), model(text))
    trained = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.endswith("_B")}


def test_a_table_model_comes_back(
    small_model: Callable[..., FeatureTransformer], small_rows: Callable[..., Any], tmp_path: Path
) -> None:
    model = small_model(targets=("attention", "router", "experts", "shared"))
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, FeatureTransformer)
    assert torch.equal(again(small_rows(5)), model(small_rows(5)))
    assert torch.equal(again.used_JZ, model.used_JZ)


def test_what_is_saved_is_safetensors_and_json_only(texts: ModuleType, tmp_path: Path) -> None:
    save_model(texts.text_model(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", weights_of(tmp_path).name]
    agreement = json.loads((tmp_path / "config.json").read_text())
    assert (agreement["schema"], agreement["model_type"]) == ("hansa/model/v1", "hansa")
    assert agreement["weights"] == weights_of(tmp_path).name


def test_saving_again_leaves_one_model(texts: ModuleType, tmp_path: Path) -> None:
    save_model(texts.text_model(0), tmp_path)
    first = weights_of(tmp_path)
    save_model(texts.text_model(0), tmp_path)
    assert weights_of(tmp_path) == first
    save_model(texts.text_model(1), tmp_path)
    assert weights_of(tmp_path) != first


@pytest.mark.parametrize("fails_at", range(5))
def test_after_a_crash_the_folder_holds_the_old_model_or_the_new_one(
    texts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    old, new, text = texts.text_model(0), texts.text_model(1), texts.some_text()
    save_model(old, tmp_path)
    calls = 0

    def crash(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fails_at + 1:
                raise KeyboardInterrupt
            return operation(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_file", crash(save_file))
        patch.setattr(os, "replace", crash(os.replace))
        patch.setattr(Path, "unlink", crash(Path.unlink))
        patch.setattr(Path, "write_bytes", crash(Path.write_bytes))
        with pytest.raises(KeyboardInterrupt):
            save_model(new, tmp_path)
    expected = new if fails_at == 4 else old  # the fifth operation removes the old weights
    assert torch.equal(load_model(tmp_path)(text), expected(text))
    save_model(new, tmp_path)
    assert torch.equal(load_model(tmp_path)(text), new(text))
    assert weights_of(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(texts: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.OutputNotWritable, match="file"):
        save_model(texts.text_model(), tmp_path / "file")


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    agreement = json.loads(path.read_text())
    agreement["config"] |= values.pop("config", {})
    path.write_text(json.dumps(agreement | values))


def edit_weights(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    state = load_file(weights_of(folder))
    edit(state)
    save_file(state, weights_of(folder))
    edit_config(folder, sha256=saving._digest(weights_of(folder)))


KEY = "blocks.1.experts.gate_up_B"


@pytest.mark.parametrize(
    ("error", "words", "edit"),
    [
        (errors.CheckpointKeyMissing, KEY, lambda f: edit_weights(f, lambda state: state.pop(KEY))),
        (
            errors.UnexpectedCheckpointKey,
            "more",
            lambda f: edit_weights(f, lambda s: s.update(more=torch.ones(1))),
        ),
        (
            errors.CheckpointShapeMismatch,
            KEY,
            lambda f: edit_weights(f, lambda s: s.update({KEY: torch.ones(1)})),
        ),
        (errors.CheckpointDamaged, "SHA-256", lambda f: edit_config(f, sha256="0")),
        (errors.CheckpointDamaged, "cut short", lambda f: os.truncate(weights_of(f), 100)),
        (errors.CheckpointFileMissing, "no model-", lambda f: weights_of(f).unlink()),
        (errors.UnsafeCheckpointPath, "weights", lambda f: edit_config(f, weights="../model.safetensors")),
        (errors.UnsafeCheckpointPath, "weights", lambda f: edit_config(f, weights="model.bin")),
        (errors.ForeignConfig, "schema", lambda f: edit_config(f, schema="hansa/model/v2")),
        (errors.ForeignConfig, "config.dim", lambda f: edit_config(f, config={"dim": "wide"})),
        (errors.ForeignConfig, "config.size", lambda f: edit_config(f, config={"size": 1})),
        (errors.ForeignConfig, "config.score", lambda f: edit_config(f, config={"score": "best"})),
        (errors.ForeignConfig, "top_k", lambda f: edit_config(f, config={"top_k": 99})),
        (errors.CheckpointFileMissing, "config.json", lambda f: (f / "config.json").unlink()),
    ],
)
def test_damage_is_named(
    texts: ModuleType, tmp_path: Path, error: type[errors.CheckpointError], words: str, edit: Any
) -> None:
    save_model(texts.text_model(), tmp_path)
    edit(tmp_path)
    with pytest.raises(error, match=words):
        load_model(tmp_path)
