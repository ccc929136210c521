"""A seat among other members, and the agent's work around it; no network."""

import threading
from datetime import timedelta
from types import SimpleNamespace

import pytest

from hansa.coordinator.office import open_office
from hansa.errors import (
    AlreadyAnswered,
    CertificateRejected,
    CoordinatorUnreachable,
    DocumentMalformed,
    DocumentRejected,
    OutputNotWritable,
    StoreInUse,
)
from hansa.federation.documents import Document
from hansa.federation.starts import Command
from hansa.participant.agent import Agent
from hansa.participant.agent_work import AgentWork
from hansa.participant.renewing import begin_renewal, finish_renewal
from hansa.participant.seat import Seat
from hansa.participant.study_desk import StudyDesk
from hansa.secure_agg.certificates import utc_now
from hansa.secure_agg.messages import Join, open_signed

pytestmark = pytest.mark.enable_socket  # to find free ports; nothing is sent


def seats_of(small):
    found = {}
    for name, home in small.members.items():
        (study,) = small.own_desk(home).all()
        folder = small.own_desk(home).folder_of(study)
        found[name] = Seat(home, study, folder=folder, base=small.base, channel=None, report=lambda _: None)
    return found


@pytest.fixture
def seats(small):
    small.start()
    found = seats_of(small)
    yield found
    for seat in found.values():
        seat.close()


def revoke(small, name, *told):
    """Revoke a member, and show the list to some of the others."""
    with open_office(small.home) as office:
        office.registry.revoke(name, "test")
        encoded = office.revocations.publish(small.home.authority())
    for place in told:
        small.members[place].take_revocations(encoded, utc_now())


def test_whoever_the_own_list_names_enters_no_epoch_although_the_coordinator_shows_its_join(small, seats):
    joins = [seat.node.join(1) for seat in seats.values()]
    seats["bank-2"].node.deal(joins)  # bank-2 deals in epoch 1, and knows of nothing yet
    revoke(small, "bank-3", "bank-1", "bank-2")
    joins = [seat.node.join(1) for seat in seats.values()]
    with pytest.raises(CertificateRejected, match="revoked"):
        seats["bank-2"].node.deal(joins)
    with pytest.raises(CertificateRejected, match="revoked"):
        seats["bank-1"].node.vote(joins, b"no matter what")


def test_one_that_was_revoked_itself_does_not_join(small, seats):
    revoke(small, "bank-3", "bank-3")
    with pytest.raises(CertificateRejected, match="cannot join"):
        seats["bank-3"].node.join(1)


def test_a_list_that_is_withheld_until_it_ends_lets_nobody_in(small, seats):
    (small.members["bank-1"].folder / "revocations.crl").unlink()
    with pytest.raises(CertificateRejected, match="no revocation list"):
        seats["bank-1"].node.join(1)


def test_a_certificate_that_was_renewed_while_the_study_runs_is_the_one_that_is_shown(small, seats):
    home = small.members["bank-1"]
    with open_office(small.home) as office:
        issued = office.renewals.ask(begin_renewal(home, utc_now()), small.home.authority())
    finish_renewal(home, issued, utc_now())
    roster = seats["bank-1"].node.membership._roster
    join = open_signed(seats["bank-1"].node.join(1), Join, roster, 1)
    assert join.certificate == issued.body.identity_certificate


# -- a seat at work ------------------------------------------------------------------------------------------


def test_a_policy_is_read_and_a_seat_left_while_a_request_is_answered(seats):
    seat, done = seats["bank-1"], []
    with seat._lock:
        for step in (seat.use_policy, lambda: seat.close(wait=False)):
            thread = threading.Thread(target=lambda step=step: done.append(step()), daemon=True)
            thread.start()
            thread.join(5)
    assert done == [None, False]
    assert seat._next_policy is not None
    assert seat.close(wait=False)


def test_a_policy_that_was_read_meanwhile_counts_from_the_next_request_on(small, seats):
    seat, policy = seats["bank-1"], small.members["bank-1"].folder / "policy.toml"
    with seat._lock:
        policy.write_text(policy.read_text().replace("for_ever = 8.0", "for_ever = 0.125"))
        seat.use_policy()
        assert seat.node.budget.epsilon_limit == 8.0
    seat._app = lambda message, context: seat.node.budget.epsilon_limit
    assert seat(None, None) == 0.125


def test_a_seat_that_was_left_answers_like_any_failure(seats, monkeypatch):
    monkeypatch.setattr("hansa.participant.seat.aborted", lambda message: ("aborted", message))
    seat = seats["bank-1"]
    seat.close()
    assert seat("a request", None) == ("aborted", "a request")


