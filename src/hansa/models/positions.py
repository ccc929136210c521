"""How order enters attention: rotation of queries and keys (RoPE, with YaRN), or a slope a head (ALiBi).

    RoPE    a pair (a, b) at position t turns by t·f:  (a cos − b sin, a sin + b cos),  f_i = base^(−2i/d)
    ALiBi   score(i, j) −= slope_h · (i − j),  slope_h = 2^(−8h/H), h = 1..H

Source: Su et al. 2021, "RoFormer", section 3.2; Press et al. 2022, "Train Short, Test Long", section 3;
Peng et al. 2023, "YaRN", sections 3.2 to 3.4.

Shape suffixes: B samples, H heads, T tokens, d width of a head, P = d / 2 pairs.
"""

import math

import torch
from torch import Tensor

from hansa.models.config import Yarn


def rope_frequencies(width: int, base: float, yarn: Yarn | None) -> Tensor:
    """Give the angle a token of each pair, (P,) float64."""
    power_P = torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width
    plain_P = base**-power_P
    if yarn is None:
        return plain_P

    def pair_of(rotations: float) -> float:
        return width * math.log(yarn.original_context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_of(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_of(yarn.beta_slow)), width - 1)
    ramp = (torch.arange(width // 2, dtype=torch.float64, device="cpu") - low) / max(high - low, 0.001)
    stretched_P = ramp.clamp(0, 1)
    return plain_P * (1 - stretched_P) + plain_P / yarn.factor * stretched_P


def _log_scale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def rope_size(yarn: Yarn | None) -> float:
    """Give the factor on rotated queries and keys."""
    if yarn is None:
        return 1.0
    if yarn.mscale and yarn.mscale_all_dim:
        return _log_scale(yarn.factor, yarn.mscale) / _log_scale(yarn.factor, yarn.mscale_all_dim)
    return _log_scale(yarn.factor, 1.0)


def score_size(yarn: Yarn | None) -> float:
    """Give the factor on all attention scores, for latent attention."""
    if yarn is None or not yarn.mscale_all_dim:
        return 1.0
    return _log_scale(yarn.factor, yarn.mscale_all_dim) ** 2


def rotate(x_BHTd: Tensor, frequencies_P: Tensor, size: float, *, interleaved: bool) -> Tensor:
    """Turn each token's pairs by its position.

    Args:
        x_BHTd: Queries or keys; position t is the place along T.
        frequencies_P: Angle a token of each pair, float64.
        size: Factor on the result.
        interleaved: Whether a pair is (2p, 2p + 1), or else (p, p + P).

    Guarantees:
        - The dot product of a query and a key depends on the difference of their positions only.
    """
    positions_T = torch.arange(x_BHTd.shape[2], dtype=torch.float64, device=x_BHTd.device)
    angles_TP = torch.outer(positions_T, frequencies_P.to(x_BHTd.device))
    cos_TP, sin_TP = (angles_TP.cos() * size).to(x_BHTd.dtype), (angles_TP.sin() * size).to(x_BHTd.dtype)
    if interleaved:
        a, b = x_BHTd[..., 0::2], x_BHTd[..., 1::2]
    else:
        a, b = x_BHTd.chunk(2, dim=-1)
    turned = (a * cos_TP - b * sin_TP, b * cos_TP + a * sin_TP)
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


def alibi_slopes(heads: int) -> Tensor:
    """Give the slope of each head, (H,) float32; beyond a power of two, every second slope of the next power fills up."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(1, 2 * power, 2)][: heads - power]
    return torch.tensor(slopes, dtype=torch.float32, device="cpu")
