"""RMSNorm: x / sqrt(mean(x²) + ε), times a gain a feature where the model has one.

Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", equation 4. Half-precision input is normalised in float32.
"""

import torch
from torch import Tensor, nn


def widened(x: Tensor) -> Tensor:
    """Give half-precision values as float32, others as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def normalise(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """RMSNorm without gain over the last dimension, in the type of x."""
    wide = widened(x)
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)).to(x.dtype)


class Norm(nn.Module):
    """RMSNorm, with a gain that starts at 1 or without."""

    gain: Tensor | None

    def __init__(self, width: int, epsilon: float, *, gain: bool) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_parameter("gain", nn.Parameter(torch.ones(width)) if gain else None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        y = normalise(x, self.epsilon)
        return y if self.gain is None else y * self.gain.to(y.dtype)