# -- the agent's work ----------------------------------------------------------------------------------------


class Coordinator:
    """What an agent is told; it answers at once."""

    def __init__(self):
        self.commanded, self.sent, self.refusal = [], [], None

    def revocations(self):
        pass

    def proposals(self, _known):
        return []

    def starts(self, *_):
        return []

    def commands(self, _proposal, after):
        return [one for one in self.commanded if one.body.counter > after]

    def answer(self, document):
        self.sent.append(document)
        if self.refusal is not None:
            raise self.refusal

    def fetch_model(self, _proposal, _path):
        pass


@pytest.fixture
def working(small, monkeypatch):
    """Make the agent's work of bank-1, and say what it reported and noted."""
    home, reported, noted = small.members["bank-1"], [], []
    monkeypatch.setattr(AgentWork, "_base", lambda self, study: small.base)

    def make(now=utc_now):
        return AgentWork(
            home,
            Coordinator(),
            None,
            now=now,
            report=lambda where, error: reported.append((where, error)),
            note=lambda event, **values: noted.append((event, values)),
        )

    return SimpleNamespace(make=make, home=home, reported=reported, noted=noted, made=[])


def command(small, proposal, counter, action):
    with open_office(small.home) as office:
        certificate = office.authors.get("admin").certificate
    body = Command(
        consortium=proposal.body.consortium,
        proposal=proposal.digest,
        session_id=proposal.body.session_id,
        counter=counter,
        action=action,
        author_certificate=certificate,
        created=utc_now(),
    )
    return Document.sign(body, small.home.author("admin").sign)


def one_round_done(seat):
    seat.node.state.round = 1
    seat.node._progress.awaits_close = (1, 0)  # so that the study is not over by itself


def test_a_study_that_is_stopped_leaves_its_model_and_no_seat(small, working):
    proposal = small.start()
    work = working.make()
    work.look()
    (seat,) = work.seats.values()
    one_round_done(seat)
    work._client.commanded = [command(small, proposal, 1, "stop")]
    with seat._lock:  # a request is being answered
        work.look()
        assert not work.seats
    work.look()
    study = work.desk.find(proposal.body.session_id.hex())
    assert (work.desk.folder_of(study) / "model" / "config.json").exists()
    assert (study.state, study.is_finished) == ("stopped", True)
    assert ("study_stopped", {"study": study.name, "rounds_done": 1}) in working.noted
    work.look()
    assert not work.seats
    assert working.reported == []


def test_a_process_that_was_killed_before_it_wrote_the_model_of_a_stopped_study_is_made_good(small, working):
    proposal = small.start()
    desk = small.own_desk(working.home)
    (study,) = desk.all()
    desk.command(study, command(small, proposal, 1, "stop"))  # and then it was killed
    work = working.make()
    work.look()
    work.look()
    assert desk.all()[0].is_finished
    assert not work.seats


def test_nothing_follows_a_stop(small, working):
    proposal = small.start()
    work = working.make()
    work._client.commanded = [
        command(small, proposal, 1, "stop"),
        command(small, proposal, 2, "resume"),
    ]
    work.look()
    assert [study.state for study in work.desk.all()] == ["stopped"]


