"""Messages of the fleet: sessions, keys, the empty bundle, and what bytes of the other side may do."""

import hashlib
import io
import zipfile

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app import Error as FlowerError
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from hansa.errors import InvalidValue, MalformedMessage, MessageTooLarge
from hansa.federation.fleet_messages import (
    EMPTY_BUNDLE,
    EMPTY_BUNDLE_HASH,
    SessionGrid,
    canonical_node_key,
    from_proto,
    node_number,
    take_session,
    to_proto,
    with_session,
)

SESSION = "0f" * 16
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def request(**records):
    content = RecordDict({name: ConfigRecord(values) for name, values in records.items()})
    return Message(content, dst_node_id=7, message_type="query.join")


def test_a_session_is_put_on_and_taken_off_and_nothing_else_changes():
    message = with_session(request(request={"round": 1, "shares": [b"a"]}), SESSION)
    assert set(message.content) == {"request", "session"}
    assert take_session(message) == SESSION
    assert set(message.content) == {"request"}
    assert dict(message.content.config_records["request"]) == {"round": 1, "shares": [b"a"]}


@pytest.mark.parametrize(
    "records",
    [
        {},
        {"request": {"round": 1}},
        {"session": {}},
        {"session": {"id": "0f" * 15}},
        {"session": {"id": "0F" * 16}},
        {"session": {"id": SESSION + "\n"}},
        {"session": {"id": 5}},
        {"session": {"id": SESSION, "more": 1}},
    ],
)
def test_a_message_that_names_no_session_or_more_is_refused(records):
    with pytest.raises(MalformedMessage, match="names no session"):
        take_session(request(**records))


def test_an_error_names_no_session():
    message = Message(FlowerError(1, "x"), reply_to=request())
    with pytest.raises(MalformedMessage):
        take_session(message)


def test_a_session_grid_names_its_session_in_every_message_and_passes_on_the_rest():
    class Shared:
        def __init__(self):
            self.pushed = []

        def push_messages(self, messages):
            self.pushed += messages
            return ["id"]

        def pull_messages(self, ids):
            return [("pulled", *ids)]

        def get_node_ids(self):
            return [7]

    shared = Shared()
    grid = SessionGrid(shared, SESSION)
    assert grid.push_messages([request(request={}), request(request={})]) == ["id"]
    assert [take_session(message) for message in shared.pushed] == [SESSION, SESSION]
    assert grid.pull_messages(["a"]) == [("pulled", "a")]
    assert grid.get_node_ids() == [7]
    with pytest.raises(InvalidValue, match="32 hexadecimal"):
        SessionGrid(shared, "session")


def test_the_bundle_of_our_runs_holds_no_code_and_is_the_same_everywhere():
    with zipfile.ZipFile(io.BytesIO(EMPTY_BUNDLE)) as bundle:
        assert bundle.namelist() == ["pyproject.toml"]
    assert hashlib.sha256(EMPTY_BUNDLE).hexdigest() == EMPTY_BUNDLE_HASH
    assert EMPTY_BUNDLE_HASH == "90f89378940a53ea229fee0114701547b4644e1f2c00d03f20e931eb224b30a4"


def test_a_node_key_has_one_form_and_one_number_that_is_none_of_flowers_own():
    numbers = set()
    for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()):
        key = ec.generate_private_key(curve).public_key()
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        assert canonical_node_key(pem.replace(b"\n", b"\r\n")) == pem == canonical_node_key(pem)
        numbers.add(node_number(pem))
    assert len(numbers) == 3
    assert all(1 < number < 2**63 for number in numbers)


def test_what_is_sent_is_what_is_read():
    message = request(request={"round": 3, "shares": [b"a" * 100]})
    proto = to_proto(message, "ab" * 32)
    read = from_proto(ProtoMessage.FromString(proto.SerializeToString()))
    assert read.metadata.message_id == "ab" * 32
    assert dict(read.content.config_records["request"]) == {"round": 3, "shares": [b"a" * 100]}


def test_a_message_is_not_read_above_the_bound_without_an_id_or_without_content():
    proto = to_proto(request(request={"x": b"x" * 100}), "ab" * 32)
    with pytest.raises(MessageTooLarge, match="the bound is 50"):
        from_proto(proto, 50)
    with pytest.raises(MalformedMessage, match="no id"):
        from_proto(to_proto(request(request={}), "../x"))
    proto.ClearField("content")
    with pytest.raises(MalformedMessage, match=r"not well-formed|no content"):
        from_proto(proto)
    proto.metadata.message_type = "no such type"
    with pytest.raises(MalformedMessage, match="not well-formed"):
        from_proto(proto)


@given(st.binary(max_size=300))
def test_whatever_bytes_come_there_is_a_message_or_an_error_of_ours(data):
    proto = to_proto(request(request={"x": data}), "ab" * 32)
    encoded = bytearray(proto.SerializeToString())
    for place, value in enumerate(data):
        encoded[value * 7 % len(encoded)] ^= place | 1
    try:
        changed = ProtoMessage.FromString(bytes(encoded))
    except Exception:  # protobuf's own parser refuses it: it never gets so far
        return
    try:
        from_proto(changed)
    except MalformedMessage:
        return
