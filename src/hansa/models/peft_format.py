"""Adapters in PEFT's own format, out and in: adapter_config.json and adapter_model.safetensors.

    linear map (out, in)       lora_A (r, in),      lora_B (out, r)          ours: A (in, r), B (r, out)
    experts (E, out, in)       lora_A (E·r, in),    lora_B (out, r·E)        A expert-major, B with the expert as the minor index
    gate and up, fused here    one A for both, B cut in two

PEFT wraps the two matrices of an expert layer one inside the other: gate_up stands under `base_layer`, down outside. Routers and
the networks beside the experts go by `target_parameters`, for PEFT takes their names in `target_modules` for those of the experts.
Names are those of transformers 5 in memory, where Mixtral's experts are called `mlp` like the others'.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hansa.errors import (
    CheckpointKeyMissing,
    CheckpointShapeMismatch,
    ForeignConfig,
    OutputNotWritable,
    UnexpectedCheckpointKey,
)
from hansa.models.families import keys_of
from hansa.models.merging import Adapter, adapters_of
from hansa.models.tensor_files import TensorFiles, open_tensors, read_json
from hansa.models.text import TextTransformer

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_STACKED = {"gate_up": "gate_up_proj", "down": "down_proj"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where one adapter, or one half of a fused one, stands in PEFT's file.

    Attributes:
        key: Name up to ".lora_A.weight".
        adapter: The adapter.
        half: Which half of B, 0 or 1; None for all of it.
        target: Entry of the configuration.
        is_module: Whether it is an entry of `target_modules`, or else of `target_parameters`.
    """

    key: str
    adapter: Adapter
    half: int | None
    target: str
    is_module: bool

    def factors(self) -> tuple[Tensor, Tensor]:
        """Give the factors in PEFT's layout, float32."""
        a, b = self.adapter.factor_A.detach().float(), self._part().detach().float()
        if a.dim() == 3:
            return a.transpose(1, 2).flatten(0, 1).contiguous(), b.permute(2, 1, 0).flatten(1).contiguous()
        return a.t().contiguous(), b.t().contiguous()

    def take(self, a: Tensor, b: Tensor) -> None:
        """Put factors in PEFT's layout into the adapter."""
        own_a, own_b = self.adapter.factor_A, self._part()
        if own_a.dim() == 3:
            E, D, r = own_a.shape
            own_a.copy_(a.view(E, r, D).transpose(1, 2))
            own_b.copy_(b.view(-1, r, E).permute(2, 1, 0))
        else:
            own_a.copy_(a.t())
            own_b.copy_(b.t())

    def _part(self) -> Tensor:
        factor_B = self.adapter.factor_B
        return factor_B if self.half is None else factor_B.chunk(2, dim=-1)[self.half]


def _places(model: TextTransformer, family: str) -> Iterator[_Place]:
    for adapter in adapters_of(model):
        keys = keys_of(family, adapter.weight_name)
        first = keys[0].replace("block_sparse_moe.", "mlp.")
        if "{e}" in first:
            container = first.partition(".{e}")[0]
            inner = ".base_layer" if adapter.site.weight == "gate_up" else ""
            target = f"mlp.experts.{_STACKED[adapter.site.weight]}"
            yield _Place(
                key=_PREFIX + container + inner, adapter=adapter, half=None, target=target, is_module=False
            )
            continue
        is_module = ".self_attn." in first or family == "llama"
        for half, key in enumerate(keys):
            path = key.replace("block_sparse_moe.", "mlp.").removesuffix(".weight")
            inside = path.split(".", 3)[3]  # after model.layers.{i}
            yield _Place(
                key=_PREFIX + path,
                adapter=adapter,
                half=half if len(keys) > 1 else None,
                target=inside.rpartition(".")[2] if is_module else f"{inside}.weight",
                is_module=is_module,
            )


