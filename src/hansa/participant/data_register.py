"""The participant's register of its named data sets: the identity of each name, its commitments so far, the marks of its units,
and how far its ledger was known to have come.

One sealed record a name and one a ledger, in the encrypted store `data-sets.db` beside the ledgers; its key is derived from the
ledgers' salt, so there is no further file to lose. It holds no value of a record.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa import labels
from hansa.errors import StoreDamaged
from hansa.participant.store import SealedStore
from hansa.secure_agg.derivation import derive_key

FILE = "data-sets.db"
FORMAT = "hansa/data-register/v1"
_PREFIX, _LEDGER_PREFIX = "data-set/", "ledger/"
_HEAD_BYTES = 4
_SIZE_BYTES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Commitment:
    """What a data set was at one time: its commitment, its number of units, and the time in seconds."""

    data: bytes
    units: int
    time: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NamedData:
    """A data set under its name.

    Attributes:
        name: For ever.
        commitments: Every form that it was registered in, oldest first. The first is its identity.
        marks: (k,) ascending marks of all units that it ever had.
    """

    name: str
    commitments: tuple[Commitment, ...]
    marks: NDArray[np.uint64]

    @property
    def identity(self) -> bytes:
        """What its ledger commits to, 32 bytes."""
        return self.commitments[0].data

    def grown(self, commitment: Commitment, marks: NDArray[np.uint64]) -> "NamedData":
        """Add a further form; a unit that went away stays marked, for what was spent on it stays spent."""
        commitments = self.commitments
        if commitments[-1].data != commitment.data:
            commitments = (*commitments, commitment)
        return replace(self, commitments=commitments, marks=np.union1d(self.marks, marks))

    def encode(self) -> bytes:
        """Encode for the store."""
        head = {
            "format": FORMAT,
            "commitments": [[each.data.hex(), each.units, each.time] for each in self.commitments],
        }
        encoded = json.dumps(head).encode()
        return len(encoded).to_bytes(_HEAD_BYTES, "big") + encoded + self.marks.astype(">u8").tobytes()

    @classmethod
    def decode(cls, name: str, encoded: bytes) -> "NamedData":
        """Decode; StoreDamaged if it is of another version, for the seal lets no other bytes through."""
        size = int.from_bytes(encoded[:_HEAD_BYTES], "big")
        head = json.loads(encoded[_HEAD_BYTES : _HEAD_BYTES + size])
        if head.get("format") != FORMAT:
            raise StoreDamaged(f"{FILE} holds a record of another version of hansa")
        commitments = tuple(
            Commitment(data=bytes.fromhex(data), units=units, time=time)
            for data, units, time in head["commitments"]
        )
        marks = np.frombuffer(encoded[_HEAD_BYTES + size :], dtype=">u8").astype(np.uint64)
        return cls(name=name, commitments=commitments, marks=marks)


class DataRegister:
    """The register, while its store is open."""

    def __init__(self, store: SealedStore) -> None:
        self._store = store

    @cached_property
    def data_sets(self) -> dict[str, NamedData]:
        """All data sets by name; their marks are many, so they are read when somebody asks."""
        found = {}
        for key in self._store.keys(_PREFIX):
            name = key.removeprefix(_PREFIX)
            encoded = self._store.get(key)
            if encoded is not None:
                found[name] = NamedData.decode(name, encoded)
        return found

    def keep(self, data: NamedData) -> None:
        """Keep a data set; it is on disk when this returns."""
        if data.name in self.data_sets and data.encode() == self.data_sets[data.name].encode():
            return
        self._store.put(_PREFIX + data.name, data.encode())
        self.data_sets[data.name] = data

    def ledger_seen(self, name: str) -> tuple[int, bytes]:
        """Give the most entries that a data set's ledger was seen with, and the root over them; 0 before any."""
        encoded = self._store.get(_LEDGER_PREFIX + name)
        return (
            (0, b"")
            if encoded is None
            else (int.from_bytes(encoded[:_SIZE_BYTES], "big"), encoded[_SIZE_BYTES:])
        )

    def keep_ledger(self, name: str, size: int, root: bytes) -> None:
        """Keep that a data set's ledger has come so far, unless it was seen further already."""
        if size > self.ledger_seen(name)[0]:
            self._store.put(_LEDGER_PREFIX + name, size.to_bytes(_SIZE_BYTES, "big") + root)


@contextmanager
def open_register(folder: Path, salt: bytes) -> Iterator[DataRegister]:
    """Open the register of a folder; made if there is none.

    Raises:
        StoreDamaged: The file was altered, or belongs to another salt.
        StoreInUse: Another process registers data at this moment.
    """
    store = SealedStore(folder / FILE, derive_key(salt, salt=b"", info=labels.DATA_REGISTER_KEY))
    try:
        yield DataRegister(store)
    finally:
        store.close()
