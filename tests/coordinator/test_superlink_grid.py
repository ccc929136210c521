"""The grid over a real SuperLink: exchanges that outlive the SuperLink, the front and nodes."""

import signal
import sys
import threading
import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from hansa.coordinator import superlink, superlink_grid, superlink_run
from hansa.coordinator.rounds import RoundLoop
from hansa.coordinator.superlink import SuperLink
from hansa.coordinator.superlink_grid import open_grid
from hansa.errors import CohortMismatch, MessageTooLarge, ParticipantLost
from hansa.federation.fleet_messages import SessionGrid
from hansa.local_grid import from_bytes, to_bytes
from hansa.participant import fleet as fleet_module

pytestmark = pytest.mark.enable_socket

BANKS = ("bank-1", "bank-2", "bank-3")


@pytest.fixture(scope="module")
def cluster(fleet, tmp_path_factory):
    """One coordinator with three nodes, for tests that kill nothing."""
    made = fleet.Cluster(tmp_path_factory.mktemp("cluster"), BANKS)
    made.log = []
    for name in BANKS:
        made.thread(name, fleet.ping_app(name, made.log))
    made.ready()
    yield made
    made.close()


def answers_of(names, number):
    return {name: {"join": f"{name} {number}".encode()} for name in names}


def asked(cluster, name):
    """Rounds that a node's program was asked for, as often as it was."""
    path = cluster.folder / f"files-{name}" / "asked"
    return path.read_text().split() if path.exists() else []


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- a fleet that lives ----------------------------------------------------------------------------------


def test_every_member_is_asked_and_answers_and_the_session_does_not_reach_the_app(cluster):
    for number in (1, 2, 3):
        assert cluster.ask(number) == (answers_of(BANKS, number), {})
    assert sorted(cluster.log[:9]) == sorted(f"{n} {i} ['request']" for n in BANKS for i in (1, 2, 3))
    assert set(cluster.front.counts) == {"status_200"}
    assert [node.errors for node in cluster.running] == [[], [], []]


def test_an_exchange_takes_a_fraction_of_a_second(cluster):
    cluster.ask(4)
    began = time.monotonic()
    for number in range(5, 10):
        cluster.ask(number)
    assert (time.monotonic() - began) / 5 < 1.0  # about 0.1 s on idle cores


def test_an_exchange_is_three_calls_for_each_member_and_two_for_the_coordinator(cluster):
    cluster.ask(10)
    before = cluster.front.counts["status_200"]
    cluster.ask(11)
    # A pull that brings the message and a push; heartbeats and waiting pulls may fall in between.
    assert cluster.front.counts["status_200"] - before <= 2 * len(BANKS) + 4


def test_two_studies_share_the_grid(cluster):
    found = {}

    def ask(number):
        found[number] = cluster.ask(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in (21, 22, 23)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: (answers_of(BANKS, number), {}) for number in (21, 22, 23)}


def test_a_message_of_an_unknown_session_is_answered_like_any_other_failure(cluster):
    grid = SessionGrid(cluster.grid, "00" * 16)
    message = Message(
        RecordDict({"request": ConfigRecord({"round": 1, "attempt": 0})}),
        dst_node_id=cluster.nodes["bank-1"],
        message_type="query.join",
        ttl=20.0,
    )
    (reply,) = grid.send_and_receive([message], timeout=20.0)
    assert dict(reply.content.config_records["reply"]) == {"error": "aborted"}
    assert cluster.running[0].codes()[-1] == "unknown_study"


def test_nobody_but_members_is_sent_anything_and_nothing_above_the_bound(cluster):
    stranger = Message(RecordDict(), dst_node_id=12345, message_type="query.join")
    with pytest.raises(CohortMismatch, match="12345"):
        cluster.grid.push_messages([stranger])
    large = RecordDict({"request": ConfigRecord({"x": b"x" * (16 << 20)})})
    message = Message(large, dst_node_id=cluster.nodes["bank-1"], message_type="query.join")
    with pytest.raises(MessageTooLarge, match="the bound is 16777216"):
        cluster.grid.push_messages([message])


def test_a_member_that_is_put_out_counts_as_lost_at_once_and_the_others_answer(clusters, fleet):
    cluster = clusters("bank-1", "bank-2", "bank-3")
    cluster.thread("bank-1")
    cluster.thread("bank-2")
    cluster.thread(
        "bank-3", fleet.ping_app("bank-3", seconds=5.0)
    )  # it is asked, and put out before it answers
    cluster.ready()
    left = {name: key for name, key in cluster.public.items() if name != "bank-3"}
    found, began = [], time.monotonic()
    asking = threading.Thread(target=lambda: found.append(cluster.ask(1, deadline_seconds=60.0)))
    asking.start()
    time.sleep(1.0)
    cluster.front.update_members(left)
    cluster.superlink.set_members(left)
    asking.join(60)
    found.append(cluster.ask(2, deadline_seconds=60.0))
    for number, (answers, lost) in enumerate(found, 1):
        assert answers == answers_of(("bank-1", "bank-2"), number)
        assert [type(error) for error in lost.values()] == [ParticipantLost]
        assert list(lost) == ["bank-3"]
    assert len(found) == 2
    assert time.monotonic() - began < 50


