"""Routing: nobody is dropped, nobody's choice depends on anybody else, and the order is stable."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.kernels.routing import route

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)
SIZES = st.tuples(st.integers(1, 12), st.integers(1, 9)).flatmap(
    lambda sizes: st.tuples(st.just(sizes[0]), st.just(sizes[1]), st.integers(1, sizes[1]))
)
SEEDS = st.integers(0, 2**31)


def draw(tokens: int, experts: int, seed: int, *, ties: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if ties:
        return torch.randint(0, 2, (tokens, experts), generator=generator).float()
    return torch.randn(tokens, experts, generator=generator)


@PROPERTY
@given(sizes=SIZES, seed=SEEDS, ties=st.booleans())
def test_dropless_each_of_the_choices_appears_in_exactly_one_row(
    sizes: tuple[int, int, int], seed: int, ties: bool
) -> None:
    tokens, experts, top_k = sizes
    logits_TE = draw(tokens, experts, seed, ties=ties)
    routing = route(logits_TE, top_k)
    rows = tokens * top_k
    assert len(routing.token_R) == len(routing.expert_R) == rows
    assert sorted(routing.inverse_R.tolist()) == list(range(rows))
    pairs = list(zip(routing.token_R.tolist(), routing.expert_R.tolist(), strict=True))
    assert len(set(pairs)) == rows  # a token's experts differ
    assert torch.bincount(routing.token_R, minlength=tokens).tolist() == [top_k] * tokens
    # slot t·K + k of token t finds its row through the inverse
    assert (routing.token_R[routing.inverse_R] == torch.arange(tokens).repeat_interleave(top_k)).all()
    # what was chosen is the largest
    chosen = torch.zeros_like(logits_TE, dtype=torch.bool)
    chosen[routing.token_R, routing.expert_R] = True
    least = logits_TE.masked_fill(~chosen, torch.inf).amin(dim=1)
    assert (logits_TE.masked_fill(chosen, -torch.inf).amax(dim=1) <= least).all()


@PROPERTY
@given(sizes=SIZES, seed=SEEDS)
def test_ends_are_the_offsets_of_each_experts_rows(sizes: tuple[int, int, int], seed: int) -> None:
    tokens, experts, top_k = sizes
    routing = route(draw(tokens, experts, seed), top_k)
    assert routing.ends_E.dtype == torch.int32
    assert routing.expert_R.tolist() == sorted(routing.expert_R.tolist())
    expected = [int((routing.expert_R <= expert).sum()) for expert in range(experts)]
    assert routing.ends_E.tolist() == expected


@PROPERTY
@given(sizes=SIZES, seed=SEEDS, data=st.data())
def test_a_tokens_choice_and_gates_depend_on_its_own_logits_only(
    sizes: tuple[int, int, int], seed: int, data: st.DataObject
) -> None:
    tokens, experts, top_k = sizes
    logits_TE = draw(tokens, experts, seed)
    token = data.draw(st.integers(0, tokens - 1))

    def seen(logits: Tensor, at: int) -> tuple[list[int], Tensor]:
        routing = route(logits, top_k)
        slots = routing.inverse_R[at * top_k : (at + 1) * top_k]
        return routing.expert_R[slots].tolist(), routing.gates_TK[at]

    others = draw(tokens, experts, seed + 1) * 50
    others[token] = logits_TE[token]
    alone = seen(logits_TE[token : token + 1], 0)
    for experts_seen, gates in (seen(logits_TE, token), seen(others, token)):
        assert experts_seen == alone[0]
        torch.testing.assert_close(gates, alone[1], rtol=0, atol=0)


@PROPERTY
@given(sizes=SIZES, seed=SEEDS, ties=st.booleans())
def test_rows_of_one_expert_keep_the_order_of_their_tokens(
    sizes: tuple[int, int, int], seed: int, ties: bool
) -> None:
    tokens, experts, top_k = sizes
    routing = route(draw(tokens, experts, seed, ties=ties), top_k)
    for expert in range(experts):
        served = routing.token_R[routing.expert_R == expert].tolist()
        assert served == sorted(served)


def test_gates_are_the_softmax_over_the_chosen_logits_and_differentiable() -> None:
    logits_TE = draw(7, 6, 3).double().requires_grad_()
    gates_TK = route(logits_TE, 3).gates_TK
    top = logits_TE.detach().sort(dim=1, descending=True).values[:, :3]
    torch.testing.assert_close(gates_TK.detach(), top.exp() / top.exp().sum(dim=1, keepdim=True))
    assert torch.autograd.gradcheck(lambda logits: route(logits, 3).gates_TK, logits_TE)


def test_no_token_at_all() -> None:
    routing = route(torch.zeros(0, 4), 2)
    assert routing.ends_E.tolist() == [0, 0, 0, 0]
    assert routing.token_R.numel() == routing.inverse_R.numel() == 0
