"""Statements against ledgers and against each other: each lie is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hansa.errors import HistoryForked, StatementInvalid, StatementMismatch
from hansa.privacy.audit import audit_folder
from hansa.privacy.contradictions import contradictions
from hansa.privacy.spending import total_epsilon
from hansa.privacy.statement import sign_statement
from hansa.privacy.statement_audit import audit_statements, epsilon_by_month

Make = Callable[..., Any]


def found_in(place: Path, **given: Any) -> list[Any]:
    return audit_statements(place, audit_folder(place), **given)


def between(place: Path) -> list[str]:
    ledgers = audit_folder(place)
    return [error.message for error in contradictions(ledgers, audit_statements(place, ledgers))]


@pytest.fixture
def bank(institution: Make, audits: ModuleType) -> Any:
    one = institution()
    one.spend(audits.study_of(), 4)
    return one


def error_of(bank: Any, **changes: Any) -> Any:
    statement = bank.state(changes=changes)
    (found,) = found_in(bank.folder)
    assert found.statement == statement
    return found.error


def with_study(bank: Any, **changes: Any) -> dict[str, Any]:
    study = bank.state().studies[0]
    return {"studies": (study.model_copy(update=changes),)}


def test_statements_of_a_sound_folder_hold(sound_folder: Path) -> None:
    found = found_in(sound_folder)
    assert [one.statement.participant for one in found] == ["bank-1", "bank-2", "bank-3", "clinic-4"]
    assert [one.error for one in found] == [None] * 4
    assert between(sound_folder) == []


def test_a_statement_may_be_older_than_its_ledger(bank: Any, audits: ModuleType) -> None:
    bank.spend(audits.study_of("second"), 2, open_rounds=(2,))
    bank.state()
    bank.spend(audits.study_of("third"), 3)
    (found,) = found_in(bank.folder)
    assert found.error is None
    assert len(found.audit.leaves) > found.statement.ledger.size


def test_a_statement_whose_head_is_ahead_of_the_ledger_does_not_hold(bank: Any) -> None:
    bank.state()
    lines = bank.ledger.read_bytes().splitlines(keepends=True)
    bank.ledger.write_bytes(b"".join(lines[:-2]))
    (found,) = found_in(bank.folder)
    assert isinstance(found.error, HistoryForked)
    assert (
        "ledger-1.jsonl ends after line 7, and had 9 when statement-1.json was signed" in found.error.message
    )


def test_a_statement_of_another_history_does_not_hold(bank: Any, audits: ModuleType) -> None:
    bank.state()
    bank.ledger.unlink()
    bank.clock = audits.START
    bank.spend(audits.study_of(), 4, sigma=1.3)
    (found,) = found_in(bank.folder)
    assert isinstance(found.error, HistoryForked)
    assert "the first 9 lines of ledger-1.jsonl are not those" in found.error.message


def test_a_statement_without_a_ledger_that_holds_does_not_hold(bank: Any, audit_place: Path) -> None:
    bank.state()
    shutil.copy(bank.statement, audit_place / "statement-stranger.json")
    stranger = found_in(audit_place)[-1]
    assert isinstance(stranger.error, StatementMismatch)
    assert "no ledger that holds is beside statement-stranger.json" in stranger.error.message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"participant": "bank-2"}, "says participant 'bank-2'"),
        ({"unit": "person"}, "says unit 'person'"),
        ({"delta": 1e-6}, "says delta 1e-06"),
    ],
)
def test_what_the_first_line_says_must_be_stated(bank: Any, changes: dict[str, Any], reason: str) -> None:
    error = error_of(bank, **changes)
    assert isinstance(error, StatementMismatch)
    assert reason in error.message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rounds_reserved": 3}, "3 rounds of study 'credit-default' were paid for, ledger-1.jsonl says 4"),
        ({"rounds_committed": 5}, "5 rounds of study 'credit-default' have left, ledger-1.jsonl says 4"),
        ({"rounds_committed": 3}, "3 rounds of study 'credit-default' have left, ledger-1.jsonl says 4"),
        (
            {"noise_multipliers": (2.4,)},
            "noise multipliers 2.4 of study 'credit-default', ledger-1.jsonl says 1.2",
        ),
        ({"noise_multipliers": ()}, "noise multipliers none"),
        ({"sample_rate": 0.01}, "no round of study 'credit-default'"),
        ({"steps_per_round": 2}, "no round of study 'credit-default'"),
        ({"id": "0" * 64}, "does not name study"),
    ],
)
def test_what_a_ledger_says_of_a_study_must_be_stated(
    bank: Any, changes: dict[str, Any], reason: str
) -> None:
    error = error_of(bank, **with_study(bank, **changes))
    assert isinstance(error, StatementMismatch)
    assert reason in error.message


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"epsilon": 1.0}, "above the limit for ever, 1,"),
        ({"epsilon_per_study": 1.0}, "above the limit of study"),
        ({"epsilon_per_month": 1.0}, "above the limit of the month 2026-09"),
        ({"delta": 1e-6}, "has delta 1e-05, above the limit 1e-06"),
    ],
)
def test_what_was_spent_is_within_the_limits_that_are_stated(
    bank: Any, audits: ModuleType, limits: dict[str, Any], reason: str
) -> None:
    error = error_of(bank, limits=audits.LIMITS.model_copy(update=limits))
    assert isinstance(error, StatementMismatch)
    assert reason in error.message


def test_a_known_key_must_be_the_one_of_the_statement(bank: Any, institution: Make) -> None:
    bank.state()
    keys = {"bank-1": institution(seed=7).identity.public}
    (found,) = audit_statements(bank.folder, audit_folder(bank.folder), keys=keys)
    assert "another key for 'bank-1'" in found.error.message


def test_a_statement_that_cannot_be_read_is_named(bank: Any) -> None:
    bank.state()
    bank.statement.write_bytes(bank.statement.read_bytes().replace(b'"cards"', b'"loans"'))
    (found,) = found_in(bank.folder)
    assert found.statement is None
    assert isinstance(found.error, StatementInvalid)
    assert "statement-1.json does not hold" in found.error.message


def test_months_never_go_back_and_are_composed_each_by_itself(institution: Make, audits: ModuleType) -> None:
    bank = institution()
    bank.spend(audits.study_of(), 2, days=20)
    bank.clock = audits.START - 100 * audits.DAY  # a clock that is set back renews no month
    bank.spend(audits.study_of("second"), 1, days=0)
    audit = audit_folder(bank.folder)[0].audit
    assert [one.month for one in audit.reservations] == ["2026-10", "2026-10", "2026-10"]
    bank.clock = audits.START + 70 * audits.DAY
    bank.spend(audits.study_of("third"), 1, days=0)
    by_month = epsilon_by_month(audit_folder(bank.folder)[0].audit)
    assert list(by_month) == ["2026-10", "2026-11"]
    assert by_month["2026-11"] == pytest.approx(total_epsilon({(1.2, 0.1): 1}, 1e-5))


# -- each other ------------------------------------------------------------------------------------------


def restated(audits: ModuleType, place: Path, name: str, **changes: Any) -> None:
    """Let a participant state something else of its first study, in a copy of the sound folder."""
    path = place / name / "statement-1.json"
    from hansa.privacy.statement import read_statement

    statement = read_statement(path)
    studies = tuple(
        study.model_copy(update=changes) if study.name == "credit-default" else study
        for study in statement.studies
    )
    seed = audits.NAMES.index(name) + 1
    one = audits.Institution(folder=place, name=name, seed=seed)
    path.write_bytes(sign_statement(statement.model_copy(update={"studies": studies}), one.identity.sign))


def test_participants_that_say_different_things_of_one_study_are_named(
    audits: ModuleType, audit_place: Path
) -> None:
    restated(audits, audit_place, "clinic-4", clip_norm=5.0)
    found = between(audit_place)
    assert len(found) == 3  # each other participant of the study against the clinic
    assert all("differ in clip_norm of study 'credit-default'" in message for message in found)


def test_participants_that_saw_another_roster_are_named(audits: ModuleType, audit_place: Path) -> None:
    restated(audits, audit_place, "clinic-4", dropouts=())
    found = between(audit_place)
    assert any("differ in who was missing in round 2" in message for message in found)


def test_a_ledger_whose_end_was_cut_off_is_found_by_what_others_saw(audit_place: Path) -> None:
    """The file alone cannot tell, nor can its owner's statement, which it leaves out."""
    ledger = audit_place / "bank-3" / "ledger-1.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-4]))
    (audit_place / "bank-3" / "statement-1.json").unlink()
    assert all(finding.error is None for finding in audit_folder(audit_place))
    found = between(audit_place)
    assert len(found) == 3
    assert "'bank-1' states that 'bank-3' was in round 11" in found[0]
    assert "no ledger of 'bank-3' here has paid for it" in found[0]


