"""Which studies are run, and what a study outlives; without members."""

import threading
from types import SimpleNamespace

import pytest

from hansa.coordinator.authoring import desk_of
from hansa.coordinator.metrics import CoordinatorMetrics
from hansa.coordinator.office import open_office
from hansa.coordinator.study_run import RunnerParts, StudyRun
from hansa.coordinator.study_runner import StudyRunner
from hansa.coordinator.study_states import Outcomes, state_of
from hansa.errors import CommandStale, JournalUnreachable, ModelDivergence, ParticipantLost
from hansa.federation.documents import Document
from hansa.federation.starts import Command
from hansa.secure_agg.certificates import utc_now

pytestmark = pytest.mark.enable_socket  # to find free ports; nothing is sent


@pytest.fixture
def started(small, tmp_path, monkeypatch):
    """A study that was started, and a runner of it whose rounds fail as told before they are all over."""
    proposal = small.start()
    monkeypatch.setattr("hansa.coordinator.study_runner._FIRST_PAUSE_SECONDS", 0.01)
    with open_office(small.home) as office:
        desk = desk_of(office)
        parts = RunnerParts(
            journal=office.journal,
            grid=None,
            node_of=lambda _: 1,
            data_plane=None,
            adder=None,
            results=tmp_path / "results",
            authority=small.home.consortium.authority,
            revoked=lambda: None,
            exchange_seconds=1.0,
            upload_seconds=1.0,
            longest_pause_seconds=1.0,
            absent_days=30.0,
            metrics=CoordinatorMetrics("1.2.3"),
        )
        failures = []

        def run(self, _doing):
            if failures:
                raise failures.pop(0)
            monkeypatch.setattr(StudyRun, "rounds_done", 1)

        monkeypatch.setattr(StudyRun, "run", run)
        monkeypatch.setattr(StudyRun, "rounds_done", 0)
        runner = StudyRunner(desk, parts)

        def state():
            study = desk.get(proposal.digest)
            return state_of(study, Outcomes(office.journal).get(study), utc_now())

        yield SimpleNamespace(
            runner=runner, desk=desk, state=state, failures=failures, office=office, proposal=proposal
        )


@pytest.mark.parametrize(
    "failure",
    [
        JournalUnreachable("the database is started again"),
        OSError(28, "No space left on device"),
        ParticipantLost("bank-3 is away"),
    ],
    ids=["journal", "disk", "member"],
)
def test_a_study_outlives(started, failure):
    started.failures += [failure, failure]
    started.runner._run_study(started.runner._next())
    assert started.state() == "finished"


def test_a_study_whose_members_hold_different_states_has_failed_for_good(started):
    started.failures.append(ModelDivergence("two states"))
    started.runner._run_study(started.runner._next())
    assert started.state() == "failed"
    assert started.runner._next() is None


def test_a_journal_that_does_not_answer_fails_no_study(started):
    journal, real = started.office.journal, started.office.journal.get
    gone = threading.Event()

    def get(scope, name):
        if gone.is_set():
            raise JournalUnreachable("gone")
        return real(scope, name)

    journal.get = get
    study = started.runner._next()
    gone.set()
    with pytest.raises(JournalUnreachable):  # the runner's thread logs it and looks again
        started.runner._run_study(study)
    gone.clear()
    started.runner._run_study(started.runner._next())
    assert started.state() == "finished"


def test_nothing_follows_a_stop(small, started):
    def command(counter, action):
        body = Command(
            consortium=started.proposal.body.consortium,
            proposal=started.proposal.digest,
            session_id=started.proposal.body.session_id,
            counter=counter,
            action=action,
            author_certificate=started.office.authors.get("admin").certificate,
            created=utc_now(),
        )
        return Document.sign(body, small.home.author("admin").sign)

    started.desk.command(command(1, "stop"))
    with pytest.raises(CommandStale, match="stopped"):
        started.desk.command(command(2, "resume"))
    assert started.state() == "stopped"
