"""Replies on disk: what is kept, for how long, and what of the other side can get into the folder."""

import time

import pytest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata

from hansa.errors import StoreInUse, StoreNotWritable
from hansa.participant import outbox as module
from hansa.participant.outbox import Outbox


def reply(to="a" * 64, ttl=60.0, message_id="b" * 64):
    metadata = Metadata(reply_to_message_id=to, created_at=time.time(), ttl=ttl, message_id=message_id)
    return ProtoMessage(metadata=metadata)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "node"


def test_what_is_put_is_there_for_the_next_process_until_it_is_removed(folder):
    first, second = reply("1" * 64), reply("2" * 64)
    with Outbox(folder) as outbox:
        outbox.put(first)
        outbox.put(second)
        outbox.node_id = 2**64 - 1
    with Outbox(folder) as outbox:
        assert sorted(r.metadata.reply_to_message_id[0] for r in outbox.replies()) == ["1", "2"]
        assert outbox.node_id == 2**64 - 1
        outbox.remove(first)
        assert list(outbox.replies()) == [second]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())


def test_a_second_process_is_refused_by_name(folder):
    with Outbox(folder), pytest.raises(StoreInUse, match="another process"):
        Outbox(folder)
    Outbox(folder).close()


def test_what_nobody_wants_any_more_is_forgotten(folder):
    now = time.time()
    with Outbox(folder, lambda: now + 61) as outbox:
        outbox.put(reply())
        assert list(outbox.replies()) == []
        assert list(folder.glob("*.reply")) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "/tmp/x", "", "a\0b", "x" * 5000])
def test_no_name_in_the_folder_comes_from_the_other_side(folder, name):
    with Outbox(folder) as outbox:
        outbox.put(reply(name))
        (path,) = folder.glob("*.reply")
        assert len(path.name) == 64 + len(".reply")
        assert [r.metadata.reply_to_message_id for r in outbox.replies()] == [name]


def test_damaged_and_foreign_files_are_dropped(folder):
    with Outbox(folder) as outbox:
        outbox.put(reply())
        (path,) = folder.glob("*.reply")
        path.rename(folder / f"{'0' * 64}.reply")
        path.write_bytes(b"\xff\xff\xff")
        (folder / "node-id").write_text("12x")
        assert list(outbox.replies()) == []
        assert outbox.node_id is None
        (folder / "node-id").write_text("9" * 100)
        assert outbox.node_id is None


def test_the_folder_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(module, "MOST_REPLIES", 3)
    with Outbox(folder) as outbox:
        for number in range(5):
            outbox.put(reply(f"{number}" * 64))
        assert len(list(outbox.replies())) == 3
        assert len(list(folder.glob("*.reply"))) == 3


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreNotWritable, match="file"):
        Outbox(tmp_path / "file" / "node")
    with Outbox(tmp_path / "node") as outbox:
        (tmp_path / "node" / "lock").unlink()
        (tmp_path / "node").rmdir()
        with pytest.raises(StoreNotWritable, match="cannot be kept"):
            outbox.put(reply())
