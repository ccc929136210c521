"""The trained part of a model as one flat vector with a fixed order.

Everything that participants agree on (update, support, optimizer state, model hash) speaks of positions in this vector. The
order is that of the sorted names, each tensor in C order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hansa.errors import InvalidValue

_SECOND_FACTORS = ("factor_B", "gate_up_B", "down_B", "router_B")


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Where a tensor lies in the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


def is_adapter(name: str) -> bool:
    """Say whether a tensor is a factor, A or B, of an adapter."""
    return name.endswith(_SECOND_FACTORS) or name.rpartition(".")[2].startswith("factor_A")


class TrainableLayout:
    """The order of the trained tensors in the flat vector.

    Args:
        model: The model; adapters' factors B always belong to the trained part.
        extra: Names of whole parameters that are trained as well, such as "embedding", "class_token", "head".
        both_factors: Whether adapters' factors A are trained too, where the model keeps them as parameters. Never in a study: the
            mean of products is not the product of means.

    Guarantees:
        - The layout depends on names and shapes only, so equal studies give equal layouts on every machine.
    """

    def __init__(self, model: nn.Module, extra: Sequence[str], *, both_factors: bool = False) -> None:
        slots: list[Slot] = []
        start = 0
        for name, parameter in sorted(model.named_parameters()):
            first = both_factors and name.rpartition(".")[2].startswith("factor_A")
            if name in extra or name.endswith(_SECOND_FACTORS) or first:
                stop = start + parameter.numel()
                slots.append(Slot(name=name, shape=tuple(parameter.shape), start=start, stop=stop))
                start = stop
        self.slots = tuple(slots)
        self.size = start

    def freeze_rest(self, model: nn.Module) -> None:
        """Switch gradients off for everything that is not trained, and on for what is."""
        names = {slot.name for slot in self.slots}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)

    def gather(self, model: nn.Module) -> NDArray[np.float64]:
        """Read the trained part of a model, (size,)."""
        tensors = dict(model.named_parameters())
        parts = [tensors[slot.name].detach().double().flatten().numpy() for slot in self.slots]
        return np.concatenate(parts)

    def load(self, model: nn.Module, vector: NDArray[np.float64]) -> None:
        """Write the trained part into a model, rounded to the parameters' type."""
        tensors = dict(model.named_parameters())
        with torch.no_grad():
            for slot in self.slots:
                values = torch.tensor(vector[slot.start : slot.stop]).view(slot.shape)
                tensors[slot.name].copy_(values)

    def positions(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Give the ascending positions of the tensors whose name is one of `names` or has one as a part between dots.

        Raises:
            InvalidValue: A name fits no trained tensor.
        """
        chosen: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        for name in names:
            spans = [
                np.arange(s.start, s.stop) for s in self.slots if s.name == name or f".{name}." in s.name
            ]
            if not spans:
                raise InvalidValue(f"no trained tensor is called {name!r}")
            chosen += spans
        return np.unique(np.concatenate(chosen))

    def masks(self, positions: NDArray[np.int64]) -> dict[str, Tensor]:
        """Give a 0/1 tensor a trained tensor: 1 at the given positions of the flat vector."""
        flat = np.zeros(self.size, dtype=np.float32)
        flat[positions] = 1.0
        return {s.name: torch.from_numpy(flat[s.start : s.stop]).view(s.shape) for s in self.slots}
