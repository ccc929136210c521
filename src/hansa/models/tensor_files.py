"""Reading a folder of safetensors files: one file, or shards with an index. Pickle is never opened.

A safetensors file is a length, a JSON header and raw numbers; reading it runs no code. The files are mapped into memory, so only
the tensors that are asked for are read. The index is foreign text: the names of files in it must be plain names of this folder.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hansa.errors import (
    CheckpointDamaged,
    CheckpointFileMissing,
    CheckpointKeyMissing,
    CheckpointTypeMismatch,
    PickleRefused,
    UnsafeCheckpointPath,
)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_JSON_BYTES_MOST = 64 << 20
_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointFileMissing: The file cannot be read.
        CheckpointDamaged: It is too long, or no JSON object.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_JSON_BYTES_MOST + 1)
    except OSError as error:
        raise CheckpointFileMissing(f"{path.name} cannot be read in {path.parent.name!r}") from error
    if len(raw) > _JSON_BYTES_MOST:
        raise CheckpointDamaged(f"{path.name} is longer than {_JSON_BYTES_MOST} bytes")
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointDamaged(f"{path.name} is not JSON") from error
    if not isinstance(values, dict):
        raise CheckpointDamaged(f"{path.name} holds no JSON object")
    return values


class TensorFiles:
    """The tensors of a checkpoint by name; see `open_tensors`."""

    def __init__(self, files: Mapping[str, Any], indexed: Mapping[str, str]) -> None:
        self._place = {key: (name, file) for name, file in files.items() for key in file.keys()}  # noqa: SIM118
        for key, name in indexed.items():
            if self._place.get(key, ("",))[0] != name:
                raise CheckpointKeyMissing(f"{key} is not in {name}, where the index puts it")

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._place)

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor; nothing but the header is read."""
        return tuple(self._slice(key).get_shape())

    def dtype(self, key: str) -> torch.dtype:
        """Type of a tensor.

        Raises:
            CheckpointTypeMismatch: It is not a floating-point type that hansa computes with.
        """
        name = self._slice(key).get_dtype()
        if name not in _TYPES:
            raise CheckpointTypeMismatch(f"{key} is of type {name}, hansa reads {', '.join(_TYPES)}")
        return _TYPES[name]

    def read(self, key: str) -> Tensor:
        """Read a tensor.

        Raises:
            CheckpointDamaged: Its bytes cannot be read.
        """
        try:
            tensor: Tensor = self._find(key).get_tensor(key)
        except SafetensorError as error:
            raise CheckpointDamaged(f"{key} cannot be read: {error}") from error
        return tensor

    def _slice(self, key: str) -> Any:
        return self._find(key).get_slice(key)

    def _find(self, key: str) -> Any:
        if key not in self._place:
            raise CheckpointKeyMissing(f"{key} is not in the checkpoint")
        return self._place[key][1]


@contextmanager
def open_tensors(folder: Path, single: str = SINGLE) -> Iterator[TensorFiles]:
    """Open the tensors of a checkpoint.

    Args:
        folder: The checkpoint.
        single: Name of the file where there is one without an index.

    Raises:
        CheckpointFileMissing: There are no safetensors, or a shard is missing.
        PickleRefused: The weights are pickled.
        UnsafeCheckpointPath: The index names a file outside of the folder.
        CheckpointDamaged: A file is cut short or not in its format.
        CheckpointKeyMissing: The index names a tensor that its file lacks.
    """
    if folder.suffix in _PICKLES:
        raise PickleRefused(f"{folder.name} is pickled; reading it would run what is inside")
    indexed: dict[str, str] = {}
    if (folder / INDEX).is_file():
        indexed = _index(folder / INDEX)
        names = sorted(set(indexed.values()))
    elif (folder / single).is_file():
        names = [single]
    else:
        pickled = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
        if pickled:
            raise PickleRefused(f"{pickled[0]} is pickled; reading it would run what is inside")
        raise CheckpointFileMissing(f"there is no {single} and no index in {folder.name!r}")
    with ExitStack() as stack:
        files = {name: stack.enter_context(_open(folder / name)) for name in names}
        yield TensorFiles(files, indexed)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointFileMissing(f"{path.name} is not in the folder of the checkpoint") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointDamaged(f"{path.name} is cut short or no safetensors file: {error}") from error


def _index(path: Path) -> dict[str, str]:
    """Read the index: which file holds which tensor."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointDamaged(f"{path.name} has no weight_map from tensors to files")
    for key, name in places.items():
        if name.endswith(_PICKLES):
            raise PickleRefused(f"{path.name} puts {key} into {name}, which is pickled")
        if (  # links are followed: a download cache keeps every file behind one
            name != Path(name).name
            or "\\" in name
            or name.startswith(".")
            or not name.endswith(".safetensors")
        ):
            raise UnsafeCheckpointPath(
                f"{path.name} puts {key} into {name!r}, which is no file of the folder"
            )
    return places
