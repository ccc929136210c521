"""A ledger on disk: one line an entry, only ever longer, each line fsynced before the call that wrote it returns.

A crash or a power cut while a line is written leaves a piece of it behind. Its call never returned, so nothing was done
under it: the piece is set aside by the next line that is written, and noted by a `torn` entry with its hash. A last line that
lacks nothing but its line feed counts, for that is the side to err on.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from hansa.errors import LedgerDamaged, LedgerMismatch, ProofInvalid, StoreNotWritable
from hansa.privacy.ledger_format import (
    ACCOUNTANT,
    FORMAT,
    RELATION,
    SIGNED_AS,
    UNITS,
    decode_line,
    encode_entry,
    encode_line,
    leaf_of,
)
from hansa.privacy.ledger_head import TreeHead
from hansa.privacy.ledger_history import History

Sign = Callable[[str, bytes], bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerOwner:
    """Whose ledger it is, and who signs it.

    Attributes:
        participant: Its id.
        public_key: Ed25519 key of its identity, 32 bytes.
        data: Commitment to the data set, 32 bytes; see `data_identity`.
        sign: Signs a body as a message of a type with that identity.
        unit: Unit of privacy, `record` or `person`.
        now: Wall clock in seconds; written down, never trusted.
    """

    participant: str
    public_key: bytes
    data: bytes
    sign: Sign = field(repr=False)
    unit: str = UNITS[0]
    now: Callable[[], float] = time.time


@dataclass(kw_only=True, slots=True)
class LedgerFile:
    """What a ledger file was found to hold.

    Attributes:
        history: Its lines, checked.
        whole_bytes: Length of the lines that count.
        torn: What follows them: a piece of a line that was being written when the machine stopped.
        feed_missing: Whether the last line that counts lacks its line feed.
        file_bytes: Length of the file.
    """

    history: History
    whole_bytes: int = 0
    torn: bytes = b""
    feed_missing: bool = False
    file_bytes: int = 0


def read_ledger(path: Path, *, every_signature: bool = True) -> LedgerFile:
    """Read and check a ledger; changes nothing.

    Args:
        path: The file.
        every_signature: Check each line's signature; otherwise the last one's only, which covers all lines before it.

    Raises:
        LedgerDamaged: A line does not hold; the message says which and why.
        OSError: The file cannot be read.

    Guarantees:
        - A bit flipped anywhere, a line removed, repeated, moved or signed by another key is found. Lines cut off at the end are
          not: that takes a tree head of them. With the last signature only, a spoilt signature of an earlier line is not
          found either; its entry is.
        - A piece of a line at the end takes nothing away from the lines before it.
    """
    found = LedgerFile(history=History(name=path.name))
    _take_all(found, path.read_bytes(), every_signature=every_signature)
    return found


def _take_all(found: LedgerFile, data: bytes, *, every_signature: bool) -> None:
    """Take what follows the lines that were read before."""
    history, feed_missing = found.history, False
    *lines, rest = data.split(b"\n")
    lines, torn = [line + b"\n" for line in lines], b""
    if rest and _is_line(rest + b"\n"):
        lines.append(rest + b"\n")
        feed_missing = True
    elif _is_line(rest[:-1] + b"\n"):
        raise LedgerDamaged(
            f"line {history.size + len(lines) + 1} of {history.name} ends in something else than a line feed"
        )
    else:
        torn = rest
    for number, line in enumerate(lines, start=1):
        history.take(line, check_signature=every_signature or number == len(lines))
    found.torn, found.feed_missing = torn, feed_missing
    found.file_bytes = found.whole_bytes + len(data)
    found.whole_bytes = found.file_bytes - len(torn)


def _is_line(data: bytes) -> bool:
    try:
        decode_line(data)
    except LedgerDamaged:
        return False
    return True


class Ledger:
    """A ledger that its owner writes to.

    Args:
        path: The file; made by the first entry.
        owner: Whose it is.
        delta: δ at which ε will be stated, if the ledger is new.

    Raises:
        LedgerDamaged: The file does not hold.
        LedgerMismatch: It is of another participant, key, data set or unit, or was opened at a larger δ.

    Guarantees:
        - An entry is on the disk before `append` returns.
        - An entry is written only if `verify` allows it with all that others have written to the file, also from other processes.
        - What is in the file stays; only a piece of an unfinished line is taken away, and noted.
    """

    def __init__(self, path: Path, *, owner: LedgerOwner, delta: float) -> None:
        self._path, self._owner, self._is_unknown = path, owner, False
        self._file = read_ledger(path) if path.exists() else LedgerFile(history=History(name=path.name))
        opening = self.history.opening
        self.delta = delta if opening is None else opening.delta
        if opening is not None:
            self._verify_owner(delta)

    @property
    def history(self) -> History:
        """The entries so far."""
        return self._file.history

    def _verify_owner(self, delta: float) -> None:
        opening, owner = self.history.opening, self._owner
        assert opening is not None  # noqa: S101
        mine = {
            "participant": owner.participant,
            "public_key": owner.public_key,
            "data": owner.data,
            "unit": owner.unit,
        }
        words = {"public_key": "key", "data": "data set", "unit": "unit of privacy"}
        for name, value in mine.items():
            if getattr(opening, name) != value:
                raise LedgerMismatch(f"{self._path.name} is the ledger of another {words.get(name, name)}")
        # A smaller δ states a larger ε for the same noise, so a ledger may serve a study with a larger one.
        if not opening.delta <= delta:
            raise LedgerMismatch(
                f"{self._path.name} states epsilon at delta {opening.delta:g}, and a delta of {delta:g} is asked for"
            )

    def append(
        self, kind: str, fields: Mapping[str, Any], *, verify: Callable[[int], None] = lambda _: None
    ) -> None:
        """Write one entry; before it, where they are due, the opening and the note of a torn line.

        Args:
            kind: Kind of the entry.
            fields: What it holds beside what every entry holds.
            verify: Raises where the entry must not be written, given the time that the entry will state. Asked before the file is
                made or touched, and again, with a new time, once every other writer is kept out and the history holds what they
                have written.

        Raises:
            LedgerDamaged: What others have written to the file since it was read does not hold, or the entry is not one.
            LedgerMismatch: The signer does not hold the owner's key; nothing was written.
            StoreNotWritable: The disk is full; the file is as it was.
            OSError: The line may not be on the disk; what is in the file now is found by reading it again.
        """
        if self._is_unknown:
            raise LedgerDamaged(f"what is in {self._path.name} is not known; it has to be opened again")
        found, now = self._file, int(self._owner.now())
        verify(now)
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with FileIO(descriptor, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if self._catch_up(file):
                now = int(self._owner.now())
                verify(now)
            lines = self._lines(kind, fields, now)
            written = (b"\n" if found.feed_missing else b"") + b"".join(lines)
            is_new = not found.file_bytes
            self._write(file, written)
            self._is_unknown = (
                True  # what a failed fsync has left on the disk is found by reading it again only
            )
            os.fsync(file.fileno())
            self._is_unknown = False
        if is_new:  # a new file is on the disk once its name is
            _sync_directory(self._path.parent)
        found.whole_bytes = found.file_bytes = found.whole_bytes + len(written)
        found.torn, found.feed_missing = b"", False
        for line in lines:
            self.history.take(line, check_signature=False)  # checked as they were made

    def _catch_up(self, file: FileIO) -> bool:
        """Take what others have written since the file was read, and tell whether they have; the file is locked."""
        found, size, before = self._file, os.fstat(file.fileno()).st_size, self.history.size
        # What was a piece of a line when it was read may be a whole one by now; one that was taken away here is not.
        if size == found.file_bytes and (not found.torn or size == found.whole_bytes):
            return False
        self._is_unknown = True  # until all of it was taken
        data = os.pread(file.fileno(), max(size - found.whole_bytes, 0), found.whole_bytes)
        if size < found.whole_bytes or (found.feed_missing and not data.startswith(b"\n")):
            raise LedgerDamaged(f"{self._path.name} was changed by somebody else while it was in use")
        if found.feed_missing:
            found.whole_bytes, data = found.whole_bytes + 1, data[1:]
        _take_all(found, data, every_signature=True)
        opening = self.history.opening
        if opening is not None:
            self._verify_owner(self.delta)
            self.delta = opening.delta
        self._is_unknown = False
        return self.history.size > before

    def _write(self, file: FileIO, written: bytes) -> None:
        found = self._file
        if found.torn:
            os.ftruncate(file.fileno(), found.whole_bytes)
            found.file_bytes = found.whole_bytes
        try:
            if file.write(written) < len(written):
                raise OSError("no room for the whole line")
        except OSError as error:
            os.ftruncate(file.fileno(), found.file_bytes)
            raise StoreNotWritable(f"{self._path.name} cannot be written: {error}") from error

    def _lines(self, kind: str, fields: Mapping[str, Any], now: int) -> list[bytes]:
        entries = [(kind, dict(fields))]
        if self._file.torn:
            torn = {"bytes": len(self._file.torn), "sha256": hashlib.sha256(self._file.torn).hexdigest()}
            entries.insert(0, ("torn", torn))
        if self.history.opening is None:
            entries.insert(0, ("open", self._opening()))
        tree, previous, lines = self.history.tree.copy(), self.history.previous, []
        for name, values in entries:
            common = {
                "kind": name,
                "sequence": tree.size,
                "previous": previous,
                "time": now,
            }
            encoded = encode_entry(common | values)
            leaf = leaf_of(encoded)
            tree.append(leaf)
            head = TreeHead(
                participant=self._owner.participant,
                public_key=self._owner.public_key,
                data=self._owner.data,
                size=tree.size,
                root=tree.root(),
            )
            signature = self._signature(head)
            lines.append(encode_line(encoded, head.root, signature))
            previous = leaf.hex()
        return lines

    def _signature(self, head: TreeHead) -> bytes:
        signature = self._owner.sign(SIGNED_AS, head.encode())
        try:
            head.verify_signature(signature)  # a signer of another key must not spoil the file
        except ProofInvalid as error:
            raise LedgerMismatch(
                f"what was to be written to {self._path.name} is {error.message[6:]}"
            ) from error
        return signature

    def _opening(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "participant": self._owner.participant,
            "public_key": self._owner.public_key.hex(),
            "data": self._owner.data.hex(),
            "delta": self.delta,
            "unit": self._owner.unit,
            "relation": RELATION,
            "accountant": ACCOUNTANT,
        }


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
