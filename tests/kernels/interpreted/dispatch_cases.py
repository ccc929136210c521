"""The public operations give the same through their kernels as through torch. Run by test_interpreted.py."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hansa.kernels import attention, compression, grouped_lora, routing, segments

MODULES = (attention, compression, grouped_lora, routing, segments)


def both_ways(code: Callable[[], list[Tensor]]) -> None:
    """Run the code on both paths; the rule that asks for a GPU is replaced."""
    expected = code()
    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES:
            patch.setattr(module, "on_triton", lambda *_, **__: True)
        actual = code()
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_routing() -> None:
    def code() -> list[Tensor]:
        logits_TE = normal(37, 12).requires_grad_()
        bias_E = normal(12)
        found = routing.route(logits_TE, 3, score="sigmoid", bias_E=bias_E, groups=4, top_groups=2)
        (gradient,) = torch.autograd.grad(found.gates_TK.square().sum(), logits_TE)
        places = [found.expert_TK, found.token_R, found.inverse_R, found.expert_R, found.ends_E]
        return [found.gates_TK, gradient, *places]

    both_ways(code)


def test_grouped_lora_and_its_gradients() -> None:
    ends_E = torch.tensor([5, 5, 30], dtype=torch.int32)

    def code() -> list[Tensor]:
        shapes = [(30, 20), (3, 20, 24), (3, 20, 4), (3, 4, 24)]
        leaves = [(normal(*shape) * 0.3).requires_grad_() for shape in shapes]
        y_RN, z_Rr = grouped_lora.grouped_lora(*leaves, ends_E, 0.5)
        return [y_RN, z_Rr, *torch.autograd.grad(y_RN, leaves, normal(30, 24))]

    both_ways(code)


@pytest.mark.parametrize("masked", [False, True])
def test_clipping(masked: bool) -> None:
    expert_R = torch.arange(40) // 15
    found = segments.find_segments(expert_R, torch.arange(40) % 15 // 4)
    z_Rr, g_RN, mask = normal(40, 4), normal(40, 8), (normal(3, 4, 8) > 0).float() if masked else None
    ends_E = torch.tensor([15, 30, 40], dtype=torch.int32)

    def code() -> list[Tensor]:
        norms_B = segments.sample_square_norms(z_Rr, g_RN, found, 4, mask)
        weights_B = (1 / norms_B.sqrt()).float()
        coefficient_R = weights_B[torch.arange(40) % 15 // 4]
        return [
            norms_B,
            segments.clipped_weight_gradient(z_Rr, g_RN, coefficient_R, ends_E),
            segments.clipped_weight_gradient(z_Rr, g_RN, None, ends_E),
        ]

    both_ways(code)


def test_attention() -> None:
    def code() -> list[Tensor]:
        leaves = [normal(1, heads, 50, 8).requires_grad_() for heads in (4, 2, 2)]
        y = attention.window_attention(*leaves, window=9, slopes_H=2.0 ** -torch.arange(1, 5), scale=0.4)
        return [y, *torch.autograd.grad(y, leaves, normal(1, 4, 50, 8))]

    both_ways(code)


def test_compression() -> None:
    def code() -> list[Tensor]:
        uniforms_K = torch.rand(90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        sizes = {"bound": 0.3, "bits": 8, "radix": 4065, "lanes": 4, "slots": 25}
        return [compression.compress(normal(100), torch.arange(5, 95), uniforms_K, **sizes)]

    both_ways(code)
