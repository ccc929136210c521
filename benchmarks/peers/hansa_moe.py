"""The expert layer from hansa's kernels, as `hansa.models` puts it together."""

from torch import Tensor

from hansa.kernels.grouped import grouped_matmul
from hansa.kernels.grouped_lora import grouped_lora
from hansa.kernels.routing import route
from hansa.kernels.rows import gather_rows, spread_tokens
from hansa.kernels.swiglu import swiglu
from peers.moe_case import Call, MoeCase, runner


def layer(case: MoeCase, x_TD: Tensor, factors: tuple[Tensor, ...] | None) -> Tensor:
    """Route, spread, two grouped products, gather."""
    routing = route(x_TD @ case.router_DE, case.top_k)
    x_RD, ends_E = spread_tokens(x_TD, routing), routing.ends_E
    if factors is None:
        h_RF = swiglu(grouped_matmul(x_RD, case.gate_up_EDN, ends_E))
        return gather_rows(grouped_matmul(h_RF, case.down_EFD, ends_E), routing)
    a1, b1, a2, b2 = factors
    h_RF = swiglu(grouped_lora(x_RD, case.gate_up_EDN, a1, b1, ends_E, 1.0)[0])
    return gather_rows(grouped_lora(h_RF, case.down_EFD, a2, b2, ends_E, 1.0)[0], routing)


def prepare_ours(case: MoeCase, kind: str) -> Call:
    """The layer as a call of some kind."""
    return runner(case, kind, lambda x_TD, factors: layer(case, x_TD, factors))
