"""A started study from its documents to its models: seats and grid are in this process, and nothing else is left out."""

import threading
from types import SimpleNamespace

import pytest

from hansa.coordinator import aggregator as aggregator_module
from hansa.coordinator import homecoming as homecoming_module
from hansa.coordinator.authoring import Authoring
from hansa.coordinator.homecoming import Homecoming
from hansa.coordinator.metrics import CoordinatorMetrics
from hansa.coordinator.office import open_office
from hansa.coordinator.progress import read_progress
from hansa.coordinator.study_run import RunnerParts, StudyRun
from hansa.coordinator.study_runner import StudyRunner
from hansa.local_grid import LocalGrid, from_bytes, to_bytes
from hansa.participant import seat as seat_module
from hansa.participant.seat import Seat
from hansa.participant.session_apps import session_handler
from hansa.secure_agg.certificates import utc_now
from hansa.secure_agg.sums import SumsInProcess

pytestmark = pytest.mark.enable_socket  # of the ports that the coordinator's settings name
ROUNDS = 3


class DataPlane:
    """Serves one session to members of this process; it remembers which were served."""

    def __init__(self):
        self.service, self.served = None, []

    def open_session(self, service, roster):
        self.service = service
        self.served.append(roster.session_id.hex())

    def close_session(self, session_id):
        self.service = None


class Wire:
    """A member's way to whatever service is open."""

    def __init__(self, plane):
        self._plane = plane

    def __getattr__(self, name):
        return getattr(self._plane.service, name)


class Site:
    """A study that was started, seats, and what it is run with."""

    def __init__(self, consortium, monkeypatch):
        self.consortium, self.plane = consortium, DataPlane()
        monkeypatch.setattr(seat_module, "GrpcAggregatorClient", lambda *_: Wire(self.plane))
        consortium.approve()
        consortium.start_study()
        self.office = open_office(consortium.home)
        self.desk = Authoring(self.office, "admin").desk
        (self.study,) = self.desk.all()
        self.errors, self.lost = [], set()
        self.seats = {name: self._seat(name) for name in consortium.names}
        self.nodes = {name: 100 + at for at, name in enumerate(consortium.names)}
        self.grid = LocalGrid(
            {self.nodes[name]: self._handler(name) for name in consortium.names},
            dict.fromkeys(self.nodes.values(), 0),
        )

    def _seat(self, name):
        desk = self.consortium.desk(name)
        listed = self.consortium.home.revocation_list_file.read_bytes()
        self.consortium.places[name].take_revocations(listed, utc_now())  # as its agent does first of all
        study = desk.begin(desk.find("tiny"), self.study.start, self.study.roster_approvals)
        return Seat(
            self.consortium.places[name],
            study,
            folder=desk.folder_of(study),
            base=self.consortium.base,
            channel=SimpleNamespace(),
            report=self.errors.append,
        )

    def _handler(self, name):
        handle = session_handler({self.consortium.session: self.seats[name]}.get, report=self.errors.append)

        def answer(data):
            if name in self.lost:
                raise ConnectionError("away")
            return to_bytes(handle(from_bytes(data)))

        return answer

    def parts(self, **changes):
        usual = {
            "journal": self.office.journal, "grid": self.grid, "node_of": self.nodes.__getitem__,
            "data_plane": self.plane, "adder": SimpleNamespace(begin=lambda *_: SumsInProcess()),
            "results": self.consortium.folder / "results", "authority": self.consortium.home.consortium.authority,
            "revoked": lambda: None, "exchange_seconds": 60.0, "upload_seconds": 60.0,
            "longest_pause_seconds": 1.0, "absent_days": 30.0, "metrics": CoordinatorMetrics("0"),
        }  # fmt: skip
        return RunnerParts(**{**usual, **changes})

    def close(self):
        self.grid.close()
        for seat in self.seats.values():
            seat.close()
        self.office.journal.close()


@pytest.fixture
def site(make_consortium, monkeypatch):
    found = Site(make_consortium(ROUNDS), monkeypatch)
    yield found
    found.close()