def test_a_run_that_has_grown_long_is_replaced_between_exchanges(cluster, monkeypatch):
    monkeypatch.setattr(superlink_grid, "_MESSAGES_OF_A_RUN", 5)
    runs = set()
    for number in range(30, 36):
        assert cluster.ask(number) == (answers_of(BANKS, number), {})
        runs.add(cluster.grid.run.run_id)
    assert len(runs) >= 3


def test_a_run_that_brings_code_is_not_answered(cluster, monkeypatch):
    import hashlib

    code = superlink_run.EMPTY_BUNDLE.replace(b"empty", b"other")
    monkeypatch.setattr(superlink_run, "EMPTY_BUNDLE", fixed_crc(code))
    monkeypatch.setattr(superlink_run, "EMPTY_BUNDLE_HASH", hashlib.sha256(fixed_crc(code)).hexdigest())
    grid = open_grid(cluster.superlink, doorbell=cluster.doorbell)
    cluster.log.clear()
    message = Message(
        RecordDict({"request": ConfigRecord({"round": 99, "attempt": 0})}),
        dst_node_id=cluster.nodes["bank-1"],
        message_type="query.join",
        ttl=10.0,
    )
    assert list(SessionGrid(grid, "5e" * 16).send_and_receive([message], timeout=1.5)) == []
    grid.close()
    assert cluster.running[0].codes()[-1] == "code_bundle_refused"
    assert cluster.log == []
    monkeypatch.undo()
    assert cluster.ask(100) == (answers_of(BANKS, 100), {})


def fixed_crc(archive):
    """Write an archive of one stored file again, after its text was changed."""
    import io
    import zipfile

    body = superlink_run.EMPTY_BUNDLE
    with zipfile.ZipFile(io.BytesIO(body)) as known:
        text = known.read("pyproject.toml")
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as bundle:
        bundle.writestr("pyproject.toml", text.replace(b"empty", b"other"))
        bundle.writestr("app.py", "raise SystemExit")
    del archive
    return made.getvalue()


def test_a_reply_that_flower_cannot_read_is_a_failure_of_its_node(cluster):
    known = Message(RecordDict(), dst_node_id=cluster.nodes["bank-1"], message_type="query.join")
    proto = ProtoMessage()
    proto.CopyFrom(message_to_proto(known))
    proto.metadata.message_type = "no such type"
    asked_ = superlink_grid._Asked(known, cluster.nodes["bank-1"], time.time() + 10)
    reply = cluster.grid._reply(proto, asked_)
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def test_without_a_doorbell_both_sides_ask_again_and_again(fleet, tmp_path, clusters):
    cluster = clusters("bank-1", doorbell=None)
    cluster.grid.close()
    cluster.grid = open_grid(cluster.superlink)
    cluster.thread("bank-1")
    cluster.ready()
    for number in (1, 2):
        assert cluster.ask(number) == (answers_of(["bank-1"], number), {})


# -- what dies and comes back ----------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Let nodes in this process try again soon."""
    monkeypatch.setattr(fleet_module, "_LAST_RETRY_SECONDS", 0.5)
    monkeypatch.setattr(superlink, "_LONGEST_PAUSE_SECONDS", 0.5)


@pytest.mark.parametrize(
    "database", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["in memory", "in a database"]
)
def test_an_exchange_outlives_the_superlink(fleet, quick, clusters, monkeypatch, tmp_path, database):
    if database:
        monkeypatch.setattr(
            fleet, "SuperLink", lambda folder: SuperLink(folder, database=tmp_path / "superlink.db")
        )
    cluster = clusters(*BANKS)
    for name in BANKS:
        cluster.thread(name, fleet.ping_app(name, seconds=0.6))
    cluster.ready()
    assert cluster.ask(1) == (answers_of(BANKS, 1), {})
    threading.Timer(0.3, cluster.kill_superlink).start()  # every node works on its answer
    assert cluster.ask(2, deadline_seconds=60.0) == (answers_of(BANKS, 2), {})
    assert cluster.superlink.starts == 2


def test_an_exchange_outlives_a_node_that_is_killed_while_it_works_and_the_next_one_is_taken_in_at_once(
    clusters,
):
    cluster = clusters(*BANKS)
    nodes = {name: cluster.process(name, seconds=1.0) for name in BANKS}
    cluster.ready()
    found = []
    asking = threading.Thread(target=lambda: found.append(cluster.ask(1, deadline_seconds=60.0)))
    asking.start()
    wait_until(lambda: asked(cluster, "bank-2") == ["1"])
    nodes["bank-2"].send_signal(signal.SIGKILL)
    nodes["bank-2"].wait()
    began = time.monotonic()
    cluster.process("bank-2")
    asking.join()
    assert found == [(answers_of(BANKS, 1), {})]
    assert asked(cluster, "bank-2") == ["1", "1"]
    assert asked(cluster, "bank-1") == ["1"]
    assert time.monotonic() - began < 15.0  # not the minute that Flower's own node takes


