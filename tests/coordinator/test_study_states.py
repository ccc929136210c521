"""Where a study stands follows from its documents and the loop's word; of several with one name the one that is meant is found."""

from datetime import timedelta
from types import SimpleNamespace

import pytest

from hansa.coordinator.journal import Journal
from hansa.coordinator.study_desk import ProposedStudy
from hansa.coordinator.study_states import OVER, Outcome, Outcomes, find_study, state_of
from hansa.errors import ModelDivergence, StudyUnknown, UsageError


@pytest.fixture
def house(house_of_members):
    return house_of_members


@pytest.fixture
def outcomes(tmp_path):
    with Journal(f"sqlite:///{tmp_path / 'journal.sqlite'}") as journal:
        yield Outcomes(journal)


def study_with(house, *actions, started=True, **changes):
    proposal = house.proposal(**changes)
    approvals = [house.approval(proposal, name) for name in ("bank-1", "bank-2", "bank-3")]
    commands = [
        house.command(proposal, {"counter": number, "action": action})
        for number, action in enumerate(actions, 1)
    ]
    return ProposedStudy(
        proposal=proposal,
        approvals={one.body.participant: one for one in approvals},
        denials={},
        start=house.start(proposal, approvals) if started else None,
        commands=tuple(commands),
    )


@pytest.mark.parametrize(
    ("actions", "word", "state"),
    [
        ((), "", "queued"),
        ((), "running", "running"),
        (("pause",), "running", "paused"),
        (("pause", "resume"), "running", "running"),
        (("pause", "resume"), "", "queued"),
        (("pause", "resume", "stop"), "running", "stopped"),
        ((), "finished", "finished"),
        (("pause",), "failed", "failed"),
        (("stop",), "finished", "finished"),
    ],
)
def test_a_state_follows_from_the_last_command_and_the_loops_word(house, actions, word, state):
    assert state_of(study_with(house, *actions), Outcome(word=word), house.now) == state


def test_a_proposal_that_was_not_started_in_time_has_expired(house):
    study = study_with(house, started=False)
    assert state_of(study, Outcome(), house.now) == "proposed"
    assert state_of(study, Outcome(), house.now + 8 * house.day) == "expired"
    assert state_of(study_with(house), Outcome(), house.now + 8 * house.day) == "queued"


def test_an_end_stands_and_each_word_is_an_event_once(house, outcomes):
    study = study_with(house)
    assert outcomes.get(study) == Outcome()
    outcomes.note(study, "running")
    outcomes.note(study, "running")
    outcomes.note(study, "failed", ModelDivergence("states differ"))
    outcomes.note(study, "running")
    outcomes.note(study, "finished")
    found = outcomes.get(study)
    assert (found.word, found.error, found.message) == ("failed", "model_divergence", "states differ")
    events = outcomes._journal.events()
    assert [event.kind for event in events] == ["study_running", "study_failed"]
    assert events[-1].detail["error"] == "model_divergence"


def test_a_study_is_found_by_name_or_by_the_begin_of_its_session(house, outcomes):
    first = study_with(house, session_id=b"a" * 16)
    second = study_with(house, session_id=b"b" * 16, created=house.now - house.day + timedelta(hours=1))
    desk = SimpleNamespace(all=lambda: [first, second])
    name = "bank-credit-default"

    def find(wanted):
        return find_study(desk, outcomes, wanted, house.now)

    with pytest.raises(UsageError) as several:
        find(name)
    assert "61616161" in several.value.hint
    assert find("6262") is second
    with pytest.raises(StudyUnknown):
        find("626")  # too few digits to mean a session
    with pytest.raises(StudyUnknown):
        find("absent")
    outcomes.note(second, "finished")
    assert find(name) is first
    outcomes.note(first, "finished")
    assert find(name) is second  # all are over: the latest
    assert {"expired", "stopped", "finished", "failed"} == OVER
