"""The round loop: what it asks, whose answers it takes, and how it stops."""

import threading
import time

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app import Error as FlowerError

from hansa.coordinator import rounds
from hansa.errors import (
    BadSignature,
    CohortMismatch,
    DuplicateMember,
    Error,
    MalformedMessage,
    ParticipantLost,
    StaleRound,
)
from hansa.local_grid import LocalGrid, from_bytes, to_bytes

EXCHANGES = ("query.advertise", "train", "query.open", "query.close")


def edited(house, name, kind, edit):
    """Let a member's reply to one kind of message pass through `edit`, which gets and returns a Message."""
    original = house.grid._handlers[node_of(house, name)]

    def handler(data):
        message, answer = from_bytes(data), original(data)
        if message.metadata.message_type != kind:
            return answer
        return to_bytes(edit(message, from_bytes(answer)))

    house.grid._handlers[node_of(house, name)] = handler


def node_of(house, name):
    return {member: node for node, member in zip(house.grid.get_node_ids(), house.nodes, strict=True)}[name]


def reply_with(**values):
    def edit(message, _):
        return Message(RecordDict({"reply": ConfigRecord(values)}), reply_to=message)

    return edit


def signed_of(house, kind):
    """The signed messages that members gave to one kind of exchange so far, in the order of their answers."""
    replies = [from_bytes(data) for direction, data in house.grid_bytes if direction == "from node"]
    records = [r.content.config_records["reply"] for r in replies if r.metadata.message_type == kind]
    return [value for record in records for value in record.values()]


def test_a_round_is_four_exchanges_with_every_member_and_the_messages_hold_no_more_than_they_need(house):
    summaries = []
    house.run(summaries.append)
    asked = [from_bytes(data) for direction, data in house.grid_bytes if direction == "to node"]
    assert [m.metadata.message_type for m in asked] == [
        k for _ in (1, 2) for k in EXCHANGES for _ in range(4)
    ]
    for number, message in enumerate(asked):
        assert set(message.content.keys()) == {"request"}
        request = dict(message.content.config_records["request"])
        assert (request.pop("round"), request.pop("attempt")) == (number // 16 + 1, 0)
        names = {"train": {"round_keys"}, "query.close": {"results"}}
        assert set(request) == names.get(message.metadata.message_type, set())
        assert message.metadata.group_id == str(number // 16 + 1)
        assert message.metadata.ttl == pytest.approx(60.0, abs=1.0)
    relayed = [m.content.config_records["request"] for m in asked]
    keys, results = signed_of(house, "query.advertise"), signed_of(house, "query.open")
    for start, done in ((0, 0), (16, 4)):
        for request in relayed[start + 4 : start + 8]:
            assert request["round_keys"] == keys[done : done + 4]
        for request in relayed[start + 12 : start + 16]:
            assert request["results"] == results[done : done + 4]
    assert [summary.round for summary in summaries] == [1, 2]
    assert all(summary.seconds > 0 for summary in summaries)


def test_hashes_are_compared_in_every_round(house, monkeypatch):
    compared, verify = [], rounds.verify_results

    def verify_and_note(results, roster, round_index, attempt):
        verify(results, roster, round_index, attempt)
        compared.append((round_index, len(results)))

    monkeypatch.setattr(rounds, "verify_results", verify_and_note)
    house.run()
    assert compared == [(1, 4), (2, 4)]


@pytest.mark.parametrize("missing", [0, 2])
def test_a_roster_that_is_not_on_the_grid_is_refused_before_anything_is_sent(house, tiny, missing):
    nodes = dict(tiny.NODES)
    nodes["bank-3"] = 999
    with pytest.raises(CohortMismatch):
        house.run(nodes=nodes)
    del nodes["bank-3"]
    with pytest.raises(CohortMismatch):
        house.run(nodes=nodes)
    assert house.grid_bytes == []


# -- members that fail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXCHANGES)
def test_a_member_that_fails_in_any_exchange_ends_the_run_with_its_name(house, kind):
    def fail(*_):
        raise RuntimeError("client 4711")

    edited(house, "bank-2", kind, fail)
    with pytest.raises(ParticipantLost, match=r"^bank-2 failed with Flower error 2$") as caught:
        house.run()
    assert "4711" not in str(caught.value)
    assert house.nodes["bank-2"].state.round == (1 if kind in ("query.open", "query.close") else 0)


@pytest.mark.parametrize("kind", EXCHANGES)
def test_a_member_that_answers_with_an_error_code_ends_the_run_with_name_and_code(house, kind):
    edited(house, "bank-4", kind, reply_with(error="budget_exhausted"))
    with pytest.raises(ParticipantLost, match=r"^bank-4 refused: budget_exhausted$"):
        house.run()


def test_of_what_a_member_calls_an_error_only_the_beginning_is_shown(house):
    edited(house, "bank-1", "train", reply_with(error="x" * 100_000))
    with pytest.raises(ParticipantLost, match=r"^bank-1 refused: x{64}$"):
        house.run()


@pytest.mark.parametrize("kind", EXCHANGES)
def test_members_that_never_answer_are_named_when_the_deadline_passes(house, tiny, kind):
    stuck = threading.Event()
    handlers = dict(house.grid._handlers)
    answered = dict(handlers)

    def wait(node):
        def handler(data):
            if from_bytes(data).metadata.message_type == kind:
                assert stuck.wait(30)
            return answered[node](data)

        return handler

    for name in ("bank-2", "bank-3"):
        handlers[tiny.NODES[name]] = wait(tiny.NODES[name])
    grid = LocalGrid(handlers, {node: node for node in handlers})
    started = time.monotonic()
    try:
        with pytest.raises(
            ParticipantLost, match=rf"^no answer to {kind} within 0\.4 s from bank-2, bank-3$"
        ):
            house.server_app(deadline_seconds=0.4)(grid, tiny.context())
        assert time.monotonic() - started < 10
    finally:
        stuck.set()
        grid.close()


# -- members that answer something else ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "key"), list(zip(EXCHANGES, ("round_key", "header", "result", "closed"), strict=True))
)
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"round_key": 7},
        {"header": "text"},
        {"result": [b"a"]},
        {"closed": False},
        {"closed": 1},
        {"other": b"a"},
        {"loss": 0.5},
    ],
    ids=str,
)
def test_a_reply_that_does_not_hold_the_one_expected_value_is_malformed(house, kind, key, values):
    edited(house, "bank-1", kind, reply_with(**values))
    with pytest.raises(MalformedMessage, match=f"bank-1 does not hold {key} alone"):
        house.run()


