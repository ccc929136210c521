"""Small text models in float64 with every trained tensor away from its start, and a plain loop over their tokens as oracle."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hansa.models.config import ModelConfig
from hansa.models.text import TextTransformer
from hansa.models.trainable import TrainableLayout

TARGETS = ("attention", "router", "experts", "shared", "dense")
SIZES: dict[str, Any] = {
    "vocabulary": 13,
    "head": "causal_lm",
    "dim": 8,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "position": "rope",
    "window": 3,
    "full_every": 3,
    "norm_gain": True,
    "experts": 6,
    "top_k": 2,
    "expert_dim": 4,
    "shared_expert_dim": 8,
    "dense_layers": 1,
    "dense_dim": 12,
    "rank": 4,
    "alpha": 4.0,
    "targets": TARGETS,
}


def text_model(seed: int = 0, *, dtype: torch.dtype = torch.float64, **changes: Any) -> TextTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TextTransformer(ModelConfig(**(SIZES | changes))).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("_B", "head", "gain")):
                    parameter.normal_(1.0 if name.endswith("gain") else 0.0, 0.4)
    return model.to(dtype)


def layout_of(model: TextTransformer, *extra: str, both_factors: bool = False) -> TrainableLayout:
    layout = TrainableLayout(model, extra, both_factors=both_factors)
    layout.freeze_rest(model)
    return layout


def some_text(samples: int = 4, tokens: int = 7, seed: int = 0) -> Tensor:
    """Texts of different lengths: −1 after the end."""
    draws = np.random.default_rng(seed)
    text = torch.from_numpy(draws.integers(13, size=(samples, tokens)))
    for b in range(1, samples):
        text[b, int(draws.integers(2, tokens + 1)) :] = -1
    return text


def merged(module: Any, weight: str) -> Tensor:
    """A module's weight with its adapter folded in."""
    full = getattr(module, weight)
    for site in module.sites:
        if site.weight == weight:
            full = full + module.scale * getattr(module, site.factor_A) @ getattr(module, site.factor_B)
    return full


def rms(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def swiglu(x: Tensor) -> Tensor:
    gate, up = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return gate * torch.sigmoid(gate) * up


def turned(x: Tensor, t: int, base: float) -> Tensor:
    half = len(x) // 2
    angle = t * base ** (-torch.arange(half, dtype=x.dtype) / half)
    a, b = x[:half], x[half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()])


def attend(attention: Any, x_TD: Tensor) -> Tensor:
    """One text, one query and one head at a time."""
    config, width = attention.config, attention.width
    q, k, v = (x_TD @ merged(attention.get_submodule(part), "weight") for part in ("query", "key", "value"))
    outputs = []
    for i in range(len(x_TD)):
        heads = []
        for h in range(config.heads):
            g = h // (config.heads // attention.groups)
            seen = range(0 if attention.window is None else max(0, i - attention.window + 1), i + 1)
            query = q[i, h * width : (h + 1) * width]
            scores = []
            for j in seen:
                key, one = k[j, g * width : (g + 1) * width], query
                if config.position == "rope":
                    key, one = turned(key, j, config.rope_base), turned(query, i, config.rope_base)
                slope = 2.0 ** (-8 * (h + 1) / config.heads) if config.position == "alibi" else 0.0
                scores.append(one @ key / width**0.5 - slope * (i - j))
            weights = torch.stack(scores).softmax(0)
            heads.append(
                sum(w * v[j, g * width : (g + 1) * width] for w, j in zip(weights, seen, strict=True))
            )
        outputs.append(torch.cat(heads))
    return torch.stack(outputs) @ merged(attention.get_submodule("output"), "weight")


def serve(experts: Any, x: Tensor) -> Tensor:
    """One token through its experts and the shared one."""
    values, chosen = (x @ merged(experts, "router")).topk(experts.config.top_k)
    y = swiglu(x @ merged(experts, "shared_gate_up")) @ merged(experts, "shared_down")
    for gate, e in zip(values.softmax(0), chosen, strict=True):
        y = y + gate * (swiglu(x @ merged(experts, "gate_up")[e]) @ merged(experts, "down")[e])
    return y


def loop_logits(model: TextTransformer, text_T: Tensor) -> Tensor:
    """Logits of one text without padding, by loops: (T,) -> (T, V)."""
    x = model.embedding[text_T]
    for block in model.blocks:
        x = x + attend(block.attention, rms(x, block.attention_norm.gain))
        normed = rms(x, block.experts_norm.gain)
        if block.routed:
            x = x + torch.stack([serve(block.experts, token) for token in normed])
        else:
            x = x + swiglu(normed @ merged(block.dense, "gate_up")) @ merged(block.dense, "down")
    return rms(x, model.final_norm.gain) @ model.head


def loop_loss(model: TextTransformer, text_T: Tensor) -> Tensor:
    """Mean next-token loss of one text."""
    text_T = text_T[text_T >= 0]
    return F.cross_entropy(loop_logits(model, text_T)[:-1], text_T[1:])
