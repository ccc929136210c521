"""The routing kernels equal the reference bit by bit. Run by test_interpreted.py, with TRITON_INTERPRET=1."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.kernels.routing import Groups, choose, sort_rows
from hansa.kernels.routing_triton import choose_and_sort


def assert_equal(select_TE: Tensor, top_k: int, limit: Groups) -> None:
    expert_TK = choose(select_TE, top_k, limit)
    expected = (expert_TK, *sort_rows(expert_TK, select_TE.shape[1]))
    for actual, wanted in zip(choose_and_sort(select_TE, top_k, limit), expected, strict=True):
        assert actual.dtype == wanted.dtype
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "limit"),
    [
        (67, 128, 4, Groups()),
        (1, 1, 1, Groups()),
        (33, 7, 7, Groups()),
        (19, 256, 8, Groups(count=8, top=4)),
        (21, 60, 6, Groups(count=3, top=2, best=1)),
        (5, 20, 3, Groups(count=5, top=2)),
    ],
)
def test_equals_the_reference(tokens: int, experts: int, top_k: int, limit: Groups) -> None:
    assert_equal(torch.randn(tokens, experts, generator=torch.Generator().manual_seed(1)), top_k, limit)


def test_all_tokens_to_one_expert() -> None:
    select_TE = torch.zeros(70, 9)
    select_TE[:, 5] = 1
    assert_equal(select_TE, 1, Groups())


@settings(deadline=None, max_examples=25, derandomize=True)
@given(data=st.data())
def test_ties_and_odd_values(data: st.DataObject) -> None:
    groups, size = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 5))
    limit = Groups(count=groups, top=data.draw(st.integers(1, groups)), best=data.draw(st.integers(1, 2)))
    top_k = data.draw(st.integers(1, size * limit.top))
    tokens = data.draw(st.integers(1, 20))
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, float("inf"), float("-inf")])
    entries = data.draw(st.lists(values, min_size=tokens * groups * size, max_size=tokens * groups * size))
    assert_equal(torch.tensor(entries).view(tokens, groups * size), top_k, limit)


def test_logits_that_are_not_numbers_still_give_each_slot_one_row() -> None:
    select_TE = torch.randn(20, 6)
    select_TE[3], select_TE[7, 2] = torch.nan, -torch.nan
    expert_TK, _, inverse_R, _, ends_E = choose_and_sort(select_TE, 4, Groups())
    assert all(len(set(row)) == 4 and set(row) <= set(range(6)) for row in expert_TK.tolist())
    assert sorted(inverse_R.tolist()) == list(range(80))
    assert int(ends_E[-1]) == 80
