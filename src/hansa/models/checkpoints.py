"""Loading public checkpoints: Mixtral, OLMoE, Qwen3-MoE, DeepSeek-V2 and V3, and dense Llama-type models.

Every tensor of our model names its sources (hansa.models.families). All names, shapes and types are compared before the first
number is read, and whatever does not fit ends in an error that names the key.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hansa.errors import (
    CheckpointKeyMissing,
    CheckpointShapeMismatch,
    InvalidValue,
    PickleRefused,
    UnexpectedCheckpointKey,
)
from hansa.models.config import ModelConfig
from hansa.models.families import Source, is_ignored, sources_of
from hansa.models.family_configs import read_config
from hansa.models.tensor_files import CONFIG, TensorFiles, open_tensors, read_json
from hansa.models.text import TextTransformer, is_wide, use_compute_type
from hansa.models.trainable import TrainableLayout, is_adapter


def load_checkpoint(
    folder: Path,
    *,
    experts: str | None = None,
    dtype: torch.dtype = torch.float32,
    adapters: ModelConfig | None = None,
    classes: int | None = None,
) -> TextTransformer:
    """Load a public checkpoint.

    Args:
        folder: Folder with config.json and *.safetensors.
        experts: Which routed experts, such as "0-15" or "0-7,32"; None for all. Only their bytes are read. Groups are kept whole.
        dtype: Type of the frozen matrices; norms, router, biases and adapters are float32 (float64 with float64).
        adapters: Takes the adapters' sizes and targets from here; None for no adapters.
        classes: Number of classes of a head that takes the place of the checkpoint's, at zero; None for a language model.

    Returns:
        The model, evaluating, everything frozen but its adapters.

    Raises:
        CheckpointError: A file is missing, damaged, pickled or foreign, or a tensor is missing, left over or of the wrong shape or
            type; the message names it.
        InvalidValue: `experts` names none, or not those of whole groups.

    Guarantees:
        - Nothing in the folder is run: no pickle, no code of the checkpoint.
        - With B at zero the logits are those of the checkpoint.
    """
    folder = Path(folder)
    if folder.is_file():
        raise PickleRefused(
            f"{folder.name} is a file; a checkpoint is a folder with config.json and *.safetensors"
        )
    family, full = read_config(read_json(folder / CONFIG))
    chosen = choose_experts(experts, full)
    config = full if experts is None else _with_experts(full, chosen)
    config = config.with_adapters_of(adapters)
    if classes is not None:
        config = replace(config, head="classes", classes=classes, tied=False)
    model = empty_model(config)
    with open_tensors(folder) as files:
        loader = _Loader(files, family, config, choose_experts(None, full), chosen)
        loader.verify(model)
        state = {name: loader.assemble(name, tensor, dtype) for name, tensor in loader.wanted(model)}
    fill_model(model, state)
    use_compute_type(model, dtype)
    TrainableLayout(model, ()).freeze_rest(model)
    return model.eval()


def empty_model(config: ModelConfig) -> TextTransformer:
    """Make a model without numbers: nothing is drawn and no memory taken but for the adapters' factors A."""
    with torch.device("meta"):
        return TextTransformer(config)


def fill_model(model: TextTransformer, state: dict[str, Tensor]) -> None:
    """Give a model without numbers its own; factors B and a head of classes that are not among them start at zero."""
    missing = {name: tensor for name, tensor in model.state_dict().items() if name not in state}
    starts = ("_B", "head") if model.config.head == "classes" else ("_B",)
    zeros = {name: torch.zeros(tensor.shape) for name, tensor in missing.items() if name.endswith(starts)}
    model.load_state_dict({**missing, **zeros, **state}, assign=True)


