"""The simulated study: the same bits as a whole consortium where nothing is left to chance, and the study's noise where it is."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hansa.demo.engine import entries_of, noise_multiplier_of, simulate, simulate_without_privacy
from hansa.models.pretraining import Base
from hansa.participant.policy import Policy
from hansa.privacy.discrete_gaussian import DiscreteGaussian
from hansa.privacy.noise import SecretRandom
from hansa.study import Study

Bases = Callable[..., Base]
LOCAL: dict[str, Any] = {}
DISTRIBUTED = {"mode": "distributed", "noise_contributors": 3, "colluders": 1}


def whole(study: Study, **privacy: Any) -> Study:
    """Every record in every step, and every entry in every round: nothing depends on keys then."""
    bits = 20 if privacy else 8
    changes = {
        "privacy": study.privacy.model_copy(update={"sample_rate": 1.0, **privacy}),
        "compression": study.compression.model_copy(update={"kept_share": 1.0, "bits": bits}),
    }
    return study.model_copy(update=changes)


@pytest.mark.parametrize("privacy", [LOCAL, DISTRIBUTED], ids=["local", "distributed"])
def test_without_chance_it_ends_at_the_consortiums_state_to_the_last_bit(
    tiny: ModuleType,
    houses: Callable[..., Any],
    tiny_study: Study,
    tiny_bases: Bases,
    monkeypatch: pytest.MonkeyPatch,
    privacy: dict[str, Any],
) -> None:
    monkeypatch.setattr(SecretRandom, "normal", lambda _, count: np.full(count, 0.125))
    monkeypatch.setattr(SecretRandom, "uniform", lambda _, count: np.full(count, 0.5))
    monkeypatch.setattr(DiscreteGaussian, "draw", lambda _, count, _random: np.full(count, 3, dtype=np.int64))
    study = whole(tiny_study, **privacy)
    base = tiny_bases(study)
    policy = Policy(
        studies=frozenset({study.id}),
        epsilon_limit=study.privacy.epsilon,
        noise_contributors_least=3 if privacy else None,
    )
    house = houses(study, base, policies=dict.fromkeys(tiny.NAMES, policy))
    house.run()
    (name, node), *_ = house.nodes.items()
    assert node.state.round == study.training.rounds
    parties = [house._rows[member] for member in house.names]
    state = simulate(study, base, parties)
    np.testing.assert_array_equal(state.values, node.state.values)
    np.testing.assert_array_equal(state.second, node.state.second)
    assert not np.array_equal(state.values, base.layout.gather(base.model())), name


@pytest.mark.parametrize("privacy", [LOCAL, DISTRIBUTED], ids=["local", "distributed"])
def test_the_noise_of_a_round_is_the_studys(
    tiny_study: Study, tiny_base: Base, tiny_tables: dict[str, Any], privacy: dict[str, Any]
) -> None:
    """Against a run without privacy of the same records: what is between the two is noise, rounding and clipping."""
    study = whole(tiny_study, **privacy).with_changes(rounds=1)
    far = study.privacy.model_copy(update={"clip_norm": 50.0})  # nothing is clipped
    study = study.model_copy(update={"privacy": far})
    parties = [tiny_tables[name].rows for name in ("bank-1", "bank-2", "bank-3", "bank-4")]
    firsts = []
    for run in (simulate, simulate_without_privacy):
        state = run(study, tiny_base, parties)
        firsts.append(state.first / (1.0 - state.decay_first))
    noise = firsts[0] - firsts[1]
    shares = np.sqrt(4.0) if not privacy else np.sqrt(4.0 / (3 - 1))
    expected = noise_multiplier_of(study) * 50.0 * shares / (4 * 80)
    assert len(noise) == tiny_base.layout.size
    # 5 deviations of an estimated deviation; rounding to a grid adds some per cent in distributed mode
    assert np.std(noise) == pytest.approx(
        expected, rel=5 / np.sqrt(2 * len(noise)) + (0.05 if privacy else 0.0)
    )


def test_the_support_has_the_studys_entries_and_every_round_is_seen(
    tiny_study: Study, tiny_base: Base, tiny_tables: dict[str, Any]
) -> None:
    parties = [tiny_tables[name].rows for name in ("bank-1", "bank-2", "bank-3", "bank-4")]
    moved: list[int] = []
    state = simulate(
        tiny_study, tiny_base, parties, after_round=lambda s: moved.append(int((s.decay_first < 1).sum()))
    )
    assert moved[0] == entries_of(tiny_study, tiny_base.layout.size)
    assert len(moved) == state.round == tiny_study.training.rounds
