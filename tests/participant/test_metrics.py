"""The metrics of a node agent: an allow-list of names and labels, what they say, and where they can be read."""

import json
import threading
import time
import urllib.error
import urllib.request

import pytest

from hansa.coordinator.metrics import NAMES as COORDINATOR
from hansa.errors import InvalidValue, UnknownKey
from hansa.participant.agent import Agent
from hansa.participant.home import ParticipantHome
from hansa.participant.metrics import NAMES, EpsilonStanding, ParticipantMetrics
from hansa.privacy.budget import Spending

LABELS = {"version", "study", "scope"}


def everything():
    metrics = ParticipantMetrics("1.2.3")
    metrics.connected(True)
    metrics.looked(100.0)
    metrics.certificates_end(1e9)
    metrics.rounds("risk", planned=5, done=2)
    metrics.epsilon("risk", [EpsilonStanding(scope="for_ever", spent=1.5, limit=8.0)])
    return metrics.registry


def test_names_and_labels_are_those_of_the_allow_list_and_no_others():
    names, labels = set(), set()
    for family in everything().collect():
        names.add(family.name)
        labels |= {label for sample in family.samples for label in sample.labels}
    assert names == NAMES
    assert labels == LABELS
    forbidden = ("loss", "gradient", "norm", "records", "rows", "accuracy", "members", "bytes")
    assert not [name for name in names for word in forbidden if word in name]


def test_nothing_about_privacy_is_among_the_coordinators_metrics_and_few_names_are_shared():
    assert {"hansa_build_info"} == NAMES & COORDINATOR


def test_values_are_those_that_were_set():
    registry = everything()
    value = registry.get_sample_value
    assert value("hansa_agent_connected") == 1
    assert value("hansa_agent_rounds_done", {"study": "risk"}) == 2
    assert value("hansa_agent_rounds_planned", {"study": "risk"}) == 5
    assert value("hansa_privacy_epsilon_spent", {"study": "risk", "scope": "for_ever"}) == 1.5
    assert value("hansa_privacy_epsilon_limit", {"study": "risk", "scope": "for_ever"}) == 8.0


# -- epsilon, as a seat tells it -----------------------------------------------------------------------------


@pytest.mark.enable_socket
def test_a_seat_tells_what_is_reserved_and_what_the_policy_allows(seat, small_study):
    before = {one.scope: one for one in seat.epsilon()}
    assert {scope: one.spent for scope, one in before.items()} == {"for_ever": 0.0, "study": 0.0}
    assert before["for_ever"].limit == 8.0
    assert before["study"].limit == float("inf")
    budget = seat.node.budget
    own = Spending(study=small_study.id, round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)
    budget.reserve(own)
    after = {one.scope: one.spent for one in seat.epsilon()}
    assert after["study"] == after["for_ever"] == budget.epsilon() > 0
    other = Spending(study="a" * 64, round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)
    budget.reserve(other)
    last = {one.scope: one.spent for one in seat.epsilon()}
    assert last["study"] == after["study"] < last["for_ever"] == budget.epsilon()


@pytest.mark.enable_socket
def test_a_seat_that_is_at_work_keeps_nobody_waiting(seat):
    known = seat.epsilon()
    answered = []
    with seat._lock:
        thread = threading.Thread(target=lambda: answered.append(seat.epsilon()))
        thread.start()
        thread.join(5)
    assert answered == [known]


# -- the page ------------------------------------------------------------------------------------------------


def with_page(home, listen):
    settings = home.folder / "participant.toml"
    settings.write_text(settings.read_text() + f'\n[metrics]\nlisten = "{listen}"\n')
    return ParticipantHome.open(home.folder)


def fetch(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.enable_socket
def test_an_agent_shows_its_state_where_its_settings_say_so(small):
    port = small.port + 4
    agent = Agent(with_page(small.members["bank-1"], f"127.0.0.1:{port}"))
    stop = threading.Event()
    thread = threading.Thread(target=agent.serve, args=(stop,), daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 30
        while True:
            try:
                status, text = fetch(port, "/metrics")
                if "hansa_agent_certificate_expiry_timestamp_seconds 0.0" not in text:
                    break
            except urllib.error.URLError:
                pass
            assert time.monotonic() < until
            time.sleep(0.1)
        assert status == 200
        assert "hansa_agent_connected 0.0" in text  # there is no coordinator
        assert fetch(port, "/livez") == (200, "alive\n")
        assert fetch(port, "/readyz")[0] == 503
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert json.loads((small.folder / "bank-1" / "agent-status.json").read_text())["connected"] is False


@pytest.mark.enable_socket
def test_without_the_section_there_is_no_page_and_elsewhere_than_loopback_none(small):
    assert small.members["bank-1"].settings.metrics is None
    with pytest.raises(InvalidValue, match="loopback"):
        Agent(with_page(small.members["bank-2"], f"0.0.0.0:{small.port}")).serve(threading.Event())
    settings = small.members["bank-3"].folder / "participant.toml"
    settings.write_text(settings.read_text() + "\n[metrics]\nhost = 1\n")
    with pytest.raises(UnknownKey):
        ParticipantHome.open(small.folder / "bank-3")
