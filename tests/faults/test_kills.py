"""Processes of a running consortium are killed, one after another in one study; it ends as if nothing had been."""

import pytest

pytestmark = pytest.mark.enable_socket

ROUNDS = 24
TRAINING, CHECKING = "training and uploading", "checking the roster"


@pytest.fixture(scope="module")
def running(make_consortium):
    consortium = make_consortium(ROUNDS, settings={"deadlines": DEADLINES})
    consortium.run()
    consortium.round_reached(1)
    consortium.command("pause")
    return consortium


DEADLINES = {"exchange_seconds": 40.0, "upload_seconds": 40.0, "longest_pause_seconds": 2.0}


@pytest.fixture
def consortium(running):
    """The consortium while its study goes on; it pauses between tests, so that no round is used up."""
    running.command("resume")
    yield running
    if running.state() == "running":
        running.command("pause")


def goes_on(consortium, rounds=1):
    """The next rounds end, with an update of everybody in the last of them."""
    last = consortium.rounds_done() + rounds
    assert consortium.contributors(last) == list(consortium.names)


@pytest.mark.slow
def test_an_agent_that_is_killed_while_it_trains(consortium):
    with consortium.stopped_at("bank-1", TRAINING):
        number = consortium.rounds_done() + 1
        consortium.restart_agent("bank-1")
    goes_on(consortium, 2)
    # Killed before it reserved the round it has no part in its sum; afterwards the round is spent, whatever came of it.
    in_sums = {
        done for done in range(1, consortium.rounds_done() + 1) if "bank-1" in consortium.contributors(done)
    }
    assert number + 1 in in_sums
    assert in_sums <= set(consortium.reserved("bank-1"))


def test_an_agent_that_is_killed_during_its_upload(consortium):
    door = consortium.doors["bank-1"]["aggregator"]
    with door.stalls_after(12_000) as reached:
        consortium.until(reached.is_set, "half an upload")
        consortium.restart_agent("bank-1")
    goes_on(consortium, 2)


@pytest.mark.slow
def test_an_agent_that_is_killed_after_its_upload_and_before_its_release(consortium):
    with consortium.stopped_at("bank-4", TRAINING):
        consortium.until(lambda: consortium.waits_for(TRAINING, "bank-4"), "uploads")
        consortium.restart_agent("bank-1")
    goes_on(consortium, 2)


@pytest.mark.slow
def test_an_agent_that_is_killed_after_its_release(consortium):
    with consortium.stopped_at("bank-4", CHECKING):
        consortium.until(lambda: consortium.waits_for(CHECKING, "bank-4"), "releases")
        consortium.restart_agent("bank-1")
    goes_on(consortium, 2)


@pytest.mark.slow
def test_the_superlink_is_killed(consortium):
    with consortium.stopped_at("bank-4", TRAINING):
        consortium.until(lambda: consortium.waits_for(TRAINING, "bank-4"), "uploads")
        first = consortium.kill_child("superlink_process")
    goes_on(consortium, 2)
    assert consortium.children()["superlink_process"] != first


def test_the_adding_worker_is_killed(consortium):
    with consortium.stopped_at("bank-4", TRAINING):
        consortium.until(lambda: consortium.waits_for(TRAINING, "bank-4"), "uploads")
        first = consortium.kill_child("adding_worker")
    goes_on(consortium, 1)  # with all uploads of the round that was in flight
    assert consortium.children()["adding_worker"] != first


@pytest.mark.slow
def test_the_coordinator_is_killed_while_members_upload(consortium):
    with consortium.stopped_at("bank-4", TRAINING):
        consortium.until(lambda: consortium.waits_for(TRAINING, "bank-4"), "uploads")
        consortium.restart_coordinator()
    goes_on(consortium, 2)


def test_the_coordinator_is_killed_when_members_have_released(consortium):
    with consortium.stopped_at("bank-4", CHECKING):
        consortium.until(lambda: consortium.waits_for(CHECKING, "bank-4"), "releases")
        consortium.restart_coordinator()
    goes_on(consortium, 2)


@pytest.mark.slow
def test_a_network_that_is_away_for_ten_seconds(consortium):
    with consortium.cut("bank-1", "bank-2"):
        consortium.holds_for(10.0)
    goes_on(consortium, 2)


def test_the_study_ends_with_one_model_and_every_ledger_holds(consortium):
    consortium.finishes()
