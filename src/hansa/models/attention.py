"""Attention among the tokens of one sample: grouped queries, in both directions for tables, causal in a window for text.

    weights = softmax(scale · q kᵀ − slope · distance),   y = weights v,   every group of query heads shares one head of keys

Source: Vaswani et al. 2017, section 3.2; Ainslie et al. 2023, "GQA", section 2; norms of queries and keys: Muennighoff et al. 2024,
"OLMoE", section 4.2.3 (over all heads at once), Qwen team 2025, "Qwen3", section 2 (a head).

Shape suffixes: B samples, T tokens, Q queried tokens, D model width, H query heads, G heads of keys and values, d width of a head.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hansa.kernels.attention import window_attention
from hansa.models.config import ModelConfig
from hansa.models.linear import Adapted, AdaptedLinear
from hansa.models.norms import Norm, widened
from hansa.models.positions import alibi_slopes, rope_frequencies, rope_size, rotate
from hansa.models.tape import Tape


class Mixing(Adapted):
    """What both kinds of attention share: the window and the slopes of their block, and the mixing itself.

    Attributes:
        observer: Called with the weights, (B, H, Q, T), where a pass is looked at.
    """

    def __init__(self, name: str, config: ModelConfig, layer: int) -> None:
        super().__init__(name, config)
        self.config, self.heads = config, config.heads
        self.window = config.window_of(layer)
        # no buffer, here and below: `model.to(torch.bfloat16)` would round slopes and angles
        self.slopes_H = alibi_slopes(config.heads) if config.position == "alibi" else None
        self.observer: Callable[[Tensor], None] | None = None

    def add_linear(self, part: str, width_in: int, width_out: int) -> None:
        """Add a linear map; it carries an adapter if attention does."""
        adapted = "attention" in self.config.targets
        linear = AdaptedLinear(f"{self.name}.{part}", width_in, width_out, self.config, adapted=adapted)
        self.add_module(part, linear)

    def mix(self, q_BHQd: Tensor, k_BGTd: Tensor, v_BGTd: Tensor, scale: float) -> Tensor:
        """Mix the values: (B, H, Q, d) -> (B, Q, H·d)."""
        if self.observer is not None:
            self.observer(self.weights(q_BHQd, k_BGTd, scale))
        if self.config.causal:
            slopes_H = None if self.slopes_H is None else self.slopes_H.to(q_BHQd.device)
            width = v_BGTd.shape[3]
            q, k, v = _of_one_width(q_BHQd, k_BGTd, v_BGTd)
            y_BHQd = window_attention(q, k, v, window=self.window, slopes_H=slopes_H, scale=scale)[
                ..., :width
            ]
        else:
            y_BHQd = self.weights(q_BHQd, k_BGTd, scale).to(v_BGTd.dtype) @ self._spread(v_BGTd)
        return y_BHQd.transpose(1, 2).flatten(2)

    def weights(self, q_BHQd: Tensor, k_BGTd: Tensor, scale: float) -> Tensor:
        """Give the softmax over keys, (B, H, Q, T), at least float32: the whole matrix, for tables and for looking at."""
        scores = widened(q_BHQd @ self._spread(k_BGTd).transpose(2, 3) * scale)
        if self.config.causal:
            t = torch.arange(k_BGTd.shape[2], device=scores.device)
            back_TT = t.unsqueeze(1) - t
            if self.slopes_H is not None:
                scores = scores - self.slopes_H.to(scores).view(-1, 1, 1) * back_TT
            hidden_TT = (back_TT < 0) | (back_TT >= (self.window or k_BGTd.shape[2]))
            scores = scores.masked_fill(hidden_TT, float("-inf"))
        return torch.softmax(scores, dim=-1)

    def _spread(self, x_BGTd: Tensor) -> Tensor:
        """Repeat each head of keys or values for the query heads that share it."""
        group = self.heads // x_BGTd.shape[1]
        return x_BGTd if group == 1 else x_BGTd.repeat_interleave(group, dim=1)


def _of_one_width(*heads: Tensor) -> list[Tensor]:
    """Fill up narrower heads with zeros, which change neither scores nor mixed values: the kernel takes one width."""
    width = max(x.shape[3] for x in heads)
    return [x if x.shape[3] == width else F.pad(x, (0, width - x.shape[3])) for x in heads]


class Attention(Mixing):
    """Grouped-query attention; keys and values of all tokens, queries of those asked for."""

    def __init__(self, name: str, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(name, config, layer)
        self.width = config.head_dim or config.dim // config.heads
        self.groups = config.kv_heads or config.heads
        self.add_linear("query", config.dim, self.heads * self.width)
        self.add_linear("key", config.dim, self.groups * self.width)
        self.add_linear("value", config.dim, self.groups * self.width)
        self.add_linear("output", self.heads * self.width, config.dim)
        if config.qk_norm != "none":
            per_head = config.qk_norm == "head"
            for part, heads in (("query_norm", self.heads), ("key_norm", self.groups)):
                width = self.width if per_head else heads * self.width
                self.add_module(part, Norm(width, config.norm_epsilon, gain=True))
        rotated = config.position == "rope"
        self.frequencies = rope_frequencies(self.width, config.rope_base, config.yarn) if rotated else None

    def forward(self, x_BTD: Tensor, queries: int, tape: Tape | None) -> Tensor:
        """Attend from the first `queries` tokens: (B, T, D) -> (B, queries, D)."""
        query = self.get_submodule("query")(x_BTD[:, :queries], tape=tape)
        key, value = (self.get_submodule(part)(x_BTD, tape=tape) for part in ("key", "value"))
        if self.config.qk_norm == "width":
            query, key = self.get_submodule("query_norm")(query), self.get_submodule("key_norm")(key)
        query, key, value = (
            y.unflatten(2, (heads, self.width)).transpose(1, 2)
            for y, heads in ((query, self.heads), (key, self.groups), (value, self.groups))
        )
        if self.config.qk_norm == "head":
            query, key = self.get_submodule("query_norm")(query), self.get_submodule("key_norm")(key)
        if self.frequencies is not None:
            size = rope_size(self.config.yarn)
            query, key = (rotate(y, self.frequencies, size, interleaved=False) for y in (query, key))
        output: Tensor = self.get_submodule("output")(
            self.mix(query, key, value, self.width**-0.5), tape=tape
        )
        return output
