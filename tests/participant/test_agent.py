"""The agent's end: whatever it is doing, and whether the coordinator is there or not, it ends soon after it is told to."""

import json
import threading
import time

import pytest

from hansa.participant import agent as agent_module
from hansa.participant import agent_work
from hansa.participant.agent import STATUS_FILE, Agent

pytestmark = pytest.mark.enable_socket


@pytest.fixture
def place(make_consortium):
    """A member whose coordinator does not run."""
    return make_consortium(2).places["bank-1"]


def serve(agent, stop):
    ended = []

    def run():
        agent.serve(stop)
        ended.append(time.monotonic())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, ended


def written(place):
    path = place.folder / STATUS_FILE
    return json.loads(path.read_bytes()) if path.exists() else {}


def test_it_ends_while_it_tries_to_reach_a_coordinator_that_is_away(place):
    agent, stop = Agent(place), threading.Event()
    thread, ended = serve(agent, stop)
    time.sleep(1.0)  # in the middle of a call that is tried for twenty seconds
    began = time.monotonic()
    stop.set()
    thread.join(30)
    assert ended
    assert ended[0] - began < 15
    assert not agent.is_abandoned


def test_a_request_that_lasts_is_abandoned(place, monkeypatch):
    monkeypatch.setattr(agent_module, "_FINISH_SECONDS", 0.3)
    monkeypatch.setattr(agent_module, "_ABANDON_SECONDS", 0.3)
    computes, goes_on = threading.Event(), threading.Event()
    broken_off = []

    def answer(self, fleet, work, stop, failures):
        computes.set()
        goes_on.wait(30)
        broken_off.append(self._breaks_off.is_set())

    monkeypatch.setattr(Agent, "_answer", answer)
    agent, stop = Agent(place), threading.Event()
    thread, ended = serve(agent, stop)
    assert computes.wait(30)
    stop.set()
    thread.join(30)
    assert ended
    assert agent.is_abandoned
    goes_on.set()
    end = time.monotonic() + 10
    while not broken_off:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert broken_off == [True]  # what it gives then is no reply


def test_its_status_says_what_keeps_it(place, monkeypatch):
    monkeypatch.setattr(agent_work, "_CALL_SECONDS", 1.0)
    agent, stop = Agent(place), threading.Event()
    thread, _ = serve(agent, stop)
    end = time.monotonic() + 60
    while "not connected: coordinator_unreachable" not in written(place).get("status", ""):
        assert time.monotonic() < end, written(place)
        time.sleep(0.05)
    assert written(place)["connected"] is False
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


def test_what_fails_for_good_in_the_fleet_ends_it_with_that_error(place, monkeypatch):
    def answer(self, fleet, work, stop, failures):
        failures.append(ZeroDivisionError("a mistake"))

    monkeypatch.setattr(Agent, "_answer", answer)
    with pytest.raises(ZeroDivisionError):
        Agent(place).serve(threading.Event())