class _Loader:
    """Compares the files with the model, then puts its tensors together."""

    def __init__(
        self,
        files: TensorFiles,
        family: str,
        config: ModelConfig,
        everyone: tuple[int, ...],
        chosen: tuple[int, ...],
    ) -> None:
        self._files, self._family, self._config = files, family, config
        self._everyone, self._chosen = everyone, chosen

    def wanted(self, model: TextTransformer) -> Iterator[tuple[str, Tensor]]:
        """Give the tensors that come from the checkpoint: all but the adapters and a head of classes."""
        for name, tensor in model.state_dict().items():
            if not (is_adapter(name) or (name == "head" and self._config.head == "classes")):
                yield name, tensor

    def verify(self, model: TextTransformer) -> None:
        """Compare names, shapes and types."""
        expected: set[str] = set()
        for name, tensor in self.wanted(model):
            for source in self._sources(name, tensor):
                if source.key not in self._files:
                    raise CheckpointKeyMissing(f"{source.key} is not in the checkpoint")
                shape, there = self._shape(name, tensor, source), self._files.shape(source.key)
                if there != shape:
                    raise CheckpointShapeMismatch(
                        f"{source.key} is {there} in the checkpoint, {shape} by config.json"
                    )
                self._files.dtype(source.key)
            expected |= {s.key for s in sources_of(self._family, name, tensor.dim(), self._everyone)}
        for key in sorted(self._files.names() - expected):
            if not is_ignored(self._family, key, self._config):
                raise UnexpectedCheckpointKey(f"{key} is in the checkpoint and has no place in the model")

    def assemble(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Put one of our tensors together, source by source, so that nothing is held twice."""
        dtype = torch.promote_types(dtype, torch.float32) if is_wide(name) else dtype
        result = torch.empty(like.shape, dtype=dtype)
        width = like.shape[-1] // 2
        for source in self._sources(name, like):
            value = self._files.read(source.key)
            if _an_entry_an_expert(name):
                value = value[list(self._chosen)]
            place = result if source.expert is None else result[source.expert]
            if source.half is not None:
                place = place[..., source.half * width : (source.half + 1) * width]
            place.copy_(value.t() if source.transposed else value)
        return result

    def _sources(self, name: str, tensor: Tensor) -> Iterator[Source]:
        return sources_of(self._family, name, tensor.dim(), self._chosen)

    def _shape(self, name: str, tensor: Tensor, source: Source) -> tuple[int, ...]:
        """Shape that a source must have."""
        shape = list(tensor.shape[1:] if source.expert is not None else tensor.shape)
        if source.half is not None:
            shape[-1] //= 2
        if _an_entry_an_expert(name):
            shape[-1] = len(self._everyone)
        return tuple(reversed(shape) if source.transposed else shape)


def _an_entry_an_expert(name: str) -> bool:
    return name.endswith((".experts.router", ".experts.bias"))


def choose_experts(experts: str | None, config: ModelConfig) -> tuple[int, ...]:
    """Read a choice of routed experts such as "0-15,32"; all of them for None.

    Raises:
        InvalidValue: A part is no range of the model's experts.
    """
    if experts is None:
        return tuple(range(config.experts))
    chosen: set[int] = set()
    for part in experts.split(","):
        ends = part.strip().split("-")
        first, last = ends[0], ends[-1]
        if len(ends) > 2 or not (
            first.isdecimal() and last.isdecimal() and int(first) <= int(last) < config.experts
        ):
            raise InvalidValue(f"experts {part!r} is no range within 0-{config.experts - 1}")
        chosen |= set(range(int(first), int(last) + 1))
    return tuple(sorted(chosen))


def _with_experts(config: ModelConfig, chosen: tuple[int, ...]) -> ModelConfig:
    """Shrink the sizes to the chosen experts; groups are kept whole, for a group's score is its experts'."""
    size = config.experts // config.groups
    groups = sorted({expert // size for expert in chosen})
    if config.groups > 1 and len(chosen) != len(groups) * size:
        raise InvalidValue(f"the checkpoint has groups of {size} experts; choose whole groups")
    kept = len(groups) if config.groups > 1 else 1
    top_groups = min(config.top_groups, kept)
    most = len(chosen) // kept * top_groups
    return replace(
        config, experts=len(chosen), groups=kept, top_groups=top_groups, top_k=min(config.top_k, most)
    )
