"""What the agent does beside answering requests: news, decisions, seats; with a coordinator that says what the test wants."""

import json
import os
import threading
import time
from types import SimpleNamespace

import pytest

from hansa.coordinator.authoring import Authoring
from hansa.coordinator.office import open_office
from hansa.errors import (
    BudgetExhausted,
    CertificateRejected,
    ChecksumMismatch,
    CoordinatorUnreachable,
    OutOfOrder,
    PolicyFileMissing,
    StoreInUse,
)
from hansa.federation.answers import Approval
from hansa.participant.agent import STATUS_FILE
from hansa.participant.agent_status import read_status
from hansa.participant.agent_work import AgentWork
from hansa.participant.consortium_client import Offer, StartedStudy
from hansa.participant.seat import Seat
from hansa.secure_agg.certificates import utc_now

pytestmark = pytest.mark.enable_socket  # of the ports that the coordinator's settings name
NAME = "bank-1"


class Client:
    """A coordinator as its member sees it; `away` and `failures` say what fails."""

    def __init__(self, site):
        self.site, self.answers, self.away = site, [], False
        self.failures = {}

    def _study(self):
        with open_office(self.site.home) as office:
            (study,) = Authoring(office, "admin").desk.all()
        return study

    def _may_fail(self, what):
        if self.away:
            raise CoordinatorUnreachable("nobody answers")
        if what in self.failures:
            raise self.failures[what]

    def give_up(self):
        self.away = True

    def revocations(self):
        self._may_fail("revocations")

    def proposals(self, known=()):
        self._may_fail("proposals")
        return [Offer(proposal=self._study().proposal)]

    def answer(self, document):
        self._may_fail("answer")
        self.answers.append(document)
        return 1, 4

    def starts(self, approved, report):
        self._may_fail("starts")
        study = self._study()
        if study.start is None:
            return []
        approvals = tuple(study.roster_approvals)
        return [StartedStudy(proposal=study.proposal, start=study.start, approvals=approvals)]

    def commands(self, proposal, after):
        self._may_fail("commands")
        return [one for one in self._study().commands if one.body.counter > after]

    def fetch_model(self, proposal, path):
        if not path.exists():
            self._may_fail("fetch_model")
            path.write_bytes(self.site.base.read_bytes())


class Member:
    """A member's home, its work, and what was reported and noted."""

    def __init__(self, site):
        self.site, self.client = site, Client(site)
        self.place = site.places[NAME]
        self.reports, self.notes = [], []
        self.work = self.new_work()

    def new_work(self):
        return AgentWork(
            self.place,
            self.client,
            aggregator=SimpleNamespace(),
            now=utc_now,
            report=lambda where, error: self.reports.append((where, error.code)),
            note=lambda event, **_: self.notes.append(event),
        )

    @property
    def study(self):
        return self.work.desk.find("tiny")

    def starts(self):
        self.work.look()
        self.site.approve()
        self.site.start_study()


@pytest.fixture
def member(make_consortium):
    found = Member(make_consortium(2))
    yield found
    found.work.close()


def policy_names_study(member):
    path = member.place.folder / "policy.toml"
    wanted = member.site.study.id
    path.write_text(path.read_text().replace("studies = []", f'studies = ["{wanted}"]'))


def test_a_proposal_waits_for_a_hand(member):
    assert member.work.look()  # something is awaited: look again soon
    assert member.study.state == "undecided"
    assert (member.client.answers, member.notes) == ([], ["study_proposed"])


def test_a_policy_that_names_the_study_approves_it_and_the_answer_is_sent_once(member):
    policy_names_study(member)
    member.work.look()
    member.work.look()
    assert member.study.state == "approved"
    (answer,) = member.client.answers
    assert isinstance(answer.body, Approval)
    assert answer.body.by == "policy"
    assert member.notes == ["study_proposed", "study_approved", "answer_sent"]


def test_a_policy_that_names_the_study_and_sets_a_limit_below_it_does_not(member):
    policy_names_study(member)
    path = member.place.folder / "policy.toml"
    path.write_text(path.read_text() + "per_study = 1.0\n")
    member.work.look()
    assert member.study.state == "undecided"
    assert ("policy", "budget_exhausted") in member.reports


def test_an_answer_that_did_not_arrive_is_sent_again(member):
    policy_names_study(member)
    member.work.look()
    member.work = member.new_work()  # the process was killed before it knew
    member.work.look()
    assert len(member.client.answers) == 2
    assert member.client.answers[0] == member.client.answers[1]


def test_a_study_that_was_started_gets_a_seat_and_one_that_is_stopped_has_none(member):
    member.starts()
    member.work.look()
    (session,) = member.work.seats
    assert session == member.site.session
    assert member.work.seats[session].rounds_done == 0
    member.site.command("pause")
    member.work.look()
    assert list(member.work.seats) == [session]
    assert member.study.state == "paused"
    member.site.command("stop")
    member.work.look()
    assert not member.work.seats
    assert member.study.state == "stopped"


def test_a_seat_is_taken_again_without_the_coordinator(member):
    member.starts()
    member.work.look()
    member.work.close()
    member.work, member.client.away = member.new_work(), True
    member.work.resume()
    assert list(member.work.seats) == [member.site.session]


def test_without_its_base_a_seat_waits_for_the_coordinator(member):
    member.starts()
    member.client.failures["fetch_model"] = ChecksumMismatch("another model came")
    for _ in range(3):
        member.work.look()
    assert not member.work.seats
    assert member.reports.count(("seat", "checksum_mismatch")) == 1  # said once
    member.work.resume()
    assert not member.work.seats
    del member.client.failures["fetch_model"]
    member.work.reload()  # as SIGHUP does: now, and not after a pause
    member.work.look()
    assert list(member.work.seats) == [member.site.session]


