"""One expert layer that every system runs, and the dense products that no system can beat.

A peer is one function: `prepare(case, kind)` returns a call that runs the layer once, or None where the peer cannot do that kind.

Kinds: "forward"; "input gradient": forward and the gradient of the tokens; "lora": adapters of rank r on both projections, experts
frozen, forward and the gradients of tokens, gates and factors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("forward", "input gradient", "lora")
Call = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeCase:
    """Sizes and tensors of the layer; weights as (E, in, out).

    Attributes:
        top_k: Experts a token.
        x_TD: Tokens.
        g_TD: Gradient at the output.
        router_DE: Weights of the router.
        gate_up_EDN: First projection, gate and up side by side, N = 2 ff.
        down_EFD: Second projection.
        factors: A and B of the first projection, A and B of the second.
    """

    top_k: int
    x_TD: Tensor
    g_TD: Tensor
    router_DE: Tensor
    gate_up_EDN: Tensor
    down_EFD: Tensor
    factors: tuple[Tensor, Tensor, Tensor, Tensor]

    @property
    def rows(self) -> int:
        """Rows that the experts serve."""
        return len(self.x_TD) * self.top_k


def make_case(tokens: int, dim: int, experts: int, ff: int, top_k: int, rank: int) -> MoeCase:
    """Draw a layer; the seed is fixed."""
    draws = torch.Generator().manual_seed(20261122)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws) * shape[-2] ** -0.5

    return MoeCase(
        top_k=top_k,
        x_TD=torch.randn(tokens, dim, generator=draws),
        g_TD=torch.randn(tokens, dim, generator=draws),
        router_DE=normal(dim, experts),
        gate_up_EDN=normal(experts, dim, 2 * ff),
        down_EFD=normal(experts, ff, dim),
        factors=(
            normal(experts, dim, rank),
            normal(experts, rank, 2 * ff),
            normal(experts, ff, rank),
            normal(experts, rank, dim),
        ),
    )


def prepare_floor(case: MoeCase, kind: str) -> Call:
    """The products of the experts as dense ones: the same shapes and FLOPs, one matrix instead of E, nothing else."""
    x_RD = case.x_TD.repeat(case.top_k, 1)
    w1, w2 = case.gate_up_EDN[0].clone(), case.down_EFD[0].clone()
    h_RF, g1 = x_RD @ w1[:, : len(w2)], x_RD @ w1
    a1, b1, a2, b2 = (factor[0].clone() for factor in case.factors)
    z = x_RD @ a1

    def forward() -> None:
        x_RD @ w1
        h_RF @ w2

    def input_gradient() -> None:
        forward()
        x_RD @ w2.t()
        g1 @ w1.t()

    def lora() -> None:
        input_gradient()
        for x, g, a, b in ((x_RD, g1, a1, b1), (h_RF, x_RD, a2, b2)):
            x @ a
            z @ b
            g @ b.t()
            z @ a.t()
            x.t() @ z
            z.t() @ g

    return {"forward": forward, "input gradient": input_gradient, "lora": lora}[kind]


def prepare_base(case: MoeCase) -> Call:
    """The frozen products of "lora" alone."""
    return prepare_floor(case, "input gradient")


def runner(case: MoeCase, kind: str, layer: Callable[[Tensor, tuple[Tensor, ...] | None], Tensor]) -> Call:
    """Turn a layer, a function of the tokens and the factors, into a call of some kind."""
    if kind == "forward":

        def forward() -> None:
            with torch.no_grad():
                layer(case.x_TD, None)

        return forward
    x_TD = case.x_TD.clone().requires_grad_()
    factors = tuple(factor.clone().requires_grad_() for factor in case.factors) if kind == "lora" else None

    def both() -> None:
        for leaf in (x_TD, *(factors or ())):
            leaf.grad = None
        layer(x_TD, factors).backward(case.g_TD)  # type: ignore[no-untyped-call]

    return both


def prepare_loop(case: MoeCase, kind: str) -> Call | None:
    """A loop over experts with masks and additions, adapters beside frozen weights; "lora" only, for transformers has the rest."""
    if kind != "lora":
        return None
    w1_E, w2_E = case.gate_up_EDN.unbind(0), case.down_EFD.unbind(0)

    def layer(x_TD: Tensor, factors: tuple[Tensor, ...] | None) -> Tensor:
        gates_TK, chosen_TK = torch.topk(torch.softmax(x_TD @ case.router_DE, dim=1), case.top_k)
        gates_TK = gates_TK / gates_TK.sum(dim=1, keepdim=True)
        y_TD = torch.zeros_like(x_TD)
        parts = [factor.unbind(0) for factor in factors] if factors else None
        for e, (w1, w2) in enumerate(zip(w1_E, w2_E, strict=True)):
            token, k = torch.where(chosen_TK == e)
            x = x_TD[token]
            gate, up = (x @ w1 + x @ parts[0][e] @ parts[1][e] if parts else x @ w1).chunk(2, dim=1)
            h = F.silu(gate) * up
            y = h @ w2 + h @ parts[2][e] @ parts[3][e] if parts else h @ w2
            y_TD = y_TD.index_add(0, token, y * gates_TK[token, k].unsqueeze(1))
        return y_TD

    return runner(case, kind, layer)
