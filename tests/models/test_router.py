"""Gates of every kind, against the formulas one token at a time; the bias moves the choice and nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.models.config import ModelConfig
from hansa.models.router import route_tokens

KINDS = [(score, renormalise) for score in ("softmax", "sigmoid") for renormalise in (True, False)]


def config(**changes: object) -> ModelConfig:
    return ModelConfig(experts=12, top_k=3, **changes)  # type: ignore[arg-type]


def logits(tokens: int = 9, seed: int = 0) -> Tensor:
    return torch.randn(tokens, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected(row: Tensor, sizes: ModelConfig, bias: Tensor) -> dict[int, float]:
    """Experts and gates of one token."""
    scores = {"softmax": row.softmax(0), "sigmoid": row.sigmoid()}.get(sizes.score, row).tolist()
    biased = [s + b for s, b in zip(scores, bias.tolist(), strict=True)]
    size = 12 // sizes.groups
    groups = [sorted(biased[g * size : (g + 1) * size])[::-1] for g in range(sizes.groups)]
    worth = [sum(group[: 2 if sizes.group_score == "top2" else 1]) for group in groups]
    best = sorted(range(sizes.groups), key=lambda g: -worth[g])[: sizes.top_groups]
    allowed = [e for e in range(12) if e // size in best]
    chosen = sorted(allowed, key=lambda e: -biased[e])[: sizes.top_k]
    gates = torch.tensor([scores[e] for e in chosen], dtype=torch.float64)
    if sizes.score == "softmax_after_top_k":
        gates = gates.softmax(0)
    elif sizes.renormalise:
        gates = gates / gates.sum()
    return dict(zip(chosen, (gates * sizes.route_scale).tolist(), strict=True))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    kind=st.sampled_from([*KINDS, ("softmax_after_top_k", True)]),
    groups=st.sampled_from([(1, 1), (4, 2), (3, 1), (4, 4), (12, 5)]),
    group_score=st.sampled_from(["max", "top2"]),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_formulas_one_token_at_a_time(
    kind: tuple[str, bool], groups: tuple[int, int], group_score: str, biased: bool, seed: int
) -> None:
    sizes = config(
        score=kind[0],
        renormalise=kind[1],
        groups=groups[0],
        top_groups=groups[1],
        group_score=group_score,
        route_scale=1.5,
    )
    bias = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * biased
    rows = logits(seed=seed)
    routing = route_tokens(rows, sizes, bias if biased else None)
    for row, experts, gates in zip(rows, routing.expert_TK.tolist(), routing.gates_TK.tolist(), strict=True):
        found = dict(zip(experts, gates, strict=True))
        wanted = expected(row, sizes, bias)
        assert found.keys() == wanted.keys()
        assert all(abs(found[e] - wanted[e]) < 1e-12 for e in wanted)


@pytest.mark.parametrize("kind", [("softmax_after_top_k", True), ("softmax", True), ("sigmoid", True)])
def test_gates_sum_to_the_scale_where_they_are_normalised(kind: tuple[str, bool]) -> None:
    for scale in (1.0, 2.5):
        gates = route_tokens(logits(), config(score=kind[0], route_scale=scale), None).gates_TK
        torch.testing.assert_close(gates.sum(1), torch.full((9,), scale, dtype=torch.float64))


def test_a_negative_bias_does_not_let_another_group_in() -> None:
    """A mask of 0 in place of −∞ would prefer every excluded expert to one with a negative score."""
    sizes = config(score="sigmoid", groups=4, top_groups=1, group_score="top2")
    routing = route_tokens(logits(), sizes, torch.full((12,), -5.0, dtype=torch.float64))
    assert (routing.expert_TK // 3 == routing.expert_TK[:, :1] // 3).all()


def test_a_tokens_choice_and_gates_depend_on_its_own_logits_only() -> None:
    rows, others = logits(), logits(seed=1)
    others[4] = rows[4]
    sizes = config(score="sigmoid", groups=4, top_groups=2)
    for one, other in ((rows, others), (rows, rows[4:5].expand(9, 12))):
        first, second = (route_tokens(x, sizes, None) for x in (one, other))
        assert torch.equal(first.gates_TK[4], second.gates_TK[4])
        assert torch.equal(first.expert_TK[4], second.expert_TK[4])


def test_half_precision_logits_are_widened() -> None:
    assert route_tokens(logits().bfloat16(), config(), None).gates_TK.dtype == torch.float32


@pytest.mark.parametrize("kind", [*KINDS, ("softmax_after_top_k", True)])
def test_the_gates_gradient_is_that_of_the_formula(kind: tuple[str, bool]) -> None:
    sizes = config(score=kind[0], renormalise=kind[1], route_scale=1.5)
    x = logits(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda row: route_tokens(row, sizes, None).gates_TK, (x,))
