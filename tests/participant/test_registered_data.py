"""A data set that is registered again continues its budget; a lost salt begins none."""

from pathlib import Path

import pytest

from hansa import errors
from hansa.participant.registered_data import SALT_FILE, register_data
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.data_identity import ledger_path

ROUND = Spending(study="a" * 64, round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)
UNITS = [b"anna", b"bela"]


def budget_of(folder: Path, units: list[bytes], ledger_owner) -> Budget:
    data = register_data(folder, units)
    return Budget(ledger_path(folder, data), epsilon_limit=9.0, delta=1e-5, owner=ledger_owner(data=data))


def test_a_copy_of_the_data_and_another_study_continue_the_ledger(tmp_path, ledger_owner):
    first = budget_of(tmp_path, UNITS, ledger_owner)
    spent = first.reserve(ROUND)
    again = budget_of(tmp_path, UNITS[::-1], ledger_owner)
    assert again.path == first.path
    assert again.epsilon() == spent
    other = Spending(study="b" * 64, round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)
    assert again.reserve(other) > spent


def test_other_data_has_its_own_ledger(tmp_path, ledger_owner):
    budget_of(tmp_path, UNITS, ledger_owner).reserve(ROUND)
    other = budget_of(tmp_path, [b"cora"], ledger_owner)
    assert other.epsilon() == 0.0
    other.reserve(ROUND)
    assert len(list(tmp_path.glob("ledger-*.jsonl"))) == 2


def test_a_ledger_of_other_data_is_refused(tmp_path, ledger_owner):
    budget = budget_of(tmp_path, UNITS, ledger_owner)
    budget.reserve(ROUND)
    other = register_data(tmp_path, [b"cora"])
    budget.path.rename(ledger_path(tmp_path, other))
    with pytest.raises(errors.LedgerMismatch, match="another data set"):
        budget_of(tmp_path, [b"cora"], ledger_owner)


def test_a_lost_salt_begins_no_budget(tmp_path, ledger_owner):
    budget_of(tmp_path, UNITS, ledger_owner).reserve(ROUND)
    salt = tmp_path / SALT_FILE
    assert salt.stat().st_mode & 0o077 == 0
    salt.unlink()
    with pytest.raises(errors.LedgerMismatch, match=r"ledger\.salt is gone"):
        register_data(tmp_path, UNITS)
    assert not salt.exists()


def test_two_participants_have_different_commitments_to_the_same_data(tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    assert len({register_data(folder, UNITS) for folder in folders}) == 2
