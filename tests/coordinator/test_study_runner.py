"""The runner of studies: which one runs, what it outlives, and what ends it; rounds are those of a loop that does as it is told."""

import threading
import time
from collections import deque
from types import SimpleNamespace

import pytest

from hansa.coordinator import homecoming, study_runner
from hansa.coordinator.authoring import Authoring
from hansa.coordinator.metrics import CoordinatorMetrics
from hansa.coordinator.office import open_office
from hansa.coordinator.progress import ProgressWriter, read_progress
from hansa.coordinator.study_run import RunnerParts, StudyRun
from hansa.coordinator.study_runner import IDLE, StudyRunner
from hansa.coordinator.study_states import name_of, session_of
from hansa.errors import (
    Interrupted,
    JournalNotWritable,
    JournalUnreachable,
    ModelDivergence,
    OutOfOrder,
    ParticipantLost,
    SpoolQuotaExceeded,
    StoreNotWritable,
    TranscriptDivergence,
)

pytestmark = pytest.mark.enable_socket  # of the ports that the coordinator's settings name
ROUNDS = 3


class Script:
    """What the runs of a test do: an error is raised, anything else is a round that ends."""

    def __init__(self):
        self.steps, self.rounds, self.runs = deque(), {}, []
        self.goes_on = threading.Event()
        self.goes_on.set()


class ScriptedRun:
    """Stands in for `StudyRun`: the same face, and rounds that a script decides on."""

    script = Script()
    behind = ()  # nobody was away at the end

    def __init__(self, study, parts, *, may_go_on, gave_up):
        self.name, self.session, self.rounds = name_of(study), session_of(study), ROUNDS
        self.progress = ProgressWriter(parts.journal, self.session, rounds=ROUNDS)
        self._may_go_on, self._gave_up = may_go_on, gave_up

    @property
    def rounds_done(self):
        return self.script.rounds.get(self.session, 0)

    def run(self, doing):
        script = self.script
        script.runs.append(self.session)
        while self.rounds_done < ROUNDS and self._may_go_on():
            if script.steps and isinstance(step := script.steps.popleft(), BaseException):
                raise step
            while not script.goes_on.wait(0.02):
                if self._gave_up():
                    raise Interrupted("nobody waits")
            script.rounds[self.session] = self.rounds_done + 1
            doing(f"{self.name}: round {self.rounds_done}/{ROUNDS}")


class Place:
    """A coordinator's home with a study that was started, and a runner on it."""

    def __init__(self, site):
        self.site = site
        self.office = open_office(site.home)
        self.author = Authoring(self.office, "admin")
        self.parts = RunnerParts(
            journal=self.office.journal, grid=None, node_of=lambda _: 0, data_plane=None, adder=None,
            results=site.folder / "results", authority=site.home.consortium.authority, revoked=lambda: None,
            exchange_seconds=5.0, upload_seconds=5.0, longest_pause_seconds=1.0, absent_days=30.0, metrics=CoordinatorMetrics("0"),
        )  # fmt: skip
        self.runner = None

    def run(self):
        self.runner = StudyRunner(self.author.desk, self.parts)
        self.runner.start()

    def end(self):
        if self.runner is not None:
            self.runner.stop(10.0)
            assert not self.runner.is_alive

    def until(self, is_so):
        end = time.monotonic() + 30
        while not is_so():
            assert time.monotonic() < end, (self.site.state(), self.kinds(), self.runner.doing)
            time.sleep(0.02)

    def is_at(self, state, session=""):
        self.until(lambda: self.site.state(session) == state)

    def kinds(self):
        return [event.kind for event in self.office.journal.events() if event.kind.startswith("study_")]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(study_runner, "StudyRun", ScriptedRun)
    monkeypatch.setattr(homecoming, "StudyRun", ScriptedRun)
    monkeypatch.setattr(study_runner, "_FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(study_runner, "_LOOK_SECONDS", 0.05)
    ScriptedRun.script = Script()
    return ScriptedRun.script


@pytest.fixture
def place(make_consortium, script):
    site = make_consortium(ROUNDS)
    site.approve()
    found = Place(site)
    yield found
    script.goes_on.set()
    found.end()
    found.office.journal.close()


def test_a_study_runs_when_it_is_started_and_ends(place):
    place.run()
    time.sleep(0.2)
    assert (place.site.state(), place.runner.doing) == ("proposed", IDLE)
    place.site.start_study()
    place.is_at("finished")
    place.until(lambda: "study_finished" in place.kinds())
    assert {"study_started", "study_running"} < set(place.kinds())
    place.until(lambda: place.runner.doing == IDLE)


@pytest.mark.parametrize(
    "error",
    [
        ParticipantLost("bank-1 is away"),
        JournalNotWritable("the disk is full"),
        StoreNotWritable("the disk is full"),
        SpoolQuotaExceeded("the spool is full"),
    ],
    ids=lambda error: error.code,
)
def test_what_can_be_outlived_is_waited_for_and_noted_once(place, script, error):
    place.site.start_study()
    script.steps += [error] * 4
    place.run()
    place.is_at("finished")
    assert len(script.runs) == 5
    waits = [event for event in place.office.journal.events() if event.kind == "study_waits"]
    assert [event.detail["error_code"] for event in waits] == [error.code]


def test_a_study_that_waits_shows_why(place, script, monkeypatch):
    monkeypatch.setattr(study_runner, "_FIRST_PAUSE_SECONDS", 30.0)
    place.site.start_study()
    script.steps.append(ParticipantLost("bank-1 is away"))
    place.run()
    place.until(lambda: "waits, participant_lost" in place.runner.doing)
    assert (
        read_progress(place.office.journal, place.site.session).problem == "bank-1 is away [participant_lost]"
    )
    assert place.site.state() == "running"
    place.end()  # it does not wait for the pause


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelDivergence("states differ"), "model_divergence"),
        (TranscriptDivergence("histories differ"), "transcript_divergence"),
        (ZeroDivisionError("a mistake"), "internal_failure"),
    ],
)
def test_what_waiting_does_not_mend_ends_the_study_with_the_errors_code(place, script, error, code):
    place.site.start_study()
    script.steps += ["a round", error]
    place.run()
    place.until(lambda: "study_failed" in place.kinds())
    assert place.site.state() == "failed"
    (failed,) = [event for event in place.office.journal.events() if event.kind == "study_failed"]
    assert failed.detail["error"] == code
    assert "a mistake" not in failed.detail["message"]
    time.sleep(0.3)
    assert len(script.runs) == 1  # it is not tried again
    assert place.runner.is_alive


