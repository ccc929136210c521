"""What may leave a participant through Flower, and what a request may look like."""

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from hansa import errors
from hansa.participant.policy import Policy
from hansa.secure_agg.leaves import BLOB_BYTES, LEAF_BYTES
from hansa.secure_agg.messages import (
    Consent,
    Deal,
    Join,
    Package,
    Release,
    RoundResult,
    UploadHeader,
    Vote,
    message_type,
    open_signed,
)

KINDS_OF = {"join": Join, "deal": Deal, "vote": Vote, "header": UploadHeader, "result": RoundResult}
AT = {"round": 1, "attempt": 0}


def replies(house):
    """Every reply that has crossed the grid, as its records."""
    from hansa.local_grid import from_bytes

    return [from_bytes(data).content for direction, data in house.grid_bytes if direction == "from node"]


def seen_fields(house):
    """How often each field stood in a reply; checks that each holds exactly what its name says."""
    seen = {}
    for content in replies(house):
        assert set(content.keys()) == {"reply"}
        record = dict(content.config_records["reply"])
        for key, value in record.items():
            seen[key] = seen.get(key, 0) + 1
            if key == "closed":
                assert value is True
            elif key == "packages":
                assert len(value) == 2
                for package in value:
                    open_signed(package, Package, house.roster, 1)
            elif key == "shares":
                # Sealed to one member each, with its leaf; a leaf alone for the own place.
                others = 2 * (len(house.names) - 1)
                assert sorted(map(len, value)) == 2 * [LEAF_BYTES] + others * [BLOB_BYTES + LEAF_BYTES]
            elif key == "answer":
                kind = Consent if message_type(value) == Consent.TYPE else Release
                open_signed(value, kind, house.roster, 1)
            else:
                open_signed(value, KINDS_OF[key], house.roster, 1)  # raises unless it is exactly that
    return seen


def test_a_reply_is_the_signed_messages_of_the_step_or_true_and_nothing_else(house):
    house.run()
    fields = {"join": 4, "deal": 1, "vote": 4, "header": 8, "answer": 8, "result": 8, "closed": 8}
    assert seen_fields(house) == fields | {"packages": 4 + 8, "shares": 4 + 8}
    assert len(replies(house)) == 4 + 1 + 4 + 4 + 2 * 4 * 4
    assert not any(house.errors.values())


def test_a_reply_with_a_dropout_is_no_other(houses, tiny_study, tiny):
    """Consents, and the packages of a member that caught up."""
    policy = Policy(studies=frozenset({tiny_study.id}), epsilon_limit=0.25)
    house = houses(policies={"bank-1": policy})
    house.run()
    found = [content.config_records["reply"] for content in replies(house)]
    assert [dict(record) for record in found if "error" in record] == [{"error": "budget_exhausted"}] * 2
    house.grid_bytes = [
        (d, data) for d, data in house.grid_bytes if d == "to node" or b"budget_exhausted" not in data
    ]
    fields = {"join": 4, "deal": 1, "vote": 4, "header": 6, "answer": 12, "result": 6, "closed": 6}
    assert seen_fields(house) == fields | {"packages": 4 + 6 + 2, "shares": 4 + 6 + 2}


def test_evaluation_is_refused_whatever_is_asked(house):
    for content in (
        RecordDict({"request": ConfigRecord(dict(AT))}),
        RecordDict({"request": ConfigRecord({"round": "x"})}),
        RecordDict(),
    ):
        reply = house.send("bank-1", "evaluate", content)
        assert dict(reply.content.config_records["reply"]) == {"error": "release_not_agreed"}
    assert [type(error) for error in house.errors["bank-1"]] == [errors.ReleaseNotAgreed] * 3
    assert "evaluate" not in house.nodes["bank-1"].step_seconds()


def test_a_failure_leaves_as_its_code_alone(houses, tiny_study):
    policy = Policy(studies=frozenset({tiny_study.id}), epsilon_limit=0.25)
    house = houses(policies={"bank-1": policy})
    packages, shares = house.begin()
    asked = AT | {"packages": packages, "shares": shares["bank-1"]}
    assert house.ask("bank-1", "train", **asked) == {"error": "budget_exhausted"}
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

    monkeypatch.setattr(type(house.nodes["bank-1"]), "join", fail)
    assert house.ask("bank-1", "query.join", **AT) == {"error": "internal_failure"}
    assert not any(b"4711" in data or b"marks" in data for _, data in house.grid_bytes)
    (error,) = house.errors["bank-1"]
    assert isinstance(error, errors.InternalFailure)
    assert isinstance(error.__cause__, failure)
    assert "4711" in error.message  # the traceback, for the participant's own log


def test_a_stop_by_the_user_is_not_taken_for_a_failure(house, monkeypatch, tiny):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(house.nodes["bank-1"]), "join", stop)
    content = RecordDict({"request": ConfigRecord(dict(AT))})
    message = Message(content, dst_node_id=100, message_type="query.join")
    with pytest.raises(KeyboardInterrupt):
        house.apps["bank-1"](message, tiny.context())


def test_a_message_type_without_a_handler_is_answered_without_content(house):
    for kind in ("query", "query.state", "train.twice", "evaluate.model"):
        reply = house.send("bank-1", kind, RecordDict({"request": ConfigRecord(dict(AT))}))
        assert reply.has_error()
        assert not reply.has_content()


