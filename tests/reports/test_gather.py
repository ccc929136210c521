"""From files to a report: recomputed numbers, and everything that does not hold is named."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hansa.errors import LedgerFileMissing
from hansa.privacy import cross_check
from hansa.privacy.accounting import Mechanism, epsilon_of
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.spending import total_epsilon
from hansa.privacy.statement import EmpiricalBound
from hansa.reports import gather_data_sets
from hansa.reports.gather import gather
from hansa.reports.page import report_html
from hansa.reports.privacy_report import PrivacyReport

Make = Callable[..., Any]


def codes(report: PrivacyReport) -> list[tuple[str, str]]:
    return [(problem.file, problem.code) for problem in report.problems]


def test_every_epsilon_is_the_accountants(report: PrivacyReport, audits: ModuleType) -> None:
    one = report.data_sets[0]
    assert (one.participant, one.name, one.unit, one.relation) == (
        "bank-1",
        "cards",
        "record",
        "add-or-remove-one",
    )
    steps = {(1.2, 0.1): 12, (0.9, 0.05): 5}
    assert one.spent.epsilon == total_epsilon(steps, audits.DELTA)
    first, second = one.studies
    assert first.spent.epsilon == epsilon_of(
        noise_multiplier=1.2, sample_rate=0.1, steps=12, delta=audits.DELTA
    )
    assert (first.rounds_paid, first.rounds_sent, second.rounds_paid, second.rounds_sent) == (12, 12, 5, 4)
    assert [round.epsilon_after for round in one.rounds][-1] == one.spent.epsilon
    for number in (1, 6, 12, 14):
        so_far = {(1.2, 0.1): min(number, 12), (0.9, 0.05): max(0, number - 12)}
        so_far = {mechanism: count for mechanism, count in so_far.items() if count}
        assert one.rounds[number - 1].epsilon_after == pytest.approx(
            total_epsilon(so_far, audits.DELTA), rel=1e-6
        )


def test_other_accountants_stand_beside_it_and_agree(report: PrivacyReport) -> None:
    for one in report.data_sets:
        for spent in (one.spent, *(study.spent for study in one.studies)):
            assert spent.prv_low <= spent.epsilon <= spent.prv_high
            assert spent.epsilon <= spent.rdp


def test_what_is_left_is_the_limit_less_what_was_spent(report: PrivacyReport) -> None:
    one = report.data_sets[0]
    assert one.spent.limit == 4.0
    assert one.spent.left == 4.0 - one.spent.epsilon
    assert [study.spent.limit for study in one.studies] == [3.0, 3.0]
    assert {month.spent.limit for month in one.months} == {None}
    assert one.limits == {"delta": 1e-5, "smallest_cohort": 3, "most_rounds": 100}


def test_the_whole_is_the_worst_participant_and_everybody_composed(report: PrivacyReport) -> None:
    overall = report.overall
    assert (overall.participants, overall.data_sets, overall.studies) == (4, 4, 2)
    assert overall.epsilon_max == max(one.spent.epsilon for one in report.data_sets)
    assert overall.epsilon_max_at == "bank-1"
    # 12 + 11 + 10 + 11 rounds of the first study, 2 x 5 of the second
    assert overall.epsilon_everywhere == total_epsilon({(1.2, 0.1): 44, (0.9, 0.05): 10}, 1e-5)
    assert "For a person with records at all 4 of them" in " ".join(report.cautions)


def test_a_study_is_put_together_from_what_all_saw(report: PrivacyReport) -> None:
    first, second = report.studies
    assert (first.name, first.cohort, first.smallest_sum) == ("credit-default", 4, 2)
    assert [(drop.round, drop.missing) for drop in first.dropouts] == [
        (2, ("bank-3",)), (7, ("bank-2", "bank-3")), (9, ("clinic-4",)),
    ]  # fmt: skip
    assert (second.void_rounds, second.stated_by) == ((3,), ("bank-1", "bank-2"))
    assert first.base_model == "ab" * 32


def test_alike_rounds_are_one_row(report: PrivacyReport) -> None:
    ranges = report.data_sets[2].ranges  # bank-3 missed rounds 2 and 7
    assert [(row.first, row.last) for row in ranges] == [
        (1, 1),
        (3, 3),
        (4, 6),
        (8, 12),
    ]  # a month ended after 3
    assert sum(row.entries for row in ranges) == len(report.data_sets[2].rounds) == 10
    assert ranges[-1].epsilon_after == report.data_sets[2].spent.epsilon


def test_every_file_is_listed_with_its_hash(report: PrivacyReport, sound_folder: Path) -> None:
    assert [one.file for one in report.files][::4] == ["bank-1/ledger-1.jsonl", "bank-1/statement-1.json"]
    for one in report.files:
        assert one.sha256 == hashlib.sha256((sound_folder / one.file).read_bytes()).hexdigest()
        assert one.verified


def test_the_same_files_give_the_same_report_from_another_place(
    report: PrivacyReport, sound_folder: Path, audit_place: Path
) -> None:
    assert gather(audit_place) == report
    assert str(sound_folder) not in json.dumps(report.to_json())
    assert (report.date, report.made_with) == ("2026-11-11", "0.1.0")


def test_a_ledger_that_was_tampered_with_is_named_and_gives_no_number(audit_place: Path) -> None:
    path = audit_place / "bank-3" / "ledger-1.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":4', b'"round":5', 1))
    report = gather(audit_place)
    assert not report.verified
    assert codes(report) == [
        ("bank-3/ledger-1.jsonl", "ledger_not_verified"), ("bank-3/statement-1.json", "statement_mismatch"),
    ]  # fmt: skip
    assert "line 6 of ledger-1.jsonl" in report.problems[0].message
    assert [one.participant for one in report.data_sets] == ["bank-1", "bank-2", "clinic-4"]
    assert [one.file for one in report.files if not one.verified] == [file for file, _ in codes(report)]


def test_a_statement_that_was_tampered_with_is_named_and_gives_no_number(audit_place: Path) -> None:
    path = audit_place / "bank-2" / "statement-1.json"
    path.write_bytes(path.read_bytes().replace(b'"epsilon":4,', b'"epsilon":9,'))
    report = gather(audit_place)
    assert codes(report) == [("bank-2/statement-1.json", "statement_invalid")]
    two = report.data_sets[1]
    assert (two.statement, two.name, two.code_sha256, two.empirical, two.approvals) == ("", "", "", (), ())
    assert two.spent.limit == 4.0  # what its ledger says
    assert any(
        text.startswith("No statement that holds is beside a ledger of bank-2:") for text in report.cautions
    )


def test_what_two_participants_say_differently_is_a_problem(audit_place: Path) -> None:
    ledger = audit_place / "bank-3" / "ledger-1.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-4]))
    (audit_place / "bank-3" / "statement-1.json").unlink()
    report = gather(audit_place)
    assert not report.verified
    assert {code for _, code in codes(report)} == {"records_contradict"}


def test_a_lower_bound_above_its_claim_is_a_problem(institution: Make, audits: ModuleType) -> None:
    bank = institution()
    bank.spend(audits.study_of(), 2)
    claimed = epsilon_of(noise_multiplier=6.0, sample_rate=1.0, steps=36, delta=1e-5)
    bound = EmpiricalBound.model_validate({**audits.BOUND.model_dump(), "epsilon_at_least": claimed + 0.001})
    bank.state(empirical=[bound])
    report = gather(bank.folder)
    assert codes(report) == [("bank-1/statement-1.json", "audit_failed")]
    assert "above the 4.377 that its steps cost" in report.problems[0].message
    (found,) = report.data_sets[0].empirical
    assert (found.holds, found.epsilon_claimed) == (False, claimed)
    bank.state(empirical=[bound.model_copy(update={"epsilon_at_least": claimed})])
    assert gather(bank.folder).verified


def test_an_attack_that_succeeds_in_spite_of_the_noise_is_a_problem(
    institution: Make, audits: ModuleType
) -> None:
    bank = institution()
    bank.spend(audits.study_of(), 2)
    bank.state(inversions=[audits.INVERSION.model_copy(update={"recovered": 0.6, "passed": False})])
    report = gather(bank.folder)
    assert codes(report) == [("bank-1/statement-1.json", "audit_failed")]
    assert "recovered 60.0% of the tokens" in report.problems[0].message


def test_accountants_that_disagree_are_a_problem(sound_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cross_check._cross_check.cache_clear()
    monkeypatch.setattr(cross_check, "rdp_bound", lambda *_: 0.001)
    report = gather(sound_folder)
    cross_check._cross_check.cache_clear()
    assert not report.verified
    assert {code for _, code in codes(report)} == {"accountants_disagree"}
    assert report.data_sets[0].spent.prv_low is None


def test_a_layer_that_is_off_comes_first_among_the_cautions(institution: Make, audits: ModuleType) -> None:
    bank = institution()
    bank.spend(audits.study_of(), 2)
    study = bank.state().studies[0]
    protections = {**study.protections, "homomorphic_encryption": False}
    bank.state(changes={"studies": (study.model_copy(update={"protections": protections}),)})
    report = gather(bank.folder)
    assert report.problems == ()
    off = [layer for layer in report.overall.layers if not layer.on]
    assert [(layer.layer, layer.off_in) for layer in off] == [("homomorphic_encryption", ("credit-default",))]
    assert report.overall.layers_off == 1
    assert report.cautions[0].startswith(
        "Homomorphic encryption was OFF in credit-default. The coordinator can read"
    )


def test_an_older_copy_of_ledger_and_statement_changes_no_number(
    report: PrivacyReport, audit_place: Path, institution: Make, audits: ModuleType
) -> None:
    old = audit_place / "old"
    old.mkdir()
    ledger = (audit_place / "bank-1" / "ledger-1.jsonl").read_bytes().splitlines(keepends=True)
    (old / "ledger-1.jsonl").write_bytes(b"".join(ledger[:5]))
    found = gather(audit_place)
    assert found.verified
    assert found.data_sets == report.data_sets
    assert len(found.files) == 9


def test_what_else_looked_at_the_data_is_counted_and_named(institution: Make, audits: ModuleType) -> None:
    bank = institution()
    study = audits.study_of()
    bank.spend(study, 3)
    budget = Budget(bank.ledger, epsilon_limit=4.0, delta=audits.DELTA, owner=bank.owner)
    budget.charge("canary", Mechanism(4.0, 1.0, 2), study=study.id)
    bank.state()
    report = gather(bank.folder)
    assert report.problems == ()
    (one,) = report.data_sets
    assert one.spent.epsilon == total_epsilon({(1.2, 0.1): 3, (4.0, 1.0): 2}, audits.DELTA)
    assert [(row.purpose, row.steps) for row in one.ranges] == [("", 1), ("canary", 2)]
    (spent,) = one.studies
    assert (spent.rounds_paid, spent.rounds_sent) == (3, 3)
    assert "canary" in report_html(report)


def test_several_data_sets_of_one_participant_are_composed(institution: Make, audits: ModuleType) -> None:
    one, other = institution(), institution(data=b"e" * 32)
    one.spend(audits.study_of(), 4)
    one.state()
    shutil.move(one.folder / "bank-1", one.folder / "first")
    other.spend(audits.study_of(), 6)
    other.state(data_set="cards-2025")
    report = gather(one.folder)
    assert report.problems == ()
    assert report.overall.epsilon_max == total_epsilon({(1.2, 0.1): 10}, 1e-5)
    assert any(text.startswith("bank-1 has several data sets here") for text in report.cautions)


def test_participants_are_sorted_as_people_sort(institution: Make, audits: ModuleType) -> None:
    for seed, name in enumerate(("bank-10", "bank-9", "clinic", "bank-1"), start=1):
        institution(name, seed, data=bytes([seed]) * 32).spend(audits.study_of(), 1)
    report = gather(institution().folder)
    assert [one.participant for one in report.data_sets] == ["bank-1", "bank-9", "bank-10", "clinic"]


def test_two_keys_under_one_name_are_told(institution: Make, audits: ModuleType) -> None:
    one, other = institution(), institution(seed=2, data=b"e" * 32)
    one.spend(audits.study_of(), 2)
    shutil.move(one.folder / "bank-1", one.folder / "first")
    other.spend(audits.study_of(), 2)
    report = gather(one.folder)
    assert any(
        text == "bank-1 appears under 2 keys: only one of them can be its own." for text in report.cautions
    )
    assert report.overall.participants == 2


def test_other_programs_and_missing_ledgers_are_told(institution: Make, audits: ModuleType) -> None:
    one, other = institution(), institution("bank-2", 2, data=b"e" * 32)
    for bank in (one, other):
        bank.spend(audits.study_of(), 2)
        bank.state()
    code = other.state().code
    other.state(changes={"code": code.model_copy(update={"sha256": "0" * 64})})
    cautions = gather(one.folder).cautions
    assert "The participants state 2 different programs; their code hashes are in the table." in cautions
    assert "credit-default has 4 participants, and ledgers of 2 of them are here." in cautions


def test_shared_noise_counts_as_it_arrived_and_is_told(institution: Make, audits: ModuleType) -> None:
    bank, noise = institution(), audits.SHARED_NOISE
    study = audits.study_of(mode="distributed", noise_contributors=3, colluders=1)
    bank.spend(study, 3, noise=noise, arrived={1: 4, 2: 3}, missing={2: ("bank-4",)}, open_rounds=(3,))
    bank.state()
    report = gather(bank.folder)
    assert report.problems == ()
    (one,) = report.data_sets
    few, many = noise.noise_multiplier, noise.arrived(4).noise_multiplier
    assert few < many
    assert one.spent.epsilon == total_epsilon({(many, 0.1): 1, (few, 0.1): 2}, audits.DELTA)
    assert [(row.noise_multiplier, row.noise_contributors) for row in one.rounds] == [
        (many, 4),
        (few, 3),
        (few, 3),
    ]
    (described,) = report.studies
    assert (described.mode, described.noise_contributors, described.colluders) == ("distributed", 3, 1)
    assert [layer.layer for layer in report.overall.layers if not layer.on] == ["own_noise_suffices"]
    assert any("it is" not in text and "at most 1 of the participants" in text for text in report.cautions)
    assert "counted are" in report_html(report)


def test_an_unbounded_epsilon_is_shown_as_such(institution: Make, audits: ModuleType) -> None:
    bank = institution()
    bank.ledger.parent.mkdir(parents=True)
    budget = Budget(bank.ledger, epsilon_limit=math.inf, delta=1e-5, owner=bank.owner)
    budget.epsilon = lambda further=None: 0.0
    budget.reserve(
        Spending(study="a" * 64, round=1, attempt=0, noise_multiplier=0.05, sample_rate=1.0, steps=10**7)
    )
    report = gather(bank.folder)
    assert report.data_sets[0].spent.epsilon == math.inf
    assert report.to_json()["overall"]["epsilon_max"] is None
    assert "unbounded" in report_html(report)


def test_where_there_is_no_ledger_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(LedgerFileMissing):
        gather(tmp_path)


def test_where_no_ledger_holds_the_report_says_so(audit_place: Path) -> None:
    for path in audit_place.rglob("ledger-*.jsonl"):
        path.write_bytes(b"{}\n")
    report = gather(audit_place)
    assert (report.verified, report.data_sets, report.date) == (False, (), "")
    assert "Not verified" in report_html(report)


def test_a_time_that_no_calendar_has_is_the_last_day() -> None:
    assert gather_data_sets.date_of(10**15) == "9999-12-31"
    assert gather_data_sets.date_of(-5) == "1970-01-01"
