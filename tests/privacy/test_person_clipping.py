"""Where the unit is a person, all of its records together move the sum by no more than the clip norm."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hansa.errors import InvalidValue
from hansa.privacy.per_sample import ClippedSum, clipped_sum

C = 0.3


def summed(
    case: Any, owners: NDArray[np.int64] | None, kept: Any = slice(None), **changes: Any
) -> ClippedSum:
    arguments = {"support_K": None, "clip_norm": C} | changes
    return clipped_sum(
        case.model, case.layout, case.features[kept], case.labels[kept], unit_B=owners, **arguments
    )


def one_by_one(case: Any, owners: NDArray[np.int64], support: Any, clip_norm: float) -> NDArray[np.float64]:
    """Add up each person's gradients, each from a pass of its own; clip; add up."""
    total = 0.0
    for person in np.unique(owners):
        rows = np.flatnonzero(owners == person)
        each = [summed(case, None, [row], support_K=support, clip_norm=None).sum_K for row in rows]
        gradient = np.sum(each, axis=0)
        total = total + gradient * min(1.0, clip_norm / np.linalg.norm(gradient))
    return np.asarray(total)


@pytest.mark.parametrize("share", [None, 0.4])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"targets": ("experts",)},
        {"targets": ("attention",), "trained": ("head",)},
        {"one_expert": True},
        {"experts": 32, "top_k": 4},
        {"trained": ("embedding",)},
    ],
    ids=str,
)
def test_equals_a_loop_over_persons_and_their_single_records(
    small: Callable[..., Any], shape: dict[str, Any], share: float | None
) -> None:
    case = small(samples=12, seed=3, **shape)
    owners = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 3, 5])  # 4 takes part with no record
    support = None if share is None else case.support(share)
    for clip_norm in (1e-2, 0.5, 1e3):
        found = summed(case, owners, support_K=support, clip_norm=clip_norm)
        expected = one_by_one(case, owners, support, clip_norm)
        np.testing.assert_allclose(found.sum_K, expected, rtol=0, atol=2e-6 * np.abs(expected).max() + 1e-12)
        assert len(found.norms_B) == 6
        assert found.norms_B[4] == 0


def test_without_clipping_the_sum_is_exact_to_the_last_digits(small: Callable[..., Any]) -> None:
    case = small(samples=12, seed=4)
    owners = np.sort(np.random.default_rng(0).integers(0, 4, 12))
    np.testing.assert_allclose(
        summed(case, owners, clip_norm=None).sum_K, summed(case, None, clip_norm=None).sum_K, rtol=1e-12
    )
    norms = [
        np.linalg.norm(summed(case, None, np.flatnonzero(owners == k), clip_norm=None).sum_K)
        for k in range(4)
    ]
    np.testing.assert_allclose(summed(case, owners).norms_B, norms, rtol=1e-12)


def test_persons_of_one_record_are_records(small: Callable[..., Any]) -> None:
    case = small(samples=9)
    found, expected = summed(case, np.arange(9)), summed(case, None)
    np.testing.assert_allclose(found.sum_K, expected.sum_K, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("share", [None, 0.3])
def test_a_person_with_fifty_records_moves_the_sum_by_at_most_the_clip_norm(
    small: Callable[..., Any], share: float | None
) -> None:
    case = small(samples=64, seed=5)
    support = None if share is None else case.support(share)
    owners = np.array([0] * 5 + [1] * 50 + [2] * 9)
    whole = summed(case, owners, support_K=support)
    without = summed(case, np.array([0] * 5 + [2] * 9), np.flatnonzero(owners != 1), support_K=support)
    change = np.linalg.norm(whole.sum_K - without.sum_K)
    assert change <= C * (1 + 1e-12)
    assert change > 0.99 * C  # it would move more, and is held
    # the same fifty as fifty units move it by far more: the test can fail
    apart = (
        summed(case, None, support_K=support).sum_K - summed(case, None, owners != 1, support_K=support).sum_K
    )
    assert np.linalg.norm(apart) > 3 * C


def test_fifty_equal_records_of_one_person_count_as_one_direction(small: Callable[..., Any]) -> None:
    """The worst case: they all pull the same way, and clipping each by itself would let fifty times the bound through."""
    case = small(samples=50)
    case.features[:], case.labels[:] = case.features[0].clone(), 1.0
    assert np.linalg.norm(summed(case, np.zeros(50, dtype=np.int64)).sum_K) <= C * (1 + 1e-12)
    assert np.linalg.norm(summed(case, None).sum_K) > 20 * C


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_a_record_that_is_not_finite_is_left_out_and_its_persons_others_are_not(
    small: Callable[..., Any], spoilt: float
) -> None:
    case = small(samples=8, seed=6)
    owners = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    expected = summed(case, np.delete(owners, 4), np.delete(np.arange(8), 4)).sum_K
    case.features[4] = spoilt
    found = summed(case, owners)
    assert found.dropped == 1
    np.testing.assert_allclose(found.sum_K, expected, rtol=1e-12, atol=1e-15)


def test_a_person_of_nothing_but_nan_changes_nothing(small: Callable[..., Any]) -> None:
    case = small(samples=8, seed=6)
    owners = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    expected = summed(case, owners[owners != 1], owners != 1).sum_K
    case.features[3:5] = float("nan")
    found = summed(case, owners)
    assert found.dropped == 2
    np.testing.assert_allclose(found.sum_K, expected, rtol=1e-12, atol=1e-15)


def test_a_person_whose_finite_records_add_up_to_more_than_a_number_is_left_out_whole(
    small: Callable[..., Any],
) -> None:
    case = small(samples=6, seed=7)
    owners = np.array([0, 0, 1, 1, 2, 2])

    strength = [np.float64(1.0)]

    def loss(model: Any, features: Any, labels: Any, tape: Any) -> Any:
        return model(features, tape) * torch.where(
            labels == 7, torch.tensor(strength[0], dtype=torch.float64), 1.0
        )

    norm = summed(case, None, [2], loss=loss).norms_B[0]
    strength[0] = 0.9e154 / norm  # the square of one fits a float64, the square of two does not

    expected = summed(case, owners[owners != 1], owners != 1, loss=loss).sum_K
    case.labels[2:4] = 7
    case.features[3] = case.features[2]
    assert summed(case, None, [2], loss=loss).dropped == 0
    found = summed(case, owners, loss=loss)
    assert found.dropped == 2
    np.testing.assert_allclose(found.sum_K, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("owners", [[0, 0, 1], [1, 0, 0, 1], [-1, 0, 0, 0]], ids=str)
def test_owners_that_are_not_in_order_are_refused(small: Callable[..., Any], owners: list[int]) -> None:
    """Runs of one expert and person would be cut, and their norms too small."""
    with pytest.raises(InvalidValue):
        summed(small(samples=4), np.array(owners))


def test_a_sample_whose_loss_alone_is_not_finite_contributes_zero(small: Callable[..., Any]) -> None:
    case = small(samples=5, seed=8)

    def loss(model: Any, features: Any, labels: Any, tape: Any) -> Any:
        return model(features, tape) + torch.where(labels == 7, torch.inf, 0.0)  # the gradient is finite

    case.labels[2] = 7
    found = summed(case, None, loss=loss)
    assert found.dropped == 1
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(
        found.sum_K, summed(case, None, others, loss=loss).sum_K, rtol=1e-12, atol=1e-15
    )
