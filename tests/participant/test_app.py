"""What may leave a participant through Flower, and what a request may look like."""

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from hansa import errors
from hansa.participant.policy import Policy
from hansa.secure_agg.messages import RoundKey, RoundResult, UploadHeader, open_signed

ALLOWED = {"round_key", "header", "result", "closed", "error"}
AT = {"round": 1, "attempt": 0}


def replies(house):
    """Every reply that has crossed the grid, as its records."""
    from hansa.local_grid import from_bytes

    return [from_bytes(data).content for direction, data in house.grid_bytes if direction == "from node"]


def test_a_reply_is_one_signed_message_of_the_step_or_true_and_nothing_else(house):
    house.run()
    found = replies(house)
    assert len(found) == 4 * 4 * 2
    kinds = {"round_key": RoundKey, "header": UploadHeader, "result": RoundResult}
    seen = dict.fromkeys(ALLOWED, 0)
    for content in found:
        assert set(content.keys()) == {"reply"}
        record = content.config_records["reply"]
        ((key, value),) = record.items()
        seen[key] += 1
        if key == "closed":
            assert value is True
        else:
            open_signed(value, kinds[key], house.roster)  # raises unless it is exactly that
    assert seen == {"round_key": 8, "header": 8, "result": 8, "closed": 8, "error": 0}
    assert not any(house.errors.values())


def test_evaluation_is_refused_whatever_is_asked(house):
    for content in (
        RecordDict({"request": ConfigRecord(dict(AT))}),
        RecordDict({"request": ConfigRecord({"round": "x"})}),
        RecordDict(),
    ):
        reply = house.send("bank-1", "evaluate", content)
        assert dict(reply.content.config_records["reply"]) == {"error": "release_not_agreed"}
    assert [type(error) for error in house.errors["bank-1"]] == [errors.ReleaseNotAgreed] * 3
    assert "evaluate" not in house.nodes["bank-1"].seconds


def test_a_failure_leaves_as_its_code_alone(houses, tiny_study):
    policy = Policy(studies=frozenset({tiny_study.id}), epsilon_limit=0.25)
    house = houses(policies={"bank-1": policy})
    keys = house.advertise()
    assert house.ask("bank-1", "train", **AT, round_keys=keys) == {"error": "budget_exhausted"}
    (error,) = house.errors["bank-1"]
    assert error.message  # the participant's own log has it
    direction, data = house.grid_bytes[-1]
    assert direction == "from node"
    for words in (error.message, error.hint, "epsilon", "0.25", "BudgetExhausted"):
        assert words.encode() not in data


@pytest.mark.parametrize("failure", [ValueError, KeyError, RuntimeError, OSError, MemoryError])
def test_an_unforeseen_failure_leaves_as_a_code_too(house, monkeypatch, failure):
    def fail(*_):
        raise failure("client 4711 owes 100 marks")

    monkeypatch.setattr(type(house.nodes["bank-1"]), "advertise", fail)
    assert house.ask("bank-1", "query.advertise", **AT) == {"error": "internal_failure"}
    assert not any(b"4711" in data or b"marks" in data for _, data in house.grid_bytes)
    (error,) = house.errors["bank-1"]
    assert isinstance(error, errors.InternalFailure)
    assert isinstance(error.__cause__, failure)
    assert "4711" in error.message  # the traceback, for the participant's own log


def test_a_stop_by_the_user_is_not_taken_for_a_failure(house, monkeypatch, tiny):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(house.nodes["bank-1"]), "advertise", stop)
    content = RecordDict({"request": ConfigRecord(dict(AT))})
    message = Message(content, dst_node_id=100, message_type="query.advertise")
    with pytest.raises(KeyboardInterrupt):
        house.apps["bank-1"](message, tiny.context())


def test_a_message_type_without_a_handler_is_answered_without_content(house):
    for kind in ("query", "query.state", "train.twice", "evaluate.model"):
        reply = house.send("bank-1", kind, RecordDict({"request": ConfigRecord(dict(AT))}))
        assert reply.has_error()
        assert not reply.has_content()


KINDS = ("query.advertise", "train", "query.open", "query.close")
LISTS = {"train": "round_keys", "query.close": "results"}


