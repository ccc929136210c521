"""Which data a budget is the budget of: a commitment to the units, under a secret of the participant.

The same units give the same commitment, in any order and for any study; so they have one ledger, whatever the study is called
and however often the table is registered. The commitment is an HMAC (RFC 2104) under a random salt that stays with the
participant: nobody else can test a guess of a record, or see whether two participants hold the same data.

A table with one unit more or less has another commitment. So a data set that may grow is registered under a name, which keeps
its first commitment as its identity for ever (`participant.registered_data`); the marks of its units show whether another name
has them already.
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
    digests = sorted(_digests(salt, units))
    return hmac.digest(salt, labels.DATA_COMMITMENT + b"".join(digests), "sha256")


def unit_marks(salt: bytes, units: Iterable[bytes]) -> NDArray[np.uint64]:
    """Mark units, so that they are known again.

    Args:
        salt: As for `data_commitment`.
        units: Keys.

    Returns:
        (k,) ascending, k <= number of units: the first 8 bytes of each unit's HMAC, each mark once.

    Guarantees:
        - Equal units have equal marks; two lists of N and M other units share one by chance with probability N M / 2^64.
        - Whoever lacks the salt cannot test a guess of a unit.
    """
    octets = b"".join([digest[:8] for digest in _digests(salt, units)])
    return np.unique(np.frombuffer(octets, dtype=">u8").astype(np.uint64))


def _digests(salt: bytes, units: Iterable[bytes]) -> list[bytes]:
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {len(salt)} bytes, not {SALT_BYTES}")
    return [hmac.digest(salt, labels.DATA_ROW + unit, "sha256") for unit in units]


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
