"""The text model in operations that torch.func can batch: no routing of rows, every expert serves every token and gates choose.

Shape suffixes: T tokens, D width, E experts, F hidden width, K chosen experts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hansa.models.norms import normalise
from hansa.models.positions import alibi_slopes
from hansa.models.text import TextTransformer


class DenseText:
    """The model's equations for one text, as a function of its tensors by name; softmax gates over the chosen, ALiBi, no window."""

    def __init__(self, model: TextTransformer) -> None:
        self.config = model.config
        self.tensors = {k: v.detach() for k, v in [*model.named_parameters(), *model.named_buffers()]}

    def logits(self, trained: dict[str, Tensor], tokens_T: Tensor) -> Tensor:
        """(T,) -> (T, V)."""
        p = {**self.tensors, **trained}
        x_TD = F.embedding(tokens_T, p["embedding"])
        for i in range(self.config.layers):
            x_TD = x_TD + self._attention(p, f"blocks.{i}.attention", normalise(x_TD))
            x_TD = x_TD + self._experts(p, f"blocks.{i}.experts", normalise(x_TD))
        return normalise(x_TD) @ p["head"]

    def _map(self, p: dict[str, Tensor], x: Tensor, weight: str, a: str, b: str) -> Tensor:
        return x @ p[weight] + (x @ p[a]) @ p[b] * (self.config.alpha / self.config.rank)

    def _attention(self, p: dict[str, Tensor], name: str, x_TD: Tensor) -> Tensor:
        def linear(part: str, x: Tensor) -> Tensor:
            at = f"{name}.{part}"
            return self._map(p, x, f"{at}.weight", f"{at}.factor_A", f"{at}.factor_B")

        q, k, v = (
            linear(part, x_TD).unflatten(1, (self.config.heads, -1)).transpose(0, 1)  # type: ignore[no-untyped-call]
            for part in ("query", "key", "value")
        )
        place = torch.arange(len(x_TD))
        back = place.unsqueeze(1) - place
        bias = (-alibi_slopes(self.config.heads).view(-1, 1, 1) * back).masked_fill(back < 0, -torch.inf)
        weights = torch.softmax(q @ k.transpose(1, 2) * q.shape[2] ** -0.5 + bias, dim=-1)
        return linear("output", (weights @ v).transpose(0, 1).flatten(1))

    def _experts(self, p: dict[str, Tensor], name: str, x_TD: Tensor) -> Tensor:
        logits_TE = self._map(p, x_TD, f"{name}.router", f"{name}.factor_A_router", f"{name}.router_B")
        best_TK = logits_TE.topk(self.config.top_k, dim=1)
        gates_TE = torch.zeros_like(logits_TE).scatter(1, best_TK.indices, best_TK.values.softmax(dim=1))
        inner = self._map(p, x_TD, f"{name}.gate_up", f"{name}.factor_A_in", f"{name}.gate_up_B")
        gate, up = inner.chunk(2, dim=-1)
        h_ETF = F.silu(gate) * up
        y_ETD = self._map(p, h_ETF, f"{name}.down", f"{name}.factor_A_down", f"{name}.down_B")
        return (gates_TE.t().unsqueeze(2) * y_ETD).sum(dim=0)
