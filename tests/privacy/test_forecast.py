"""What further rounds will cost: the gate's numbers, before anything is spent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hansa.errors import LedgerDamaged, LedgerMismatch, SpentFileMissing
from hansa.privacy import forecast as module
from hansa.privacy.accounting import calibrate, epsilon_of, epsilon_of_all
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.forecast import forecast
from hansa.privacy.ledger import LedgerOwner
from hansa.privacy.spent import Reservation, read_spent, reservations_in, rounds_of
from hansa.study import Study, load_study

ROOT = Path(__file__).resolve().parents[2]
DELTA = 1e-5


@pytest.fixture(scope="module")
def bank() -> Study:
    return load_study(ROOT / "examples/bank/study.toml").with_changes(rounds=10)


def sigma_of(study: Study) -> float:
    return calibrate(epsilon=8.0, delta=DELTA, sample_rate=0.4, steps=study.training.rounds)


def spending(study: str, number: int, sigma: float, attempt: int = 0) -> Spending:
    return Spending(
        study=study, round=number, attempt=attempt, noise_multiplier=sigma, sample_rate=0.4, steps=1
    )


@pytest.fixture
def ledger(bank: Study, tmp_path: Path, ledger_owner: Callable[..., LedgerOwner]) -> Path:
    """Three rounds of the study, one of them tried twice, and one of another study."""
    path, sigma = tmp_path / "ledger", sigma_of(bank)
    budget = Budget(path, epsilon_limit=100.0, delta=DELTA, owner=ledger_owner())
    for number, attempt in ((1, 0), (2, 0), (2, 1), (3, 0)):
        budget.reserve(spending(bank.id, number, sigma, attempt))
    budget.commit(spending(bank.id, 1, sigma))
    budget.reserve(spending("other", 1, 2.5))
    return path


def test_a_fresh_data_set_ends_at_the_studys_target(bank: Study) -> None:
    found = forecast(bank)
    assert len(found.epsilons) == 10
    assert (found.epsilon_before, found.rounds_before, found.passes_at, found.limit) == (0.0, 0, None, 8.0)
    assert 7.9 < found.epsilons[-1] <= 8.0
    assert found.check is not None
    assert found.check.prv_low <= found.epsilons[-1] <= found.check.prv_high


def test_the_round_after_the_last_one_passes_the_limit(bank: Study) -> None:
    assert forecast(bank, rounds=12).passes_at == 11
    assert forecast(bank, rounds=5, limit=4.0).passes_at == next(
        n
        for n in range(1, 6)
        if epsilon_of(noise_multiplier=sigma_of(bank), sample_rate=0.4, steps=n, delta=DELTA) > 4.0
    )
    assert forecast(bank, rounds=0).epsilons == ()


@pytest.mark.parametrize(("nudge", "passes"), [(0.0, 4), (-1e-9, 3), (1e-9, 4)])
def test_the_limit_is_met_exactly(bank: Study, nudge: float, passes: int) -> None:
    exact = epsilon_of(noise_multiplier=sigma_of(bank), sample_rate=0.4, steps=3, delta=DELTA)
    assert forecast(bank, rounds=5, limit=exact + nudge).passes_at == passes


def test_of_very_many_rounds_every_few_are_computed_and_the_limit_is_still_exact(
    bank: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_POINTS_MOST", 10)
    found = forecast(bank, rounds=23, limit=10.0)
    assert found.rounds == (3, 6, 9, 12, 15, 18, 21, 23)
    after = [
        epsilon_of(noise_multiplier=sigma_of(bank), sample_rate=0.4, steps=n, delta=DELTA) for n in range(24)
    ]
    assert found.epsilons == pytest.approx([after[n] for n in found.rounds], rel=1e-6)
    assert found.passes_at == next(n for n in range(24) if after[n] > 10.0)
    assert found.passes_at not in found.rounds
    assert forecast(bank, rounds=23, limit=after[22]).passes_at == 23
    assert forecast(bank, rounds=23, limit=after[0] + 0.1).passes_at == 1


def test_what_was_spent_counts_repeated_attempts_and_other_studies_too(bank: Study, ledger: Path) -> None:
    reservations = reservations_in(ledger)
    found = forecast(bank, reservations=reservations, limit=8.0)
    sigma = sigma_of(bank)
    assert rounds_of(bank.id, reservations) == found.rounds_before == 3
    assert len(found.epsilons) == 7
    assert found.epsilon_before == epsilon_of_all([(sigma, 0.4, 4), (2.5, 0.4, 1)], DELTA)
    last = epsilon_of_all([(sigma, 0.4, 11), (2.5, 0.4, 1)], DELTA)
    assert found.epsilons[-1] == pytest.approx(last, rel=1e-6)
    assert found.passes_at is not None


def test_epsilon_is_stated_at_the_delta_of_the_ledger_as_the_gate_states_it(
    bank: Study, tmp_path: Path, ledger_owner: Callable[..., LedgerOwner]
) -> None:
    path, sigma = tmp_path / "ledger", sigma_of(bank)
    Budget(path, epsilon_limit=100.0, delta=DELTA / 100, owner=ledger_owner()).reserve(
        spending("other", 1, 2.5)
    )
    gate = Budget(path, epsilon_limit=100.0, delta=bank.privacy.delta, owner=ledger_owner())
    spent = read_spent(path)
    found = forecast(bank, reservations=spent.reservations, delta=spent.delta, limit=8.0)
    assert found.delta == gate.delta == DELTA / 100
    assert found.epsilon_before == gate.epsilon()
    for number in range(1, found.passes_at or 0):
        gate.reserve(spending(bank.id, number, sigma))
    assert gate.epsilon() <= 8.0 < gate.epsilon(spending(bank.id, found.passes_at or 0, sigma))
    with pytest.raises(LedgerMismatch, match=r"at delta 0\.001"):
        forecast(bank, delta=1e-3)


def test_a_charge_counts_as_spent_and_as_no_round(
    bank: Study, ledger: Path, ledger_owner: Callable[..., Any]
) -> None:
    before = forecast(bank, reservations=reservations_in(ledger))
    budget = Budget(ledger, epsilon_limit=100.0, delta=DELTA, owner=ledger_owner())
    budget.charge("canary", module.Mechanism(1.5, 0.4, 2), study=bank.id)
    after = forecast(bank, reservations=reservations_in(ledger))
    assert after.rounds_before == before.rounds_before
    assert after.epsilon_before == budget.epsilon() > before.epsilon_before


def test_a_ledger_that_is_missing_or_damaged_gives_no_forecast(ledger: Path, tmp_path: Path) -> None:
    with pytest.raises(SpentFileMissing, match="cannot be read"):
        reservations_in(tmp_path / "none")
    with pytest.raises(SpentFileMissing):
        reservations_in(tmp_path)
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:1] + lines[2:]))
    with pytest.raises(LedgerDamaged):
        reservations_in(ledger)


def test_every_number_is_checked_by_the_other_accountants(
    bank: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real: Callable[..., Any] = module.cross_check_all
    monkeypatch.setattr(module, "cross_check_all", lambda *given: asked.append(given) or real(*given))
    forecast(bank, rounds=2)
    assert asked == [(((sigma_of(bank), 0.4, 2),), DELTA)]


def test_a_ledger_with_a_round_without_noise_is_infinite_and_not_a_number(bank: Study) -> None:
    bare = Reservation(study="x", round=1, mechanism=module.Mechanism(0.0, 0.4, 1))
    found = forecast(bank, rounds=2, reservations=(bare,))
    assert found.epsilons == (float("inf"),) * 2
    assert (found.passes_at, found.check) == (1, None)
