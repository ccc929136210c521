"""From the trained entries to packed plaintext slots: gather, stochastic rounding and packing in one pass.

    s[e] = clip(v[support[e]], ±bound) / bound · L,   level[e] = ⌊s⌋ + (u[e] < s − ⌊s⌋),   L = 2^(bits−1) − 1
    slot[i] = Σ_lane (level[lane · S + i] + L) · radix^lane        entry e stands at slot e mod S in lane e div S

The definition is `quantise` and `pack` of the room above, in numpy; given the same uniforms this is equal to them bit by bit:
float64 arithmetic in the same order, without fused multiply-add, and integers from there on. Uniforms are handed in: who draws
them, and from where, is a matter of privacy.

Shape suffixes: P trained entries, K entries of the support, S slots.
Bytes: 8·K (support) + 4·K (values) + 8·K (uniforms) + 8·S; plain operations on whole vectors move five times as much.
FLOPs: about 8·K.
Source: Alistarh et al. 2017, "QSGD", section 3.1 (stochastic rounding).
"""

import torch
from torch import Tensor

from hansa.kernels.dispatch import on_triton

_BLOCK = 1 << 16  # slots at a time on a CPU: intermediates of one lane stay in the cache


def compress(
    values_P: Tensor,
    support_K: Tensor,
    uniforms_K: Tensor,
    *,
    bound: float,
    bits: int,
    radix: int,
    lanes: int,
    slots: int,
) -> Tensor:
    """Gather the support, round it at random and pack it.

    Args:
        values_P: Update of every trainable entry, float32 or float64.
        support_K: Positions that are sent, int64.
        uniforms_K: float64 in [0, 1), unpredictable for others; one for each sent entry.
        bound: Largest magnitude kept, above 0; larger values are clamped.
        bits: Width of a level, 2 to 16.
        radix: Base of the packed numbers, above the largest sum of shifted levels.
        lanes: Digits of a slot.
        slots: Slots S; lanes · S ≥ K. Unused places hold level 0.

    Returns:
        (S,) int64, each in [0, radix^lanes).

    Raises:
        ValueError: Lengths that do not fit, a bound that is no positive number, or slots that overflow 63 bits.

    Guarantees:
        - Equal to the numpy definition, bit by bit, on a CPU and on a GPU.
        - A value that is not finite is clamped, NaN to level 0: whether all are finite is for the caller to check beforehand.
    """
    maximum_level = 2 ** (bits - 1) - 1
    if support_K.shape != uniforms_K.shape or support_K.ndim != 1 or len(support_K) > lanes * slots:
        raise ValueError(
            f"{tuple(support_K.shape)} positions and {tuple(uniforms_K.shape)} uniforms do not fit {lanes * slots} places"
        )
    if not 0 < bound < float("inf"):
        raise ValueError(f"bound = {bound} is not a finite number above 0")
    if not 2 <= bits <= 16 or radix <= 2 * maximum_level or radix**lanes > 2**63:
        raise ValueError(f"{lanes} digits of base {radix} do not hold {bits} bits each in 63")
    sizes = {"bound": bound, "maximum_level": maximum_level, "radix": radix, "lanes": lanes, "slots": slots}
    if on_triton(values_P, any_type=True):
        from hansa.kernels.compression_triton import launch  # noqa: PLC0415

        return launch(values_P, support_K, uniforms_K, **sizes)
    return compress_reference(values_P, support_K, uniforms_K, **sizes)


def compress_reference(
    values_P: Tensor,
    support_K: Tensor,
    uniforms_K: Tensor,
    *,
    bound: float,
    maximum_level: int,
    radix: int,
    lanes: int,
    slots: int,
) -> Tensor:
    """Compute `compress` a block of slots at a time, from the highest lane down."""
    packed_S = torch.zeros(slots, dtype=torch.int64, device=values_P.device)
    for first in range(0, slots, _BLOCK):
        block = packed_S[first : first + _BLOCK]
        for lane in range(lanes - 1, -1, -1):
            entries = slice(lane * slots + first, min(lane * slots + first + len(block), len(support_K)))
            block.mul_(radix).add_(maximum_level)
            if entries.start < entries.stop:
                value = values_P.index_select(0, support_K[entries]).to(torch.float64)
                scaled = value.nan_to_num_(0.0).clamp_(-bound, bound).div_(bound).mul_(maximum_level)
                floor = torch.floor(scaled)
                block[: len(value)] += floor.to(torch.int64) + (uniforms_K[entries] < scaled.sub_(floor))
    return packed_S
