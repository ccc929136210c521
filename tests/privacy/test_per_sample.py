"""Per-sample clipping: equal to a loop over single samples, bounded, additive, and deaf to samples that are not finite."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hansa.models.tape import Tape
from hansa.privacy.per_sample import ClippedSum, clipped_sum

ROOM = 1.0 + 1e-6
SHAPES = st.fixed_dictionaries(
    {
        "samples": st.integers(1, 5),
        "tokens": st.integers(1, 4),
        "experts": st.sampled_from([1, 2, 8, 16]),
        "layers": st.integers(1, 2),
        "one_expert": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
)


def gradients(small: Any, support: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Gradient of every sample on the support, (B, K): one sample at a time, plain autograd, no tape."""
    parameters = dict(small.model.named_parameters())
    rows = []
    for b in range(len(small.features)):
        logit = small.model(small.features[b : b + 1])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, small.labels[b : b + 1])
        parts = torch.autograd.grad(loss, [parameters[slot.name] for slot in small.layout.slots])
        flat = np.concatenate([part.double().flatten().numpy() for part in parts])
        rows.append(flat if support is None else flat[support])
    return np.stack(rows)


def clip_and_sum(gradients_BK: NDArray[np.float64], clip_norm: float | None) -> ClippedSum:
    """Abadi et al. 2016, algorithm 1, literally."""
    norms = np.array([np.linalg.norm(gradient) for gradient in gradients_BK])
    total = np.zeros(gradients_BK.shape[1])
    for gradient, norm in zip(gradients_BK, norms, strict=True):
        total += gradient * (1.0 if clip_norm is None else clip_norm / max(clip_norm, norm * ROOM))
    return ClippedSum(sum_K=total, norms_B=norms, dropped=0)


def close(actual: NDArray[np.float64], expected: NDArray[np.float64], relative: float = 1e-12) -> None:
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) <= relative * np.linalg.norm(expected)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    shape=SHAPES, top_k=st.integers(1, 4), share=st.sampled_from([None, 0.0, 0.05, 0.5, 1.0]), data=st.data()
)
def test_equals_a_loop_over_single_samples(
    small: Callable[..., Any], shape: dict[str, Any], top_k: int, share: float | None, data: st.DataObject
) -> None:
    case = small(top_k=min(top_k, shape["experts"]), **shape)
    support = None if share is None else case.support(share, shape["seed"])
    expected_BK = gradients(case, support)
    middle = float(np.median(np.linalg.norm(expected_BK, axis=1))) + 1e-9
    clip_norm = data.draw(st.sampled_from([1e-3, middle, 1e3, None]))  # clips all, some, none; does not clip
    expected = clip_and_sum(expected_BK, clip_norm)
    actual = clipped_sum(
        case.model, case.layout, case.features, case.labels, support_K=support, clip_norm=clip_norm
    )
    assert actual.dropped == 0
    close(actual.norms_B, expected.norms_B)
    close(actual.sum_K, expected.sum_K)


@pytest.mark.parametrize(
    "change",
    [
        {"targets": ("attention",)},
        {"targets": ("experts",)},
        {"targets": ()},
        {"targets": ("router",)},
        {"targets": ("attention", "router", "experts", "shared")},
        {"trained": ()},
        {"trained": ("head",)},
        {"trained": ("embedding", "class_token")},
    ],
    ids=str,
)
def test_whatever_is_trained_the_frozen_rest_does_not_count(
    small: Callable[..., Any], change: dict[str, Any]
) -> None:
    case = small(**change)
    for support in (None, case.support(0.5)):
        for clip_norm in (0.05, None):
            expected = clip_and_sum(gradients(case, support), clip_norm)
            actual = clipped_sum(
                case.model, case.layout, case.features, case.labels, support_K=support, clip_norm=clip_norm
            )
            close(actual.norms_B, expected.norms_B)
            close(actual.sum_K, expected.sum_K)
    assert all(parameter.grad is None for parameter in case.model.parameters())


