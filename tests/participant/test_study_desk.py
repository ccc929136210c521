"""The studies in a participant's home: what was proposed, what it said, what runs; files that agent and commands both read."""

from dataclasses import replace
from datetime import timedelta

import pytest

from hansa.errors import AlreadyAnswered, BudgetExhausted, OutOfOrder, StudyUnknown, UnknownStudy, UsageError
from hansa.participant.policy import Policy
from hansa.participant.study_desk import StudyDesk, policy_for, verify_allowed

NAME = "bank-credit-default"


@pytest.fixture
def house(house_of_members):
    return house_of_members


@pytest.fixture
def desk(house, tmp_path):
    return StudyDesk(tmp_path, participant="bank-1", now=lambda: house.now)


@pytest.fixture
def proposal(house):
    return house.proposal()


def approved(desk, house):
    desk.approve(desk.find(NAME), "loans", by="hand", identity=house.identities["bank-1"])
    return desk.find(NAME)


def started(desk, house, proposal):
    study = approved(desk, house)
    approvals = [house.approval(proposal, name) for name in ("bank-1", "bank-2", "bank-3")]
    return desk.begin(study, house.start(proposal, approvals), approvals)


def test_a_proposal_is_kept_once_and_read_again_by_another_process(desk, house, proposal, tmp_path):
    assert desk.propose(proposal)
    assert not desk.propose(proposal)
    (study,) = StudyDesk(tmp_path, participant="bank-1", now=lambda: house.now).all()
    assert (study.name, study.state, study.data_set) == (NAME, "undecided", "")
    assert study.proposal == proposal
    assert study.session == proposal.body.session_id.hex()
    assert desk.folder_of(study).stat().st_mode & 0o077 == 0


def test_the_way_of_a_study_at_a_member(desk, house, proposal):
    desk.propose(proposal)
    assert approved(desk, house).state == "approved"
    assert started(desk, house, proposal).state == "started"
    for counter, action, state in ((1, "pause", "paused"), (2, "resume", "started")):
        command = house.command(proposal, {"counter": counter, "action": action})
        assert desk.command(desk.find(NAME), command).state == state
        assert desk.find(NAME).state == state
    desk.finish(desk.find(NAME))
    assert desk.find(NAME).state == "finished"


def test_an_own_answer_stands(desk, house, proposal):
    desk.propose(proposal)
    undecided, identity = desk.find(NAME), house.identities["bank-1"]
    first = desk.approve(undecided, "loans", by="hand", identity=identity)
    study = desk.find(NAME)
    assert desk.approve(study, "loans", by="hand", identity=identity) == first
    with pytest.raises(AlreadyAnswered):
        desk.approve(study, "other", by="hand", identity=identity)
    with pytest.raises(AlreadyAnswered):
        desk.deny(study, by="hand", identity=identity)
    assert desk.find(NAME).data_set == "loans"


def test_a_denial_stands(desk, house, proposal):
    desk.propose(proposal)
    identity = house.identities["bank-1"]
    first = desk.deny(desk.find(NAME), by="hand", identity=identity)
    study = desk.find(NAME)
    assert (study.state, study.data_set) == ("denied", "")
    assert desk.deny(study, by="hand", identity=identity) == first
    with pytest.raises(AlreadyAnswered):
        desk.approve(study, "loans", by="hand", identity=identity)
    approvals = [house.approval(proposal, name) for name in ("bank-1", "bank-2", "bank-3")]
    with pytest.raises(OutOfOrder):
        desk.begin(study, house.start(proposal, approvals), approvals)


def test_a_start_stands_and_needs_an_own_approval(desk, house, proposal):
    desk.propose(proposal)
    approvals = [house.approval(proposal, name) for name in ("bank-1", "bank-2", "bank-3")]
    with pytest.raises(OutOfOrder):
        desk.begin(desk.find(NAME), house.start(proposal, approvals), approvals)
    first = started(desk, house, proposal)
    others = [house.approval(proposal, name) for name in ("bank-1", "bank-2", "bank-4")]
    assert desk.begin(desk.find(NAME), house.start(proposal, others), others).start == first.start
    assert desk.find(NAME).start == first.start
    kept = sorted(path.name for path in (desk.folder_of(first) / "approvals").iterdir())
    assert kept == ["bank-1", "bank-2", "bank-3"]


def test_a_command_replaces_only_one_with_a_smaller_counter(desk, house, proposal):
    desk.propose(proposal)
    study = started(desk, house, proposal)
    study = desk.command(study, house.command(proposal, {"counter": 5, "action": "stop"}))
    for counter in (4, 5):
        later = house.command(proposal, {"counter": counter, "action": "resume"})
        assert desk.command(study, later).state == "stopped"
    assert desk.find(NAME).state == "stopped"


def test_a_study_is_found_by_name_or_by_the_begin_of_its_session(desk, house):
    with pytest.raises(StudyUnknown):
        desk.find(NAME)
    first = house.proposal(session_id=b"a" * 16)
    second = house.proposal(session_id=b"b" * 16, created=house.now - house.day + timedelta(hours=1))
    desk.propose(second)
    desk.propose(first)
    assert [study.proposal for study in desk.all()] == [first, second]
    with pytest.raises(UsageError) as several:
        desk.find(NAME)
    assert "61616161" in several.value.hint
    assert desk.find("6262").proposal == second
    with pytest.raises(StudyUnknown):
        desk.find("626")
    identity = house.identities["bank-1"]
    desk.deny(desk.find("6161"), by="hand", identity=identity)
    assert desk.find(NAME).proposal == second  # the only one that is not decided
    desk.deny(desk.find("6262"), by="hand", identity=identity)
    assert desk.find(NAME).proposal == second  # the latest


def test_an_approval_by_hand_agrees_to_this_study_and_to_no_limit(desk, house, proposal):
    desk.propose(proposal)
    study, policy = desk.find(NAME), Policy(studies=frozenset(), epsilon_limit=8.0)
    with pytest.raises(UnknownStudy):
        verify_allowed(policy, study)
    verify_allowed(policy_for(policy, study), study)
    with pytest.raises(BudgetExhausted):
        verify_allowed(policy_for(replace(policy, epsilon_per_study=0.1), study), study)
    other = house.proposal(study_id=b"o" * 32)
    with pytest.raises(UnknownStudy):
        verify_allowed(policy_for(policy, replace(study, proposal=other)), study)
