"""The rules of the gate: scores, selection bias, groups and ties, against a loop over tokens that knows no tensor tricks."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.kernels.routing import Routing, route

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)
SCORES = ["softmax", "sigmoid", "softmax_after_top_k"]


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def best(values: list[float], count: int) -> list[int]:
    """Largest first, of equal ones the lower index."""
    return sorted(range(len(values)), key=lambda at: (-values[at], at))[:count]


def one_token(
    logits: list[float],
    top_k: int,
    score: str,
    bias: list[float] | None,
    groups: int,
    top_groups: int,
    group_best: int,
    renormalise: bool,
    scaling: float,
) -> tuple[list[int], list[float]]:
    scores = {
        "softmax": softmax(logits),
        "sigmoid": [1 / (1 + math.exp(-x)) for x in logits],
        "softmax_after_top_k": logits,
    }[score]
    select = [s + b for s, b in zip(scores, bias or [0.0] * len(scores), strict=True)]
    if groups > 1:
        size = len(select) // groups
        parts = [select[g * size : (g + 1) * size] for g in range(groups)]
        ranked = best([sum(sorted(part, reverse=True)[:group_best]) for part in parts], top_groups)
        select = [s if e // size in ranked else -math.inf for e, s in enumerate(select)]
    chosen = best(select, top_k)
    gates = [scores[e] for e in chosen]
    if score == "softmax_after_top_k":
        gates = softmax(gates)
    elif renormalise:
        gates = [gate / sum(gates) for gate in gates]
    return chosen, [gate * scaling for gate in gates]


@PROPERTY
@given(data=st.data(), score=st.sampled_from(SCORES), renormalise=st.booleans(), biased=st.booleans())
def test_routing_equals_a_loop_over_the_tokens(
    data: st.DataObject, score: Any, renormalise: bool, biased: bool
) -> None:
    groups, size = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 5))
    top_groups = data.draw(st.integers(1, groups))
    rules = {
        "score": score,
        "groups": groups,
        "top_groups": top_groups,
        "group_best": data.draw(st.integers(1, 2)),
        "renormalise": renormalise,
        "scaling": data.draw(st.sampled_from([1.0, 2.5])),
    }
    top_k, tokens = data.draw(st.integers(1, size * top_groups)), data.draw(st.integers(0, 6))
    draws = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    logits_TE = torch.randn(tokens, groups * size, generator=draws, dtype=torch.float64)
    bias_E = torch.randn(groups * size, generator=draws, dtype=torch.float64) if biased else None
    routing = route(logits_TE, top_k, bias_E=bias_E, **rules)
    for token, logits in enumerate(logits_TE.tolist()):
        chosen, gates = one_token(
            logits, top_k, bias=bias_E.tolist() if bias_E is not None else None, **rules
        )
        assert routing.expert_TK[token].tolist() == chosen
        assert routing.gates_TK[token].tolist() == pytest.approx(gates, rel=1e-12)
        slots = routing.inverse_R[token * top_k : (token + 1) * top_k]
        assert routing.expert_R[slots].tolist() == chosen


@PROPERTY
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_equal_scores_the_lowest_index_wins(seed: int, dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(seed)
    logits_TE = torch.randint(-1, 2, (5, 12), generator=draws).to(dtype)
    logits_TE[logits_TE == 0] *= torch.where(torch.rand(5, 12, generator=draws) < 0.5, -1.0, 1.0).to(dtype)[
        logits_TE == 0
    ]
    routing = route(logits_TE, 4)
    for logits, chosen in zip(logits_TE.tolist(), routing.expert_TK.tolist(), strict=True):
        assert chosen == best(logits, 4)
    grouped = route(torch.zeros(3, 12, dtype=dtype), 2, groups=4, top_groups=2)
    assert grouped.expert_TK.tolist() == [[0, 1]] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_tokens_experts_differ_whatever_the_logits(dtype: torch.dtype) -> None:
    logits_TE = torch.zeros(4, 6, dtype=dtype)
    logits_TE[0], logits_TE[1, 3], logits_TE[2, 1], logits_TE[3] = (
        torch.nan,
        torch.inf,
        -torch.nan,
        -torch.inf,
    )
    routing = route(logits_TE, 4)
    assert all(len(set(chosen)) == 4 for chosen in routing.expert_TK.tolist())
    assert sorted(routing.inverse_R.tolist()) == list(range(16))


def test_the_gates_do_not_see_the_bias() -> None:
    logits_TE = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    bias_E = torch.zeros(8).index_fill_(0, torch.tensor([2, 6]), 10.0)
    routing = route(logits_TE, 2, score="sigmoid", bias_E=bias_E, renormalise=False)
    assert all(sorted(chosen) == [2, 6] for chosen in routing.expert_TK.tolist())
    torch.testing.assert_close(routing.gates_TK, logits_TE.sigmoid().gather(1, routing.expert_TK))


def test_gates_stay_finite_where_every_sigmoid_is_zero() -> None:
    gates_TK = route(torch.full((1, 4), -1e4), 2, score="sigmoid").gates_TK
    assert gates_TK.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("renormalise", [True, False])
def test_gates_are_differentiable(score: Any, renormalise: bool) -> None:
    logits_TE = torch.randn(5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda logits: (
            route(
                logits, 3, score=score, groups=3, top_groups=2, renormalise=renormalise, scaling=2.5
            ).gates_TK
        ),
        logits_TE.requires_grad_(),
    )


def test_gates_of_half_precision_logits_are_float32() -> None:
    logits_TE = torch.randn(3, 4, generator=torch.Generator().manual_seed(3)).bfloat16().requires_grad_()
    routing: Routing = route(logits_TE, 2)
    assert routing.gates_TK.dtype == torch.float32
    (gradient,) = torch.autograd.grad(routing.gates_TK.square().sum(), logits_TE)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("top_k", "rules"),
    [
        (0, {}),
        (7, {}),
        (3, {"groups": 3, "top_groups": 1}),
        (1, {"groups": 4}),
        (1, {"groups": 2, "top_groups": 3}),
        (1, {"groups": 2, "group_best": 3}),
        (1, {"groups": 6, "group_best": 2}),
        (1, {"bias_E": torch.zeros(5)}),
    ],
)
def test_what_does_not_fit_is_refused(top_k: int, rules: dict[str, Any]) -> None:
    bias_E: Tensor | None = rules.pop("bias_E", None)
    with pytest.raises(ValueError, match=r"groups|group of|top_k|bias"):
        route(torch.zeros(2, 6), top_k, bias_E=bias_E, **rules)


@PROPERTY
@given(seed=st.integers(0, 2**31), top_k=st.integers(1, 20))
def test_many_choices_are_made_like_few(seed: int, top_k: int) -> None:
    logits_TE = torch.randint(-9, 9, (6, 20), generator=torch.Generator().manual_seed(seed)).float()
    routing = route(logits_TE, top_k)
    for logits, chosen in zip(logits_TE.tolist(), routing.expert_TK.tolist(), strict=True):
        assert chosen == best(logits, top_k)