@pytest.mark.parametrize("kind", EXCHANGES)
def test_a_reply_that_holds_more_than_the_expected_value_is_malformed(house, kind):
    def more(message, answer):
        values = dict(answer.content.config_records["reply"]) | {"loss": 0.25}
        return reply_with(**values)(message, answer)

    edited(house, "bank-1", kind, more)
    with pytest.raises(MalformedMessage, match="alone"):
        house.run()


def test_a_reply_without_the_record_is_malformed(house):
    def without(message, _):
        return Message(RecordDict({"metrics": MetricRecord({"loss": 0.25})}), reply_to=message)

    edited(house, "bank-1", "train", without)
    with pytest.raises(MalformedMessage, match="holds no record 'reply'"):
        house.run()


def test_a_member_cannot_answer_for_another_one(house):
    """Its message names the request of another member as the one that it answers; the grid does not take it."""
    asked = []

    def note(message, answer):
        asked.append(message)
        return answer

    def forge(_, answer):
        return Message(answer.content, reply_to=asked[0])

    edited(house, "bank-1", "query.advertise", note)
    edited(house, "bank-2", "query.advertise", forge)
    with pytest.raises(ParticipantLost, match="bank-2 failed"):
        house.run()


def test_an_answer_that_was_not_asked_for_is_refused(house, monkeypatch):
    pull = house.grid.pull_messages

    def twice(ids):
        found = list(pull(ids))
        return found + found

    monkeypatch.setattr(house.grid, "pull_messages", twice)
    with pytest.raises(MalformedMessage, match="was not asked for"):
        house.run()


def test_a_flower_error_in_place_of_an_answer_is_a_lost_participant(house):
    edited(
        house, "bank-3", "query.open", lambda message, _: Message(FlowerError(0, "4711"), reply_to=message)
    )
    with pytest.raises(ParticipantLost, match=r"^bank-3 failed with Flower error 0$"):
        house.run()


@pytest.mark.parametrize(
    ("edit", "kind"),
    [
        (lambda own, _: own[:-1] + bytes([own[-1] ^ 1]), BadSignature),
        (lambda _, others: others[0], DuplicateMember),
        (lambda *_: b"\xa0", MalformedMessage),
    ],
)
def test_a_confirmation_that_is_not_the_members_own_is_found_by_the_coordinator(house, edit, kind):
    def result(message, answer):
        own = answer.content.config_records["reply"]["result"]
        return reply_with(result=edit(own, signed_of(house, "query.open")))(message, answer)

    edited(house, "bank-4", "query.open", result)
    with pytest.raises(kind):
        house.run()


def test_a_confirmation_of_an_earlier_round_is_stale(house):
    own = []

    def first(message, answer):
        own.append(answer.content.config_records["reply"]["result"])
        return reply_with(result=own[0])(message, answer)

    edited(house, "bank-4", "query.open", first)
    with pytest.raises(StaleRound, match="is for round 1 attempt 0, this is round 2 attempt 0"):
        house.run()


def test_the_round_key_of_one_member_under_the_name_of_another_ends_in_a_named_error(house):
    others = []

    def swap(message, answer):
        record = answer.content.config_records["reply"]
        others.append(record["round_key"])
        return reply_with(round_key=others[0])(message, answer)

    for name in ("bank-1", "bank-2"):
        edited(house, name, "query.advertise", swap)
    with pytest.raises(ParticipantLost, match="duplicate_member"):
        house.run()
    assert all(isinstance(error, Error) for errors in house.errors.values() for error in errors)
    assert not any(ledger.exists() for ledger in house.ledgers.values())