def request(kind, **changes):
    signed = {LISTS[kind]: [b"signed"]} if kind in LISTS else {}
    return {key: value for key, value in (AT | signed | changes).items() if value is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [
        {"round": None},
        {"attempt": None},
        {"round": -1},
        {"round": 2**31},
        {"round": 2**63 - 1},
        {"round": "1"},
        {"round": b"1"},
        {"round": 1.0},
        {"round": True},
        {"round": [1]},
        {"attempt": -1},
        {"attempt": 2**16},
        {"attempt": False},
        {"attempt": 0.0},
        {"study": "another"},
        {"epsilon": 100.0},
        {"sample_rate": 1.0},
    ],
    ids=str,
)
def test_a_request_with_other_fields_than_the_step_has_is_malformed(house, kind, changes):
    assert house.ask("bank-1", kind, **request(kind, **changes)) == {"error": "malformed_message"}
    assert type(house.errors["bank-1"][0]) is errors.MalformedMessage


@pytest.mark.parametrize("kind", sorted(LISTS))
@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        b"signed",
        "signed",
        7,
        ["signed"],
        [1, 2],
        [1.5],
        [True],
        [b"signed"] * 259,
        [bytes(1 << 16)] * 4,
        [b""] * 4,
    ],
    ids=lambda value: str(value)[:20],
)
def test_signed_messages_come_as_a_list_of_1_to_258_bytes_and_are_parsed_strictly(house, kind, value):
    house.open() if kind == "query.close" else house.advertise()
    reply = house.ask("bank-1", kind, **request(kind, **{LISTS[kind]: value}))
    assert reply == {"error": "malformed_message"}


def test_the_field_of_another_step_is_malformed(house):
    for kind in KINDS:
        for key in ("round_keys", "results"):
            if LISTS.get(kind) != key:
                asked = request(kind) | {key: [b"signed"]}
                assert house.ask("bank-1", kind, **asked) == {"error": "malformed_message"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_is_one_config_record_of_that_name(house, kind):
    config = ConfigRecord(request(kind))
    for content in (
        RecordDict(),
        RecordDict({"other": config}),
        RecordDict({"request": config, "more": config}),
        RecordDict({"request": config, "more": MetricRecord({"loss": 1.0})}),
        RecordDict({"request": config, "more": ArrayRecord({"w": Array("float32", (1,), "raw", bytes(4))})}),
        RecordDict({"request": MetricRecord({"round": 1, "attempt": 0})}),
        RecordDict({"request": ArrayRecord({"w": Array("float32", (1,), "raw", bytes(4))})}),
    ):
        reply = house.send("bank-1", kind, content)
        assert dict(reply.content.config_records["reply"]) == {"error": "malformed_message"}


def test_a_message_that_is_itself_an_error_is_malformed(house, tiny):
    asked = Message(RecordDict(), dst_node_id=100, message_type="query.advertise")
    reply = house.apps["bank-1"](Message(Error(1, "x"), reply_to=asked), tiny.context())
    assert dict(reply.content.config_records["reply"]) == {"error": "malformed_message"}


def test_replayed_and_misplaced_messages_change_nothing(house):
    """What the coordinator may send again or too early; the round goes on afterwards as if nothing had been."""
    keys = house.advertise()
    asks = {
        "query.advertise": AT,
        "train": AT | {"round_keys": keys},
        "query.open": AT,
        "query.close": AT | {"results": keys},
    }

    def answers(*kinds):
        return [house.ask("bank-1", kind, **asks[kind]).get("error") for kind in kinds]

    assert answers("query.advertise", "query.open", "query.close") == [
        "package_reuse",
        "out_of_order",
        "out_of_order",
    ]
    for name in house.nodes:
        assert set(house.ask(name, "train", **asks["train"])) == {"header"}
    ledger, sent = house.ledgers["bank-1"].read_bytes(), list(house.wires["bank-1"].sent)
    assert answers("train", "query.advertise", "query.close") == [
        "package_reuse",
        "package_reuse",
        "out_of_order",
    ]
    assert house.ledgers["bank-1"].read_bytes() == ledger
    assert house.wires["bank-1"].sent == sent
    results = [house.ask(name, "query.open", **AT)["result"] for name in house.nodes]
    digest = house.digests()
    assert answers("query.open", "train", "query.close") == [
        "out_of_order",
        "package_reuse",
        "malformed_message",
    ]
    asks["query.close"] = AT | {"results": results}
    for name in house.nodes:
        assert house.ask(name, "query.close", **asks["query.close"]) == {"closed": True}
    assert answers("query.close", "query.open", "train", "query.advertise") == [
        "out_of_order",
        "out_of_order",
        "package_reuse",
        "stale_round",
    ]
    assert house.digests() == digest
    assert house.nodes["bank-1"].state.round == 1
