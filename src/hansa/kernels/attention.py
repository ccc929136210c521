"""Attention in a window, with grouped key heads and ALiBi: the plain dense reference.

    y[i] = Σ_j softmax_j( scale · q[i]·k[j] − slope · |i − j| ) v[j]      over the keys j that query i sees

    causal:      i − window < j ≤ i          otherwise:  |i − j| < window          window None: no bound

Shape suffixes: B samples, H query heads, G key heads, T tokens, D width of a head.
FLOPs: 4·B·H·T²·D. Bytes: B·H·T² scores.
Source: Vaswani et al. 2017, section 3.2; Ainslie et al. 2023, "GQA"; Press et al. 2022, "Train Short, Test Long", section 3.
"""

import torch
from torch import Tensor


def window_attention(
    q_BHTD: Tensor,
    k_BGTD: Tensor,
    v_BGTD: Tensor,
    *,
    window: int | None,
    slopes_H: Tensor | None,
    scale: float,
    causal: bool = True,
) -> Tensor:
    """Attend to the keys of a sliding window.

    Args:
        q_BHTD: Queries.
        k_BGTD: Keys; G divides H, and head h reads key head h div (H / G).
        v_BGTD: Values.
        window: Keys that a query sees, its own among them, tokens; None for all.
        slopes_H: ALiBi slope of each query head; None for none.
        scale: Factor of q·k.
        causal: Whether later keys are hidden.

    Returns:
        (B, H, T, D), in the type of the queries; scores and softmax of half-precision input are float32.

    Guarantees:
        - A sample's output depends on that sample only.
    """
    group = q_BHTD.shape[1] // k_BGTD.shape[1]
    k_BHTD, v_BHTD = (x.repeat_interleave(group, dim=1) for x in (k_BGTD, v_BGTD))
    scores = q_BHTD @ k_BHTD.transpose(2, 3) * scale
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    t = torch.arange(q_BHTD.shape[2], device=scores.device)
    back_TT = t.unsqueeze(1) - t
    if slopes_H is not None:
        scores = scores - slopes_H.to(scores.dtype).view(-1, 1, 1) * back_TT.abs()
    hidden_TT = (back_TT < 0) if causal else torch.zeros_like(back_TT, dtype=torch.bool)
    if window is not None:
        hidden_TT = hidden_TT | (back_TT.abs() >= window)
    weights = torch.softmax(scores.masked_fill(hidden_TT, float("-inf")), dim=-1)
    return weights.to(v_BHTD.dtype) @ v_BHTD
