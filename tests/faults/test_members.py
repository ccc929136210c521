"""Members that leave, lower their limits, run out of budget or are put out, while their study runs."""

import signal
import time

import pytest

pytestmark = [pytest.mark.enable_socket, pytest.mark.slow]

DEADLINES = {"exchange_seconds": 40.0, "upload_seconds": 40.0, "longest_pause_seconds": 2.0}
TRAINING = "training and uploading"
SIGTERM_SECONDS = 45.0  # systemd gives 90


@pytest.fixture(scope="module")
def running(make_consortium):
    consortium = make_consortium(22, settings={"deadlines": DEADLINES})
    consortium.run()
    consortium.round_reached(1)
    consortium.command("pause")
    return consortium


@pytest.fixture
def consortium(running):
    running.command("resume")
    yield running
    if running.state() == "running":
        running.command("pause")


def without(consortium, name):
    return [other for other in consortium.names if other != name]


def test_an_agent_that_is_told_to_end_while_it_trains_ends_in_time_and_comes_back(consortium):
    with consortium.stopped_at("bank-1", TRAINING):
        number = consortium.rounds_done() + 1
        process = consortium.daemons.running["bank-1"]
        process.terminate()
    began = time.monotonic()
    assert consortium.daemons.end("bank-1", SIGTERM_SECONDS) == 0
    assert time.monotonic() - began < SIGTERM_SECONDS
    assert consortium.count("bank-1", "agent_stopping") == 1
    consortium.run_agent("bank-1")
    assert number in consortium.reserved("bank-1")
    assert consortium.contributors(number + 1) == list(consortium.names)


def test_an_agent_that_waits_for_a_coordinator_that_is_away_ends_in_time(consortium):
    door = consortium.doors["bank-2"]["aggregator"]
    with consortium.stopped_at("bank-2", TRAINING):
        number = consortium.rounds_done() + 1
        door.cut()
    consortium.until(lambda: number in consortium.reserved("bank-2"), "the training")
    time.sleep(1.0)  # it tries to upload again and again
    assert consortium.daemons.end("bank-2", SIGTERM_SECONDS) == 0
    door.mend()
    consortium.run_agent("bank-2")
    assert consortium.contributors(number + 2) == list(consortium.names)


def test_a_limit_that_is_lowered_refuses_the_next_round_by_name_and_the_others_go_on(consortium):
    consortium.write_policy("bank-3", epsilon=0.01)
    before = consortium.count("bank-3", "policies_reloaded")
    consortium.daemons.signal("bank-3", signal.SIGHUP)
    consortium.until(lambda: consortium.count("bank-3", "policies_reloaded") > before, "the policy")
    number = consortium.rounds_done() + 2
    spent = consortium.reserved("bank-3")
    assert consortium.contributors(number) == without(consortium, "bank-3")
    assert "budget_exhausted" in consortium.daemons.codes("bank-3")
    assert len(consortium.reserved("bank-3")) <= len(spent) + 1  # one may have been in flight
    assert number not in consortium.reserved("bank-3")
    consortium.write_policy("bank-3", epsilon=8.0)
    consortium.daemons.signal("bank-3", signal.SIGHUP)
    consortium.until(lambda: consortium.count("bank-3", "policies_reloaded") > before + 1, "the policy")
    number = consortium.rounds_done() + 2
    assert consortium.contributors(number) == list(consortium.names)  # it has caught up meanwhile


def test_a_policy_that_cannot_be_read_takes_the_seat_and_the_others_go_on(consortium):
    path = consortium.place("bank-3") / "policy.toml"
    kept = path.read_text()
    path.write_text("nonsense = [")
    consortium.daemons.signal("bank-3", signal.SIGHUP)
    consortium.until(lambda: "policy_syntax" in consortium.daemons.codes("bank-3"), "the policy")
    number = consortium.rounds_done() + 2
    assert consortium.contributors(number) == without(consortium, "bank-3")
    consortium.command("pause")  # the way back takes a while, and no round is needed for it
    path.write_text(kept)
    consortium.daemons.signal("bank-3", signal.SIGHUP)
    seats = consortium.count("bank-3", "seat_taken")
    consortium.until(lambda: consortium.count("bank-3", "seat_taken") > seats, "the seat")


def test_a_member_that_is_revoked_is_out_and_the_study_ends_without_it(consortium):
    last = consortium.rounds_done()
    consortium.revoke("bank-4")
    consortium.until(
        lambda: {"certificate_rejected", "not_a_member"} & set(consortium.daemons.codes("bank-4")),
        "its refusal",
    )
    assert consortium.contributors(last + 2) == without(consortium, "bank-4")
    consortium.finishes(without(consortium, "bank-4"))
    assert consortium.model("bank-4") is None
    consortium.ledger_holds("bank-4")