def test_a_request_waits_for_a_seat_that_is_about_to_be_taken(member):
    member.starts()
    session, stop, found = member.site.session, threading.Event(), []
    asking = threading.Thread(target=lambda: found.append(member.work.seat_for(session, 30.0, stop)))
    asking.start()
    assert member.work.is_asked_for.wait(10)
    member.work.look()
    asking.join(30)
    assert found == [member.work.seats[session]]


def test_a_request_waits_for_no_seat_that_will_not_come(member):
    stop, began = threading.Event(), time.monotonic()
    member.work.look()
    assert member.work.seat_for("00" * 16, 30.0, stop) is None  # of no study
    assert member.work.seat_for(member.site.session, 30.0, stop) is None  # undecided
    member.starts()
    member.client.failures["fetch_model"] = ChecksumMismatch("another model came")
    member.work.look()
    assert member.work.seat_for(member.site.session, 30.0, stop) is None  # refused
    del member.client.failures["fetch_model"]
    assert time.monotonic() - began < 25
    fresh = member.new_work()
    assert fresh.seat_for(member.site.session, 0.3, stop) is None  # not in time
    stop.set()
    assert fresh.seat_for(member.site.session, 30.0, stop) is None


def test_what_is_wrong_with_one_thing_keeps_nothing_else(member):
    member.client.failures = {"revocations": CertificateRejected("an old list")}
    policy_names_study(member)
    member.work.look()
    assert ("revocation_list", "certificate_rejected") in member.reports
    assert member.study.state == "approved"


def test_a_coordinator_that_is_away_is_the_callers_business(member):
    member.client.away = True
    with pytest.raises(CoordinatorUnreachable):
        member.work.look()


def test_policies_are_read_again_and_a_broken_one_takes_the_seat(member):
    member.starts()
    member.work.look()
    path = member.place.folder / "policy.toml"
    kept = path.read_text()
    path.write_text(kept.replace("for_ever = 8.0", "for_ever = 1.0"))
    member.work.reload()
    assert member.work.seats[member.site.session].node._policy.epsilon_limit == 1.0
    path.write_text("nonsense = [")
    member.work.reload()
    assert not member.work.seats
    assert ("policy", "policy_syntax") in member.reports
    path.write_text(kept)
    member.work.look()
    assert list(member.work.seats) == [member.site.session]


# -- seats -------------------------------------------------------------------------------------------------------


@pytest.fixture
def take(member):
    """Take a seat; those that were taken get up after the test."""
    member.starts()
    member.client.failures["fetch_model"] = OutOfOrder("the test takes the seat itself")
    member.work.look()
    taken = []

    def make(study=None):
        base = member.place.folder / "base"
        base.write_bytes(member.site.base.read_bytes())
        study = study or member.study
        folder = member.work.desk.folder_of(study)
        seat = Seat(
            member.place, study, folder=folder, base=base, channel=SimpleNamespace(), report=pytest.fail
        )
        taken.append(seat)
        return seat

    yield make
    for seat in taken:
        seat.close()


def test_a_seat_has_the_roster_study_and_base_of_the_documents(member, take):
    seat, body = take(), member.study.proposal.body
    assert seat.node._roster.session_id == body.session_id
    assert seat.node._roster.participants == member.site.names
    assert (seat.rounds_done, seat.is_finished) == (0, False)
    model = seat.save_model()
    trained = json.loads((model / "config.json").read_bytes())["training"]
    assert (trained["study"], trained["session"], trained["rounds"]) == (
        member.site.study.id,
        member.site.session,
        0,
    )


def test_one_process_has_a_seat(take):
    take()
    with pytest.raises(StoreInUse):
        take()


def test_without_a_policy_that_allows_it_no_record_is_read(member, take, monkeypatch):
    monkeypatch.setattr("hansa.participant.seat.open_data", pytest.fail)
    path = member.place.folder / "policy.toml"
    path.write_text(path.read_text() + "per_study = 1.0\n")
    with pytest.raises(BudgetExhausted):
        take()
    sets = member.place.folder / "datasets.toml"
    sets.write_text(sets.read_text().replace('policy = "policy.toml"', ""))
    with pytest.raises(PolicyFileMissing):
        take()


def test_before_its_start_a_study_has_no_seat(member, take):
    from dataclasses import replace

    with pytest.raises(OutOfOrder):
        take(replace(member.study, start=None))


# -- status ------------------------------------------------------------------------------------------------------


def test_a_status_says_whether_the_agent_runs_now(tmp_path):
    assert read_status(tmp_path)["status"] == "the agent has never run"
    assert read_status(tmp_path)["running"] is False
    written = {
        "process": os.getpid(),
        "status": "connected",
        "connected": True,
        "seats": {"5e": 3},
        "changed": 1,
    }
    (tmp_path / STATUS_FILE).write_text(json.dumps(written))
    assert read_status(tmp_path) == {**written, "running": True}
    (tmp_path / STATUS_FILE).write_text(json.dumps({**written, "process": 2**22 + 1}))
    found = read_status(tmp_path)
    assert (found["running"], found["connected"]) == (False, False)  # nobody is connected who does not run
    for damaged in ("", "{", "[]"):
        (tmp_path / STATUS_FILE).write_text(damaged)
        assert read_status(tmp_path)["running"] is False
