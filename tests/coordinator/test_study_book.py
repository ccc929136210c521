"""Studies at the coordinator: only what participants would accept is kept, and every step stands."""

import dataclasses
from datetime import timedelta

import pytest

from hansa.coordinator.journal import Journal
from hansa.coordinator.study_book import SCOPE, StudyBook, StudyRecord
from hansa.errors import (
    AlreadyAnswered,
    CommandStale,
    DocumentRejected,
    ModelDivergence,
    NotEnoughApprovals,
    StoreDamaged,
    StudyAlreadyStarted,
    StudyExists,
    StudyUnknown,
    UsageError,
)
from hansa.federation.answers import deny
from hansa.federation.documents import Document

NAMES = ("bank-1", "bank-2", "bank-3")


@pytest.fixture
def clock(house_of_members):
    return [house_of_members.now]


@pytest.fixture
def journal(tmp_path):
    with Journal(f"sqlite:///{tmp_path / 'journal.sqlite'}") as journal:
        yield journal


@pytest.fixture
def book(house_of_members, journal, clock):
    return StudyBook(
        journal, consortium=house_of_members.consortium, revoked=lambda: None, now=lambda: clock[0]
    )


@pytest.fixture
def proposal(house_of_members):
    return house_of_members.proposal()


@pytest.fixture
def session(proposal):
    return proposal.body.session_id.hex()


def approve_all(book, house_of_members, proposal, session):
    found = [house_of_members.approval(proposal, name) for name in NAMES]
    for approval in found:
        book.answer(session, approval)
    return found


def denial(house_of_members, proposal, name):
    return Document.sign(
        deny(proposal, name, by="hand", at=house_of_members.now), house_of_members.identities[name].sign
    )


def test_a_study_goes_from_proposal_to_end(book, house_of_members, proposal, session, clock, journal):
    def state():
        return book.get(session).state(clock[0])

    assert book.propose(proposal).name == proposal.body.study["name"]
    assert state() == "proposed"
    approvals = approve_all(book, house_of_members, proposal, session)
    assert set(book.get(session).approvals()) == set(NAMES)
    book.begin(session, house_of_members.start(proposal, approvals))
    assert state() == "queued"
    book.note(session, "running")
    assert state() == "running"
    book.command(session, house_of_members.command(proposal, {"counter": 1, "action": "pause"}))
    assert state() == "paused"
    book.command(session, house_of_members.command(proposal, {"counter": 2, "action": "resume"}))
    assert state() == "running"
    book.note(session, "finished")
    book.note(session, "failed", ModelDivergence("never mind"))
    assert state() == "finished"
    assert [event.kind for event in journal.events(study=session)] == [
        "study_proposed", *["study_approved"] * 3, "study_started", "study_running",
        *["study_commanded"] * 2, "study_finished",
    ]  # fmt: skip


def test_it_is_found_by_name_and_by_the_begin_of_its_session(
    book, house_of_members, proposal, session, clock
):
    book.propose(proposal)
    assert book.find(proposal.body.study["name"]).session == session
    assert book.find(session[:8]).session == session
    for unknown in ("other", "73", ""):
        with pytest.raises(StudyUnknown):
            book.find(unknown)
    book.propose(house_of_members.proposal(session_id=b"t" * 16))
    with pytest.raises(UsageError, match="2 studies"):
        book.find(proposal.body.study["name"])
    clock[0] += timedelta(days=30)  # both have expired: the latest is meant
    assert book.find(proposal.body.study["name"]).session in (session, (b"t" * 16).hex())


def test_only_members_that_are_invited_see_it(book, house_of_members, proposal):
    book.propose(proposal)
    assert [record.session for record in book.invited("bank-4")] == [proposal.body.session_id.hex()]
    assert book.invited("bank-9") == []


def test_a_proposal_that_no_participant_would_accept_is_not_kept(book, house_of_members, journal):
    stranger = dataclasses.replace(house_of_members.proposal(), signature=bytes(64))
    for wrong in (
        stranger,
        house_of_members.proposal(approvals_needed=2),
        house_of_members.proposal(study_id=b"x" * 32),
    ):
        with pytest.raises(DocumentRejected):
            book.propose(wrong)
    assert journal.items(SCOPE) == {}


def test_a_session_belongs_to_one_proposal(book, house_of_members, proposal):
    book.propose(proposal)
    assert book.propose(proposal).proposal == proposal.encode()
    with pytest.raises(StudyExists):
        book.propose(house_of_members.proposal(base_model=b"n" * 32))


def test_an_answer_stands(book, house_of_members, proposal, session, journal):
    book.propose(proposal)
    approval = house_of_members.approval(proposal, "bank-1")
    book.answer(session, approval)
    book.answer(session, approval)
    with pytest.raises(AlreadyAnswered):
        book.answer(session, denial(house_of_members, proposal, "bank-1"))
    book.answer(session, denial(house_of_members, proposal, "bank-2"))
    assert set(book.get(session).denials()) == {"bank-2"}
    assert [event.kind for event in journal.events(study=session)][1:] == ["study_approved", "study_denied"]


def test_nobody_answers_for_another(book, house_of_members, proposal, session):
    book.propose(proposal)
    forged = Document.sign(
        house_of_members.approval(proposal, "bank-1").body, house_of_members.identities["bank-2"].sign
    )
    with pytest.raises(DocumentRejected):
        book.answer(session, forged)
    with pytest.raises(StudyUnknown):
        book.answer("0" * 32, house_of_members.approval(proposal, "bank-1"))


def test_it_starts_with_exactly_those_that_have_approved(book, house_of_members, proposal, session):
    book.propose(proposal)
    approvals = [house_of_members.approval(proposal, name) for name in NAMES]
    for approval in approvals[:2]:
        book.answer(session, approval)
    with pytest.raises(NotEnoughApprovals, match="bank-3"):
        book.begin(session, house_of_members.start(proposal, approvals))
    book.answer(session, approvals[2])
    with pytest.raises(DocumentRejected):
        book.begin(session, house_of_members.start(proposal, approvals[:2]))
    start = house_of_members.start(proposal, approvals)
    book.begin(session, start)
    book.begin(session, start)
    with pytest.raises(StudyAlreadyStarted):
        book.begin(
            session,
            house_of_members.start(proposal, approvals, created=house_of_members.now + timedelta(seconds=5)),
        )


def test_commands_are_carried_out_once_and_in_order(book, house_of_members, proposal, session):
    book.propose(proposal)
    with pytest.raises(CommandStale, match="proposed"):
        book.command(session, house_of_members.command(proposal))
    book.begin(
        session, house_of_members.start(proposal, approve_all(book, house_of_members, proposal, session))
    )
    pause = house_of_members.command(proposal, {"counter": 5})
    book.command(session, pause)
    book.command(session, pause)
    with pytest.raises(CommandStale):
        book.command(session, house_of_members.command(proposal, {"counter": 5, "action": "resume"}))
    book.command(session, house_of_members.command(proposal, {"counter": 6, "action": "stop"}))
    with pytest.raises(CommandStale, match="stopped"):
        book.command(session, house_of_members.command(proposal, {"counter": 7, "action": "resume"}))


def test_its_time_is_over_when_nobody_started_it(book, proposal, session, clock):
    book.propose(proposal)
    clock[0] += timedelta(days=8)
    assert book.get(session).state(clock[0]) == "expired"


def test_a_record_that_is_not_whole_is_refused():
    for raw in (b"", b"\xff", b"\xa0", b"\x80"):
        with pytest.raises(StoreDamaged):
            StudyRecord.decode(raw)
