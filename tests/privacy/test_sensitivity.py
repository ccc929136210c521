"""One record more or less changes the clipped sum of a whole step by at most the clip norm; coupled designs break that.

The negative controls matter: a property test that no wrong design fails proves nothing.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hansa.models.tape import Tape
from hansa.privacy.per_sample import SampleLoss, binary_loss, clipped_sum

PROPERTY = settings(deadline=None, max_examples=30, derandomize=True)


def largest_change(case: Any, clip_norm: float, support: Any = None, loss: SampleLoss = binary_loss) -> float:
    """Largest ‖S(D) − S(D without j)‖₂ / C over all samples j."""

    def step(kept: Tensor) -> Any:
        return clipped_sum(
            case.model,
            case.layout,
            case.features[kept],
            case.labels[kept],
            support_K=support,
            clip_norm=clip_norm,
            loss=loss,
        ).sum_K

    everyone = torch.arange(len(case.features))
    whole = step(everyone)
    return max(float(np.linalg.norm(whole - step(everyone[everyone != j]))) for j in everyone) / clip_norm


def aligned(small: Callable[..., Any], **shape: Any) -> Any:
    """The same record many times, one of them with the other label: the gradients lie on one line."""
    case = small(samples=8, **shape)
    case.features[:] = case.features[0].clone()
    case.labels[:] = 1.0
    case.labels[-1] = 0.0
    with torch.no_grad():
        case.model.head[-1] -= case.model(case.features[:1])[0]  # logit 0: both labels pull with equal force
    return case


def apart(small: Callable[..., Any]) -> Any:
    """The same record many times with logit 0, and another one whose logit is 16."""
    case = small(samples=8)
    case.features[:-1] = case.features[0].clone()
    case.labels[:] = 1.0
    with torch.no_grad():
        logits = case.model(case.features)
        case.model.head[:-1] *= 16.0 / (logits[-1] - logits[0])
        case.model.head[-1] -= case.model(case.features[:1])[0]
    return case


def gradient_norm(case: Any, support: Any = None) -> float:
    result = clipped_sum(
        case.model, case.layout, case.features[:1], case.labels[:1], support_K=support, clip_norm=None
    )
    return float(result.norms_B[0])


@PROPERTY
@given(
    samples=st.integers(1, 5),
    experts=st.sampled_from([1, 4, 16]),
    one_expert=st.booleans(),
    clip_norm=st.sampled_from([0.01, 0.5, 3.0, 100.0]),
    share=st.sampled_from([None, 0.05, 0.5]),
    seed=st.integers(0, 2**31),
)
def test_one_sample_more_or_less_changes_the_sum_by_at_most_clip_norm(
    small: Callable[..., Any],
    samples: int,
    experts: int,
    one_expert: bool,
    clip_norm: float,
    share: float | None,
    seed: int,
) -> None:
    case = small(samples=samples, experts=experts, top_k=min(2, experts), one_expert=one_expert, seed=seed)
    support = None if share is None else case.support(share, seed)
    assert largest_change(case, clip_norm, support) <= 1 + 1e-9


def test_the_bound_holds_and_is_tight_where_gradients_are_aligned(small: Callable[..., Any]) -> None:
    case = aligned(small)
    ratio = largest_change(case, gradient_norm(case) / 2)
    assert 1 - 1e-5 <= ratio <= 1 + 1e-9


def test_the_bound_holds_on_the_fast_kernels_in_float32(small: Callable[..., Any]) -> None:
    for seed in range(5):
        case = small(samples=6, experts=16, top_k=4, dtype=torch.float32, seed=seed)
        assert largest_change(case, 0.3, case.support(0.5)) <= 1 + 1e-5
    case = aligned(small, dtype=torch.float32)
    assert largest_change(case, gradient_norm(case) / 2) <= 1 + 1e-5


def test_a_sample_that_is_not_finite_changes_nothing(small: Callable[..., Any]) -> None:
    case = small(samples=4)
    case.features[2] = float("nan")
    clean = small(samples=4)
    kept = torch.tensor([0, 1, 3])
    arguments: dict[str, Any] = {"support_K": None, "clip_norm": 0.5}
    with_bad = clipped_sum(case.model, case.layout, case.features, case.labels, **arguments)
    without = clipped_sum(clean.model, clean.layout, clean.features[kept], clean.labels[kept], **arguments)
    np.testing.assert_allclose(with_bad.sum_K, without.sum_K, rtol=1e-12, atol=1e-15)


def batch_mean(model: nn.Module, features: Tensor, labels: Tensor, tape: Tape) -> Tensor:
    """Each loss over the size of the batch, as mean reduction does before clipping."""
    return binary_loss(model, features, labels, tape) / len(features)


def batch_centred(model: nn.Module, features: Tensor, labels: Tensor, tape: Tape) -> Tensor:
    """Logits minus their batch mean, as a batch norm before the head does."""
    logits = model(features, tape)
    centred = logits - logits.detach().mean()
    return nn.functional.binary_cross_entropy_with_logits(centred, labels, reduction="none")


def batch_balanced(model: nn.Module, features: Tensor, labels: Tensor, tape: Tape) -> Tensor:
    """A penalty on a statistic of the whole batch, as a load-balance loss over the batch is."""
    logits = model(features, tape)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return losses + logits.mean().square()


def test_negative_control_a_batch_mean_breaks_the_bound(small: Callable[..., Any]) -> None:
    case = aligned(small)
    clip_norm = gradient_norm(case) / (len(case.features) - 1)  # what each sample of the smaller batch has
    assert largest_change(case, clip_norm) <= 1 + 1e-9
    assert largest_change(case, clip_norm, loss=batch_mean) > 1.5


@pytest.mark.parametrize("coupled", [batch_centred, batch_balanced])
def test_negative_control_a_batch_statistic_breaks_the_bound(
    small: Callable[..., Any], coupled: SampleLoss
) -> None:
    case = apart(small)
    clip_norm = 2 * gradient_norm(case)
    assert largest_change(case, clip_norm) <= 1 + 1e-9
    assert largest_change(case, clip_norm, loss=coupled) > 1.5