def test_the_documents_of_a_study_become_its_rounds(site):
    said = []
    run = StudyRun(site.study, site.parts(), may_go_on=lambda: len(said) < 3, gave_up=lambda: False)
    run.run(said.append)
    assert said == ["tiny: round 0/3", "tiny: round 1/3", "tiny: round 2/3"]
    assert run.rounds_done == 2
    assert site.plane.service is None  # nothing is served when nothing runs
    again = StudyRun(site.study, site.parts(), may_go_on=lambda: True, gave_up=lambda: False)
    again.run(said.append)
    assert said[3:] == ["tiny: round 2/3", "tiny: round 3/3"]
    assert site.plane.served == [site.consortium.session] * 2
    ended = [event.detail for event in site.office.journal.events() if event.kind == "round_ended"]
    assert [detail["round"] for detail in ended] == [1, 2, 3]
    assert all(detail["contributors"] == list(site.consortium.names) for detail in ended)
    assert all(detail["up_bytes"] > 0 < detail["down_bytes"] for detail in ended)
    found = read_progress(site.office.journal, site.consortium.session)
    assert (found.round, len(found.round_seconds)) == (3, 3)
    assert all(seat.is_finished for seat in site.seats.values())
    models = [next(seat.save_model().glob("*.safetensors")).read_bytes() for seat in site.seats.values()]
    assert len(set(models)) == 1
    assert site.errors == []


def test_a_study_waits_for_members_that_are_away_and_ends_when_they_are_back(site):
    site.lost |= {"bank-3", "bank-4"}
    runner = StudyRunner(site.desk, site.parts())
    runner.start()
    try:
        site.consortium.until(lambda: "participant_lost" in runner.doing, "a study that waits")
        assert site.consortium.state() == "running"
        site.lost.clear()
        site.consortium.until(lambda: site.consortium.state() == "finished", "the end")
    finally:
        runner.stop(30)
    assert len({seat.node.state.digest(site.consortium.study.id) for seat in site.seats.values()}) == 1
    for name in site.consortium.names:
        site.consortium.ledger_holds(name, ROUNDS)


def test_a_process_that_is_to_end_waits_for_nobody(site):
    site.grid._handlers[site.nodes["bank-1"]] = lambda _: threading.Event().wait(2.0)
    runner = StudyRunner(site.desk, site.parts())
    runner.start()
    site.consortium.until(lambda: site.consortium.stage() == "joining an epoch", "the first exchange")
    runner.stop(10)
    assert not runner.is_alive
    assert site.consortium.state() == "running"


# -- when it is over -------------------------------------------------------------------------------------


def test_a_member_that_was_away_at_the_end_gets_the_last_state_when_it_is_back(site, monkeypatch):
    monkeypatch.setattr(StudyRun, "_on_round", _then(StudyRun._on_round, lambda: site.lost.add("bank-4")))
    folder = site.consortium.folder / "results" / site.consortium.session
    parts = site.parts(exchange_seconds=5.0)
    runner = StudyRunner(site.desk, parts)
    runner.start()
    site.consortium.until(lambda: site.consortium.state() == "finished", "the end")
    site.consortium.until(lambda: "bank-4" in _problem(site), "what is said of who was away")
    assert not site.seats["bank-4"].is_finished
    assert all(site.seats[name].is_finished for name in ("bank-1", "bank-2", "bank-3"))
    assert any(folder.iterdir())
    runner.stop(30)
    runner = StudyRunner(site.desk, parts)  # as another process would
    runner.start()
    try:
        site.lost.clear()
        site.consortium.until(lambda: _settled(site), "the return")
    finally:
        runner.stop(30)
    assert _settled(site) == [[]]
    assert site.seats["bank-4"].is_finished
    assert len({seat.node.state.digest(site.consortium.study.id) for seat in site.seats.values()}) == 1
    assert _problem(site) == ""
    assert not folder.exists()


def test_a_member_that_stays_away_too_long_is_left_behind_and_nothing_is_kept(site, monkeypatch):
    monkeypatch.setattr(StudyRun, "_on_round", _then(StudyRun._on_round, lambda: site.lost.add("bank-4")))
    parts, days = site.parts(exchange_seconds=5.0), [1000.0]
    StudyRun(site.study, parts, may_go_on=lambda: True, gave_up=lambda: False).run(lambda _: None)
    folder = site.consortium.folder / "results" / site.consortium.session

    def look():
        homecoming.look([site.study], [], lambda: False)

    homecoming = Homecoming(parts, now=lambda: 86_400 * days[0])
    look()
    assert any(folder.iterdir())
    days[0] += 29.9
    homecoming = Homecoming(parts, now=lambda: 86_400 * days[0])
    look()
    assert _settled(site) == []
    days[0] += 0.2
    homecoming = Homecoming(parts, now=lambda: 86_400 * days[0])
    look()
    assert _settled(site) == [["bank-4"]]
    assert not folder.exists()
    site.lost.clear()
    look()
    Homecoming(parts).look([site.study], [], lambda: False)
    assert _settled(site) == [["bank-4"]]  # once


