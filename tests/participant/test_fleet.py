"""The participant's connection: what it answers, what it refuses, what it owes and how it ends."""

import signal
import threading
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict

from hansa.errors import (
    CertificateRejected,
    ClockSkew,
    CoordinatorUnreachable,
    InvalidValue,
    NodeNotAccepted,
    StoreInUse,
)
from hansa.federation import flower_api
from hansa.federation.fleet_messages import SessionGrid
from hansa.participant import fleet as module
from hansa.participant.fleet_client import FleetClient, client_tls
from hansa.participant.session_apps import session_handler

pytestmark = pytest.mark.enable_socket


@pytest.fixture(scope="module")
def cluster(fleet, tmp_path_factory):
    """A coordinator with one node, which writes down what it was asked."""
    made = fleet.Cluster(tmp_path_factory.mktemp("cluster"), ("bank-1", "bank-2"))
    made.log = []
    made.node = made.thread("bank-1", fleet.ping_app("bank-1", made.log))
    made.ready(("bank-1",))
    yield made
    made.close()


@pytest.fixture
def second(cluster, fleet):
    """Start a connection of the second member, and end it after the test."""
    made = []

    def start(app=None, **changes):
        made.append(fleet.NodeThread(cluster, "bank-2", app or fleet.ping_app("bank-2"), **changes))
        return made[-1]

    yield start
    for node in made:
        node.stop()


def ask(cluster, name, number, padding=0, seconds=10.0):
    """Ask one node; give the one record of its reply, None if there is none."""
    request = {"round": number, "attempt": 0} | ({"padding": b"x" * padding} if padding else {})
    message = Message(
        RecordDict({"request": ConfigRecord(request)}),
        dst_node_id=cluster.nodes[name],
        message_type="query.join",
        ttl=seconds,
    )
    replies = list(SessionGrid(cluster.grid, "5e" * 16).send_and_receive([message], timeout=seconds))
    return dict(replies[0].content.config_records["reply"]) if replies else None


def client_of(cluster, name, **changes):
    authority = cluster.authority
    tls = client_tls(certificate=authority.pem(name), key=authority.key(name), authority=authority.der)
    return FleetClient(cluster.url, tls=tls, node_key=cluster.node_keys[name], **changes)


def wait_until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- what it answers and refuses -------------------------------------------------------------------------


def test_what_a_handler_raises_stays_with_the_participant(cluster, second):
    def app(message, _):
        raise RuntimeError("the secret")

    node = second(app)
    cluster.ready()
    assert ask(cluster, "bank-2", 1) == {"error": "aborted"}
    assert node.codes() == ["internal_failure"]
    assert "the secret" in node.errors[0].message


def test_a_message_above_the_bound_is_refused_by_name_and_the_next_one_is_answered(cluster, second):
    node = second(most_bytes=8192)
    cluster.ready()
    assert ask(cluster, "bank-2", 1, padding=20_000, seconds=1.5) is None
    assert node.codes() == ["message_too_large"]
    assert ask(cluster, "bank-2", 2) == {"join": b"bank-2 2"}


def test_a_reply_above_the_bound_is_an_aborted_one(cluster, second):
    def app(message, _):
        return Message(RecordDict({"reply": ConfigRecord({"join": b"x" * 20_000})}), reply_to=message)

    node = second(app, most_bytes=8192)
    cluster.ready()
    assert ask(cluster, "bank-2", 1) == {"error": "aborted"}
    assert node.codes() == ["message_too_large"]


def test_a_message_without_a_session_is_aborted(fleet):
    errors = []
    handler = session_handler({fleet.SESSION: fleet.ping_app("bank-1")}.get, report=errors.append)
    request = Message(RecordDict(), dst_node_id=1, message_type="query.join")
    assert dict(handler(request).content.config_records["reply"]) == {"error": "aborted"}
    assert [error.code for error in errors] == ["malformed_message"]