def test_float32_on_the_fast_kernels_equals_the_loop_in_float64(small: Callable[..., Any]) -> None:
    exact, fast = small(samples=16, experts=16), small(samples=16, experts=16)
    fast.model.float()
    support = exact.support(0.3)
    expected = clip_and_sum(gradients(exact, support), 0.3)
    actual = clipped_sum(
        fast.model,
        fast.layout,
        fast.features.float(),
        fast.labels.float(),
        support_K=support,
        clip_norm=0.3,
    )
    assert actual.sum_K.dtype == actual.norms_B.dtype == np.float64
    close(actual.norms_B, expected.norms_B, 1e-5)
    close(actual.sum_K, expected.sum_K, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_samples_contribution_never_exceeds_the_clip_norm(
    small: Callable[..., Any], dtype: torch.dtype
) -> None:
    for seed in range(10):
        case = small(samples=1, seed=seed, dtype=dtype)
        norm = float(np.linalg.norm(gradients(case, None)))
        for clip_norm in (norm / 100, norm * (1 - 1e-9), norm, norm * (1 + 1e-9), norm * 100):
            part = clipped_sum(
                case.model, case.layout, case.features, case.labels, support_K=None, clip_norm=clip_norm
            )
            assert np.linalg.norm(part.sum_K) <= clip_norm


def test_an_empty_batch_gives_zeros_of_the_same_shape(small: Callable[..., Any]) -> None:
    case = small()
    for support in (None, case.support(0.3)):
        full = clipped_sum(
            case.model, case.layout, case.features, case.labels, support_K=support, clip_norm=1.0
        )
        empty = clipped_sum(
            case.model, case.layout, case.features[:0], case.labels[:0], support_K=support, clip_norm=1.0
        )
        assert empty.sum_K.shape == full.sum_K.shape
        assert empty.sum_K.dtype == full.sum_K.dtype
        assert not empty.sum_K.any()
        assert (empty.norms_B.shape, empty.dropped) == ((0,), 0)


@pytest.mark.parametrize(
    ("where", "bad"),
    [
        ("features", float("nan")),
        ("features", float("inf")),
        ("labels", float("nan")),
        ("labels", float("inf")),
        ("labels", 1e200),  # a finite gradient whose square is not
    ],
)
@pytest.mark.parametrize("clip_norm", [0.1, None])
def test_a_sample_with_a_nan_or_infinite_gradient_contributes_zero(
    small: Callable[..., Any], where: str, bad: float, clip_norm: float | None
) -> None:
    case = small(samples=5)
    support = case.support(0.5)
    kept = torch.tensor([0, 2, 3])
    expected = clipped_sum(
        case.model,
        case.layout,
        case.features[kept],
        case.labels[kept],
        support_K=support,
        clip_norm=clip_norm,
    )
    getattr(case, where)[1] = bad
    getattr(case, where)[4] = -bad
    actual = clipped_sum(
        case.model, case.layout, case.features, case.labels, support_K=support, clip_norm=clip_norm
    )
    assert np.isfinite(actual.sum_K).all()
    assert actual.dropped == 2
    assert (~np.isfinite(actual.norms_B)).tolist() == [False, True, False, False, True]
    close(actual.sum_K, expected.sum_K)


def test_a_batch_of_nothing_but_nan_gives_zeros(small: Callable[..., Any]) -> None:
    case = small()
    result = clipped_sum(
        case.model, case.layout, case.features * float("nan"), case.labels, support_K=None, clip_norm=1.0
    )
    assert result.dropped == len(case.features)
    assert not result.sum_K.any()


@settings(deadline=None, max_examples=20, derandomize=True)
@given(samples=st.integers(1, 9), cuts=st.lists(st.integers(0, 9), max_size=3), seed=st.integers(0, 2**31))
def test_splitting_a_batch_into_parts_and_adding_their_sums_gives_the_sum_of_the_whole_batch(
    small: Callable[..., Any], samples: int, cuts: list[int], seed: int
) -> None:
    case = small(samples=samples, seed=seed)
    support = case.support(0.5)
    whole = clipped_sum(case.model, case.layout, case.features, case.labels, support_K=support, clip_norm=0.3)
    edges = [0, *sorted(min(cut, samples) for cut in cuts), samples]
    parts = [
        clipped_sum(
            case.model,
            case.layout,
            case.features[start:stop],
            case.labels[start:stop],
            support_K=support,
            clip_norm=0.3,
        )
        for start, stop in itertools.pairwise(edges)
    ]
    close(np.sum([part.sum_K for part in parts], axis=0), whole.sum_K)
    close(np.concatenate([part.norms_B for part in parts]), whole.norms_B)


def test_a_factor_that_is_used_twice_in_one_pass_is_refused(small: Callable[..., Any]) -> None:
    case = small()

    def twice(model: Any, features: torch.Tensor, labels: torch.Tensor, tape: Tape) -> torch.Tensor:
        return model(features, tape) + model(-features, tape)

    with pytest.raises(ValueError, match="was used twice"):
        clipped_sum(
            case.model, case.layout, case.features, case.labels, support_K=None, clip_norm=1.0, loss=twice
        )


def test_the_repr_shows_no_gradient() -> None:
    result = ClippedSum(sum_K=np.array([12345.678]), norms_B=np.array([12345.678]), dropped=12345)
    assert "12345" not in repr(result)
