"""A participant registers its data at each start, under the salt that lies beside the ledgers, and gets the identity of its ledger.

A named data set has one ledger for ever: its identity is the commitment to its first form, and it may grow, shrink and change. The
register beside the ledgers (`data_register`) knows the marks of all units that a name ever had. A unit that another name has
already is refused, for it would have a second budget.

    what is lost                        what happens
    salt                                refused, while there are ledgers
    register, or it is an older copy    refused, while there is a ledger that it does not know
    a ledger, or it is an older copy    refused, while the register has seen it longer, or another one
    all of them, or older copies of all  what the copies do not know begins anew: the folder is the participant's memory
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa.errors import DataAlreadyRegistered, LedgerDamaged, LedgerMismatch
from hansa.participant.data_register import FILE as REGISTER_FILE
from hansa.participant.data_register import Commitment, DataRegister, NamedData, open_register
from hansa.participant.store import open_or_make_key
from hansa.privacy.data_identity import data_commitment, ledger_path, unit_marks
from hansa.privacy.ledger import read_ledger
from hansa.privacy.ledger_head import TreeHead

SALT_FILE = "ledger.salt"


def register_data(folder: Path, units: Iterable[bytes]) -> bytes:
    """Commit to a data set without a name under the participant's salt; the salt is made at the first call.

    A table with one unit more is another data set here. A table that may grow is registered by `register_named_data`.

    Args:
        folder: The participant's own folder, with its ledgers.
        units: As for `data_commitment`.

    Returns:
        The commitment, which names the data set's ledger.

    Raises:
        LedgerMismatch: There are ledgers, and the salt that they were made under is gone; or the folder has named data sets.
        KeyFileUnsafe: The salt's file is not one that only its owner can read.

    Guarantees:
        - The same units in the same folder have one commitment, after any restart and in any study.
        - A lost salt never begins a new budget.
    """
    _verify_salt(folder)
    if (folder / REGISTER_FILE).exists():
        raise LedgerMismatch(
            "this folder keeps data sets by name, and data without a name would have a second budget",
            hint="register the data under its name",
        )
    return data_commitment(open_or_make_key(folder / SALT_FILE), units)


def register_named_data(
    folder: Path, name: str, *, units: Collection[bytes], marks: Collection[bytes], time: float
) -> bytes:
    """Register a data set under its name, as it is now.

    Args:
        folder: The participant's own folder, with its ledgers.
        name: The data set's name for ever.
        units: As for `data_commitment`; at least one.
        marks: Every key by which a unit may be known again in another data set; the units' own keys count without being named.
        time: Wall clock in seconds; written down, never trusted.

    Returns:
        The identity of the data set, 32 bytes, which names its ledger.

    Raises:
        DataAlreadyRegistered: A unit is or was in a data set of another name; the message says which.
        LedgerMismatch: There is a ledger that salt or register do not know.
        LedgerDamaged: The data set's ledger is gone, does not hold, or does not continue the one that the register has seen.
        KeyFileUnsafe, StoreDamaged, StoreInUse, StoreNotWritable: Salt or register cannot be used.

    Guarantees:
        - A name has one identity, and so one ledger, whatever its data becomes.
        - No unit has ledgers under two names, not even after it left the first.
        - A lost or older register never begins a new budget, and neither does a lost or older ledger beside a register that has
          seen it longer.
        - What is registered is on disk before this returns. A refusal changes nothing.
    """
    _verify_salt(folder)
    salt = open_or_make_key(folder / SALT_FILE)
    found = unit_marks(salt, [*units, *marks])
    if not (folder / REGISTER_FILE).exists():
        _verify_ledgers_known(folder, {})  # before an empty register is made
    with open_register(folder, salt) as register:
        _verify_new_or_same(folder, register.data_sets, name, found)
        commitment = Commitment(data=data_commitment(salt, units), units=len(units), time=int(time))
        known = register.data_sets.get(name)
        if known is None:
            known = NamedData(name=name, commitments=(commitment,), marks=found)
        data = known.grown(commitment, found)
        seen = _verify_ledger_continues(folder, register, data)
        register.keep(data)
        register.keep_ledger(name, *seen)
        return data.identity


def note_ledger(folder: Path, name: str, head: TreeHead) -> None:
    """Tell the register how far a data set's ledger has come, so that it is missed if it is gone at the next start.

    Args:
        folder: The participant's own folder.
        name: The data set's name.
        head: Tree head of what is on the disk.

    Raises:
        StoreInUse: Another process uses the register at this moment; nothing depends on being told each time.
    """
    with open_register(folder, open_or_make_key(folder / SALT_FILE)) as register:
        register.keep_ledger(name, head.size, head.root)


def verify_registrable(folder: Path, name: str, marks: Collection[bytes]) -> bool:
    """Raise what `register_named_data` would, and register nothing; tell whether the name has a ledger's identity already."""
    _verify_salt(folder)
    if not (folder / REGISTER_FILE).exists():
        _verify_ledgers_known(folder, {})
        return False
    salt = open_or_make_key(folder / SALT_FILE)
    with open_register(folder, salt) as register:
        _verify_new_or_same(folder, register.data_sets, name, unit_marks(salt, marks))
        if name in register.data_sets:
            _verify_ledger_continues(folder, register, register.data_sets[name])
        return name in register.data_sets


