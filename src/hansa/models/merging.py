"""Folding adapters into the base and taking them out again: W' = W + scale · A B.

Folding is for serving and export; a folded model computes the same without the adapters' extra products. In half precision a small
product is lost in the rounding of W, so a folded model is then only close.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hansa.errors import InvalidValue
from hansa.models.linear import Adapted, Site


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """One adapter of a model: the module that carries it, and where."""

    module: Adapted
    site: Site

    @property
    def name(self) -> str:
        """Name of the factor B in the model."""
        return f"{self.module.name}.{self.site.factor_B}"

    @property
    def weight_name(self) -> str:
        """Name of the adapted weight in the model."""
        return f"{self.module.name}.{self.site.weight}"

    @property
    def weight(self) -> Tensor:
        """The adapted weight, (..., D, N)."""
        tensor: Tensor = getattr(self.module, self.site.weight)
        return tensor

    @property
    def factor_A(self) -> Tensor:
        """Factor A, (..., D, r)."""
        tensor: Tensor = getattr(self.module, self.site.factor_A)
        return tensor

    @property
    def factor_B(self) -> Tensor:
        """Factor B, (..., r, N)."""
        tensor: Tensor = getattr(self.module, self.site.factor_B)
        return tensor


def adapters_of(model: nn.Module) -> Iterator[Adapter]:
    """Give every adapter of a model, in the order of its modules."""
    for module in model.modules():
        if isinstance(module, Adapted):
            for site in module.sites:
                yield Adapter(module=module, site=site)


@torch.no_grad()
def merge_adapters(model: nn.Module) -> dict[str, Tensor]:
    """Fold every adapter into its weight, in place, and set its B to zero.

    Returns:
        The factors B by name, for `unmerge_adapters`.

    Guarantees:
        - The model computes the same, up to rounding.
    """
    factors = {}
    for adapter in adapters_of(model):
        factors[adapter.name] = adapter.factor_B.detach().clone()
        adapter.weight.copy_(_shifted(adapter, adapter.factor_B, 1.0))
        adapter.factor_B.zero_()
    return factors


@torch.no_grad()
def unmerge_adapters(model: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """Undo `merge_adapters`, in place.

    Raises:
        InvalidValue: The factors are not those of this model's adapters.
    """
    adapters = {adapter.name: adapter for adapter in adapters_of(model)}
    if adapters.keys() != factors.keys():
        odd = sorted(adapters.keys() ^ factors.keys())[0]
        raise InvalidValue(f"factor {odd} is not in both the model and what was folded")
    for name, adapter in adapters.items():
        adapter.weight.copy_(_shifted(adapter, factors[name], -1.0))
        adapter.factor_B.copy_(factors[name])


def _shifted(adapter: Adapter, factor_B: Tensor, sign: float) -> Tensor:
    """The weight plus or minus the adapter, in the wider of their types."""
    product = adapter.factor_A.to(factor_B.dtype) @ factor_B
    return adapter.weight + sign * adapter.module.scale * product