def test_a_round_that_nobody_paid_for_is_found(audits: ModuleType, institution: Make) -> None:
    study = audits.study_of()
    honest, cheat = institution("bank-1", 1), institution("bank-2", 2, data=b"e" * 32)
    honest.spend(study, 6)
    cheat.spend(study, 6, missing={4: ("bank-2",)})  # it says that it was not there, and others saw it
    honest.state()
    cheat.state()
    found = between(honest.folder)
    assert any("'bank-1' states that 'bank-2' was in round 4" in message for message in found)


def test_void_rounds_and_rounds_after_the_statement_prove_nothing(
    audits: ModuleType, institution: Make
) -> None:
    study = audits.study_of()
    one, other = institution("bank-1", 1), institution("bank-2", 2, data=b"e" * 32)
    one.spend(study, 4, void=(3,))
    one.state()
    other.spend(study, 4, missing={3: ("bank-2",)}, void=())
    facts = other.facts[study.id]
    other.facts[study.id] = type(facts)(study=study, missing={}, void_rounds=(3,))
    other.state()
    assert between(one.folder) == []
    one.spend(study, 0)
    assert json.loads(one.statement.read_bytes())["statement"]["studies"][0]["void_rounds"] == [3]


def test_noise_of_members_that_were_not_there_is_found(audits: ModuleType, institution: Make) -> None:
    study = audits.study_of(mode="distributed", noise_contributors=3, colluders=1)
    honest, cheat = institution("bank-1", 1), institution("bank-2", 2, data=b"e" * 32)
    missing = {2: ("bank-3",)}
    honest.spend(study, 3, noise=audits.SHARED_NOISE, arrived={1: 4, 2: 3, 3: 4}, missing=missing)
    cheat.spend(study, 3, noise=audits.SHARED_NOISE, arrived={1: 4, 2: 4, 3: 4}, missing=missing)
    honest.state()
    assert between(honest.folder) == [
        "'bank-2' counts the noise of 4 members in round 2 of study 'credit-default', 'bank-1' states that 3 were there"
    ]


def test_a_statement_knows_the_noise_that_had_arrived_when_it_was_signed(
    audits: ModuleType, institution: Make
) -> None:
    study = audits.study_of(mode="distributed", noise_contributors=3, colluders=1)
    bank = institution()
    bank.spend(study, 1, noise=audits.SHARED_NOISE, arrived={1: 4})
    whole = bank.ledger.read_bytes()
    bank.ledger.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    stated = bank.state()
    assert stated.studies[0].noise_multipliers == (audits.SHARED_NOISE.noise_multiplier,)
    bank.ledger.write_bytes(whole)  # the commit came after the signature
    (found,) = found_in(bank.folder)
    assert found.error is None
    assert bank.state().studies[0].noise_multipliers == (audits.SHARED_NOISE.arrived(4).noise_multiplier,)