def test_a_node_that_is_killed_while_it_waits_loses_no_message(clusters):
    cluster = clusters("bank-1")
    node = cluster.process("bank-1")
    cluster.ready()
    node.send_signal(signal.SIGKILL)
    node.wait()
    found = []
    asking = threading.Thread(target=lambda: found.append(cluster.ask(1, deadline_seconds=60.0)))
    asking.start()  # the SuperLink believes that the node is there, and the message lies ready for it
    time.sleep(0.5)
    cluster.process("bank-1")
    asking.join()
    assert found == [(answers_of(["bank-1"], 1), {})]


def test_an_exchange_outlives_a_network_that_is_cut(fleet, quick, clusters):
    cluster = clusters(*BANKS)
    for name in BANKS:
        cluster.thread(name, fleet.ping_app(name, seconds=0.5))
    cluster.ready()
    port = cluster.front.address[1]
    threading.Timer(0.2, cluster.front.stop).start()

    def back():
        cluster.front = cluster.start_front(port)

    threading.Timer(3.0, back).start()
    assert cluster.ask(1, deadline_seconds=60.0) == (answers_of(BANKS, 1), {})


@pytest.mark.slow
def test_an_exchange_outlives_a_network_that_is_cut_for_two_minutes(fleet, clusters):
    cluster = clusters(*BANKS)
    for name in BANKS:
        cluster.thread(name, fleet.ping_app(name, seconds=0.5))
    cluster.ready()
    port = cluster.front.address[1]
    cluster.front.stop()

    def back():
        cluster.front = cluster.start_front(port)

    threading.Timer(120.0, back).start()
    assert cluster.ask(1, deadline_seconds=240.0) == (answers_of(BANKS, 1), {})


def test_a_node_that_stays_away_is_lost_after_a_while_and_at_once_afterwards(fleet, clusters):
    cluster = clusters(*BANKS)
    cluster.grid.close()
    cluster.grid = open_grid(cluster.superlink, doorbell=cluster.doorbell, patience_seconds=2.0)
    nodes = {name: cluster.thread(name) for name in BANKS}
    cluster.ready()
    nodes["bank-3"].stop()
    for number, longest in ((1, 12.0), (2, 4.0)):
        began = time.monotonic()
        found, lost = cluster.ask(number, deadline_seconds=60.0)
        assert time.monotonic() - began < longest
        assert found == answers_of(BANKS[:2], number)
        assert isinstance(lost["bank-3"], ParticipantLost)
        assert f"error {ErrorCode.NODE_UNAVAILABLE}" in lost["bank-3"].message
    cluster.thread("bank-3")
    cluster.ready()
    assert cluster.ask(3) == (answers_of(BANKS, 3), {})


@pytest.mark.slow
def test_a_superlink_that_does_not_come_back_costs_the_exchange_and_nothing_else(
    quick, clusters, monkeypatch
):
    cluster = clusters("bank-1")
    cluster.thread("bank-1")
    cluster.ready()
    monkeypatch.setattr(cluster.superlink, "_command", lambda: [sys.executable, "-c", "raise SystemExit(3)"])
    cluster.kill_superlink()
    time.sleep(0.1)
    found, lost = cluster.ask(1, deadline_seconds=2.0)
    assert found == {}
    assert "no answer" in lost["bank-1"].message
    monkeypatch.delattr(cluster.superlink, "_command")
    assert cluster.ask(2, deadline_seconds=60.0) == (answers_of(["bank-1"], 2), {})


# -- the protocol over it --------------------------------------------------------------------------------


def test_a_study_runs_over_the_fleet_bit_for_bit_as_in_one_machine(fleet, house, clusters):
    cluster = clusters(*house.names)
    for name in house.names:
        handler = house.grid._handlers[house.node_ids[name]]

        def app(message, _, handler=handler):
            return from_bytes(handler(to_bytes(message)))

        cluster.thread(name, app)
    cluster.ready()
    summaries = []
    RoundLoop(
        SessionGrid(cluster.grid, fleet.SESSION),
        roster=house.roster,
        terms=house.terms,
        nodes=cluster.nodes,
        aggregation=house.service,
        rounds=2,
        deadline_seconds=60.0,
        on_round=summaries.append,
    ).run()
    assert [summary.round for summary in summaries] == [1, 2]
    assert all(summary.contributors == summary.finished == house.names for summary in summaries)
    assert len(house.digests()) == 1
