"""Nothing leaves a participant but what stands in one table, seen from the outside of a whole study."""

from dataclasses import fields, replace

import pytest

from hansa import errors
from hansa.local_grid import from_bytes
from hansa.participant import app as app_module
from hansa.participant.outputs import (
    ABORTED,
    ANSWERS,
    MESSAGES,
    REPLIES,
    code_of,
    verify_reply,
    verify_upload,
)
from hansa.participant.policy import Policy
from hansa.secure_agg import messages
from hansa.secure_agg.messages import Body, Envelope, RoundBody, UploadHeader, sign_message


def below(kind):
    return [sub for one in kind.__subclasses__() for sub in (one, *below(one))]


def test_the_table_has_every_message_of_the_protocol_and_every_field_of_it():
    kinds = {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Body)}
    assert set(MESSAGES) == kinds - {Body, RoundBody}
    for kind, said in MESSAGES.items():
        assert set(said) == {field.name for field in fields(kind)}
        assert all(said.values())


def test_the_table_has_every_request_that_is_answered():
    assert REPLIES.keys() == app_module._STEPS.keys()
    named = {field for wanted in REPLIES.values() for field in wanted}
    assert named | {"error"} == set(ANSWERS)
    assert {kind for kinds, _ in ANSWERS.values() for kind in kinds} == set(MESSAGES)


def leaving(house):
    """Everything that crossed from a member to anybody: what kind of request it answers, and its content."""
    asked, found = {}, []
    for direction, data in house.grid_bytes:
        message = from_bytes(data)
        if direction == "to node":
            asked[message.metadata.message_id] = message.metadata.message_type
        else:
            found.append((asked[message.metadata.reply_to_message_id], message))
    return found


def seen(house):
    """The shape of all that left: fields, types and lengths, and the fields of every signed message."""
    shapes = []
    for kind, message in leaving(house):
        assert not message.has_error()
        content = message.content
        assert set(content.keys()) == {"reply"}
        assert not content.array_records
        assert not content.metric_records
        for field, value in sorted(content.config_records["reply"].items()):
            values = value if isinstance(value, list) else [value]
            for item in values:
                if field in ("shares", "closed", "error"):
                    shapes.append(
                        (kind, field, type(item).__name__, len(item) if type(item) is bytes else item)
                    )
                    continue
                envelope = Envelope.decode(item)
                (message_kind,) = [one for one in MESSAGES if envelope.type == one.TYPE]
                assert message_kind in ANSWERS[field][0]
                body = message_kind.decode(envelope.body)
                shapes.append((kind, field, message_kind.__name__, len(item)))
                assert {name.name for name in fields(body)} == set(MESSAGES[message_kind])
            assert field == "error" or field in REPLIES[kind]
    for name, wire in house.wires.items():
        for part in wire.sent:
            is_header = len(part) < 1024
            if is_header:
                body = UploadHeader.decode(Envelope.decode(part).body)
                assert body.sender == name
            shapes.append(("upload", "header" if is_header else "ciphertext", name, len(part)))
    return shapes


def test_a_whole_study_lets_nothing_else_leave(houses, tiny_study):
    """With a member that is refused half way, consents, and one that catches up."""
    policy = Policy(studies=frozenset({tiny_study.id}), epsilon_limit=0.25)
    house = houses(policies={"bank-1": policy})
    house.run()
    shapes = seen(house)
    errors_seen = {shape[3] for shape in shapes if shape[1] == "error"}
    assert errors_seen == {"budget_exhausted"}
    assert {shape[0] for shape in shapes} >= {
        "train",
        "query.consents",
        "query.catch_up",
        "query.close",
        "upload",
    }
    assert {shape[3] for shape in shapes if shape[1] == "ciphertext"} == {30784}


def test_what_leaves_has_the_same_shape_whatever_the_records_are(houses, tiny_tables, tiny):
    whole, other = houses(), houses(rows=dict.fromkeys(tiny.NAMES, tiny_tables["bank-2"].rows))
    whole.run()
    other.run()
    assert sorted(seen(whole)) == sorted(seen(other))


@pytest.mark.parametrize(
    "more", [{"loss": 0.3}, {"records": 80}, {"header": b"80 records"}, {"header": "80"}, {"header": [b"x"]}]
)
def test_a_reply_with_anything_more_does_not_leave(house, monkeypatch, more):
    lists, step = app_module._STEPS["query.join"]
    leaky = {"query.join": (lists, lambda node, request: step(node, request) | more)}
    monkeypatch.setattr(app_module, "_STEPS", app_module._STEPS | leaky)
    house.restart("bank-1")
    assert house.ask("bank-1", "query.join", round=1, attempt=0) == {"error": "internal_failure"}
    direction, data = house.grid_bytes[-1]
    assert direction == "from node"
    assert dict(from_bytes(data).content.config_records["reply"]) == {"error": ABORTED}


def test_a_field_under_a_name_of_another_kind_does_not_leave(house):
    house.run()
    found = {}
    for kind, message in leaving(house):
        found.setdefault(kind, dict(message.content.config_records["reply"]))
    for kind, reply in found.items():
        verify_reply(kind, reply)
        for field in reply:
            for wrong in (
                b"",
                b"\xa0",
                None,
                1,
                True if field != "closed" else 1,
                [b"x"],
                [1],
                found["train"]["header"][:-1],
            ):
                with pytest.raises(errors.InternalFailure):
                    verify_reply(kind, reply | {field: wrong})
            with pytest.raises(errors.InternalFailure):
                verify_reply(kind, {name: value for name, value in reply.items() if name != field})
    with pytest.raises(errors.InternalFailure):
        verify_reply("query.join", found["train"])
    with pytest.raises(errors.InternalFailure):
        verify_reply("query.state", {})


def test_an_upload_of_anything_else_does_not_leave(house):
    house.train(1, 0)
    header, *ciphertexts = house.wires["bank-1"].sent
    verify_upload(header, ciphertexts)
    result = house.nodes["bank-1"]._progress.result
    for wrong in (
        (header + b"\x00", ciphertexts),
        (result, ciphertexts),
        (header, [*ciphertexts, ciphertexts[0]]),
        (header, ciphertexts[:-1]),
        (header, [ciphertexts[0] + b"80", *ciphertexts[1:]]),
        (sign_message(house.identities["bank-1"], body_with(header, ciphertext_count=7)), ciphertexts),
    ):
        with pytest.raises(errors.InternalFailure):
            verify_upload(*wrong)


def body_with(header, **changes):
    return replace(UploadHeader.decode(Envelope.decode(header).body), **changes)


def test_of_an_error_only_the_code_of_a_refusal_or_one_word_leaves():
    for kind in [errors.Error, *below(errors.Error)]:
        code = code_of(kind("4711 owes 100 marks"))
        assert code == (kind.code if issubclass(kind, errors.PolicyRefusal) else ABORTED)
        assert "4711" not in code
