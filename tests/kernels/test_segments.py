"""(expert, sample) segments: found exactly, summed exactly, and their norms equal those of the dense gradient."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.kernels.segments import find_segments, segment_outer, segment_square_norms

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)
PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=25).map(sorted)
EXPERTS, SAMPLES, RANK, WIDTH = 6, 5, 3, 4


def columns(pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    table = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def dense(pairs: list[tuple[int, int]], z_Rr: Tensor, g_RN: Tensor) -> Tensor:
    """Gradient of every (sample, expert), one row at a time."""
    gradient = torch.zeros(SAMPLES, EXPERTS, RANK, WIDTH, dtype=torch.float64)
    for (expert, sample), z, g in zip(pairs, z_Rr, g_RN, strict=True):
        gradient[sample, expert] += torch.outer(z, g)
    return gradient


@PROPERTY
@given(pairs=PAIRS)
def test_two_rows_share_a_segment_exactly_if_they_share_expert_and_sample(
    pairs: list[tuple[int, int]],
) -> None:
    segments = find_segments(*columns(pairs))
    of_row = segments.segment_R.tolist()
    for i, first in enumerate(pairs):
        for j, second in enumerate(pairs):
            assert (of_row[i] == of_row[j]) == (first == second)
    named = list(zip(segments.expert_S.tolist(), segments.sample_S.tolist(), strict=True))
    assert [named[segment] for segment in of_row] == pairs
    assert of_row == sorted(of_row)
    assert len(named) == len(set(pairs))


@PROPERTY
@given(pairs=PAIRS, seed=st.integers(0, 2**31), masked=st.booleans())
def test_outer_sums_and_square_norms_equal_the_dense_gradient(
    pairs: list[tuple[int, int]], seed: int, masked: bool
) -> None:
    draws = torch.Generator().manual_seed(seed)
    z_Rr = torch.randn(len(pairs), RANK, generator=draws, dtype=torch.float64)
    g_RN = torch.randn(len(pairs), WIDTH, generator=draws, dtype=torch.float64)
    mask_ErN = (torch.rand(EXPERTS, RANK, WIDTH, generator=draws) < 0.5).double() if masked else None
    segments = find_segments(*columns(pairs))
    outer_SrN = segment_outer(z_Rr, g_RN, segments)
    expected = dense(pairs, z_Rr, g_RN)
    torch.testing.assert_close(
        outer_SrN, expected[segments.sample_S, segments.expert_S], rtol=1e-12, atol=1e-13
    )
    if mask_ErN is not None:
        expected = expected * mask_ErN
    norms_B = segment_square_norms(outer_SrN, segments, SAMPLES, mask_ErN)
    assert norms_B.dtype == torch.float64
    torch.testing.assert_close(norms_B, expected.square().sum((1, 2, 3)), rtol=1e-12, atol=1e-13)


def test_rows_that_cancel_leave_no_norm() -> None:
    """The reason for the direct form: from Gram matrices the square of a cancelled sum has no right digit."""
    z_Rr = torch.full((2, RANK), 1e3)
    g_RN = torch.tensor([[1.0] * WIDTH, [-1.0] * WIDTH])
    segments = find_segments(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    assert segment_square_norms(segment_outer(z_Rr, g_RN, segments), segments, 1, None).item() == 0.0
