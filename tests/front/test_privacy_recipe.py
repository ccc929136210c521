"""The recipe: settings from public numbers alone, with a noise that meets the target and no more."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from hansa.errors import CohortTooSmall, InvalidValue, PrivacyTargetUnreachable
from hansa.models.features import encoder_of_public_sample
from hansa.models.pretraining import PretrainingConfig, make_base
from hansa.participant.dataset import read_table
from hansa.privacy.accounting import epsilon_of
from hansa.privacy.distributed import plan_noise
from hansa.privacy_recipe import (
    NOISE_GROWTH_MOST,
    RATIO_TRAINED,
    RESULT_SHARE_LEAST,
    ROUNDS,
    SAMPLE_RATE_LEAST,
    SAMPLE_RATE_MOST,
    PrivacyRecipe,
    recipe_for,
    recipe_of,
    trained_entries_of,
)
from hansa.secure_agg.codec import kept_entries
from hansa.secure_agg.parameters import layout_for
from hansa.study import load_study

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "bank"
EPSILONS = (0.5, 1.0, 3.0, 8.0)


def bank(**changes: Any) -> PrivacyRecipe:
    usual = {
        "epsilon": 8.0,
        "delta": 1e-5,
        "participants": 15,
        "nominal_records": 1400,
        "trained_entries": 55_265,
    }
    return recipe_for(**(usual | changes))


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("participants", [3, 15])
def test_the_noise_meets_the_target_and_a_thousandth_less_would_not(
    epsilon: float, participants: int
) -> None:
    found = bank(epsilon=epsilon, participants=participants)
    spends = [
        epsilon_of(
            noise_multiplier=round(found.noise_multiplier - less, 3),
            sample_rate=found.sample_rate,
            steps=found.rounds,
            delta=1e-5,
        )
        for less in (0.0, 0.001)
    ]
    assert spends[0] == found.epsilon_spent <= epsilon < spends[1]


def test_steps_are_bounded_whatever_is_asked() -> None:
    for epsilon, participants in itertools.product(EPSILONS, (3, 15, 100)):
        found = bank(epsilon=epsilon, participants=participants)
        assert found.rounds == ROUNDS
        assert found.sections()["training"]["local_steps"] == 1
        assert SAMPLE_RATE_LEAST <= found.sample_rate <= SAMPLE_RATE_MOST


def test_noise_over_signal_falls_with_epsilon_participants_and_records() -> None:
    for values, key in (
        (EPSILONS, "epsilon"),
        ((3, 15, 100), "participants"),
        ((300, 1400, 9000), "nominal_records"),
    ):
        ratios = [bank(**{key: value}).noise_ratio for value in values]
        assert ratios == sorted(ratios, reverse=True)
        assert len(set(ratios)) == len(ratios)


def test_the_noise_multiplier_does_not_grow_with_epsilon_at_equal_sample_rate() -> None:
    found = [bank(epsilon=epsilon) for epsilon in (0.5, 0.6, 1.0, 1.2, 3.0, 5.0, 8.0)]
    for rate in {one.sample_rate for one in found}:
        sigmas = [one.noise_multiplier for one in found if one.sample_rate == rate]
        assert sigmas == sorted(sigmas, reverse=True)


def test_fewer_records_a_step_only_where_that_costs_little_noise() -> None:
    rates = [bank(epsilon=epsilon).sample_rate for epsilon in EPSILONS]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1] == SAMPLE_RATE_MOST
    most = epsilon_of(
        noise_multiplier=bank(epsilon=1.0).noise_multiplier * 2 / NOISE_GROWTH_MOST,
        sample_rate=2 * bank(epsilon=1.0).sample_rate,
        steps=ROUNDS,
        delta=1e-5,
    )
    assert most > 1.0  # at the double rate, noise less by a tenth over q would already pass the limit


def test_less_is_kept_of_the_way_from_a_base_that_can_lose_something() -> None:
    assert {bank(epsilon=epsilon).result_share for epsilon in EPSILONS} == {1.0}
    found = [bank(epsilon=epsilon, participants=3, trained_base=True) for epsilon in EPSILONS]
    shares = [one.result_share for one in found]
    assert shares == sorted(shares)  # the more noise, the nearer to the base
    assert shares[0] == RESULT_SHARE_LEAST
    assert len(set(shares)) > 2
    assert [one.result_share == 1.0 for one in found] == [one.noise_ratio <= RATIO_TRAINED for one in found]
    assert shares[-1] == 1.0


def test_equal_numbers_give_equal_settings() -> None:
    assert bank() == bank()
    assert bank().toml() == bank().toml()


def test_distributed_noise_is_on_a_finer_grid_for_the_same_bytes_and_weaker() -> None:
    local, shared = bank(), bank(mode="distributed", colluders=1)
    assert (shared.noise_contributors, shared.colluders, local.noise_contributors) == (11, 1, None)
    assert layout_for(15, shared.bits).lanes == layout_for(15, 16).lanes
    assert shared.bits == 20 or layout_for(15, shared.bits + 1).lanes < layout_for(15, shared.bits).lanes
    assert shared.noise_ratio < local.noise_ratio / 2.5
    assert bank(mode="distributed", colluders=1, participants=3).noise_contributors == 3


def test_the_ratio_is_that_of_the_noise_that_the_study_plans() -> None:
    study = load_study(EXAMPLE / "study.toml")
    found = recipe_for(
        epsilon=3.0, delta=1e-5, participants=15, nominal_records=1400, trained_entries=55_265,
        mode="distributed", colluders=1,
    )  # fmt: skip
    kept = kept_entries(55_265, 0.29, layout_for(15, found.bits))
    plan = plan_noise(found.applied_to(study), kept)
    # n shares of the noise over n divisors, on K entries, in clip norms
    planned = (15 * plan.noise.variance * kept) ** 0.5 / (plan.noise.clip_levels * 15 * plan.divisor)
    assert found.noise_ratio == pytest.approx(planned, rel=0.01)


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_a_study_takes_the_settings_and_keeps_the_rest(mode: str) -> None:
    study = load_study(EXAMPLE / "study.toml")
    found = bank(epsilon=3.0, mode=mode, colluders=1 if mode == "distributed" else None)
    changed = found.applied_to(study)
    assert changed.privacy.epsilon == 3.0
    assert changed.privacy.mode == mode
    assert changed.compression.bits == found.bits
    assert changed.compression.always == study.compression.always
    assert (changed.data, changed.model, changed.aggregation) == (study.data, study.model, study.aggregation)
    assert found.applied_to(changed) == changed


def test_it_counts_the_entries_that_a_study_trains() -> None:
    study = load_study(EXAMPLE / "study.toml")
    counted = trained_entries_of(study)
    table = read_table(EXAMPLE / "data" / "credit_default.parquet", study.data)
    encoder = encoder_of_public_sample(study.data, table.numeric[:1000], table.categorical.shape[1], 6)
    tokens = encoder.encode(table.numeric[:8], table.categorical[:8])
    pretraining = PretrainingConfig(steps=1, batch_size=4)
    size = make_base(study, tokens, encoder.used(), seed=0, pretraining=pretraining).layout.size
    assert size <= counted < 1.05 * size  # quantiles of a real column may coincide


def test_a_study_says_everything_but_another_epsilon() -> None:
    study = load_study(EXAMPLE / "study.toml")
    assert recipe_of(study) == bank(trained_entries=trained_entries_of(study))
    assert recipe_of(study, epsilon=3.0).epsilon == 3.0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"epsilon": 0.0}, InvalidValue),
        ({"epsilon": float("nan")}, InvalidValue),
        ({"epsilon": 101.0}, InvalidValue),
        ({"delta": 0.0}, InvalidValue),
        ({"delta": 1e-3}, InvalidValue),  # not below 1 / 1400
        ({"nominal_records": 2}, InvalidValue),
        ({"trained_entries": 0}, InvalidValue),
        ({"mode": "shared"}, InvalidValue),
        ({"mode": "distributed"}, InvalidValue),
        ({"colluders": 1}, InvalidValue),
        ({"mode": "distributed", "colluders": -1}, InvalidValue),
        ({"mode": "distributed", "colluders": 10}, InvalidValue),
        ({"participants": 2}, CohortTooSmall),
        ({"epsilon": 1e-4}, PrivacyTargetUnreachable),
    ],
)
def test_numbers_out_of_bounds_are_refused(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        bank(**changes)