def test_a_model_that_cannot_be_written_is_tried_again_and_keeps_no_other_study_waiting(
    small, working, monkeypatch
):
    proposal = small.start()
    work = working.make()
    work.look()
    (seat,) = work.seats.values()
    one_round_done(seat)
    work._client.commanded = [command(small, proposal, 1, "stop")]

    def full(*_):
        raise OutputNotWritable("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Seat, "_save_model", full)
        work.look()
    assert [error.code for _, error in working.reported] == ["output_not_writable"]
    work.look()
    assert work.desk.all()[0].is_finished


def test_a_study_whose_files_are_damaged_keeps_no_other_from_its_seat(small, working):
    small.start()
    broken = working.home.folder / "studies" / ("0" * 32)
    broken.mkdir()
    (broken / "proposal.json").write_bytes(b"{")
    work = working.make()
    work.look()
    assert len(work.seats) == 1
    assert {type(error) for _, error in working.reported} == {DocumentMalformed}
    assert "00000000" in working.reported[0][1].message
    work.close()


def test_what_nobody_foresaw_in_one_step_ends_no_other(small, working, monkeypatch):
    small.start()
    work = working.make()

    def broken():
        raise KeyError("what")

    monkeypatch.setattr(work._client, "revocations", broken)
    work.look()
    assert len(work.seats) == 1
    assert [error.code for _, error in working.reported] == ["internal_failure"]
    work.close()


def test_a_seat_that_cannot_be_taken_is_not_tried_at_every_look(small, working, monkeypatch):
    small.start()
    (working.home.folder / "policy.toml").rename(working.home.folder / "away.toml")
    work, now = working.make(), [1000.0]
    monkeypatch.setattr("hansa.participant.agent_work.time.monotonic", lambda: now[0])
    tries = []
    monkeypatch.setattr(AgentWork, "_base", lambda self, study: tries.append(now[0]) or small.base)
    for _ in range(400):
        work.look()
        now[0] += 10
    assert 10 < len(tries) < 30
    assert len([where for where, _ in working.reported if where == "seat"]) == 1
    (working.home.folder / "away.toml").rename(working.home.folder / "policy.toml")
    work.reload()  # SIGHUP: at once
    work.look()
    assert len(work.seats) == 1
    work.close()


def test_studies_with_a_seat_hear_their_commands_while_the_base_of_another_one_is_fetched(
    small, working, monkeypatch
):
    proposal = small.start()
    work = working.make()
    work.look()
    small.start()  # another run of the same study

    def slow(self, study):
        raise CoordinatorUnreachable("not all of it has come yet")

    monkeypatch.setattr(AgentWork, "_base", slow)
    work._client.commanded = [command(small, proposal, 1, "pause")]
    with pytest.raises(CoordinatorUnreachable):
        work.look()
    assert work.desk.find(proposal.body.session_id.hex()).state == "paused"
    work.close()


# -- answers -------------------------------------------------------------------------------------------------


def proposed(small, now=utc_now):
    home = small.members["bank-1"]
    desk = StudyDesk(home.folder, participant=home.name, now=now)
    proposal = small.propose()
    desk.propose(proposal)
    return home, desk, desk.find(proposal.body.session_id.hex())


def test_no_answer_is_signed_when_the_time_for_answers_is_over(small, working):
    late = lambda: utc_now() + timedelta(days=8)  # noqa: E731
    home, desk, study = proposed(small, late)
    with pytest.raises(DocumentRejected, match="the time for answers"):
        desk.approve(study, "table", by="hand", identity=home.identity())
    with pytest.raises(DocumentRejected, match="the time for answers"):
        desk.deny(study, by="hand", identity=home.identity())
    work = working.make(late)
    assert work.look() is False  # nothing is awaited any more
    assert work.desk.all()[0].answer is None


def test_of_two_processes_that_answer_at_once_one_answer_stands(small):
    home, desk, study = proposed(small)
    identity = home.identity()
    desk.deny(study, by="hand", identity=identity)
    with pytest.raises(AlreadyAnswered):  # with what it had read before
        desk.approve(study, "table", by="policy", identity=identity)
    found = desk.find(study.session)
    assert (found.state, found.data_set) == ("denied", "")


def test_an_answer_that_is_refused_for_good_is_sent_once(small, working):
    _, desk, study = proposed(small)
    desk.deny(study, by="hand", identity=working.home.identity())
    work = working.make()
    work._client.refusal = DocumentRejected("the time for answers is over")
    for _ in range(3):
        work.look()
    assert len(work._client.sent) == 1


# -- two agents ----------------------------------------------------------------------------------------------


def test_a_second_agent_on_a_home_is_refused_before_it_does_anything(small):
    from hansa.federation.files import holding

    home = small.members["bank-1"]
    with holding(home.folder / "agent.lock"), pytest.raises(StoreInUse):
        Agent(home).serve(threading.Event())
    assert not (home.folder / "fleet").exists()


# -- for weeks -----------------------------------------------------------------------------------------------


def test_a_list_that_is_known_is_not_written_again(small):
    home = small.members["bank-1"]
    before = (home.folder / "revocations.crl").stat()
    home.take_revocations((home.folder / "revocations.crl").read_bytes(), utc_now())
    after = (home.folder / "revocations.crl").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_studies_of_the_past_are_not_parsed_again_at_every_look(small, monkeypatch):
    from hansa.federation import documents

    home = small.members["bank-1"]
    small.start()
    desk = small.own_desk(home)
    first = desk.all()
    parsed = []
    monkeypatch.setattr(documents, "_canonical_json", lambda *values: parsed.append(values))
    assert desk.all() == first
    with open_office(small.home) as office:
        from hansa.coordinator.authoring import desk_of

        monkeypatch.undo()
        known = desk_of(office).all()
        monkeypatch.setattr(documents, "_canonical_json", lambda *values: parsed.append(values))
        assert desk_of(office).all() == known
    assert parsed == []
