"""The participant's own rules: each refusal by its name, and nothing refused that the rules allow."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from hansa.errors import BudgetExhausted, CohortBelowPolicy, LayerMissing, PolicyRefusal, UnknownStudy
from hansa.participant.policy import REQUIRED_LAYERS, Policy
from hansa.study import Study

Makes = Callable[..., Study]


def agreed(study: Study) -> Policy:
    return Policy(studies=frozenset({study.id}), epsilon_limit=8.0)


def test_an_agreed_study_within_the_rules_is_allowed(study_with: Makes) -> None:
    study = study_with()
    agreed(study).verify_study(study)
    replace(agreed(study), delta_limit=study.privacy.delta, smallest_cohort=3).verify_study(study)


@pytest.mark.parametrize(
    "change",
    [
        {"privacy": {"epsilon": 8.0, "clip_norm": 0.5000001}},
        {"training": {"rounds": 5}},
        {"aggregation": {"participants": 4}},
        {"model": {"layers": 1}},
    ],
    ids=str,
)
def test_a_study_that_was_not_agreed_to_is_refused(study_with: Makes, change: dict) -> None:
    study = study_with()
    other = study_with(**change)
    with pytest.raises(UnknownStudy, match=f"study {other.id[:16]} was not agreed to"):
        agreed(study).verify_study(other)
    with pytest.raises(UnknownStudy):
        Policy(studies=frozenset(), epsilon_limit=8.0).verify_study(study)


@pytest.mark.parametrize(
    "off",
    [*([layer] for layer in sorted(REQUIRED_LAYERS)), ["homomorphic_encryption", "secure_aggregation_masks"]],
    ids=str,
)
def test_a_study_without_a_required_layer_is_refused(
    study_with: Makes, off: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_with()
    layers = {**study.protections(), **dict.fromkeys(off, False)}
    monkeypatch.setattr(Study, "protections", lambda self: layers)
    with pytest.raises(LayerMissing, match=f"the study switches off {', '.join(off)}, which"):
        agreed(study).verify_study(study)
    # a participant may require less, by its own decision
    replace(agreed(study), required_layers=REQUIRED_LAYERS - set(off)).verify_study(study)


@pytest.mark.parametrize("layer", ["evaluation_under_protection", "a_layer_of_the_future"])
def test_a_required_layer_that_is_not_built_is_refused(study_with: Makes, layer: str) -> None:
    study = study_with()
    with pytest.raises(LayerMissing, match=layer):
        replace(agreed(study), required_layers=REQUIRED_LAYERS | {layer}).verify_study(study)


@pytest.mark.parametrize("limit", [0.99e-5, 0.0, float("nan")])
def test_a_delta_above_the_limit_is_refused(study_with: Makes, limit: float) -> None:
    study = study_with()
    with pytest.raises(BudgetExhausted, match="delta 1e-05 of the study is above the limit"):
        replace(agreed(study), delta_limit=limit).verify_study(study)


def test_a_cohort_that_is_too_small_is_refused(study_with: Makes) -> None:
    study = study_with(aggregation={"participants": 4})
    with pytest.raises(CohortBelowPolicy, match="a cohort of 4 is below this participant's least, 5"):
        replace(agreed(study), smallest_cohort=5).verify_study(study)
    replace(agreed(study), smallest_cohort=4).verify_study(study)


def test_by_default_every_layer_that_is_built_and_three_participants_are_required() -> None:
    policy = Policy(studies=frozenset(), epsilon_limit=1.0)
    assert policy.required_layers == {
        "differential_privacy",
        "secure_aggregation_masks",
        "homomorphic_encryption",
        "signatures",
    }
    assert (policy.smallest_cohort, policy.delta_limit) == (3, 1e-5)


def test_a_refusal_by_policy_has_a_stable_code_and_its_own_exit_status() -> None:
    for refusal, code in (
        (UnknownStudy, "unknown_study"),
        (LayerMissing, "layer_missing"),
        (BudgetExhausted, "budget_exhausted"),
    ):
        assert issubclass(refusal, PolicyRefusal)
        assert (refusal.code, refusal.exit_status) == (code, 3)