def registered_names(folder: Path) -> Mapping[str, bytes]:
    """Give the names that were ever registered in a folder, each with its identity; none where there is no register."""
    if not (folder / REGISTER_FILE).exists():
        return {}
    _verify_salt(folder)
    with open_register(folder, open_or_make_key(folder / SALT_FILE)) as register:
        return {name: data.identity for name, data in register.data_sets.items()}


def _verify_salt(folder: Path) -> None:
    used = any(folder.glob("ledger-*.jsonl")) or (folder / REGISTER_FILE).exists()
    if used and not (folder / SALT_FILE).exists():
        raise LedgerMismatch(
            f"{SALT_FILE} is gone, so nobody can tell which ledger belongs to this data",
            hint=f"restore {SALT_FILE} from a backup; a new one would begin every budget anew",
        )


def _verify_ledgers_known(folder: Path, data_sets: Mapping[str, NamedData]) -> None:
    known = {ledger_path(folder, data.identity) for data in data_sets.values()}
    unknown = sorted(path.name for path in set(folder.glob("ledger-*.jsonl")) - known)
    if unknown:
        raise LedgerMismatch(
            f"{unknown[0]} belongs to no registered data set: {REGISTER_FILE} is gone, or older than the ledgers",
            hint=f"restore {REGISTER_FILE} from a backup; a new one would begin budgets anew",
        )


def _verify_ledger_continues(folder: Path, register: DataRegister, data: NamedData) -> tuple[int, bytes]:
    """Check that a data set's ledger begins with what the register has seen of it; give its size (0: none) and root."""
    path = ledger_path(folder, data.identity)
    size, root = register.ledger_seen(data.name)
    if not path.exists():
        if size:
            raise LedgerDamaged(f"{path.name} is gone, and had {size} entries")
        return 0, b""
    history = read_ledger(path, every_signature=False).history
    if size > history.size or (size and history.roots[size - 1] != root):
        raise LedgerDamaged(
            f"{path.name} is an older copy or another ledger: it does not continue the {size} entries that it had"
        )
    return history.size, history.roots[-1] if history.size else b""


def _verify_new_or_same(
    folder: Path, data_sets: Mapping[str, NamedData], name: str, marks: NDArray[np.uint64]
) -> None:
    _verify_ledgers_known(folder, data_sets)
    for other in data_sets.values():
        if other.name == name:
            continue
        shared = len(np.intersect1d(marks, other.marks, assume_unique=True))
        if shared:
            raise DataAlreadyRegistered(
                f"data set {name!r} shares {shared} keys of records or persons with {other.name!r}, which has its own budget",
                hint=f"use it as {other.name!r}: a data set has one ledger for ever, also when it grows;"
                " take shared records out of one of them, or give data sets that are numbered on their own a key_space each",
            )
