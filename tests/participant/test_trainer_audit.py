"""The canary audit through the participant's own trainer, and its noise on every tensor."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from hansa.errors import AuditFailed
from hansa.models.config import ModelConfig
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.participant import trainer as module
from hansa.participant.trainer import Rows, Trainer, summed_gradient
from hansa.participant.trainer_canaries import trainer_step
from hansa.privacy.accounting import Mechanism
from hansa.privacy.canary import audit_canaries
from hansa.privacy.noise import SecretRandom
from hansa.study import Study

Makes = Callable[..., Study]
SEED = bytes(range(32))
FAR_TOO_UNLIKELY = 1e-9


@pytest.mark.parametrize("mechanism", [Mechanism(1.0, 1.0, 1), Mechanism(2.0, 0.5, 4)], ids=str)
def test_the_trainer_passes_the_canary_audit(study_with: Makes, mechanism: Mechanism) -> None:
    found = audit_canaries(
        mechanism, delta=1e-5, canaries=5000, step=trainer_step(study_with()), random=SecretRandom(SEED)
    )
    assert 0.3 * found.claimed < found.shown.epsilon < found.claimed


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gaussian_noise", lambda real: lambda *a, **k: real(*a, **k) / math.sqrt(2)),
        ("clipped_sum", lambda real: lambda *a, **k: real(*a, **k | {"clip_norm": None})),
        ("clipped_sum", lambda real: lambda *a, **k: real(*a, **k | {"clip_norm": 2 * k["clip_norm"]})),
    ],
)
def test_a_mutated_trainer_is_caught(
    study_with: Makes, name: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    with pytest.raises(AuditFailed):
        audit_canaries(
            Mechanism(1.0, 1.0, 1),
            delta=1e-5,
            canaries=5000,
            step=trainer_step(study_with()),
            random=SecretRandom(SEED),
        )


def test_a_trainer_that_samples_at_another_rate_is_caught(
    study_with: Makes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.poisson_sample
    monkeypatch.setattr(module, "poisson_sample", lambda n, rate, random: real(n, 4 * rate, random))
    with pytest.raises(AuditFailed, match=r"sample rate 0\.1 "):
        audit_canaries(
            Mechanism(2.0, 0.1, 20),
            delta=1e-5,
            canaries=5000,
            step=trainer_step(study_with()),
            random=SecretRandom(SEED),
        )


def test_a_trainer_that_clips_tokens_is_caught(study_with: Makes, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.clipped_sum

    def by_tokens(model: Any, layout: Any, features: Any, labels: Any, **rest: Any) -> Any:
        samples, tokens, width = features.shape
        each = features.reshape(samples * tokens, 1, width)
        return real(model, layout, each, labels.repeat_interleave(tokens), **rest)

    monkeypatch.setattr(module, "clipped_sum", by_tokens)
    with pytest.raises(AuditFailed):
        audit_canaries(
            Mechanism(1.0, 1.0, 1),
            delta=1e-5,
            canaries=5000,
            step=trainer_step(study_with()),
            random=SecretRandom(SEED),
        )


def test_a_trainer_that_clips_records_where_the_unit_is_a_person_is_caught(
    study_with: Makes, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_with(
        data={"person": "who"}, privacy={"unit": "person", "records_per_person": 3, "sample_rate": 1.0}
    )

    def audited() -> None:
        audit_canaries(
            Mechanism(1.0, 1.0, 1),
            delta=1e-5,
            canaries=5000,
            step=trainer_step(study),
            random=SecretRandom(SEED),
        )

    audited()
    real = module.clipped_sum
    monkeypatch.setattr(module, "clipped_sum", lambda *a, **k: real(*a, **k | {"unit_B": None}))
    with pytest.raises(AuditFailed):
        audited()


# -- noise on every tensor -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise_by_tensor(study_with: Makes) -> dict[str, NDArray[np.float64]]:
    """Noise of many steps at sigma 1 and clip norm 0.5, by tensor; experts apart into those that a record reached and others."""
    study = study_with(privacy={"sample_rate": 1.0})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FeatureTransformer(ModelConfig.of_study(study), torch.ones(3, 4, dtype=torch.bool)).eval()
    layout = TrainableLayout(model, ["embedding", "class_token", "head"])
    values = np.random.default_rng(0).normal(size=layout.size) * 0.4
    draws = torch.Generator().manual_seed(1)
    rows = Rows(features=torch.randn(1, 3, 4, generator=draws), labels=torch.ones(1))
    everything = np.arange(layout.size)
    trainer = Trainer(study, model, layout, rows, noise_multiplier=1.0, random=SecretRandom(SEED))
    layout.load(model, values)
    clean = summed_gradient(
        model, layout, rows, np.zeros(1, dtype=np.int64), support=everything, clip_norm=0.5
    )
    steps = max(1, 2000 // min(slot.stop - slot.start for slot in layout.slots))
    noise = np.stack([trainer.update(values, everything) * 40 - clean for _ in range(min(steps, 400))])
    found = {slot.name: noise[:, slot.start : slot.stop].ravel() for slot in layout.slots}
    for slot in layout.slots:
        if slot.name.endswith(("gate_up_B", "down_B")):
            experts = clean[slot.start : slot.stop].reshape(slot.shape[0], -1)
            unhit = np.repeat(~experts.any(axis=1), experts.shape[1])
            assert 0 < unhit.sum() < unhit.size  # one record reaches some experts and not others
            found[f"{slot.name}, experts that no token reached"] = noise[:, slot.start : slot.stop][
                :, unhit
            ].ravel()
    return found


def test_noise_is_normal_on_every_tensor_and_on_experts_that_no_token_reached(
    noise_by_tensor: dict[str, NDArray[np.float64]],
) -> None:
    assert sum("no token" in name for name in noise_by_tensor) == 4
    for name, noise in noise_by_tensor.items():
        assert len(noise) >= 2000, name
        assert stats.kstest(noise, "norm", args=(0.0, 0.5)).pvalue > 1e-3, name
        for wrong in (2 / 3, 3 / 2):
            assert stats.kstest(noise, "norm", args=(0.0, 0.5 * wrong)).pvalue < FAR_TOO_UNLIKELY, name


def test_noise_of_any_two_tensors_is_independent(noise_by_tensor: dict[str, NDArray[np.float64]]) -> None:
    names = [name for name in noise_by_tensor if "no token" not in name]
    for one, other in itertools.pairwise(names):
        length = min(len(noise_by_tensor[one]), len(noise_by_tensor[other]))
        correlation = np.corrcoef(noise_by_tensor[one][:length], noise_by_tensor[other][:length])[0, 1]
        assert abs(correlation) < 5 / math.sqrt(length), (one, other)
