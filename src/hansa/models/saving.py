"""Saving hansa's own models, atomically: safetensors beside a config.json that names them and their SHA-256.

The weights are written first, under a name made of their hash; then config.json, which points at them, takes the place of the
old one in one step. A crash at any moment leaves the old model or the new one, never a mixture. The factors A are saved too:
drawn again from their seed they could differ in the last bit on another machine.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import rfc8785
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from hansa.errors import (
    CheckpointDamaged,
    CheckpointKeyMissing,
    CheckpointShapeMismatch,
    ForeignConfig,
    InvalidValue,
    OutputNotWritable,
    UnexpectedCheckpointKey,
    UnsafeCheckpointPath,
)
from hansa.models.checkpoints import empty_model
from hansa.models.config import ModelConfig
from hansa.models.tensor_files import CONFIG, open_tensors, read_json
from hansa.models.text import TextTransformer
from hansa.models.trainable import TrainableLayout, is_adapter
from hansa.models.transformer import FeatureTransformer

SCHEMA = "hansa/model/v1"
Model = TextTransformer | FeatureTransformer


def save_model(model: Model, folder: Path, *, training: Mapping[str, Any] | None = None) -> None:
    """Save a model, in place of the one that the folder may hold.

    Args:
        model: The model.
        folder: Where it goes.
        training: What to keep in config.json about how it was trained; for readers, nothing depends on it.

    Raises:
        OutputNotWritable: The folder cannot be written to; what it held stands.

    Guarantees:
        - After a crash the folder holds the old model or the new one, whole.
        - `load_model` gives every number back bit by bit.
    """
    folder = Path(folder)
    state = {name: tensor.detach().contiguous() for name, tensor in tensors_of(model).items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # 1 the weights, under a name of their own
        partial = folder / ".weights.partial"
        save_file(state, partial)
        digest = _digest(partial)
        weights = folder / f"model-{digest[:16]}.safetensors"
        put_file(partial, weights)
        # 2 the configuration, which makes them the model
        agreement: dict[str, Any] = {
            "schema": SCHEMA,
            "model_type": "hansa",
            "weights": weights.name,
            "sha256": digest,
            "config": asdict(model.config),
        }
        if training is not None:
            agreement["training"] = dict(training)
        partial = folder / ".config.partial"
        partial.write_bytes(rfc8785.dumps(agreement))
        put_file(partial, folder / CONFIG)
        # 3 what nothing points at any more
        for old in folder.glob("model-*.safetensors"):
            if old != weights:
                old.unlink()
    except OSError as error:
        raise OutputNotWritable(f"the model cannot be saved in {folder.name!r}: {error.strerror}") from error


def load_model(folder: Path) -> Model:
    """Load a model that `save_model` saved; evaluating, everything frozen but its adapters.

    Raises:
        CheckpointError: A file is missing, damaged or foreign, or a tensor is missing, left over or of the wrong shape.
    """
    folder = Path(folder)
    values = read_json(folder / CONFIG)
    if values.get("schema") != SCHEMA:
        raise ForeignConfig(f"config.json: schema is {values.get('schema')!r}, not {SCHEMA}")
    weights, config = values.get("weights"), _config(values.get("config"))
    if not isinstance(weights, str) or weights != Path(weights).name or not weights.endswith(".safetensors"):
        raise UnsafeCheckpointPath(f"config.json: weights is {weights!r}, which is no file of the folder")
    with open_tensors(folder, weights) as files:
        if _digest(folder / weights) != values.get("sha256"):
            raise CheckpointDamaged(f"{weights} does not have the SHA-256 that config.json names")
        state = {name: files.read(name) for name in sorted(files.names())}
    model = _empty(config, state)
    expected = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
    for name, shape in expected.items():
        if name not in state:
            raise CheckpointKeyMissing(f"{name} is not in {weights}")
        if tuple(state[name].shape) != shape:
            raise CheckpointShapeMismatch(f"{name} is {tuple(state[name].shape)}, {shape} by config.json")
    unexpected = sorted(state.keys() - expected.keys())
    if unexpected:
        raise UnexpectedCheckpointKey(f"{unexpected[0]} is in {weights} and has no place in the model")
    fill(model, state)
    TrainableLayout(model, ()).freeze_rest(model)
    return model.eval()


def _empty(config: ModelConfig, state: dict[str, Tensor]) -> Model:
    if config.vocabulary:
        return empty_model(config)
    used_JZ = state.get("used_JZ")
    if used_JZ is None or used_JZ.dtype != torch.bool or used_JZ.dim() != 2:
        raise CheckpointKeyMissing("used_JZ is not among the weights of a table's model")
    with torch.random.fork_rng(devices=[]):
        return FeatureTransformer(config, used_JZ)


def tensors_of(model: Model) -> dict[str, Tensor]:
    """Everything that makes the model: parameters, factors A, and the used values of a table."""
    buffers = {
        name: tensor for name, tensor in model.named_buffers() if is_adapter(name) or name == "used_JZ"
    }
    return {**model.state_dict(), **buffers}


def fill(model: Model, state: Mapping[str, Tensor]) -> None:
    """Give a model the tensors that `tensors_of` took from one of the same shape."""
    owned = model.state_dict().keys()
    model.load_state_dict({name: tensor for name, tensor in state.items() if name in owned}, assign=True)
    for name, tensor in state.items():
        if name not in owned:
            module, _, last = name.rpartition(".")
            setattr(model.get_submodule(module), last, tensor)


def _config(values: object) -> ModelConfig:
    try:
        found = TypeAdapter(ModelConfig).validate_python(values)
    except InvalidValue as error:
        raise ForeignConfig(f"config.json: {error.message}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ForeignConfig(f"config.json: config.{place}: {first['msg'].lower()}") from None
    unknown = sorted(set(cast("dict[str, Any]", values)) - set(asdict(found)))
    if unknown:
        raise ForeignConfig(f"config.json: config.{unknown[0]} is not known")
    return found


def put_file(partial: Path, final: Path) -> None:
    """Bring a written file to disk and give it its name; the folder's entry is brought to disk as well."""
    _sync(partial)
    os.replace(partial, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
