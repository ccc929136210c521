"""What an auditor recomputes from files: the owner's ε, and who said something else before."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hansa.errors import HistoryForked, LedgerFileMissing, LedgerNotVerified, ProofInvalid
from hansa.privacy.accounting import Mechanism
from hansa.privacy.audit import audit_folder, audit_ledger, ledger_files
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.ledger import LedgerOwner, read_ledger
from hansa.privacy.ledger_head import head_of_json
from hansa.privacy.merkle import consistency_proof, verify_consistency
from hansa.privacy.spending import total_epsilon

DELTA = 1e-5
ROUND = Spending(study="a" * 64, round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)
Opener = Callable[..., Budget]


def epsilon(steps: int) -> float:
    return total_epsilon({(1.0, 0.2): steps}, DELTA)


@pytest.fixture
def opened(tmp_path: Path, ledger_owner: Callable[..., LedgerOwner]) -> Opener:
    def make(name: str = "ledger-1.jsonl", limit: float = 50.0, **changes: object) -> Budget:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        return Budget(path, epsilon_limit=limit, delta=DELTA, owner=ledger_owner(**changes))

    return make


def spend(budget: Budget, *rounds: int, commit: bool = True) -> Path:
    for number in rounds:
        spending = replace(ROUND, round=number)
        budget.reserve(spending)
        if commit:
            budget.commit(spending)
    return budget.path


def test_epsilon_is_that_of_the_owner_by_round_by_study_and_in_all(opened: Opener) -> None:
    budget = opened()
    path = spend(budget, 1, 2)
    budget.reserve(replace(ROUND, round=3, steps=3))
    budget.reserve(replace(ROUND, study="b" * 64, noise_multiplier=2.0))
    audit = audit_ledger(path)
    assert audit.epsilon == budget.epsilon()
    assert audit.study_epsilon == {
        "a" * 64: pytest.approx(epsilon(7), rel=1e-12),
        "b" * 64: pytest.approx(total_epsilon({(2.0, 0.2): 2}, DELTA), rel=1e-12),
    }
    assert list(audit.round_epsilon[:3]) == [epsilon(2), epsilon(2), epsilon(3)]
    assert [reservation.committed for reservation in audit.reservations] == [True, True, False, False]
    assert [reservation.line for reservation in audit.reservations] == [2, 4, 6, 7]
    assert (audit.opening.participant, audit.opening.delta, audit.notes) == ("bank-1", DELTA, [])
    assert audit.head == budget.head
    assert audit_ledger(path, every_signature=False) == audit


def test_a_charge_counts_in_its_study_and_in_all_and_its_limit_is_checked(opened: Opener) -> None:
    budget = opened(limit=epsilon(9))
    path = spend(budget, 1)
    budget.charge("canary", Mechanism(1.0, 0.2, 7), study="c" * 64)
    audit = audit_ledger(path)
    assert audit.epsilon == budget.epsilon() == epsilon(9)
    assert audit.study_epsilon == {"a" * 64: epsilon(2), "c" * 64: pytest.approx(epsilon(7), rel=1e-12)}
    assert [(found.purpose, found.committed) for found in audit.reservations] == [
        ("", True),
        ("canary", True),
    ]
    budget.epsilon_limit = epsilon(11)
    budget.charge("evaluation", Mechanism(1.0, 0.2, 2), study="c" * 64)
    found = json.loads(path.read_bytes().splitlines()[-1])["entry"]
    forged = opened("forged.jsonl", limit=50.0)
    spend(forged, 1)
    forged._ledger.append(
        "charge",
        {key: found[key] for key in found.keys() - {"kind", "sequence", "previous", "time"}}
        | {"epsilon_limit": epsilon(3)},
    )
    with pytest.raises(LedgerNotVerified, match=r"line 4 of forged\.jsonl spends epsilon"):
        audit_ledger(forged.path)


def test_epsilon_does_not_depend_on_the_order_of_the_mechanisms() -> None:
    steps = {(1.0, 0.2): 2, (2.0, 0.1): 7, (1.5, 0.3): 1}
    backwards = dict(reversed(steps.items()))
    assert (
        total_epsilon(steps, DELTA) == total_epsilon(backwards, DELTA) > total_epsilon({(1.0, 0.2): 2}, DELTA)
    )
    assert total_epsilon({}, DELTA) == 0.0
    assert total_epsilon({**steps, (0.0, 0.2): 1}, DELTA) == math.inf


def test_a_limit_that_was_met_exactly_is_respected_and_one_that_was_passed_is_not(opened: Opener) -> None:
    path = spend(opened(limit=epsilon(4)), 1, 2)
    assert audit_ledger(path).epsilon == epsilon(4)
    # The owner's own program refuses; a changed one does not. Its file says what limit it stated.
    cheat = opened()
    cheat.epsilon = lambda further=None: 0.0
    cheat.epsilon_limit = epsilon(6)
    spend(cheat, 3, 4, 5)
    with pytest.raises(
        LedgerNotVerified, match=r"line 8 of ledger-1\.jsonl spends epsilon .* above the limit"
    ):
        audit_ledger(path)


def test_a_limit_is_checked_where_it_held_also_if_it_was_raised_later(opened: Opener) -> None:
    cheat = opened(limit=epsilon(2))
    cheat.epsilon = lambda further=None: 0.0
    path = spend(cheat, 1, 2)
    spend(opened(limit=100.0), 3)
    with pytest.raises(LedgerNotVerified, match=r"line 4 of ledger-1\.jsonl spends"):
        audit_ledger(path)


def test_a_limit_that_was_raised_before_it_was_passed_is_respected(opened: Opener) -> None:
    path = spend(opened(limit=epsilon(2)), 1)
    spend(opened(limit=epsilon(4)), 2)
    assert audit_ledger(path).epsilon == epsilon(4)


def test_a_ledger_that_would_keep_its_reader_computing_counts_as_infinite(opened: Opener) -> None:
    cheat = opened(limit=math.inf)
    cheat.epsilon = lambda further=None: 0.0
    cheat.reserve(replace(ROUND, noise_multiplier=0.05, sample_rate=1.0, steps=10**7))
    assert audit_ledger(cheat.path).epsilon == math.inf


def test_an_earlier_tree_head_is_continued(opened: Opener) -> None:
    path = spend(opened(), 1)
    history = read_ledger(path).history
    saved = json.loads(json.dumps(history.head().as_json(history.signature)))
    spend(opened(), 2, 3)
    audit_ledger(path, heads=[head_of_json(saved)])
    later = read_ledger(path).history
    proof = consistency_proof(later.leaves, history.size)
    verify_consistency(history.size, later.size, history.roots[-1], later.roots[-1], proof)


def test_lines_cut_off_at_the_end_are_found_by_a_tree_head_only(opened: Opener) -> None:
    path = spend(opened(), 1, 2)
    head = read_ledger(path).history.head()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert audit_ledger(path).epsilon == epsilon(2)  # the file alone cannot tell
    with pytest.raises(HistoryForked, match="ends after line 3, and had 5"):
        audit_ledger(path, heads=[head])


def test_a_history_that_was_forked_does_not_continue_its_head(opened: Opener, tmp_path: Path) -> None:
    path = spend(opened(), 1)
    prefix = path.read_bytes()
    spend(opened(), 2)
    true = read_ledger(path).history
    (tmp_path / "other").mkdir()
    fork = tmp_path / "other" / "ledger-1.jsonl"
    fork.write_bytes(prefix)
    spend(opened("other/ledger-1.jsonl"), 7, 8)
    forked = read_ledger(fork).history
    with pytest.raises(HistoryForked, match="the first 5 lines"):
        audit_ledger(fork, heads=[true.head()])
    proof = consistency_proof(forked.leaves, true.size)
    with pytest.raises(ProofInvalid, match="does not continue"):
        verify_consistency(true.size, forked.size, true.roots[-1], forked.roots[-1], proof)
    # Both files in one folder convict their owner without any head.
    findings = audit_folder(tmp_path)
    assert [finding.error is None for finding in findings] == [True, False]
    assert isinstance(findings[1].error, HistoryForked)
    assert "they part at line 4" in findings[1].error.message


def test_an_older_copy_of_a_ledger_is_no_fork(opened: Opener, tmp_path: Path) -> None:
    path = spend(opened(), 1)
    (tmp_path / "ledger-0.jsonl").write_bytes(path.read_bytes())
    spend(opened(), 2)
    assert all(finding.error is None for finding in audit_folder(tmp_path))


def test_each_ledger_of_a_folder_is_judged_by_itself(opened: Opener, tmp_path: Path) -> None:
    spend(opened("a/ledger-1.jsonl"), 1)
    bad = spend(opened("b/ledger-2.jsonl", participant="bank-2", seed=2), 1)
    spend(opened("c/ledger-3.jsonl", participant="bank-3", seed=3), 1)
    lines = bad.read_bytes().splitlines(keepends=True)
    bad.write_bytes(lines[0] + lines[2])
    findings = audit_folder(tmp_path)
    assert [finding.error is None for finding in findings] == [True, False, True]
    assert isinstance(findings[1].error, LedgerNotVerified)
    assert "line 2 of ledger-2.jsonl" in findings[1].error.message


def test_a_known_key_must_be_the_one_that_signed(
    opened: Opener, ledger_owner: Callable[..., LedgerOwner]
) -> None:
    path = spend(opened(), 1)
    audit_ledger(path, keys={"bank-1": ledger_owner().public_key, "bank-2": bytes(32)})
    with pytest.raises(LedgerNotVerified, match="another key for 'bank-1'"):
        audit_ledger(path, keys={"bank-1": ledger_owner(seed=2).public_key})


def test_a_tree_head_whose_ledger_is_not_there_is_told(opened: Opener, tmp_path: Path) -> None:
    head = read_ledger(spend(opened(), 1)).history.head()
    (tmp_path / "ledger-1.jsonl").unlink()
    spend(opened("ledger-2.jsonl", data=b"e" * 32), 1)
    found, missing = audit_folder(tmp_path, heads=[head])
    assert found.error is None
    assert isinstance(missing.error, HistoryForked)
    assert "no ledger here continues the tree head of 'bank-1'" in missing.error.message


def test_notes_tell_of_crashes_and_clocks_and_are_no_fault(opened: Opener) -> None:
    times = iter([1000.0, 900.0])
    path = spend(opened(now=lambda: next(times)), 1, 2, commit=False)
    with path.open("ab") as file:
        file.write(b'{"entry":{"kind":"res')
    audit = audit_ledger(path)
    assert (audit.epsilon, len(audit.notes)) == (epsilon(4), 2)
    spend(opened(), 3, commit=False)
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 1)
    notes = audit_ledger(path).notes
    assert [note.split(" of ")[0] for note in notes[:1]] == ["line 4"]
    assert "set back before line 3" in notes[1]
    assert "lacks its line feed and counts" in notes[2]


def test_what_is_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(LedgerFileMissing):
        ledger_files(tmp_path)
    with pytest.raises(LedgerFileMissing):
        audit_ledger(tmp_path / "none.jsonl")
    empty = tmp_path / "ledger-1.jsonl"
    for content in (b"", b"torn"):
        empty.write_bytes(content)
        with pytest.raises(LedgerNotVerified, match="line 1"):
            audit_ledger(empty)
