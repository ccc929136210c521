"""From a data set's name to the rows that a node trains on and the identity of their ledger: a node's one call at its start."""

from dataclasses import dataclass
from pathlib import Path

import torch

from hansa.errors import SchemaMismatch
from hansa.models.features import FeatureEncoder
from hansa.participant.data_problems import Problem
from hansa.participant.data_reading import ReadData, read_data
from hansa.participant.dataset_file import load_datasets
from hansa.participant.registered_data import register_named_data
from hansa.participant.trainer import Rows
from hansa.study import Study


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedData:
    """What a node needs of a data set.

    Attributes:
        rows: Encoded records.
        data_commitment: Identity of the data set, which names its ledger.
        policy: Path of its policy.toml; None where its description names none.
        notes: What the encoding does with some rows; by columns and counts, for the owner's eyes only.
    """

    rows: Rows
    data_commitment: bytes
    policy: Path | None
    notes: tuple[Problem, ...]


def open_data(home: Path, name: str, study: Study, encoder: FeatureEncoder, *, time: float) -> OpenedData:
    """Read, check, register and encode a data set of a participant.

    Args:
        home: The participant's home folder, with datasets.toml, salt, register and ledgers.
        name: The data set's name.
        study: The agreement.
        encoder: The study's, made of its public sample.
        time: Wall clock in seconds; written down, never trusted.

    Raises:
        UnknownDataset, DatasetFileMissing and other ConfigurationErrors: The description cannot be used.
        DataError: The data cannot be read, or does not fit the study (SchemaMismatch).
        DataAlreadyRegistered, LedgerMismatch: Its units have a budget elsewhere, or what tells is gone.

    Guarantees:
        - The rows are those whose units were registered; they are registered, on disk, before this returns.
    """
    entry = load_datasets(home).named(name)
    data = read_data(entry, home, study)
    return OpenedData(
        rows=load_rows(data, study, encoder),
        data_commitment=register_named_data(home, name, units=data.units, marks=data.marks, time=time),
        policy=None if entry.policy is None else home / entry.policy,
        notes=data.notes,
    )


def load_rows(data: ReadData, study: Study, encoder: FeatureEncoder) -> Rows:
    """Encode what was read, for the model; with whose each record is, where the study protects persons.

    Raises:
        SchemaMismatch: The study protects persons, and the data set names no person column.
    """
    table, persons = data.table, None
    if study.privacy.unit == "person":
        if data.persons is None:
            raise SchemaMismatch(
                f"the study protects persons, and data set {data.name!r} names no person column"
            )
        persons = torch.from_numpy(data.persons)
    labels = torch.from_numpy(table.labels.astype("float32"))
    features = encoder.encode(table.numeric, table.categorical)
    return Rows(features=features, labels=labels, persons=persons)