def test_a_paused_study_waits_for_its_author_and_goes_on_where_it_was(place, script):
    place.site.start_study()
    script.goes_on.clear()
    place.run()
    place.is_at("running")
    place.until(lambda: script.runs)
    place.site.command("pause")
    script.goes_on.set()
    place.until(lambda: place.runner.doing == IDLE)
    assert script.rounds.get(place.site.session, 0) < ROUNDS
    assert place.site.state() == "paused"
    place.site.command("resume")
    place.is_at("finished")


def test_a_study_that_is_stopped_asks_nobody_any_more(place, script):
    place.site.start_study()
    script.goes_on.clear()  # members do not answer
    place.run()
    place.until(lambda: script.runs)
    place.site.command("stop")
    place.until(lambda: place.runner.doing == IDLE)
    assert place.site.state() == "stopped"
    assert script.rounds == {}


def test_another_runner_goes_on_with_what_was_running(place, script):
    place.site.start_study()
    script.goes_on.clear()
    place.run()
    place.until(lambda: script.runs)
    place.end()  # as when the process is to end
    assert place.site.state() == "running"
    script.goes_on.set()
    place.run()
    place.is_at("finished")


def test_of_several_studies_the_first_that_was_started_runs_first(place, script):
    first = place.site.session
    second = place.site.propose(place.site.study)
    place.site.approve(session=second)
    place.site.start_study(second)
    time.sleep(1.1)  # documents count in seconds
    place.site.start_study(first)
    script.goes_on.clear()
    place.run()
    place.is_at("running", second)
    assert place.site.state(first) == "queued"
    script.goes_on.set()
    place.is_at("finished", first)
    assert script.runs == [second, first]


def test_a_journal_that_does_not_answer_ends_no_runner(place, script, monkeypatch):
    place.site.start_study()
    fails = [3]
    real = place.author.desk.all

    def all_studies():
        if fails[0]:
            fails[0] -= 1
            raise JournalNotWritable("the disk is full")
        return real()

    monkeypatch.setattr(place.author.desk, "all", all_studies)
    place.run()
    place.is_at("finished")


def test_a_study_that_was_not_started_is_not_run(place):
    (study,) = place.author.desk.all()
    with pytest.raises(OutOfOrder):
        StudyRun(study, place.parts, may_go_on=lambda: True, gave_up=lambda: False)


def test_a_journal_that_is_away_for_long_does_not_fill_the_log(place, monkeypatch):
    told, asked = [], []

    def away():
        asked.append(1)
        raise JournalUnreachable("away")

    runner = StudyRunner(place.author.desk, place.parts)
    monkeypatch.setattr(runner, "_next", away)
    monkeypatch.setattr(runner, "_log", SimpleNamespace(error=lambda event, **_: told.append(event)))
    place.runner = runner
    runner.start()
    place.until(lambda: len(asked) > 5)
    assert told == ["runner_failed"]
