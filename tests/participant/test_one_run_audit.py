"""The one-run audit: the study's own training, holding for it, catching one that protects nothing, with no secret but its own."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hansa.errors import AuditFailed
from hansa.models.features import FeatureEncoder
from hansa.models.pretraining import Base
from hansa.participant import one_run_audit
from hansa.participant import trainer as trainer_module
from hansa.participant.one_run_audit import audit_one_run, verify_one_run
from hansa.participant.synthetic_table import canary_rows, synthetic_base
from hansa.privacy.accounting import epsilon_of
from hansa.privacy.noise import SecretRandom
from hansa.study import Study

Makes = Callable[..., Study]
SEED = bytes(range(32))
COLUMNS = [{"name": f"n{i}", "kind": "numeric", "minimum": -1, "maximum": 3} for i in range(9)]


@pytest.fixture(scope="session")
def study(study_with: Makes) -> Study:
    return study_with(
        data={"columns": [*COLUMNS, {"name": "c", "kind": "categorical", "values": [4, 7]}]},
        training={"rounds": 40, "server_optimizer": {"learning_rate": 0.05}},
        compression={"kept_share": 1.0},
    )


@pytest.fixture(scope="session")
def foundation(study: Study) -> tuple[FeatureEncoder, Base]:
    return synthetic_base(study, pretraining_steps=5)


def run(study: Study, foundation: Any, sigma: float = 2.0, **changes: Any) -> one_run_audit.OneRunAudit:
    usual = {"canaries": 200, "foundation": foundation, "random": SecretRandom(SEED)}
    return audit_one_run(study, noise_multiplier=sigma, **(usual | changes))


def test_the_studys_training_holds(study: Study, foundation: Any) -> None:
    found = run(study, foundation)
    assert (found.rounds, found.mechanism) == (40, (2.0, 0.5, 40))
    assert found.claimed == epsilon_of(noise_multiplier=2.0, sample_rate=0.5, steps=40, delta=1e-5)
    assert found.shown.canaries == 200
    assert 0.0 <= found.shown.epsilon < found.claimed
    assert found.passed
    verify_one_run(found)


@pytest.mark.slow
def test_no_false_alarm_in_ten_runs_with_little_noise(study: Study, foundation: Any) -> None:
    for seed in range(10):
        verify_one_run(run(study, foundation, sigma=8.0, random=SecretRandom(bytes([seed]) * 32)))


@pytest.mark.slow
def test_a_trainer_that_neither_clips_nor_adds_noise_and_claims_a_small_epsilon_is_caught(
    study: Study, foundation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, clipped = trainer_module.gaussian_noise, trainer_module.clipped_sum
    monkeypatch.setattr(trainer_module, "gaussian_noise", lambda *a, **k: 1e-9 * real(*a, **k))
    monkeypatch.setattr(trainer_module, "clipped_sum", lambda *a, **k: clipped(*a, **k | {"clip_norm": None}))
    fine = study.model_copy(update={"compression": study.compression.model_copy(update={"bits": 20})})
    caught = 0
    for seed in range(1, 7):  # a single run is a matter of luck: four of these six catch it
        random = SecretRandom(bytes([seed]) * 32)
        found = run(fine.with_changes(rounds=100), foundation, sigma=90.0, canaries=300, random=random)
        assert found.claimed < 0.2 < found.shown.epsilon_most
        if found.passed:
            continue
        caught += 1
        with pytest.raises(
            AuditFailed, match=r"one training shows epsilon \d+\.\d+ or more \(\d+ of \d+ guesses right\)"
        ):
            verify_one_run(found)
    assert caught >= 3  # one of an honest trainer's runs may fail by chance, in 20; three of six do in 400


def test_equal_randomness_gives_equal_results_and_the_systems_differs(
    study: Study, foundation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    real = one_run_audit.one_run_bound

    def keeping(scores: Any, inside: Any, **rest: Any) -> Any:
        seen.append(np.concatenate([scores, inside]))
        return real(scores, inside, **rest)

    monkeypatch.setattr(one_run_audit, "one_run_bound", keeping)
    few = study.with_changes(rounds=2)
    assert run(few, foundation) == run(few, foundation)
    assert np.array_equal(seen[0], seen[1])
    run(few, foundation, random=None)
    run(few, foundation, random=None)
    assert not np.array_equal(seen[2][200:], seen[3][200:])


def test_canaries_lie_at_the_ends_of_the_public_ranges(study: Study, foundation: Any) -> None:
    encoder, _ = foundation
    ends = [{"numeric": np.full((1, 9), end), "categorical": np.zeros((1, 1), int)} for end in (-1.0, 3.0)]
    wanted = torch.cat([encoder.encode(**one) for one in ends])
    rows = canary_rows(study.data, encoder, 300, SecretRandom(SEED).uniform)
    for token in range(9):
        values = rows.features[:, token]
        distances = torch.cdist(values, wanted[:, token])
        assert distances.min(dim=1).values.max() < 1e-6
        assert 100 < int(distances.argmin(dim=1).sum()) < 200
    assert 100 < int(rows.labels.sum()) < 200
    assert len({tuple(row.flatten().tolist()) for row in rows.features}) > 200


def test_it_stops_after_its_time_and_claims_what_was_run(study: Study, foundation: Any) -> None:
    told: list[tuple[int, int]] = []
    found = run(study, foundation, seconds_most=0.0, progress=lambda *done: told.append(done))
    assert (found.rounds, found.mechanism.steps, told) == (1, 1, [(1, 40)])
    assert found.claimed == epsilon_of(noise_multiplier=2.0, sample_rate=0.5, steps=1, delta=1e-5)


def test_other_records_join_whatever_the_coins_say(
    study: Study, foundation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Counting(one_run_audit.Trainer):
        def __init__(self, study: Any, model: Any, layout: Any, rows: Any, **rest: Any) -> None:
            sizes.append(len(rows.labels))
            super().__init__(study, model, layout, rows, **rest)

    monkeypatch.setattr(one_run_audit, "Trainer", Counting)
    others = canary_rows(study.data, foundation[0], 70, SecretRandom().uniform)
    few = study.with_changes(rounds=1)
    run(few, foundation)
    run(few, foundation, others=others)
    assert sizes[1] == sizes[0] + 70


def test_canaries_are_at_least_a_hundred_and_no_more_than_delta_bears(
    study_with: Makes, study: Study, foundation: Any
) -> None:
    with pytest.raises(ValueError, match="at least 100 canaries, got 99"):
        run(study, foundation, canaries=99)
    loose = study.model_copy(update={"privacy": study.privacy.model_copy(update={"delta": 1e-3})})
    found = run(loose, foundation, canaries=900, seconds_most=0.0)
    assert found.shown.canaries == 500
    assert math.isfinite(found.shown.epsilon_most)


def test_the_base_depends_on_the_study_alone(study: Study) -> None:
    (encoder, one), (_, other) = (synthetic_base(study, pretraining_steps=2) for _ in range(2))
    for name, tensor in one.weights.items():
        assert torch.equal(tensor, other.weights[name])
    assert len(encoder.columns) == 10
