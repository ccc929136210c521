"""Routed experts with adapters: a dropless top-k mixture of SwiGLU experts, and one shared expert.

    y[t] = shared(x[t]) + Σ_k gate[t,k] · W_down[e] (silu(W_gate[e] x[t]) ∘ W_up[e] x[t]),   e = expert k of token t

Source: Shazeer et al. 2017, section 2; Dai et al. 2024, "DeepSeekMoE", section 3 (fine-grained and shared experts);
Shazeer 2020, "GLU Variants Improve Transformer" (SwiGLU).

Shape suffixes: B samples, T tokens, D model width, E experts, K chosen experts, F expert width, R = B·T·K rows, r rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hansa.kernels.grouped import grouped_matmul
from hansa.kernels.routing import Routing, route
from hansa.kernels.segments import find_segments
from hansa.models.adapters import Rows, adapted_experts, orthonormal_factor
from hansa.models.config import ModelConfig
from hansa.models.tape import Tape


class Experts(nn.Module):
    """The expert layer of a block.

    Guarantees:
        - A sample's output depends on that sample only: routing is dropless and no statistic spans the batch.
    """

    factor_A_in: Tensor
    factor_A_down: Tensor

    def __init__(self, name: str, config: ModelConfig) -> None:
        super().__init__()
        self.name, self.top_k = name, config.top_k
        D, E, F_, r = config.dim, config.experts, config.expert_dim, config.rank
        self.scale = config.alpha / r
        self.router = nn.Parameter(torch.randn(D, E) * D**-0.5)
        self.gate_up = nn.Parameter(torch.randn(E, D, 2 * F_) * D**-0.5)
        self.down = nn.Parameter(torch.randn(E, F_, D) * F_**-0.5)
        self.shared = config.shared_expert_dim > 0
        if self.shared:
            self.shared_gate_up = nn.Parameter(torch.randn(D, 2 * config.shared_expert_dim) * D**-0.5)
            self.shared_down = nn.Parameter(
                torch.randn(config.shared_expert_dim, D) * config.shared_expert_dim**-0.5
            )
        self.adapted = "experts" in config.targets
        if self.adapted:
            factor_in = orthonormal_factor(f"{name}.gate_up", (E, D, r), config.factor_seed)
            factor_down = orthonormal_factor(f"{name}.down", (E, F_, r), config.factor_seed)
            self.register_buffer("factor_A_in", factor_in, persistent=False)
            self.register_buffer("factor_A_down", factor_down, persistent=False)
            self.gate_up_B = nn.Parameter(torch.zeros(E, r, 2 * F_))
            self.down_B = nn.Parameter(torch.zeros(E, r, D))
        self.balance_loss: Tensor | None = None

    def forward(self, x_BTD: Tensor, tape: Tape | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, tokens, dim = x_BTD.shape
        x_TD = x_BTD.reshape(-1, dim)
        logits_TE = x_TD @ self.router
        routing = route(logits_TE, self.top_k)
        sample_R = routing.token_R // tokens
        rows = Rows(
            ends_E=routing.ends_E,
            sample_R=sample_R,
            samples=batch,
            segments=find_segments(routing.expert_R, sample_R),
        )
        y_RD = self._serve(x_TD[routing.token_R], rows, tape)
        y_TKD = y_RD[routing.inverse_R].view(-1, self.top_k, dim)
        y_TD = torch.bmm(routing.gates_TK.unsqueeze(1), y_TKD).squeeze(1)
        if self.shared:
            y_TD = y_TD + _swiglu(x_TD @ self.shared_gate_up) @ self.shared_down
        if self.training and self.router.requires_grad:
            self.balance_loss = _balance_loss(logits_TE, routing)
        return y_TD.view(batch, tokens, dim)

    def _serve(self, x_RD: Tensor, rows: Rows, tape: Tape | None) -> Tensor:
        """Run each row through its expert and the expert's adapters."""
        if not self.adapted:
            h_RF = _swiglu(grouped_matmul(x_RD, self.gate_up, rows.ends_E))
            return grouped_matmul(h_RF, self.down, rows.ends_E)
        gate_up_RN = adapted_experts(
            x_RD,
            self.gate_up,
            self.factor_A_in,
            self.gate_up_B,
            scale=self.scale,
            name=f"{self.name}.gate_up_B",
            rows=rows,
            tape=tape,
        )
        return adapted_experts(
            _swiglu(gate_up_RN),
            self.down,
            self.factor_A_down,
            self.down_B,
            scale=self.scale,
            name=f"{self.name}.down_B",
            rows=rows,
            tape=tape,
        )


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _balance_loss(logits_TE: Tensor, routing: Routing) -> Tensor:
    """Switch load-balance loss (Fedus et al. 2022, equation 4): used in public pretraining only, since it couples samples."""
    experts = logits_TE.shape[1]
    share_E = torch.bincount(routing.expert_R, minlength=experts) / routing.expert_R.numel()
    probability_E = torch.softmax(logits_TE, dim=1).mean(dim=0)
    return experts * (share_E * probability_E).sum()
