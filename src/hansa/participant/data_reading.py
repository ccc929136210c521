"""A data set is read in one pass with a study in hand: checked, encoded, and its units named for the register.

open_source -> pieces -> TableReading -> problems, Table, keys of units -> register -> `data_rows.load_rows`
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa.errors import ConfigurationError, PolicyRefusal, SchemaMismatch
from hansa.participant.connectors.opening import open_source
from hansa.participant.data_problems import Problem, error, note, verify_no_errors
from hansa.participant.dataset import Table
from hansa.participant.dataset_file import DatasetEntry
from hansa.participant.policy_file import load_policy
from hansa.participant.registered_data import verify_registrable
from hansa.participant.table_reading import TableReading
from hansa.participant.text_reading import TextReading
from hansa.study import Study


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class ReadData:
    """A data set that fits a study.

    Attributes:
        name: The data set's name.
        table: Its encoded rows, in the study's columns.
        persons: (n,) number of each row's person, counted from 0; None if the data set names no person column.
        units: Keys of the units of privacy.
        marks: All keys by which a row can be known again.
        notes: Problems that the encoding has an answer to.
    """

    name: str
    table: Table
    persons: NDArray[np.int64] | None
    units: list[bytes]
    marks: Sequence[bytes]
    notes: tuple[Problem, ...]

    def __repr__(self) -> str:
        return f"ReadData({self.name!r})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """The outcome of a check: rows (-1 where they could not be counted) and problems, errors first."""

    rows: int
    problems: tuple[Problem, ...]

    @property
    def fits(self) -> bool:
        """Whether no problem is an error."""
        return all(problem.severity != "error" for problem in self.problems)


def read_data(entry: DatasetEntry, home: Path, study: Study) -> ReadData:
    """Read a data set for a study.

    Args:
        entry: Its description.
        home: The participant's home folder.
        study: The agreement.

    Raises:
        SchemaMismatch: The data does not fit; every problem is counted.
        DataError, ConfigurationError: As `open_source` raises them.

    Guarantees:
        - The rows that are returned are the rows whose keys are returned, read in the same pass.
    """
    if entry.kind == "jsonl":
        raise SchemaMismatch(f"data set {entry.name!r} holds texts, and studies train on tables")
    reading = _table_reading(entry, home, study, keep=True)
    problems = reading.problems()
    verify_no_errors(entry.name, problems)
    return ReadData(
        name=entry.name,
        table=reading.table(),
        persons=reading.keys.persons,
        units=reading.keys.units(),
        marks=reading.keys.marks(),
        notes=tuple(problems),
    )


def check_data(entry: DatasetEntry, home: Path, study: Study | None) -> Check:
    """Hold a data set against a study, and look whether it could be registered; nothing is kept or registered.

    Args:
        entry: The data set's description.
        home: The participant's home folder.
        study: The study; None for a data set of texts, which has its own schema.

    Raises:
        DataError, ConfigurationError: As `open_source` raises them.

    Guarantees:
        - All problems are found in one pass; no more than two pieces of the data are in memory, beside 200 bytes or so a row
          for its keys.
    """
    if entry.kind == "jsonl":
        texts = TextReading(entry)
        for piece in open_source(entry, home).pieces():
            texts.take(piece)
        problems, marks, rows = texts.problems(), texts.keys.marks(), texts.rows
        if study is not None:
            problems.insert(0, error("texts", "the study trains on a table, and the data set holds texts"))
    elif study is None:
        raise SchemaMismatch(f"data set {entry.name!r} is a table: a study says what it should hold")
    else:
        reading = _table_reading(entry, home, study, keep=False)
        problems, marks = reading.problems(), reading.keys.marks()
        rows = reading.rows if reading.readable else -1
    if rows > 0:
        problems += _of_the_register(entry, home, marks)
    problems += _of_the_policy(entry, home)
    return Check(rows=rows, problems=tuple(sorted(problems, key=lambda problem: problem.severity != "error")))


def _table_reading(entry: DatasetEntry, home: Path, study: Study, *, keep: bool) -> TableReading:
    source = open_source(entry, home)
    reading = TableReading(study, entry, source.names, keep=keep)
    if reading.readable:
        for piece in source.pieces():
            reading.take(piece)
    return reading


def _of_the_register(entry: DatasetEntry, home: Path, marks: Sequence[bytes]) -> list[Problem]:
    try:
        known = verify_registrable(home, entry.name, marks)
    except PolicyRefusal as refusal:
        return [error(refusal.code, refusal.message)]
    return [] if known else [note("new_data_set", "registered under no name yet: its budget will begin at 0")]


def _of_the_policy(entry: DatasetEntry, home: Path) -> list[Problem]:
    if entry.policy is None:
        return [
            note("no_policy", "the data set names no policy: a participant takes part in nothing without one")
        ]
    try:
        policy = load_policy(home / entry.policy)
    except ConfigurationError as wrong:
        return [error(wrong.code, wrong.message)]
    if policy.data_set != entry.name:
        return [
            error("policy_mismatch", f"policy {entry.policy!r} is the one of data set {policy.data_set!r}")
        ]
    return []
