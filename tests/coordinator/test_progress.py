"""How far a study is: written down now and then, and read by another process; and what people are shown of it."""

import pytest

from hansa.coordinator.exchange import Waiting
from hansa.coordinator.journal import Journal
from hansa.coordinator.progress import STAGES, Progress, ProgressWriter, read_progress
from hansa.coordinator.rounds import RoundSummary
from hansa.coordinator.study_view import progress_line, progress_view
from hansa.participant.app import _STEPS

SESSION = "5e" * 16


@pytest.fixture
def journal(tmp_path):
    with Journal(f"sqlite:///{tmp_path / 'journal.sqlite'}") as opened:
        yield opened


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def writer(journal, clock):
    return ProgressWriter(journal, SESSION, rounds=4, now=lambda: clock[0])


def waiting(*members, kind="train", number=1):
    return Waiting(kind=kind, round=number, members=members)


def summary(number, seconds=2.0):
    names = ("bank-1", "bank-2", "bank-3")
    return RoundSummary(round=number, attempt=0, epoch=1, seconds=seconds, contributors=names, finished=names)


def test_nothing_is_known_of_a_study_that_never_ran(journal):
    assert read_progress(journal, SESSION) is None


def test_every_exchange_has_words():
    assert STAGES.keys() == _STEPS.keys()


def test_a_stage_is_written_at_once_and_who_is_late_soon_after(writer, journal, clock):
    writer.waits(waiting("bank-1", "bank-2"))
    found = read_progress(journal, SESSION)
    assert (found.stage, found.waiting, found.since) == (
        "training and uploading",
        ("bank-1", "bank-2"),
        1000.0,
    )
    clock[0] += 0.1
    writer.waits(waiting("bank-2"))  # too soon after the last note
    assert read_progress(journal, SESSION).waiting == ("bank-1", "bank-2")
    clock[0] += 0.4
    writer.waits(waiting("bank-2"))  # said again, as the loop does while it waits
    found = read_progress(journal, SESSION)
    assert (found.waiting, found.since) == (("bank-2",), 1000.0)


def test_what_is_said_again_and_is_the_same_is_not_written(writer, journal, clock, monkeypatch):
    writer.waits(waiting("bank-1"))
    writes = []
    monkeypatch.setattr(journal, "put", lambda *record: writes.append(record))
    for _ in range(10):
        clock[0] += 1.0
        writer.waits(waiting("bank-1"))
    assert writes == []
    writer.waits(waiting(kind="query.answer"))
    assert len(writes) == 1


def test_rounds_bytes_and_problems(writer, journal):
    writer.begins(1)
    assert read_progress(journal, SESSION).seconds_left is None
    writer.round_ended(summary(2), up_bytes=10, down_bytes=20)
    writer.round_ended(summary(3, seconds=4.0), up_bytes=30, down_bytes=40)
    found = read_progress(journal, SESSION)
    assert (found.round, found.rounds, found.up_bytes, found.down_bytes) == (3, 4, 30, 40)
    assert found.seconds_left == 3.0
    writer.has_problem("bank-1 is away [participant_lost]")
    found = read_progress(journal, SESSION)
    assert (found.problem, found.stage, found.waiting) == ("bank-1 is away [participant_lost]", "", ())
    writer.waits(waiting("bank-1"))
    assert read_progress(journal, SESSION).problem == ""  # it is tried again
    writer.ended()
    assert read_progress(journal, SESSION).stage == ""


def test_another_process_goes_on_with_the_times_of_the_rounds_before(writer, journal):
    for number in range(1, 13):
        writer.round_ended(summary(number, seconds=float(number)), up_bytes=0, down_bytes=0)
    again = ProgressWriter(journal, SESSION, rounds=20)
    again.begins(12)
    assert read_progress(journal, SESSION).round_seconds == tuple(map(float, range(3, 13)))


# -- what people are shown ---------------------------------------------------------------------------------------


def view(state="running", progress=None, **changes):
    usual = {
        "name": "tiny", "state": state, "approved": ["bank-1"], "needed": 4, "error": "", "message": "",
        "progress": None if progress is None else progress_view(progress),
    }  # fmt: skip
    return {**usual, **changes}


def test_a_line_says_where_a_study_is(monkeypatch):
    monkeypatch.setattr("hansa.coordinator.study_view.time.time", lambda: 1010.0)
    assert progress_line(view("proposed")) == "tiny: proposed, 1 of 4 approvals"
    names = tuple(f"bank-{number}" for number in range(1, 9))
    busy = Progress(
        round=1, rounds=3, stage="training and uploading", waiting=names, since=1000.0,
        round_seconds=(2.0, 4.0), up_bytes=2_000_000, down_bytes=4_000_000,
    )  # fmt: skip
    line = progress_line(view(progress=busy))
    assert "round 1/3; training and uploading; waiting 10 s for bank-1, bank-2" in line
    assert "bank-6 ..." in line
    assert "bank-7" not in line
    assert "2.0 MB up, 4.0 MB down" in line
    assert "about 6 s left" in line
    stuck = Progress(round=1, rounds=3, problem="bank-1 is away [participant_lost]")
    assert "waits: bank-1 is away [participant_lost]" in progress_line(view(progress=stuck))
    ended = view(
        "failed",
        Progress(round=2, rounds=3, round_seconds=(1.0,)),
        error="model_divergence",
        message="differ",
    )
    assert progress_line(ended) == "tiny: failed, round 2/3; differ [model_divergence]"
