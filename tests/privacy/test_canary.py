"""The audit passes the code that trains, and no mutation of it."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hansa.errors import AuditFailed
from hansa.privacy import canary, per_sample, sampling
from hansa.privacy.accounting import Mechanism, epsilon_of
from hansa.privacy.canary import CanaryAudit, audit_canaries, audit_mechanism
from hansa.privacy.noise import SecretRandom
from hansa.privacy.per_sample import clipped_sum

DELTA = 1e-5
SETTINGS = [
    (1.544, 0.2),
    (0.6, 0.24),
]  # noise multiplier and sample rate; four times the rate is still a rate


def seeded(number: int = 0) -> SecretRandom:
    return SecretRandom(bytes([number]) * 32)


def audit(sigma: float, rate: float, seed: int = 0) -> tuple[CanaryAudit, CanaryAudit]:
    return audit_mechanism(noise_multiplier=sigma, sample_rate=rate, delta=DELTA, random=seeded(seed))


@pytest.mark.parametrize(("sigma", "rate"), [*SETTINGS, (1.0, 1.0)])
def test_the_code_that_trains_passes_and_the_bound_is_not_idle(sigma: float, rate: float) -> None:
    started = time.process_time()
    noise, sampled = audit(sigma, rate)
    assert time.process_time() - started < 15
    for found in (noise, sampled):
        assert found.claimed == epsilon_of(
            noise_multiplier=found.mechanism.noise_multiplier,
            sample_rate=found.mechanism.sample_rate,
            steps=found.mechanism.steps,
            delta=DELTA,
        )
        assert 0.3 * found.claimed < found.shown.epsilon < found.claimed
        assert 0 < found.shown.epsilon_free < found.shown.epsilon
    assert noise.shown.epsilon > 0.75 * noise.claimed
    assert (noise.mechanism.sample_rate, sampled.mechanism.sample_rate) == (1.0, rate)


# -- mutations: each in the code that the audit runs, not in the audit -----------------------------------


def noise_over_sqrt_2(patch: pytest.MonkeyPatch) -> None:
    normal = SecretRandom.normal
    patch.setattr(SecretRandom, "normal", lambda self, count: normal(self, count) / math.sqrt(2))


def no_clipping(patch: pytest.MonkeyPatch) -> None:
    weighted = per_sample._weighted_sum
    patch.setattr(per_sample, "_weighted_sum", lambda t, l, w: weighted(t, l, torch.ones_like(w)))  # noqa: E741


def four_times_the_rate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sampling, "_WORD", 4 * sampling._WORD)


def clipping_by_tokens(patch: pytest.MonkeyPatch) -> None:
    def by_tokens(model: Any, layout: Any, features: Any, labels: Any, **rest: Any) -> Any:
        samples, tokens, width = features.shape
        return clipped_sum(
            model,
            layout,
            features.reshape(samples * tokens, 1, width),
            labels.repeat_interleave(tokens),
            **rest,
        )

    patch.setattr(canary, "clipped_sum", by_tokens)


MUTATIONS = [noise_over_sqrt_2, no_clipping, four_times_the_rate, clipping_by_tokens]


@pytest.mark.parametrize(("sigma", "rate"), SETTINGS)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_is_caught(
    mutation: Callable[[pytest.MonkeyPatch], None], sigma: float, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation(monkeypatch)
    with pytest.raises(
        AuditFailed, match=r"canaries show epsilon \d+\.\d+ or more .* above the claimed"
    ) as caught:
        audit(sigma, rate)
    assert (caught.value.code, caught.value.exit_status) == ("audit_failed", 1)
    by_sampling = "sample rate 1 " not in caught.value.message
    assert by_sampling == (mutation is four_times_the_rate)


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "rate"), [(16.0, 0.01), (7.642, 0.05)])
@pytest.mark.parametrize("mutation", [None, *MUTATIONS])
def test_the_corners_that_the_docstring_names(
    mutation: Callable[[pytest.MonkeyPatch], None] | None,
    sigma: float,
    rate: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if mutation is None:
        audit(sigma, rate)
        return
    mutation(monkeypatch)
    with pytest.raises(AuditFailed):
        audit(sigma, rate)


def test_no_false_alarm_in_many_audits() -> None:
    for seed in range(25):
        audit_canaries(Mechanism(1.0, 1.0, 1), delta=DELTA, canaries=2000, random=seeded(seed))
        audit_canaries(Mechanism(1.0, 0.5, 2), delta=DELTA, canaries=1000, random=seeded(seed))


def test_without_noise_everything_shows() -> None:
    with pytest.raises(AuditFailed, match=r"show epsilon \d+\.\d+ or more in 1 steps .* the claimed 4\.377"):
        audit_canaries(
            Mechanism(1.0, 1.0, 1),
            delta=DELTA,
            canaries=1000,
            step=lambda planted, _, clip_norm, __: np.where(planted.inside, clip_norm, 0.0),
            random=seeded(),
        )


def test_a_canary_has_a_gradient_of_its_own_longer_than_the_clip_norm() -> None:
    planted = canary._plant(20, 0.5, seeded())
    assert 0 < planted.inside.sum() == len(planted.labels) < 20
    for record, entry in enumerate(np.flatnonzero(planted.inside)):
        one = slice(record, record + 1)
        free, clipped = (
            clipped_sum(
                planted.model,
                planted.layout,
                planted.features[one],
                planted.labels[one],
                support_K=None,
                clip_norm=bound,
            ).sum_K
            for bound in (None, 0.5)
        )
        assert np.flatnonzero(free).tolist() == [entry]
        assert free[entry] == pytest.approx(40 * 0.5)
        assert clipped[entry] == pytest.approx(0.5, rel=1e-5)


def test_two_audits_without_a_seed_use_their_own_randomness() -> None:
    one, other = (audit_canaries(Mechanism(1.0, 1.0, 1), delta=DELTA, canaries=400) for _ in range(2))
    assert one.shown != other.shown


def test_too_few_canaries_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 100 canaries, got 99"):
        audit_canaries(Mechanism(1.0, 1.0, 1), delta=DELTA, canaries=99)
