"""The grid inside one machine: bytes only, lanes side by side, each reply once, no thread left."""

import threading
import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode

from hansa.local_grid import _CLIENT_APP_RAISED, LocalGrid, from_bytes, to_bytes


def echo(data):
    message = from_bytes(data)
    return to_bytes(Message(message.content, reply_to=message))


def message_to(node, kind="query", **values):
    return Message(RecordDict({"request": ConfigRecord(values)}), dst_node_id=node, message_type=kind)


def answers(grid, ids, seconds=20.0):
    """Wait for all replies, by message id."""
    found, until = {}, time.monotonic() + seconds
    while len(found) < len(ids):
        assert time.monotonic() < until, "no answer"
        for reply in grid.pull_messages(ids):
            assert reply.metadata.reply_to_message_id not in found
            found[reply.metadata.reply_to_message_id] = reply
        time.sleep(0.001)
    return [found[i] for i in ids]


@pytest.fixture
def grids():
    made = []

    def make(*values, **named):
        made.append(LocalGrid(*values, **named))
        return made[-1]

    yield make
    for grid in made:
        grid.close()


def test_a_reply_is_pulled_once_by_whoever_asks_for_its_message(grids):
    grid = grids({1: echo, 2: echo}, {1: 0, 2: 0})
    ids = list(grid.push_messages([message_to(1, x=1), message_to(2, x=2)]))
    assert len(set(ids)) == 2
    first, second = answers(grid, ids)
    assert first.content.config_records["request"]["x"] == 1
    assert second.content.config_records["request"]["x"] == 2
    assert (first.metadata.src_node_id, second.metadata.src_node_id) == (1, 2)
    assert list(grid.pull_messages(ids)) == []
    assert list(grid.pull_messages(["unknown"])) == []


def test_only_bytes_cross_and_what_arrives_is_a_copy(grids):
    crossed, seen = [], []

    def handler(data):
        assert type(data) is bytes
        message = from_bytes(data)
        seen.append(message)
        message.content["request"]["x"] = 99
        return to_bytes(Message(RecordDict({"reply": message.content["request"]}), reply_to=message))

    grid = grids({1: handler}, {1: 0}, tap=lambda *crossing: crossed.append(crossing))
    sent = message_to(1, x=1, data=b"payload")
    (reply,) = answers(grid, list(grid.push_messages([sent])))
    assert sent.content["request"]["x"] == 1
    assert reply.content["reply"]["x"] == 99
    assert reply is not seen[0]
    assert [direction for direction, _ in crossed] == ["to node", "from node"]
    assert all(type(data) is bytes and b"payload" in data for _, data in crossed)
    assert dict(from_bytes(crossed[0][1]).content["request"]) == {"x": 1, "data": b"payload"}


def test_what_flower_cannot_serialise_does_not_cross(grids):
    grid = grids({1: lambda data: message_to(1)}, {1: 0})
    (reply,) = answers(grid, list(grid.push_messages([message_to(1)])))
    assert reply.has_error()


def test_nodes_of_one_lane_are_served_in_order_and_lanes_side_by_side(grids):
    both, order = threading.Barrier(2), []

    def meet(data):
        both.wait(timeout=20)  # returns only while the other lane is being served too
        return echo(data)

    def note(data):
        message = from_bytes(data)
        order.append(message.content["request"]["x"])
        time.sleep(0.002)
        return echo(data)

    side_by_side = grids({1: meet, 2: meet}, {1: 0, 2: 1})
    for reply in answers(side_by_side, list(side_by_side.push_messages([message_to(1), message_to(2)]))):
        assert not reply.has_error()
    one_lane = grids({1: note, 2: note}, {1: 0, 2: 0})
    answers(one_lane, list(one_lane.push_messages([message_to(1 + x % 2, x=x) for x in range(8)])))
    assert order == list(range(8))


def test_a_handler_that_raises_gives_flowers_error_without_its_words_and_the_lane_lives_on(grids):
    def fail(data):
        raise ValueError("client 4711")

    grid = grids({1: fail, 2: echo}, {1: 0, 2: 0})
    failed, fine = answers(grid, list(grid.push_messages([message_to(1), message_to(2)])))
    assert failed.has_error()
    assert not failed.has_content()
    assert (failed.error.code, failed.error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ValueError")
    assert fine.has_content()
    assert ErrorCode.CLIENT_APP_RAISED_EXCEPTION == _CLIENT_APP_RAISED


@pytest.mark.parametrize("answer", [b"\xff\xff\xff", b"", b"text", None, 7])
def test_an_answer_that_is_no_message_is_a_failure_of_that_node_and_the_lane_lives_on(grids, answer):
    grid = grids({1: lambda data: answer, 2: echo}, {1: 0, 2: 0})
    failed, fine = answers(grid, list(grid.push_messages([message_to(1), message_to(2)])))
    assert failed.has_error()
    assert fine.has_content()


def test_an_answer_to_another_message_is_a_failure_of_that_node(grids):
    asked = []

    def listen(data):
        asked.append(from_bytes(data))
        return echo(data)

    def forge(_):
        return to_bytes(Message(asked[0].content, reply_to=asked[0]))

    grid = grids({1: listen, 2: forge}, {1: 0, 2: 0})
    fine, forged = answers(grid, list(grid.push_messages([message_to(1, x=1), message_to(2)])))
    assert fine.content.config_records["request"]["x"] == 1
    assert forged.has_error()
    assert forged.error.reason == "MalformedMessage"


def test_close_ends_every_thread_and_drops_what_waits(grids):
    before = threading.active_count()
    running, release, served = threading.Event(), threading.Event(), []

    def slow(data):
        served.append(data)
        running.set()
        assert release.wait(20)
        return echo(data)

    grid = grids({1: slow, 2: echo}, {1: 0, 2: 1})
    assert threading.active_count() == before + 2
    grid.push_messages([message_to(1) for _ in range(5)])
    assert running.wait(20)
    closing = threading.Thread(target=grid.close)
    closing.start()
    while not grid._closed:
        time.sleep(0.001)
    release.set()
    closing.join(20)
    assert threading.active_count() == before
    assert len(served) == 1
    grid.close()  # again, harmless


def test_close_does_not_wait_for_ever_for_a_handler_that_is_stuck(grids, monkeypatch):
    monkeypatch.setattr("hansa.local_grid._CLOSE_SECONDS", 0.05)
    release = threading.Event()

    def stuck(_):
        assert release.wait(20)
        return b""

    grid = grids({1: stuck}, {1: 0})
    grid.push_messages([message_to(1)])
    started = time.monotonic()
    grid.close()
    assert time.monotonic() - started < 5
    release.set()
    for thread in grid._threads:
        thread.join(20)
        assert not thread.is_alive()


def test_what_a_local_grid_does_not_have_is_refused(grids):
    grid = grids({1: echo}, {1: 0})
    assert list(grid.get_node_ids()) == [1]
    with pytest.raises(NotImplementedError):
        grid.send_and_receive([message_to(1)])
    with pytest.raises(NotImplementedError):
        _ = grid.run
    with pytest.raises(NotImplementedError):
        grid.set_run(None)
    made = grid.create_message(RecordDict(), "train", 1, "7", ttl=5.0)
    assert (made.metadata.dst_node_id, made.metadata.message_type, made.metadata.group_id) == (
        1,
        "train",
        "7",
    )
