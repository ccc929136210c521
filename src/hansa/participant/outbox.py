"""Replies that are ready and not sent yet, on disk: they outlive this process and a network that is down.

A file holds what goes to the coordinator and nothing else: signed protocol messages, sealed shares or a code. It
needs no seal of its own.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from flwr.proto.message_pb2 import Message as ProtoMessage

from hansa.errors import StoreInUse, StoreNotWritable

MOST_REPLIES = 256
_NODE_ID_DIGITS = 20


class Outbox:
    """A node's private folder: its lock, its Flower node id and its replies.

    Args:
        folder: Made if it is not there; one process at a time.
        now: Unix time.

    Raises:
        StoreInUse: Another process has the folder open.
        StoreNotWritable: It cannot be made or written to.

    Guarantees:
        - A reply is on disk, whole, when `put` returns, and stays until it is removed or nobody wants it any more.
        - No name in the folder comes from the other side.
        - A file that is damaged is dropped: its request is asked again.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._folder, self._now = folder, now
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise StoreNotWritable(f"the outbox cannot be used: {error.strerror} {folder}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StoreInUse(f"another process serves the node of {folder}") from error

    def put(self, reply: ProtoMessage) -> None:
        """Keep a reply.

        Raises:
            StoreNotWritable: The disk is full, or the folder is gone.
        """
        self._write(self._path(reply), reply.SerializeToString())

    def remove(self, reply: ProtoMessage) -> None:
        """Forget a reply that was sent."""
        self._path(reply).unlink(missing_ok=True)

    def replies(self) -> Iterator[ProtoMessage]:
        """Give the replies that somebody may still want, oldest first, and forget the others."""
        files = sorted(self._folder.glob("*.reply"), key=lambda path: path.stat().st_mtime)
        for path in files[:-MOST_REPLIES]:
            path.unlink(missing_ok=True)
        for path in files[-MOST_REPLIES:]:
            reply = ProtoMessage()
            try:
                reply.ParseFromString(path.read_bytes())
            except Exception:  # whatever the parser says of a damaged file
                path.unlink(missing_ok=True)
                continue
            if reply.metadata.created_at + reply.metadata.ttl > self._now() and path == self._path(reply):
                yield reply
            else:
                path.unlink(missing_ok=True)

    @property
    def node_id(self) -> int | None:
        """The number under which the SuperLink knew this node last."""
        try:
            text = (self._folder / "node-id").read_text("ascii")[: _NODE_ID_DIGITS + 1].strip()
        except (OSError, UnicodeDecodeError):
            return None
        return int(text) if text.isascii() and text.isdigit() and len(text) <= _NODE_ID_DIGITS else None

    @node_id.setter
    def node_id(self, node_id: int) -> None:
        self._write(self._folder / "node-id", str(node_id).encode())

    def close(self) -> None:
        """Let another process have the folder."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _path(self, reply: ProtoMessage) -> Path:
        name = hashlib.sha256(reply.metadata.reply_to_message_id.encode()).hexdigest()
        return self._folder / f"{name}.reply"

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_suffix(".tmp")
        try:
            with os.fdopen(os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
                file.write(data)
            temporary.replace(path)
        except OSError as error:
            raise StoreNotWritable(f"a reply cannot be kept: {error.strerror} {path}") from error
