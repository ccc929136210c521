"""The base of a study as one file, so that all participants start from the same bits: safetensors, nothing that runs.

It holds every parameter, the frozen factors A, which encoded values are used, and the public statistics that encode a table. Its
SHA-256 stands in the signed proposal of a study. It is public: made of public rows without labels (`pretraining.py`).

A base fits every study with the same columns, model and adapters, whatever their privacy, rounds or purpose; the file names these
by a hash.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rfc8785
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hansa import labels
from hansa.errors import BaseMismatch, CheckpointDamaged, CheckpointFileMissing, OutputNotWritable
from hansa.models.config import ModelConfig
from hansa.models.features import ColumnPlan, FeatureEncoder, NumericEncoding
from hansa.models.pretraining import Base, layout_of, weights_of
from hansa.models.saving import put_file
from hansa.models.transformer import FeatureTransformer
from hansa.study import Study

SCHEMA = "hansa/base/v1"
BASE_BYTES_MOST = 4 << 30
_ENCODER, _USED = "encoder/", "used_JZ"
_MODEL, _FORM = "model/", "form"


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseFile:
    """A base that was read from a file: the model's, and the encoder of tables that belongs to it."""

    base: Base
    encoder: FeatureEncoder
    sha256: str


def shape_hash(study: Study) -> str:
    """Hash what a base depends on: columns, sizes of the model, adapters; 64 hexadecimal digits."""
    agreement = study.model_dump(by_alias=True, include={"data", "model", "adapters"})
    return hashlib.sha256(labels.BASE_SHAPE + rfc8785.dumps(agreement)).hexdigest()


def save_base(base: Base, encoder: FeatureEncoder, study: Study, path: Path) -> str:
    """Write a base.

    Returns:
        SHA-256 of the file, hexadecimal.

    Raises:
        OutputNotWritable: It cannot be written; what stood there stands.

    Guarantees:
        - The same base gives the same bytes.
        - `load_base` gives every number back bit by bit.
    """
    tensors = {_MODEL + name: tensor.detach().contiguous() for name, tensor in base.weights.items()}
    tensors[_USED] = base.used_JZ.contiguous()
    for place, column in enumerate(encoder.columns):
        if column.numeric is not None:
            found = column.numeric
            values = np.array([found.mean, found.deviation, *found.edges], dtype=np.float64)
            tensors[f"{_ENCODER}{place}"] = torch.from_numpy(values)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata=metadata_of(study))
        digest = file_sha256(partial)
        put_file(partial, path)
    except OSError as error:
        raise OutputNotWritable(f"the base cannot be written to {str(path)!r}: {error.strerror}") from error
    return digest


def metadata_of(study: Study) -> dict[str, str]:
    """Say in a file's header what it is: one entry, for several have no fixed order."""
    return {_FORM: f"{SCHEMA} {shape_hash(study)}"}


def file_sha256(path: Path) -> str:
    """Hash a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_base(path: Path, study: Study, *, sha256: str | None = None) -> BaseFile:
    """Read a base.

    Args:
        path: The file; untrusted.
        study: The study that it is for.
        sha256: Hash that was agreed on, hexadecimal; None where none was. It is compared before the file is parsed.

    Raises:
        CheckpointFileMissing: The file cannot be read.
        BaseMismatch: It has another hash, or is the base of other columns, sizes or adapters.
        CheckpointDamaged: It is not whole, or holds what no base holds.
    """
    try:
        if path.stat().st_size > BASE_BYTES_MOST:
            raise CheckpointDamaged(f"{path.name} is longer than {BASE_BYTES_MOST} bytes")
        digest = file_sha256(path)
    except OSError as error:
        raise CheckpointFileMissing(f"base {str(path)!r} cannot be read: {error.strerror}") from error
    if sha256 is not None and digest != sha256:
        raise BaseMismatch(f"{path.name} has the SHA-256 {digest[:16]}..., agreed on was {sha256[:16]}...")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if set(metadata) != {_FORM} or not metadata[_FORM].startswith(SCHEMA):
                raise CheckpointDamaged(f"{path.name} is not of the form {SCHEMA}")
            if metadata != metadata_of(study):
                raise BaseMismatch(f"{path.name} is the base of other columns, sizes or adapters")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointDamaged(f"{path.name} is cut short or no safetensors file") from error
    encoder = _encoder(study, tensors, path.name)
    return BaseFile(base=_base(study, encoder, tensors, path.name), encoder=encoder, sha256=digest)


def _encoder(study: Study, tensors: Mapping[str, Tensor], name: str) -> FeatureEncoder:
    plans, places = [], {"numeric": 0, "categorical": 0}
    for place, column in enumerate(study.data.columns):
        numeric = None
        if column.kind == "numeric":
            numeric = _numeric(tensors.get(f"{_ENCODER}{place}"), study.model.quantile_bins, name)
        plans.append(
            ColumnPlan(
                token=column.token,
                index=places[column.kind],
                numeric=numeric,
                vocabulary=len(column.values) + 1,
            )
        )
        places[column.kind] += 1
    return FeatureEncoder(plans)


def _numeric(values: Tensor | None, bins: int, name: str) -> NumericEncoding:
    is_whole = (
        values is not None
        and values.dtype == torch.float64
        and values.dim() == 1
        and 4 <= len(values) <= bins + 3
        and bool(torch.isfinite(values).all())
        and bool((values[3:] > values[2:-1]).all())
        and float(values[1]) > 0
    )
    if values is None or not is_whole:
        raise CheckpointDamaged(f"{name} lacks the statistics of a numeric column, or they are none")
    mean, deviation, *edges = values.tolist()
    return NumericEncoding(edges=np.array(edges), mean=mean, deviation=deviation)


def _base(study: Study, encoder: FeatureEncoder, tensors: Mapping[str, Tensor], name: str) -> Base:
    used_JZ = encoder.used()
    if _USED not in tensors or not torch.equal(tensors[_USED], used_JZ):
        raise CheckpointDamaged(f"{name} uses other encoded values than its statistics say")
    config = ModelConfig.of_study(study)
    with torch.random.fork_rng(devices=[]):
        model = FeatureTransformer(config, used_JZ)
    weights = {key.removeprefix(_MODEL): tensors[key] for key in tensors if key.startswith(_MODEL)}
    expected = weights_of(model)
    if weights.keys() != expected.keys():
        raise CheckpointDamaged(f"{name} holds other tensors than the model has")
    for key, tensor in weights.items():
        same = tensor.shape == expected[key].shape and tensor.dtype == expected[key].dtype
        if not same or (tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())):
            raise CheckpointDamaged(
                f"{name}: {key} has another shape or type, or numbers that are not finite"
            )
    return Base(config=config, used_JZ=used_JZ, weights=weights, layout=layout_of(study, model))