# -- how it ends and comes back --------------------------------------------------------------------------


def test_an_orderly_end_takes_a_moment_and_the_next_process_is_taken_in_at_once(cluster):
    node = cluster.process("bank-2")
    cluster.ready()
    began = time.monotonic()
    node.send_signal(signal.SIGTERM)
    assert node.wait(10) == 0
    assert time.monotonic() - began < 5.0
    assert cluster.nodes["bank-2"] not in cluster.grid.get_node_ids()
    again = cluster.process("bank-2")
    cluster.ready()
    again.send_signal(signal.SIGKILL)  # not orderly
    again.wait()
    third, began = cluster.process("bank-2"), time.monotonic()
    assert ask(cluster, "bank-2", 5, seconds=30.0) == {"join": b"bank-2 5"}
    assert time.monotonic() - began < 20.0  # most of it is Python's start
    third.send_signal(signal.SIGTERM)
    assert third.wait(10) == 0


def test_what_is_being_answered_at_the_end_is_answered(cluster, fleet):
    log = []
    node = fleet.NodeThread(cluster, "bank-2", fleet.ping_app("bank-2", log, seconds=1.0))
    cluster.ready()
    found = []
    asking = threading.Thread(target=lambda: found.append(ask(cluster, "bank-2", 6)))
    asking.start()
    wait_until(lambda: log)
    node.stop()
    asking.join()
    assert found == [{"join": b"bank-2 6"}]


def test_what_was_broken_off_is_not_answered_and_asked_of_the_next_process_again(cluster, second, fleet):
    called, broken = threading.Event(), threading.Event()

    def app(message, _):
        called.set()
        broken.wait(20)
        return Message(RecordDict({"reply": ConfigRecord({"error": "aborted"})}), reply_to=message)

    first = fleet.NodeThread.__new__(fleet.NodeThread)
    first.errors, first.stop_event = [], threading.Event()
    first.connection = cluster.connection("bank-2", report=first.errors.append)
    handler = session_handler({fleet.SESSION: app}.get, report=first.errors.append)
    first.thread = threading.Thread(
        target=first.connection.run, args=(handler, first.stop_event, broken.is_set), daemon=True
    )
    first.thread.start()
    cluster.ready()
    asked = []
    asking = threading.Thread(target=lambda: asked.append(ask(cluster, "bank-2", 7, seconds=60.0)))
    asking.start()
    assert called.wait(20)
    first.stop_event.set()
    broken.set()
    first.thread.join(20)
    assert not first.thread.is_alive()
    assert first.connection.state.answered == 0
    second()
    asking.join(60)
    assert asked == [{"join": b"bank-2 7"}]


def test_a_reply_that_was_not_sent_is_sent_by_the_next_process(cluster, fleet, second):
    log, handled, cut = [], threading.Event(), threading.Event()

    def app(message, context):
        handled.set()
        cut.wait(10)
        return fleet.ping_app("bank-2", log)(message, context)

    node = fleet.NodeThread(cluster, "bank-2", app)
    cluster.ready()
    found = []
    asking = threading.Thread(target=lambda: found.append(ask(cluster, "bank-2", 7, seconds=40.0)))
    asking.start()
    assert handled.wait(10)
    port = cluster.front.address[1]
    cluster.front.stop()
    cut.set()
    wait_until(lambda: any(code == "coordinator_unreachable" for code in node.codes()))
    node.stop()
    assert len(list((cluster.folder / "node-bank-2").glob("*.reply"))) == 1
    cluster.front = cluster.start_front(port)
    second(fleet.ping_app("other"))
    asking.join()
    assert found == [{"join": b"bank-2 7"}]
    assert list((cluster.folder / "node-bank-2").glob("*.reply")) == []


def test_one_process_serves_a_node(cluster, second):
    second()
    cluster.ready()
    with pytest.raises(StoreInUse):
        cluster.connection("bank-2", report=lambda _: None).run(lambda m: m, threading.Event())


