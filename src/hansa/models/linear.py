"""Linear maps with an adapter: y = x W + scale · (x A) B, alone and as the two maps of a SwiGLU network.

Source: Hu et al. 2022, "LoRA", section 4.1; Shazeer 2020, "GLU Variants Improve Transformer" (SwiGLU).

Shape suffixes: B samples, T tokens, D in, N out, F hidden width, r rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hansa.kernels.swiglu import swiglu
from hansa.models.adapters import dense_factor, orthonormal_factor
from hansa.models.config import ModelConfig
from hansa.models.tape import Tape


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Where a module carries an adapter: the attributes of the weight and of the two factors."""

    weight: str
    factor_A: str
    factor_B: str


class Adapted(nn.Module):
    """Base of every module that can carry adapters.

    Attributes:
        sites: The adapters that it carries.
        scale: Factor on each adapter's product.
        active: Whether the adapters count; without them the module is the base's.
    """

    def __init__(self, name: str, config: ModelConfig) -> None:
        super().__init__()
        self.name = name
        self.scale = config.alpha / config.rank
        self.sites: tuple[Site, ...] = ()
        self.active = True

    def add_site(self, weight: str, factor_A: str, factor_B: str, label: str, config: ModelConfig) -> None:
        """Give a weight of shape (..., D, N) an adapter whose B starts at zero; A is drawn under `label`."""
        *leading, width_in, width_out = getattr(self, weight).shape
        factor = orthonormal_factor(label, (*leading, width_in, config.rank), config.factor_seed)
        if config.train_factor_A:
            self.register_parameter(factor_A, nn.Parameter(factor))
        else:
            self.register_buffer(factor_A, factor, persistent=False)
        self.register_parameter(factor_B, nn.Parameter(torch.zeros(*leading, config.rank, width_out)))
        self.sites = (*self.sites, Site(weight=weight, factor_A=factor_A, factor_B=factor_B))

    def map(self, x_BTD: Tensor, weight: str, tape: Tape | None) -> Tensor:
        """Apply a weight of shape (D, N), with its adapter where it carries one: (B, T, D) -> (B, T, N)."""
        w_DN: Tensor = getattr(self, weight)
        y_BTN = x_BTD @ w_DN.to(x_BTD.dtype)
        for site in self.sites if self.active else ():
            if site.weight == weight:
                factor_A, factor_B = getattr(self, site.factor_A), getattr(self, site.factor_B)
                if isinstance(factor_A, nn.Parameter):
                    x_BTr = dense_factor(x_BTD, factor_A, f"{self.name}.{site.factor_A}", tape)
                else:
                    x_BTr = x_BTD @ factor_A.to(x_BTD.dtype)
                y_BTN = y_BTN + dense_factor(
                    x_BTr * self.scale, factor_B, f"{self.name}.{site.factor_B}", tape
                )
        return y_BTN


class AdaptedLinear(Adapted):
    """y = x W + scale · (x A) B with W and A frozen; B starts at zero."""

    def __init__(
        self, name: str, width_in: int, width_out: int, config: ModelConfig, *, adapted: bool
    ) -> None:
        super().__init__(name, config)
        self.weight = nn.Parameter(torch.randn(width_in, width_out) * width_in**-0.5)
        if adapted:
            self.add_site("weight", "factor_A", "factor_B", name, config)

    def forward(self, x_BTD: Tensor, tape: Tape | None) -> Tensor:
        """(B, T, D) -> (B, T, N)."""
        return self.map(x_BTD, "weight", tape)


class DenseNetwork(Adapted):
    """W_down (silu(W_gate x) ∘ W_up x) for every token, in the first blocks of a model or in all blocks of a dense one."""

    def __init__(self, name: str, config: ModelConfig) -> None:
        super().__init__(name, config)
        D, F_ = config.dim, config.dense_dim
        self.gate_up = nn.Parameter(torch.randn(D, 2 * F_) * D**-0.5)
        self.down = nn.Parameter(torch.randn(F_, D) * F_**-0.5)
        if "dense" in config.targets:
            self.add_site("gate_up", "factor_A_in", "gate_up_B", f"{name}.gate_up", config)
            self.add_site("down", "factor_A_down", "down_B", f"{name}.down", config)

    def forward(self, x_BTD: Tensor, tape: Tape | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.map(swiglu(self.map(x_BTD, "gate_up", tape)), "down", tape)