def test_a_study_that_waits_to_be_run_comes_first(site, monkeypatch):
    monkeypatch.setattr(StudyRun, "_on_round", _then(StudyRun._on_round, lambda: site.lost.add("bank-4")))
    parts = site.parts(exchange_seconds=600.0)
    StudyRun(site.study, parts, may_go_on=lambda: True, gave_up=lambda: False).run(lambda _: None)
    served = len(site.plane.served)
    Homecoming(parts).look([site.study], [], lambda: True)
    assert len(site.plane.served) == served
    site.lost.clear()
    site.grid._handlers[site.nodes["bank-4"]] = lambda _: threading.Event().wait(1.0)
    asked = []
    Homecoming(parts).look([site.study], [], lambda: len(asked) > 20 or asked.append(1))
    assert len(site.plane.served) == served + 1
    assert _settled(site) == []


def test_of_a_study_that_was_stopped_nothing_is_kept(site):
    parts, said = site.parts(), []
    StudyRun(site.study, parts, may_go_on=lambda: len(said) < 2, gave_up=lambda: False).run(said.append)
    folder = site.consortium.folder / "results" / site.consortium.session
    assert any(folder.iterdir())
    Homecoming(parts).look([], [site.study], lambda: False)
    assert not folder.exists()
    assert _settled(site) == [[]]


def test_of_a_study_that_failed_is_kept_for_a_while_who_said_what(site):
    parts, said, days = site.parts(), [], [1000.0]
    StudyRun(site.study, parts, may_go_on=lambda: len(said) < 2, gave_up=lambda: False).run(said.append)
    folder = site.consortium.folder / "results" / site.consortium.session
    for passed in (0.0, 29.9):
        days[0] += passed
        homecoming = Homecoming(parts, now=lambda: 86_400 * days[0])
        homecoming.look([], [], lambda: False, failed=[site.study])
        assert any(folder.iterdir())
        assert _settled(site) == []
    days[0] += 0.2
    Homecoming(parts, now=lambda: 86_400 * days[0]).look([], [], lambda: False, failed=[site.study])
    assert not folder.exists()
    assert _settled(site) == [[]]


def test_ciphertexts_that_cannot_be_removed_are_tried_again(site, monkeypatch):
    parts, said = site.parts(), []
    StudyRun(site.study, parts, may_go_on=lambda: len(said) < 2, gave_up=lambda: False).run(said.append)
    homecoming = Homecoming(parts)
    with monkeypatch.context() as patch:
        patch.setattr(homecoming_module.shutil, "rmtree", _raise(PermissionError(13, "Permission denied")))
        homecoming.look([], [site.study], lambda: False)
        assert _settled(site) == []
    monkeypatch.setattr(homecoming_module, "_FIRST_PAUSE_SECONDS", 0.0)
    Homecoming(parts).look([], [site.study], lambda: False)
    assert _settled(site) == [[]]


def test_a_folder_of_one_study_that_cannot_be_used_holds_up_no_other_study(site, monkeypatch):
    monkeypatch.setattr(StudyRun, "_on_round", _then(StudyRun._on_round, lambda: site.lost.add("bank-4")))
    parts = site.parts(exchange_seconds=5.0)
    StudyRun(site.study, parts, may_go_on=lambda: True, gave_up=lambda: False).run(lambda _: None)
    homecoming = Homecoming(parts)
    with monkeypatch.context() as patch:
        patch.setattr(aggregator_module, "RoundResults", _raise(OSError(28, "No space left on device")))
        homecoming.look([site.study], [], lambda: False)  # and goes on with the next one
    assert _settled(site) == []
    site.lost.clear()
    monkeypatch.setattr(homecoming_module, "_FIRST_PAUSE_SECONDS", 0.0)
    Homecoming(parts).look([site.study], [], lambda: False)
    assert _settled(site) == [[]]


def _then(on_round, also):
    """Let something happen after round 2."""

    def made(self, service, doing):
        inner = on_round(self, service, doing)

        def ended(summary):
            inner(summary)
            if summary.round == ROUNDS - 1:
                also()

        return ended

    return made


def _raise(error):
    def raising(*_):
        raise error

    return raising


def _problem(site):
    return read_progress(site.office.journal, site.consortium.session).problem


def _settled(site):
    return [
        event.detail["left_behind"] for event in site.office.journal.events() if event.kind == "study_settled"
    ]
