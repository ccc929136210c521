"""Adapters in PEFT's format: PEFT computes our logits, we compute PEFT's, and what does not fit is named."""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hansa.errors import (
    CheckpointError,
    CheckpointFileMissing,
    CheckpointKeyMissing,
    CheckpointShapeMismatch,
    ForeignConfig,
    UnexpectedCheckpointKey,
)
from hansa.models.checkpoints import load_checkpoint
from hansa.models.config import ModelConfig
from hansa.models.peft_format import CONFIG, WEIGHTS, export_peft, import_peft
from hansa.models.text import TextTransformer

ALL = ("attention", "router", "experts", "shared", "dense")
FAMILIES = {
    "llama": "llama",
    "mixtral": "mixtral",
    "olmoe": "olmoe",
    "qwen3": "qwen3_moe",
    "deepseek-v2": "deepseek_v2",
    "deepseek-v3": "deepseek_v3",
}
Make = Callable[..., TextTransformer]


@pytest.fixture(scope="module")
def adapted(public: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Load a model with adapters away from their start."""
    folders: dict[str, Path] = {}

    def make(name: str, *, seed: int = 0, targets: tuple[str, ...] = ALL) -> TextTransformer:
        if name not in folders:
            folders[name] = public.save(name, tmp_path_factory.mktemp(name))
        adapters = ModelConfig(targets=targets, rank=4, alpha=8.0, factor_seed=seed)
        model = load_checkpoint(folders[name], adapters=adapters)
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if key.endswith("_B"):
                    parameter.normal_(0, 0.1, generator=draws)
        return model

    return make


def peft_logits(public: ModuleType, name: str, folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of every parameter target
        model = PeftModel.from_pretrained(copy.deepcopy(public.oracle(name)), folder).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(tokens).logits
    return logits


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_computes_the_same_from_what_is_exported(
    public: ModuleType, adapted: Make, tmp_path: Path, name: str
) -> None:
    model, tokens = adapted(name), public.some_tokens()
    export_peft(model, tmp_path, FAMILIES[name])
    with torch.no_grad():
        actual, base = model(tokens), public.oracle(name)(tokens).logits
    expected = peft_logits(public, name, tmp_path, tokens)
    assert (actual - base).abs().max() > 0.1
    assert (actual - expected).abs().max() < 2e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_out_and_in_gives_every_factor_back(adapted: Make, tmp_path: Path, name: str) -> None:
    model, other = adapted(name), adapted(name, seed=1)
    export_peft(model, tmp_path, FAMILIES[name])
    import_peft(other, tmp_path, FAMILIES[name])
    for one, two in (
        (model.named_parameters, other.named_parameters),
        (model.named_buffers, other.named_buffers),
    ):
        found = dict(two())
        assert all(torch.equal(tensor, found[key]) for key, tensor in one())


def test_what_peft_made_is_read(public: ModuleType, adapted: Make, tmp_path: Path) -> None:
    """Both factors drawn by PEFT itself, on attention, experts and router."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
        init_lora_weights=False,
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        theirs = get_peft_model(copy.deepcopy(public.oracle("olmoe")), config).eval()
        theirs.save_pretrained(tmp_path)
    ours, tokens = adapted("olmoe", targets=("attention", "router", "experts")), public.some_tokens()
    import_peft(ours, tmp_path, "olmoe")
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() < 2e-4


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS)


def first_key(folder: Path, part: str) -> str:
    return sorted(key for key in load_file(folder / WEIGHTS) if part in key)[0]


@pytest.mark.parametrize(
    ("error", "part", "edit"),
    [
        (CheckpointKeyMissing, "self_attn.q_b_proj.lora_B", lambda state, key: state.pop(key)),
        (CheckpointShapeMismatch, "experts.lora_A", lambda state, key: state.update({key: state[key][:-1]})),
        (
            UnexpectedCheckpointKey,
            "o_proj.lora_A",
            lambda state, key: state.update({f"{key}.more": state[key].clone()}),
        ),
        (
            ForeignConfig,
            "shared_experts.up_proj.lora_A",
            lambda state, key: state.update({key: state[key] + 1}),
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(
    adapted: Make, tmp_path: Path, error: type[CheckpointError], part: str, edit: Any
) -> None:
    model, other = adapted("deepseek-v3"), adapted("deepseek-v3", seed=1)
    export_peft(model, tmp_path, "deepseek_v3")
    key = first_key(tmp_path, part)
    change(tmp_path, lambda state: edit(state, key))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(error, match=key.replace(".", r"\.")):
        import_peft(other, tmp_path, "deepseek_v3")
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 8),
        ("lora_alpha", 4),
        ("use_dora", True),
        ("use_rslora", True),
        ("peft_type", "IA3"),
        ("rank_pattern", {"x": 1}),
    ],
)
def test_adapters_of_another_kind_are_refused(adapted: Make, tmp_path: Path, key: str, value: object) -> None:
    model = adapted("qwen3")
    export_peft(model, tmp_path, "qwen3_moe")
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {key: value}))
    with pytest.raises(ForeignConfig, match=f"{key} is"):
        import_peft(model, tmp_path, "qwen3_moe")


def test_a_folder_without_adapters_is_named(adapted: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointFileMissing, match=CONFIG):
        import_peft(adapted("qwen3"), tmp_path, "qwen3_moe")