def test_files_and_addresses_that_cannot_be_used_are_named_at_once(cluster, tmp_path):
    stop = threading.Event()
    changes = {"report": lambda _: None, "folder": tmp_path / "node"}
    with pytest.raises(CertificateRejected, match=r"nothing\.pem"):
        cluster.connection("bank-2", certificate=tmp_path / "nothing.pem", **changes).run(None, stop)
    tls = client_tls(
        certificate=cluster.authority.pem("bank-1"),
        key=cluster.authority.key("bank-1"),
        authority=cluster.authority.der,
    )
    with pytest.raises(InvalidValue, match="https"):
        FleetClient("http://127.0.0.1:1", tls=tls, node_key=cluster.node_keys["bank-1"])
    with pytest.raises(InvalidValue, match="curves"):
        FleetClient("https://127.0.0.1:1", tls=tls, node_key=ec.generate_private_key(ec.BrainpoolP256R1()))


def test_a_coordinator_that_is_away_is_reported_once_and_retried_with_growing_pauses(cluster, second):
    node = second(url="https://127.0.0.1:1")
    time.sleep(1.5)
    assert node.codes() == ["coordinator_unreachable"]
    assert not node.connection.state.connected
    assert isinstance(node.connection.state.error, CoordinatorUnreachable)
    pauses = [module._retry_seconds(failures) for failures in range(1, 40)]
    assert all(0.12 <= pause <= 5.0 for pause in pauses)
    assert min(pauses[10:]) >= 2.5
    assert len(set(pauses)) > 30  # jitter


def test_state_tells_what_the_connection_does(cluster):
    ask(cluster, "bank-1", 8)
    state = cluster.node.connection.state
    assert (state.connected, state.connections >= 1, state.answered >= 1, state.error) == (
        True,
        True,
        True,
        None,
    )


# -- nodes, keys and clocks ------------------------------------------------------------------------------


def test_a_node_with_anothers_key_is_refused(cluster):
    authority = cluster.authority
    tls = client_tls(
        certificate=authority.pem("bank-2"), key=authority.key("bank-2"), authority=authority.der
    )
    client = FleetClient(cluster.url, tls=tls, node_key=cluster.node_keys["bank-1"])
    with client, pytest.raises(Exception, match="not that of the participant") as found:
        client.activate()
    assert found.value.code == "foreign_node"


def test_a_node_without_its_number_waits_until_the_superlink_forgets_it_and_with_it_does_not(cluster):
    with client_of(cluster, "bank-2") as first:
        number = first.activate()
    with client_of(cluster, "bank-2") as other, pytest.raises(NodeNotAccepted, match="412"):
        other.activate()
    with client_of(cluster, "bank-2", outbox_node_id=number) as other:
        assert other.activate() == number
        other.deactivate()


@pytest.mark.parametrize("seconds", [20.0, -200.0, 200.0])
def test_clocks_that_are_minutes_apart_do_not_matter(cluster, seconds):
    with client_of(cluster, "bank-2") as client:
        client._ahead_seconds = seconds  # as if this machine's clock were wrong
        client.activate()
        client.deactivate()


def test_clocks_that_are_ten_minutes_apart_are_named(cluster, monkeypatch):
    class Late(flower_api.datetime):
        @classmethod
        def now(cls, zone=None):
            return flower_api.datetime.fromtimestamp(time.time() - 600, zone)

    from hansa.participant import fleet_client

    monkeypatch.setattr(fleet_client, "datetime", Late)
    real = flower_api.datetime
    monkeypatch.setattr(flower_api, "datetime", Late)
    monkeypatch.setattr(Late, "fromtimestamp", real.fromtimestamp, raising=False)
    with client_of(cluster, "bank-2") as client, pytest.raises(ClockSkew, match=r"\+\d{3} s") as found:
        client.activate()
    assert found.value.exit_status == 78