LISTS = {
    "query.join": (),
    "query.deal": ("joins",),
    "query.vote": ("joins", "deal"),
    "query.enter": ("votes",),
    "train": ("packages", "shares"),
    "query.answer": (),
    "query.consents": ("consents",),
    "query.unmask": ("releases",),
    "query.open": (),
    "query.catch_up": ("packages", "releases"),
    "query.close": ("results",),
}
KINDS = tuple(LISTS)


def request(kind, **changes):
    signed = {key: [b"signed"] for key in LISTS[kind]}
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


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind in KINDS for key in LISTS[kind]])
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
    ],
    ids=lambda value: str(value)[:20],
)
def test_signed_messages_come_as_a_list_of_1_to_258_bytes(house, kind, key, value):
    reply = house.ask("bank-1", kind, **request(kind, **{key: value}))
    assert reply == {"error": "malformed_message"}


def test_one_deal_is_shown(house):
    """With a second one beside it, a member would have to choose."""
    house.nodes["bank-1"].join(1)
    assert house.ask("bank-1", "query.vote", **request("query.vote", deal=[b"deal"] * 2)) == {
        "error": "malformed_message"
    }
    assert "list of 1 to 1" in house.errors["bank-1"][0].message


@pytest.mark.parametrize("signed", [b"", b"signed", bytes(1 << 16), bytes(1 << 20)], ids=len)
def test_signed_messages_are_parsed_strictly(house, signed):
    refused = ({"error": "malformed_message"}, {"error": "message_too_large"})
    house.nodes["bank-1"].join(1)
    assert house.ask("bank-1", "query.vote", **AT, joins=[signed] * 4, deal=[signed]) in refused
    house.begin()
    assert house.ask("bank-1", "train", **AT, packages=[signed] * 4, shares=[b""] * 4) in refused
    packages, shares = house.packages, house.shares
    for name, node in house.nodes.items():
        node.train(1, 0, packages, shares[name])
    house.service.close()
    releases = [node.answer(1, 0) for node in house.nodes.values()]
    assert house.ask("bank-1", "query.consents", **AT, consents=[signed] * 4) in refused
    assert house.ask("bank-1", "query.unmask", **AT, releases=[signed] * 4) in refused
    house.nodes["bank-1"].unmask(1, 0, releases)
    assert house.ask("bank-1", "query.close", **AT, results=[signed] * 4) in refused


def test_the_field_of_another_step_is_malformed(house):
    for kind in KINDS:
        for key in sorted({key for lists in LISTS.values() for key in lists}):
            if key not in LISTS[kind]:
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
        assert dict(reply.content.config_records["reply"]) == {"error": "aborted"}


def test_a_message_that_is_itself_an_error_is_malformed(house, tiny):
    asked = Message(RecordDict(), dst_node_id=100, message_type="query.join")
    reply = house.apps["bank-1"](Message(Error(1, "x"), reply_to=asked), tiny.context())
    assert dict(reply.content.config_records["reply"]) == {"error": "aborted"}


def test_replayed_and_misplaced_messages_change_nothing(house):
    """What the coordinator may send again or too early; the round goes on afterwards as if nothing had been."""
    packages, shares = house.begin()
    junk = [b"signed"]
    asks = {
        "query.join": AT,
        "train": AT | {"packages": packages, "shares": shares["bank-1"]},
        "query.answer": AT,
        "query.consents": AT | {"consents": junk},
        "query.unmask": AT | {"releases": junk},
        "query.open": AT,
        "query.close": AT | {"results": junk},
    }

    def answers(*kinds):
        return [house.ask("bank-1", kind, **asks[kind]).get("error") for kind in kinds]

    later = ("query.answer", "query.consents", "query.unmask", "query.open", "query.close")
    assert answers("query.join", *later) == ["wrong_epoch", *["out_of_order"] * 5]
    for name in house.nodes:
        asked = asks["train"] | {"shares": shares[name]}
        assert set(house.ask(name, "train", **asked)) == {"header"}
    house.service.close()
    ledger, sent = house.ledgers["bank-1"].read_bytes(), list(house.wires["bank-1"].sent)
    # Asked again, it sends the same bytes again, and the closed roster does not take them.
    assert answers("train", *later[1:]) == [None, *["out_of_order"] * 4]
    assert house.ledgers["bank-1"].read_bytes() == ledger
    assert house.wires["bank-1"].sent == sent + sent
    releases = [house.ask(name, "query.answer", **AT)["answer"] for name in house.nodes]
    assert house.ask("bank-1", "query.answer", **AT) == {"answer": releases[0]}
    assert answers("train", *later[1:]) == [
        None,
        "malformed_message",
        "malformed_message",
        "out_of_order",
        "out_of_order",
    ]
    asks["query.unmask"] = AT | {"releases": releases}
    results = [house.ask(name, "query.unmask", **asks["query.unmask"])["result"] for name in house.nodes]
    digest = house.digests()
    opened = [None, None]  # its confirmation again, from either step: the answer may have been lost
    assert answers("train", *later) == [
        "stale_round", "out_of_order", "out_of_order", *opened, "malformed_message",
    ]  # fmt: skip
    asks["query.close"] = AT | {"results": results}
    for name in house.nodes:
        assert house.ask(name, "query.close", **asks["query.close"]) == {"closed": True}
    # The confirmation of the round that was opened last again: a coordinator that was restarted asks for it.
    assert answers("train", *later) == ["stale_round", *["out_of_order"] * 3, None, None]
    assert house.digests() == digest
    assert house.nodes["bank-1"].state.round == 1