def export_peft(model: TextTransformer, folder: Path, family: str) -> None:
    """Save the adapters as PEFT does.

    Args:
        model: A model with adapters.
        folder: Where to.
        family: Family of the base: "qwen3_moe", "mixtral", ...

    Raises:
        OutputNotWritable: The folder cannot be written to.

    Guarantees:
        - PEFT on transformers' base computes the same logits, up to rounding.
    """
    state: dict[str, Tensor] = {}
    targets: dict[bool, set[str]] = {True: set(), False: set()}
    for place in _places(model, family):
        state[f"{place.key}.lora_A.weight"], state[f"{place.key}.lora_B.weight"] = place.factors()
        targets[place.is_module].add(place.target)
    config = {
        "peft_type": "LORA",
        "r": model.config.rank,
        "lora_alpha": model.config.alpha,
        "target_modules": sorted(targets[True]),
        "target_parameters": sorted(targets[False]),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "task_type": None,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / f".{WEIGHTS}.partial", metadata={"format": "pt"})
        (folder / f".{CONFIG}.partial").write_text(json.dumps(config, indent=2, sort_keys=True))
        for name in (WEIGHTS, CONFIG):
            os.replace(folder / f".{name}.partial", folder / name)
    except OSError as error:
        raise OutputNotWritable(f"adapters cannot be saved in {folder.name!r}: {error.strerror}") from error


@torch.no_grad()
def import_peft(model: TextTransformer, folder: Path, family: str) -> None:
    """Load adapters that PEFT saved, in place.

    Args:
        model: A model with adapters of the same rank, α and targets.
        folder: Folder with adapter_config.json and adapter_model.safetensors.
        family: Family of the base.

    Raises:
        CheckpointError: A file is missing or damaged, a tensor is missing, left over or of the wrong shape, the adapters are of
            another kind, or gate and up have different factors A, which one fused matrix cannot keep.

    Guarantees:
        - The model is changed only if everything fits.
    """
    folder = Path(folder)
    _verify_config(read_json(folder / CONFIG), model)
    places = list(_places(model, family))
    with open_tensors(folder, WEIGHTS) as files:
        read = [_read(files, place) for place in places]
        expected = {f"{place.key}.lora_{factor}.weight" for place in places for factor in "AB"}
        unexpected = sorted(files.names() - expected)
    if unexpected:
        raise UnexpectedCheckpointKey(f"{unexpected[0]} is in {WEIGHTS} and has no place in the model")
    for i, place in enumerate(places):
        if place.half == 1 and not torch.equal(read[i][0], read[i - 1][0]):
            raise ForeignConfig(
                f"{place.key}.lora_A.weight differs from that of the gate; hansa keeps one for both"
            )
    for place, (a, b) in zip(places, read, strict=True):
        place.take(a, b)


def _read(files: TensorFiles, place: _Place) -> tuple[Tensor, Tensor]:
    read = []
    for factor, like in zip("AB", place.factors(), strict=True):
        key = f"{place.key}.lora_{factor}.weight"
        if key not in files:
            raise CheckpointKeyMissing(f"{key} is not in {WEIGHTS}")
        if files.shape(key) != tuple(like.shape):
            raise CheckpointShapeMismatch(f"{key} is {files.shape(key)}, the model has {tuple(like.shape)}")
        files.dtype(key)
        read.append(files.read(key))
    return read[0], read[1]


def _verify_config(values: dict[str, Any], model: TextTransformer) -> None:
    expected: dict[str, tuple[object, ...]] = {
        "peft_type": ("LORA",),
        "r": (model.config.rank,),
        "lora_alpha": (model.config.alpha,),
        "use_rslora": (False, None),
        "use_dora": (False, None),
        "fan_in_fan_out": (False, None),
        "bias": ("none", None),
        "rank_pattern": ({}, None),
        "alpha_pattern": ({}, None),
        "modules_to_save": (None, []),
    }
    for key, allowed in expected.items():
        if values.get(key) not in allowed:
            raise ForeignConfig(f"{CONFIG}: {key} is {values.get(key)!r}, the model has {allowed[0]!r}")
