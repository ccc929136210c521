"""The budget ledger: written before it counts, exact at its limit, and closed to whoever changes it."""

import json
import math
import os
import resource
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hansa.errors import BudgetExhausted, LedgerDamaged, LedgerMismatch, StoreNotWritable, TooManyRounds
from hansa.privacy.accounting import Mechanism, epsilon_of, epsilon_of_all
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.ledger import LedgerOwner

DELTA = 1e-5
NOVEMBER, DECEMBER = 1_796_083_199.0, 1_796_083_200.0
ROUND = Spending(study="a" * 64, round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def open_budget(ledger_owner: Callable[..., LedgerOwner]) -> Callable[..., Budget]:
    def opened(path: Path, limit: float = 100.0, delta: float = DELTA, **owner: object) -> Budget:
        return Budget(path, epsilon_limit=limit, delta=delta, owner=ledger_owner(**owner))

    return opened


def epsilon(steps: int, sigma: float = 1.0, delta: float = DELTA) -> float:
    return epsilon_of(noise_multiplier=sigma, sample_rate=0.2, steps=steps, delta=delta)


def test_epsilon_counts_every_reservation_committed_or_not(
    open_budget: Callable[..., Budget], ledger: Path
) -> None:
    budget = open_budget(ledger)
    assert budget.epsilon() == 0.0
    assert budget.reserve(ROUND) == budget.epsilon() == epsilon(2)
    budget.commit(ROUND)
    assert budget.epsilon() == epsilon(2)  # a commit costs nothing more
    assert budget.reserve(replace(ROUND, round=2)) == epsilon(4)
    budget.reserve(replace(ROUND, round=2, attempt=1))  # an attempt that failed is spent too
    assert budget.epsilon() == epsilon(6)
    assert budget.epsilon(ROUND) == epsilon(8)
    assert budget.epsilon() == epsilon(6)  # asking costs nothing


def test_a_reservation_survives_reopening(open_budget: Callable[..., Budget], ledger: Path) -> None:
    first = open_budget(ledger)
    first.reserve(ROUND)
    first.reserve(replace(ROUND, round=2))
    first.commit(ROUND)
    again = open_budget(ledger)
    assert again.epsilon() == epsilon(4)
    again.reserve(replace(ROUND, round=3))
    assert open_budget(ledger).epsilon() == epsilon(6)


def test_two_mechanisms_in_one_ledger_are_composed_and_not_added(
    open_budget: Callable[..., Budget], ledger: Path
) -> None:
    budget = open_budget(ledger)
    budget.reserve(ROUND)
    budget.reserve(replace(ROUND, study="b" * 64, noise_multiplier=2.0))
    mechanisms = [(sigma, ROUND.sample_rate, ROUND.steps) for sigma in (1.0, 2.0)]
    assert budget.epsilon() == epsilon_of_all(mechanisms, DELTA)
    assert epsilon(2, 1.0) < budget.epsilon() < epsilon(2, 1.0, DELTA / 2) + epsilon(2, 2.0, DELTA / 2)
    assert open_budget(ledger).epsilon() == budget.epsilon()


def test_the_same_mechanism_of_two_studies_composes(open_budget: Callable[..., Budget], ledger: Path) -> None:
    budget = open_budget(ledger)
    budget.reserve(ROUND)
    budget.reserve(replace(ROUND, study="b" * 64))
    assert budget.epsilon() == epsilon(4)


def test_refuses_at_the_limit_exactly(open_budget: Callable[..., Budget], tmp_path: Path) -> None:
    limit = epsilon(4)
    allowed = open_budget(tmp_path / "allowed", limit)
    allowed.reserve(ROUND)
    assert allowed.reserve(replace(ROUND, round=2)) == limit  # equal to the limit is within it
    with pytest.raises(BudgetExhausted, match="round 3 would spend epsilon"):
        allowed.reserve(replace(ROUND, round=3, steps=1))

    below = open_budget(tmp_path / "below", math.nextafter(limit, 0.0))
    below.reserve(ROUND)
    with pytest.raises(BudgetExhausted, match="above the limit"):
        below.reserve(replace(ROUND, round=2))


def test_a_refused_reservation_leaves_the_file_as_it_was(
    open_budget: Callable[..., Budget], tmp_path: Path
) -> None:
    fresh = tmp_path / "fresh"
    with pytest.raises(BudgetExhausted):
        open_budget(fresh, 0.01).reserve(ROUND)
    assert not fresh.exists()

    used = tmp_path / "used"
    budget = open_budget(used, epsilon(3))
    budget.reserve(ROUND)
    before, modified = used.read_bytes(), used.stat().st_mtime_ns
    with pytest.raises(BudgetExhausted):
        budget.reserve(ROUND)
    assert (used.read_bytes(), used.stat().st_mtime_ns) == (before, modified)
    assert budget.epsilon() == epsilon(2)
    budget.reserve(replace(ROUND, steps=1))  # what still fits is still allowed


@pytest.mark.parametrize("limit", [math.nan, -1.0, 0.0])
def test_a_limit_that_allows_nothing(open_budget: Callable[..., Budget], ledger: Path, limit: float) -> None:
    with pytest.raises(BudgetExhausted):
        open_budget(ledger, limit).reserve(ROUND)


@pytest.mark.parametrize("noise_multiplier", [0.0, -1.0])
def test_a_round_without_noise_fits_no_finite_limit(
    open_budget: Callable[..., Budget], ledger: Path, noise_multiplier: float
) -> None:
    with pytest.raises(BudgetExhausted, match="epsilon inf"):
        open_budget(ledger, 1e300).reserve(replace(ROUND, noise_multiplier=noise_multiplier))


def test_a_reservation_is_on_the_disk_before_reserve_returns(
    open_budget: Callable[..., Budget], ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            order.append("directory")
            assert os.fstat(descriptor).st_ino == ledger.parent.stat().st_ino
        else:
            # the whole line has left the program's own buffers by now
            order.append(f"file with {ledger.read_bytes().count(10)} lines")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    budget = open_budget(ledger)
    budget.reserve(ROUND)
    order.append("returned")
    budget.reserve(replace(ROUND, round=2))
    order.append("returned")
    # a new file's name is on the disk only after its directory was synced
    assert order == ["file with 2 lines", "directory", "returned", "file with 3 lines", "returned"]


def test_a_reservation_that_did_not_reach_the_disk_does_not_return(
    open_budget: Callable[..., Budget], ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = open_budget(ledger)
    budget.reserve(ROUND)

    def fails(descriptor: int) -> None:
        raise OSError(5, "input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="input/output error"):
            budget.reserve(replace(ROUND, round=2))
    with pytest.raises(LedgerDamaged):  # nobody knows what is on the disk; reopen to see
        budget.reserve(replace(ROUND, round=2))
    assert open_budget(ledger).epsilon() == epsilon(4)


def test_a_full_disk_leaves_the_ledger_as_it_was(open_budget: Callable[..., Budget], ledger: Path) -> None:
    budget = open_budget(ledger)
    budget.reserve(ROUND)
    before = ledger.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
    try:
        with pytest.raises(StoreNotWritable):
            budget.reserve(replace(ROUND, round=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ledger.read_bytes() == before
    budget.reserve(replace(ROUND, round=2))
    assert open_budget(ledger).epsilon() == budget.epsilon() == epsilon(4)


def test_a_reservation_counts_what_another_writer_has_reserved_since(
    open_budget: Callable[..., Budget], ledger: Path
) -> None:
    mine, other = open_budget(ledger, epsilon(5)), open_budget(ledger, epsilon(5))
    mine.reserve(ROUND)
    assert other.reserve(replace(ROUND, round=2)) == epsilon(4)
    before = ledger.read_bytes()
    with pytest.raises(BudgetExhausted):
        mine.reserve(
            replace(ROUND, round=3)
        )  # it would fit what this object has seen, but not what was spent
    assert ledger.read_bytes() == before
    mine.commit(ROUND)
    other.commit(replace(ROUND, round=2))
    assert open_budget(ledger).epsilon() == mine.epsilon() == epsilon(4)


def test_a_first_entry_of_another_writer_is_taken_up(
    open_budget: Callable[..., Budget], ledger: Path
) -> None:
    mine, other = open_budget(ledger), open_budget(ledger, delta=1e-6)
    other.reserve(ROUND)
    assert mine.reserve(replace(ROUND, round=2)) == epsilon(4, delta=1e-6)
    assert mine.delta == 1e-6


def test_what_another_writer_left_is_checked_before_anything_follows_it(
    open_budget: Callable[..., Budget], ledger: Path
) -> None:
    budget = open_budget(ledger)
    budget.reserve(ROUND)
    whole = ledger.read_bytes()
    last = whole.splitlines(keepends=True)[1]
    for spoilt in (whole[:-1], whole[:100], whole + b"x\n", whole + last):
        ledger.write_bytes(whole)
        budget = open_budget(ledger)
        ledger.write_bytes(spoilt)
        for _ in range(2):
            with pytest.raises(LedgerDamaged):
                budget.reserve(replace(ROUND, round=2))
        assert ledger.read_bytes() == spoilt
    ledger.write_bytes(whole)
    budget = open_budget(ledger)
    ledger.write_bytes(whole + last[:200])  # another writer stopped in the middle of a line
    budget.reserve(replace(ROUND, round=2))
    assert b'"kind":"torn"' in ledger.read_bytes()
    assert open_budget(ledger).epsilon() == epsilon(4)


def test_the_gate_is_asked_with_what_was_spent_in_its_scope(
    open_budget: Callable[..., Budget], ledger: Path
) -> None:
    clock: list[float] = [NOVEMBER]
    budget, asked = open_budget(ledger, now=lambda: clock[0]), []

    def gate(study, mechanism, *, delta, spent, month):
        scopes = (spent(), spent(study=study), spent(month=month), spent(study=study, month=month))
        asked.append((month, mechanism, delta, *(sum(one.steps for one in found) for found in scopes)))

    one = Mechanism(1.0, 0.2, 2)
    budget.reserve(ROUND, gate=gate)
    budget.reserve(replace(ROUND, study="b" * 64), gate=gate)
    clock[0] = DECEMBER
    budget.reserve(replace(ROUND, round=2), gate=gate)
    clock[0] = NOVEMBER  # set back, and no month is renewed by it
    budget.reserve(replace(ROUND, round=3), gate=gate)
    assert asked == [
        ("2026-11", one, DELTA, 0, 0, 0, 0),
        ("2026-11", one, DELTA, 2, 0, 2, 0),
        ("2026-12", one, DELTA, 4, 2, 0, 0),
        ("2026-12", one, DELTA, 6, 4, 2, 2),
    ]
    again = open_budget(ledger)
    assert [sum(one.steps for one in again.spent(month=month)) for month in ("2026-11", "2026-12")] == [4, 4]


@pytest.mark.parametrize("times", [(NOVEMBER, DECEMBER), (DECEMBER, NOVEMBER)], ids=["forward", "back"])
def test_an_entry_counts_in_the_month_that_its_gate_was_asked_with(
    open_budget: Callable[..., Budget], ledger: Path, times: tuple[float, float]
) -> None:
    clock, asked = (
        iter([times[0], *[times[1]] * 9]),
        [],
    )  # it moves to another month while the entry is written
    budget = open_budget(ledger, now=lambda: next(clock))
    budget.reserve(ROUND, gate=lambda *_, month, **__: asked.append(month))
    assert budget.spent(month=asked[-1]) == [Mechanism(1.0, 0.2, 2)]


def test_a_gate_that_refuses_leaves_the_file_as_it_was(
    open_budget: Callable[..., Budget], ledger: Path
) -> None:
    def gate(*_, **__):
        raise TooManyRounds("no")

    budget = open_budget(ledger)
    with pytest.raises(TooManyRounds):
        budget.reserve(ROUND, gate=gate)
    assert not ledger.exists()
    budget.reserve(ROUND)
    before = ledger.read_bytes()
    with pytest.raises(TooManyRounds):
        budget.reserve(ROUND, gate=gate)
    assert ledger.read_bytes() == before


def test_a_round_that_no_ledger_can_hold_is_refused(open_budget: Callable[..., Budget], ledger: Path) -> None:
    for changes in ({"round": -1}, {"steps": 0, "sample_rate": 2.0}, {"study": "two words"}):
        with pytest.raises(BudgetExhausted, match="no ledger can hold"):
            open_budget(ledger).reserve(replace(ROUND, **changes))
    assert not ledger.exists()


def test_so_little_noise_that_it_is_not_computed_with_fits_no_limit(
    open_budget: Callable[..., Budget], ledger: Path
) -> None:
    assert open_budget(ledger).epsilon(replace(ROUND, noise_multiplier=0.1, sample_rate=1.0)) == math.inf


def test_a_commit_without_its_reservation_is_refused(
    open_budget: Callable[..., Budget], ledger: Path
) -> None:
    budget = open_budget(ledger)
    budget.reserve(ROUND)
    for other in (replace(ROUND, round=2), replace(ROUND, attempt=1), replace(ROUND, steps=1)):
        with pytest.raises(LedgerDamaged, match="not reserved"):
            budget.commit(other)
    assert ledger.read_bytes().count(b"\n") == 2


def test_a_commit_is_written_once(open_budget: Callable[..., Budget], ledger: Path) -> None:
    budget = open_budget(ledger)
    budget.reserve(ROUND)
    for _ in range(3):
        budget.commit(ROUND)
    open_budget(ledger).commit(ROUND)
    assert ledger.read_bytes().count(b'"kind":"commit"') == 1


def test_a_study_with_a_larger_delta_is_stated_at_the_smaller_one_of_the_ledger(
    open_budget: Callable[..., Budget], ledger: Path
) -> None:
    open_budget(ledger, delta=1e-6).reserve(ROUND)
    later = open_budget(ledger, delta=1e-5)
    assert later.delta == 1e-6
    assert later.epsilon() == epsilon(2, delta=1e-6) > epsilon(2, delta=1e-5)
    with pytest.raises(LedgerMismatch, match="delta"):
        open_budget(ledger, delta=1e-7)


def test_a_charge_is_one_line_and_counts_like_a_round(
    open_budget: Callable[..., Budget], ledger: Path
) -> None:
    budget = open_budget(ledger, now=lambda: NOVEMBER)
    budget.reserve(ROUND)
    assert budget.charge("canary", Mechanism(1.0, 0.2, 5), study="b" * 64) == epsilon(7)
    entry = json.loads(ledger.read_bytes().splitlines()[-1])["entry"]
    assert {key: entry[key] for key in entry.keys() - {"previous", "sequence", "time"}} == {
        "kind": "charge",
        "purpose": "canary",
        "study": "b" * 64,
        "noise_multiplier": 1.0,
        "sample_rate": 0.2,
        "steps": 5,
        "epsilon_limit": 100.0,
    }
    again = open_budget(ledger)
    assert again.epsilon() == epsilon(7)
    assert again.spent(study="b" * 64) == [Mechanism(1.0, 0.2, 5)]
    assert again.spent(month="2026-11") == [Mechanism(1.0, 0.2, 7)]
    again.commit(ROUND)  # the round before it is committed as ever
    with pytest.raises(LedgerDamaged, match="not reserved"):
        again.commit(replace(ROUND, study="b" * 64, round=0, steps=5))  # and a charge is nothing to commit


def test_a_charge_beyond_a_limit_or_of_no_form_is_refused_and_leaves_the_file_as_it_was(
    open_budget: Callable[..., Budget], ledger: Path
) -> None:
    budget = open_budget(ledger, epsilon(5))
    budget.reserve(ROUND)
    before = ledger.read_bytes()
    with pytest.raises(BudgetExhausted, match="canary would spend"):
        budget.charge("canary", Mechanism(1.0, 0.2, 4), study="a")
    for purpose, study in (("Two words", "a"), ("", "a"), ("canary", "two words")):
        with pytest.raises(BudgetExhausted, match="no ledger can hold"):
            budget.charge(purpose, Mechanism(1.0, 0.2, 1), study=study)

    def gate(*_, **__):
        raise TooManyRounds("no")

    with pytest.raises(TooManyRounds):
        budget.charge("canary", Mechanism(1.0, 0.2, 1), study="a", gate=gate)
    assert ledger.read_bytes() == before
    assert budget.charge("canary", Mechanism(1.0, 0.2, 3), study="a") == epsilon(5)


def test_a_charge_is_on_the_disk_before_it_returns(
    open_budget: Callable[..., Budget], ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    fsync = os.fsync
    budget = open_budget(ledger)
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(ledger.read_bytes()), fsync(descriptor))
    )
    budget.charge("evaluation", Mechanism(1.0, 0.2, 1), study="a")
    assert b'"kind":"charge"' in synced[0]


def test_epsilon_of_one_study_leaves_the_others_out(open_budget: Callable[..., Budget], ledger: Path) -> None:
    budget = open_budget(ledger)
    budget.reserve(ROUND)
    budget.reserve(replace(ROUND, study="b" * 64))
    assert budget.epsilon(study="a" * 64) == epsilon(2)
    assert budget.epsilon(study="c" * 64) == 0.0
    assert budget.epsilon() == epsilon(4)
