"""Which data a budget is the budget of: a commitment to the units, under a secret of the participant.

The same units give the same commitment, in any order and for any study; so they have one ledger, whatever the study is called
and however often the table is registered. The commitment is an HMAC (RFC 2104) under a random salt that stays with the
participant: nobody else can test a guess of a record, or see whether two participants hold the same data.

What it does not do: a table with one unit more or less is another data set with a budget of its own. Whoever registers a table
that grew has to subtract what its older copies spent.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa import labels

SALT_BYTES = 32


def data_commitment(salt: bytes, units: Iterable[bytes]) -> bytes:
    """Commit to a data set.

    Args:
        salt: 32 random bytes of the participant, the same for all its data sets, kept as long as its ledgers.
        units: One key for each unit of privacy: each person's key once (`person_units`), or each record's key where the table
            has one, otherwise `row_units` of the raw rows, before any study encodes them.

    Returns:
        32 bytes.

    Guarantees:
        - Does not depend on the order of the units, only on which there are and how often.
        - Another salt or other units give another commitment, up to a collision of SHA-256.
        - Whoever lacks the salt learns nothing from it, not even the number of units.
    """
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {len(salt)} bytes, not {SALT_BYTES}")
    digests = sorted(hmac.digest(salt, labels.DATA_ROW + unit, "sha256") for unit in units)
    return hmac.digest(salt, labels.DATA_COMMITMENT + b"".join(digests), "sha256")


def person_units(keys: Iterable[bytes]) -> list[bytes]:
    """Give each person's key once, whatever number of records it has.

    Args:
        keys: The person's key of each record, as the table has it.

    Guarantees:
        - Another record of a known person does not change the data set, and its budget goes on.
        - A table by persons and the same table by records have different commitments, so a ledger counts one unit only.
    """
    return [hashlib.sha256(labels.DATA_PERSON + key).digest() for key in sorted(set(keys))]


def persons_of_rows(rows: Sequence[bytes], persons: NDArray[np.int64]) -> list[bytes]:
    """Give each person of a table without a key column a key: the hash of the keys of its rows.

    Args:
        rows: Key of each row, as `row_units` gives them.
        persons: (n,) person of each row.
    """
    owned: dict[int, list[bytes]] = {}
    for person, row in zip(persons.tolist(), rows, strict=True):
        owned.setdefault(person, []).append(row)
    return [hashlib.sha256(labels.DATA_PERSON + b"".join(sorted(keys))).digest() for keys in owned.values()]


def row_units(*columns: NDArray[np.generic]) -> list[bytes]:
    """Give each row of a table without a key column a key: the hash of its values.

    Args:
        columns: Numeric arrays (n, ...) of one length.

    Returns:
        n keys of 32 bytes.

    Guarantees:
        - The same numbers give the same key whatever their type's width; every NaN is the same, and so are 0 and -0.
    """
    flat = [np.asarray(column).reshape(len(column), -1).astype("<f8") + 0.0 for column in columns]
    table = np.ascontiguousarray(np.concatenate(flat, axis=1))
    table[np.isnan(table)] = np.nan
    return [hashlib.sha256(labels.DATA_ROW + row.tobytes()).digest() for row in table]


def ledger_path(folder: Path, data: bytes) -> Path:
    """Give the ledger file of a data set in its participant's folder; each data set has its own."""
    return folder / f"ledger-{data.hex()[:16]}.jsonl"
