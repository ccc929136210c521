"""A participant registers a table at each start: it gets its commitment, under the salt that lies beside the ledgers."""

from collections.abc import Iterable
from pathlib import Path

from hansa.errors import LedgerMismatch
from hansa.participant.store import open_or_make_key
from hansa.privacy.data_identity import data_commitment

SALT_FILE = "ledger.salt"


def register_data(folder: Path, units: Iterable[bytes]) -> bytes:
    """Commit to a data set under the participant's salt; the salt is made at the first call.

    Args:
        folder: The participant's own folder, with its ledgers.
        units: As for `data_commitment`.

    Returns:
        The commitment, which names the data set's ledger.

    Raises:
        LedgerMismatch: There are ledgers, and the salt that they were made under is gone.
        KeyFileUnsafe: The salt's file is not one that only its owner can read.

    Guarantees:
        - The same units in the same folder have one commitment, after any restart and in any study.
        - A lost salt never begins a new budget.
    """
    salt_file = folder / SALT_FILE
    if not salt_file.exists() and any(folder.glob("ledger-*.jsonl")):
        raise LedgerMismatch(
            f"{SALT_FILE} is gone, so nobody can tell which ledger belongs to this data",
            hint=f"restore {SALT_FILE} from a backup; a new one would begin every budget anew",
        )
    return data_commitment(open_or_make_key(salt_file), units)
