"""Limits for ever, per study and per month, the lists of models and submitters, and the number of rounds."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hansa.errors import BudgetExhausted, ModelNotAllowed, PolicyRefusal, SubmitterNotAllowed, TooManyRounds
from hansa.participant.policy import REQUIRED_LAYERS, Policy
from hansa.privacy.accounting import Mechanism, epsilon_of_all
from hansa.privacy.spending import month_of
from hansa.study import Study

Makes = Callable[..., Study]
DELTA = 1e-5
ROUND = Mechanism(2.0, 0.1, 1)
NOVEMBER, DECEMBER = "2026-11", "2026-12"


class Fake:
    """A ledger in memory: (study, month, mechanism)."""

    def __init__(self, *entries: tuple[str, str, Mechanism]) -> None:
        self.entries = list(entries)

    def __call__(self, *, study: str | None = None, month: str | None = None) -> list[Mechanism]:
        return [one for of, at, one in self.entries if study in (None, of) and month in (None, at)]


def policy(**limits: Any) -> Policy:
    return Policy(studies=frozenset({"a", "b"}), **{"epsilon_limit": 100.0} | limits)


def allowed(rules: Policy, fake: Fake, study: str = "a", month: str = NOVEMBER) -> bool:
    before = list(fake.entries)
    try:
        rules.verify_round(study, ROUND, delta=DELTA, spent=fake, month=month)
    except BudgetExhausted:
        return False
    finally:
        assert fake.entries == before  # looking spends nothing, refused or not
    return True


def after(*mechanisms: Mechanism) -> float:
    return epsilon_of_all(mechanisms, DELTA)


def test_a_limit_is_met_exactly_and_never_passed() -> None:
    fake = Fake(*[("a", NOVEMBER, ROUND)] * 9)
    exact = after(*[ROUND] * 10)
    for name in ("epsilon_limit", "epsilon_per_study", "epsilon_per_month"):
        assert allowed(policy(**{name: exact}), fake)
        assert not allowed(policy(**{name: math.nextafter(exact, 0.0)}), fake)


def test_each_limit_counts_its_own_part() -> None:
    other = Mechanism(1.0, 0.1, 5)
    fake = Fake(("b", NOVEMBER, other), ("b", DECEMBER, other), ("a", DECEMBER, ROUND))
    # study a in november: everything counts for ever, its own round of december per study, other of november per month
    everything, own, monthly = after(other, other, ROUND, ROUND), after(ROUND, ROUND), after(other, ROUND)
    assert own < monthly < everything
    for name, spends in (
        ("epsilon_limit", everything),
        ("epsilon_per_study", own),
        ("epsilon_per_month", monthly),
    ):
        assert allowed(policy(**{name: spends}), fake)
        assert not allowed(policy(**{name: spends - 1e-6}), fake)


def test_a_new_month_renews_the_month_only() -> None:
    fake = Fake(*[("a", NOVEMBER, ROUND)] * 5)
    two = after(ROUND, ROUND)
    assert not allowed(policy(epsilon_per_month=two), fake, month=NOVEMBER)
    assert allowed(policy(epsilon_per_month=two), fake, month=DECEMBER)
    assert not allowed(policy(epsilon_per_month=two, epsilon_limit=two), fake, month=DECEMBER)
    assert not allowed(policy(epsilon_per_study=two), fake, month=DECEMBER)
    assert allowed(policy(epsilon_per_study=two), fake, study="b", month=DECEMBER)


@pytest.mark.parametrize("name", ["epsilon_limit", "epsilon_per_study", "epsilon_per_month"])
def test_a_limit_that_is_not_a_number_or_zero_allows_nothing(name: str) -> None:
    assert not allowed(policy(**{name: math.nan}), Fake())
    assert not allowed(policy(**{name: 0.0}), Fake())


def test_a_refusal_says_which_limit() -> None:
    with pytest.raises(BudgetExhausted, match=r"epsilon 0\.\d+, above the limit of the month 2026-11, 0\.1"):
        policy(epsilon_per_month=0.1).verify_round("a", ROUND, delta=DELTA, spent=Fake(), month=NOVEMBER)


def test_a_round_without_noise_is_never_allowed() -> None:
    with pytest.raises(BudgetExhausted, match="epsilon inf"):
        policy().verify_round("a", Mechanism(0.0, 0.1, 1), delta=DELTA, spent=Fake(), month=NOVEMBER)


def test_the_month_is_that_of_utc() -> None:
    assert month_of(1_796_083_199.0) == NOVEMBER  # 2026-11-30 23:59:59 UTC
    assert month_of(1_796_083_200.0) == DECEMBER


def test_a_time_that_no_calendar_has_is_in_the_first_or_last_month() -> None:
    assert month_of(-(2.0**53)) == "1970-01"
    assert month_of(2.0**53) == "9999-12"


# -- studies ---------------------------------------------------------------------------------------------


def rules(study: Study, **changes: Any) -> Policy:
    return replace(Policy(studies=frozenset({study.id}), epsilon_limit=8.0), **changes)


@pytest.mark.parametrize(
    ("changes", "given", "refusal"),
    [
        ({"submitters": frozenset({"ministry"})}, {"submitter": "somebody"}, SubmitterNotAllowed),
        ({"submitters": frozenset({"ministry"})}, {}, SubmitterNotAllowed),
        ({"models": frozenset({"ab" * 32})}, {"model_hash": "cd" * 32}, ModelNotAllowed),
        ({"models": frozenset({"ab" * 32})}, {}, ModelNotAllowed),
        ({"most_rounds": 3}, {}, TooManyRounds),
        ({"epsilon_per_study": 7.99}, {}, BudgetExhausted),
        ({"epsilon_per_study": math.nan}, {}, BudgetExhausted),
    ],
)
def test_a_study_against_a_rule_is_refused_by_its_name(
    study_with: Makes, changes: dict[str, Any], given: dict[str, str], refusal: type[PolicyRefusal]
) -> None:
    study = study_with()
    rules(study).verify_study(study, **given)
    with pytest.raises(refusal) as caught:
        rules(study, **changes).verify_study(study, **given)
    assert caught.value.exit_status == 3


def test_a_study_within_every_rule_is_allowed(study_with: Makes) -> None:
    study = study_with()
    rules(
        study,
        submitters=frozenset({"ministry", "centre"}),
        models=frozenset({"ab" * 32}),
        most_rounds=4,
        epsilon_per_study=8.0,
    ).verify_study(study, model_hash="ab" * 32, submitter="centre")


def test_what_the_rules_leave_open_is_said() -> None:
    shut = policy(
        epsilon_per_study=1.0,
        epsilon_per_month=1.0,
        most_rounds=9,
        models=frozenset({"ab" * 32}),
        submitters=frozenset({"x"}),
    )
    assert shut.warnings() == ()
    assert len(policy().warnings()) == 5
    opened = replace(shut, submitters=frozenset(), required_layers=REQUIRED_LAYERS - {"signatures"})
    assert opened.warnings() == (
        "anybody may submit a study: allow.submitters is empty",
        "not required: signatures",
    )
