"""Routed experts with adapters: a dropless top-k mixture of SwiGLU experts, and shared experts that serve every token.

    y[t] = shared(x[t]) + Σ_k gate[t,k] · W_down[e] (silu(W_gate[e] x[t]) ∘ W_up[e] x[t]),   e = expert k of token t

Source: Shazeer et al. 2017, section 2; Dai et al. 2024, "DeepSeekMoE", section 3 (fine-grained and shared experts);
Shazeer 2020, "GLU Variants Improve Transformer" (SwiGLU).

Shape suffixes: B samples, T tokens, D model width, E experts, K chosen experts, F expert width, R = B·T·K rows, r rank.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hansa.kernels.grouped import grouped_matmul
from hansa.kernels.routing import Routing
from hansa.kernels.rows import gather_rows, spread_tokens
from hansa.kernels.swiglu import swiglu
from hansa.models.adapters import adapted_experts
from hansa.models.config import ModelConfig
from hansa.models.linear import Adapted
from hansa.models.norms import widened
from hansa.models.router import route_tokens
from hansa.models.tape import Rows, Tape


class Experts(Adapted):
    """The expert layer of a block.

    Attributes:
        observer: Called with the chosen experts and their gates, (B·T, K) each, where a pass is looked at.

    Guarantees:
        - A sample's output depends on that sample only: routing is dropless and no statistic spans the batch.
    """

    bias: Tensor | None

    def __init__(self, name: str, config: ModelConfig) -> None:
        super().__init__(name, config)
        self.config = config
        D, E, F_ = config.dim, config.experts, config.expert_dim
        self.router = nn.Parameter(torch.randn(D, E) * D**-0.5)
        self.register_buffer("bias", torch.zeros(E) if config.select_bias else None)
        self.gate_up = nn.Parameter(torch.randn(E, D, 2 * F_) * D**-0.5)
        self.down = nn.Parameter(torch.randn(E, F_, D) * F_**-0.5)
        self.shared = config.shared_expert_dim > 0
        if self.shared:
            S = config.shared_expert_dim
            self.shared_gate_up = nn.Parameter(torch.randn(D, 2 * S) * D**-0.5)
            self.shared_down = nn.Parameter(torch.randn(S, D) * S**-0.5)
        self.adapted = "experts" in config.targets
        if self.adapted:
            self.add_site("gate_up", "factor_A_in", "gate_up_B", f"{name}.gate_up", config)
            self.add_site("down", "factor_A_down", "down_B", f"{name}.down", config)
        if "router" in config.targets:
            self.add_site("router", "factor_A_router", "router_B", f"{name}.router", config)
        if self.shared and "shared" in config.targets:
            self.add_site(
                "shared_gate_up", "factor_A_shared_in", "shared_gate_up_B", f"{name}.shared_gate_up", config
            )
            self.add_site(
                "shared_down", "factor_A_shared_down", "shared_down_B", f"{name}.shared_down", config
            )
        self.balance_loss: Tensor | None = None
        self.observer: Callable[[Tensor, Tensor], None] | None = None

    def forward(self, x_BTD: Tensor, tape: Tape | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, tokens, dim = x_BTD.shape
        x_TD = x_BTD.reshape(-1, dim)
        logits_TE = self._logits(x_BTD, tape).flatten(0, 1)
        routing = route_tokens(logits_TE, self.config, self.bias)
        rows = Rows(
            expert_R=routing.expert_R,
            ends_E=routing.ends_E,
            sample_R=routing.token_R // max(tokens, 1),
            samples=batch,
        )
        if self.observer is not None:
            self.observer(routing.expert_TK, routing.gates_TK)
        h_RF = swiglu(self._serve(spread_tokens(x_TD, routing), "gate_up", rows, tape))
        y_RD = self._serve(h_RF, "down", rows, tape)
        y_BTD = gather_rows(y_RD, routing).view(batch, tokens, dim)
        if self.shared:
            h_BTS = swiglu(self.map(x_BTD, "shared_gate_up", tape))
            y_BTD = y_BTD + self.map(h_BTS, "shared_down", tape)
        if self.training and self.router.requires_grad:
            self.balance_loss = _balance_loss(logits_TE, routing)
        return y_BTD

    def _logits(self, x_BTD: Tensor, tape: Tape | None) -> Tensor:
        """Router logits, in float32 at least: two experts whose scores round to the same number would be chosen by chance."""
        return self.map(widened(x_BTD), "router", tape)

    def _serve(self, x_RD: Tensor, weight: str, rows: Rows, tape: Tape | None) -> Tensor:
        """Run each row through its expert's matrix and the adapter on it."""
        if not (self.adapted and self.active):
            return grouped_matmul(x_RD, getattr(self, weight), rows.ends_E)
        site = next(site for site in self.sites if site.weight == weight)
        return adapted_experts(
            x_RD,
            getattr(self, weight),
            getattr(self, site.factor_A),
            getattr(self, site.factor_B),
            scale=self.scale,
            names=(f"{self.name}.{site.factor_A}", f"{self.name}.{site.factor_B}"),
            rows=rows,
            tape=tape,
        )


def _balance_loss(logits_TE: Tensor, routing: Routing) -> Tensor:
    """Switch load-balance loss (Fedus et al. 2022, equation 4): used in public pretraining only, since it couples samples."""
    experts = logits_TE.shape[1]
    share_E = torch.bincount(routing.expert_R, minlength=experts) / routing.expert_R.numel()
    probability_E = torch.softmax(logits_TE, dim=1).mean(dim=0)
    return experts * (share_E * probability_E).sum()
