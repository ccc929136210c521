"""(expert, sample) segments: found exactly, summed exactly, and their norms equal those of the dense gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.kernels import segments as module
from hansa.kernels.grouped import grouped_outer_sum
from hansa.kernels.segments import (
    clipped_weight_gradient,
    find_segments,
    ordered_sum,
    ordered_sum_by_lengths,
    sample_square_norms,
    segment_ends,
    segment_outer,
    segment_outer_reference,
    segment_square_norms,
)

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


def drawn(rows: int, experts: int, samples: int, rank: int, width: int, dtype: torch.dtype) -> tuple:
    draws = torch.Generator().manual_seed(rows)
    pairs = sorted(
        zip(
            torch.randint(0, experts, (rows,), generator=draws).tolist(),
            torch.randint(0, samples, (rows,), generator=draws).tolist(),
            strict=True,
        )
    )
    segments = find_segments(*columns(pairs))
    z_Rr = torch.randn(rows, rank, generator=draws, dtype=torch.float64).to(dtype)
    g_RN = torch.randn(rows, width, generator=draws, dtype=torch.float64).to(dtype)
    mask_ErN = (torch.rand(experts, rank, width, generator=draws) < 0.5).to(dtype)
    return pairs, segments, z_Rr, g_RN, mask_ErN


@pytest.mark.parametrize(("rank", "width"), [(8, 64), (16, 256), (3, 5)])
@pytest.mark.parametrize("rows", [1, 50, 700])
def test_the_product_of_segments_equals_the_sum_of_outer_products(rows: int, rank: int, width: int) -> None:
    _, segments, z_Rr, g_RN, _ = drawn(rows, 4, 9, rank, width, torch.float32)
    outer_SrN = segment_outer(z_Rr, g_RN, segments)
    torch.testing.assert_close(outer_SrN, segment_outer_reference(z_Rr, g_RN, segments), rtol=1e-5, atol=1e-4)
    lengths_S = torch.bincount(segments.segment_R, minlength=len(outer_SrN))
    assert segment_ends(segments).tolist() == lengths_S.cumsum(0).tolist()


@pytest.mark.parametrize("block_bytes", [1, 5000, 1 << 20])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("small_entries", [0, 1 << 30])
@pytest.mark.parametrize(("rank", "width"), [(4, 32), (32, 4)])
def test_norms_without_kept_gradients_equal_those_with(
    block_bytes: int,
    masked: bool,
    dtype: torch.dtype,
    small_entries: int,
    rank: int,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_CACHED_BYTES", block_bytes)
    monkeypatch.setattr(module, "_SMALL_ENTRIES", small_entries)
    _, segments, z_Rr, g_RN, mask_ErN = drawn(200, 5, 7, rank, width, dtype)
    mask = mask_ErN if masked else None
    outer_SrN = segment_outer_reference(z_Rr.double(), g_RN.double(), segments)
    expected = segment_square_norms(outer_SrN, segments, 7, mask if mask is None else mask.double())
    norms_B = sample_square_norms(z_Rr, g_RN, segments, 7, mask)
    assert norms_B.dtype == torch.float64
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(norms_B, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("small_entries", [0, 1 << 30])
def test_a_samples_norm_depends_on_its_own_rows_only_nan_included(
    small_entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SMALL_ENTRIES", small_entries)
    pairs, segments, z_Rr, g_RN, _ = drawn(120, 3, 6, 4, 32, torch.float32)
    before = sample_square_norms(z_Rr, g_RN, segments, 6, None)
    others = torch.tensor([sample != 2 for _, sample in pairs])
    g_RN[others] = torch.nan
    z_Rr[others] = torch.inf
    after = sample_square_norms(z_Rr, g_RN, segments, 6, None)
    assert after[2] == before[2]
    assert after.isnan().sum() == 5


def test_no_rows_have_no_norm() -> None:
    segments = find_segments(*columns([]))
    norms_B = sample_square_norms(torch.zeros(0, 4), torch.zeros(0, 8), segments, 3, None)
    assert norms_B.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("rank", "width"), [(4, 16), (16, 4)])
def test_the_clipped_sum_equals_one_row_at_a_time(rank: int, width: int) -> None:
    pairs, _, z_Rr, g_RN, _ = drawn(150, 5, 7, rank, width, torch.float64)
    weight_B = torch.rand(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.zeros(5, rank, width, dtype=torch.float64)
    for (expert, sample), z, g in zip(pairs, z_Rr, g_RN, strict=True):
        expected[expert] += weight_B[sample] * torch.outer(z, g)
    expert_R, sample_R = columns(pairs)
    ends_E = torch.bincount(expert_R, minlength=5).cumsum(0).to(torch.int32)
    actual = clipped_weight_gradient(z_Rr, g_RN, weight_B[sample_R], ends_E)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    plain = clipped_weight_gradient(z_Rr, g_RN, None, ends_E)
    torch.testing.assert_close(plain, grouped_outer_sum(z_Rr, g_RN, ends_E), rtol=0, atol=0)


@PROPERTY
@given(owners=st.lists(st.integers(0, 4), max_size=12).map(sorted))
def test_the_sum_of_a_gpu_equals_that_of_a_cpu(owners: list[int]) -> None:
    values = torch.randn(len(owners), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    owner_S = torch.tensor(owners, dtype=torch.int64)
    torch.testing.assert_close(
        ordered_sum_by_lengths(values, owner_S, 6), ordered_sum(values, owner_S, 6), rtol=0, atol=1e-15
    )
