"""A participant's statement from its own home: what it approved, what its policy limits, who was missing."""

from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hansa.errors import LedgerMismatch, LedgerNotVerified
from hansa.federation.tls_authority import to_pem
from hansa.participant.policy import Policy
from hansa.participant.round_rosters import RoundRosters
from hansa.participant.settings import participant_toml
from hansa.participant.stating import known_in, limits_of, signed_statement
from hansa.participant.study_desk import StudyDesk
from hansa.privacy.audit import audit_folder
from hansa.privacy.statement import parse_statement
from hansa.privacy.statement_audit import audit_statements
from hansa.secure_agg.identity import Identity

POLICY = Policy(studies=frozenset(), epsilon_limit=4.0, epsilon_per_study=3.0, data_set="cards")


@pytest.fixture
def approved(house_of_members: Any, tmp_path: Path, audits: ModuleType) -> Path:
    """A home whose administrator approved one study for the data set `cards`, and another for `loans`."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "participant.toml").write_text(participant_toml(house_of_members.invitation().body))
    (home / "authority.crt").write_bytes(to_pem(house_of_members.authority.certificate))
    desk = StudyDesk(home, participant="bank-1", now=lambda: datetime(2026, 11, 20, 12, tzinfo=UTC))
    for number, (name, data_set) in enumerate((("credit-default", "cards"), ("loan-loss", "loans"))):
        study = audits.study_of(name)
        proposal = house_of_members.proposal(
            session_id=bytes([number]) * 16,
            study_id=bytes.fromhex(study.id),
            study=study.model_dump(by_alias=True, mode="json"),
        )
        assert desk.propose(proposal)
        desk.approve(desk.find(name), data_set, by="hand", identity=house_of_members.identities["bank-1"])
    return home


def test_a_home_knows_the_studies_that_were_approved_for_a_data_set(
    approved: Path, audits: ModuleType
) -> None:
    known = known_in(approved, "cards")
    study = audits.study_of()
    assert [one.id for one in known.studies] == [study.id]
    assert known.base_models == {study.id: (b"m" * 32).hex()}
    (approval,) = known.approvals
    assert (approval.study, approval.approved_by) == (study.id, "the administrator, by hand")
    assert (approval.role, approval.time) == ("proposed by admin", 1_795_176_000)
    assert known_in(approved, "deposits").studies == []


def test_a_folder_that_is_no_home_knows_nothing(tmp_path: Path) -> None:
    known = known_in(tmp_path, "cards")
    assert (known.studies, known.base_models, known.approvals) == ((), {}, ())


def test_a_statement_is_made_from_ledger_policy_and_rosters(institution: Any, audits: ModuleType) -> None:
    bank, study = institution(), audits.study_of()
    bank.spend(study, 4)
    rosters = RoundRosters(bank.ledger.parent, study.id)
    rosters.note_sum(2, ("bank-1", "bank-2"), ("bank-1",))
    rosters.note_void(3)
    signed = signed_statement(
        bank.ledger, bank.identity, policy=POLICY, studies=[study], base_models={study.id: "cd" * 32}
    )
    bank.statement.write_bytes(signed)
    stated = parse_statement(signed)
    (described,) = stated.studies
    assert [(drop.round, drop.missing) for drop in described.dropouts] == [(2, ("bank-2",))]
    assert (described.void_rounds, described.base_model) == ((3,), "cd" * 32)
    assert (stated.participant, stated.data_set, stated.unit) == ("bank-1", "cards", "record")
    (found,) = audit_statements(bank.folder, audit_folder(bank.folder))
    assert found.error is None


def test_limits_are_those_of_the_policy_and_an_infinite_one_is_none() -> None:
    limits = limits_of(POLICY)
    assert (limits.epsilon, limits.epsilon_per_study, limits.epsilon_per_month) == (4.0, 3.0, None)
    assert (limits.delta, limits.smallest_cohort, limits.most_rounds) == (1e-5, 3, None)


def test_a_ledger_of_somebody_else_or_none_is_not_stated(
    institution: Any, audits: ModuleType, tmp_path: Path
) -> None:
    bank, study = institution(), audits.study_of()
    bank.spend(study, 1)
    with pytest.raises(LedgerMismatch):
        signed_statement(bank.ledger, Identity.generate(), policy=POLICY, studies=[study])
    (tmp_path / "ledger-9.jsonl").write_bytes(b"")
    with pytest.raises(LedgerNotVerified):
        signed_statement(tmp_path / "ledger-9.jsonl", bank.identity, policy=POLICY, studies=[study])
