"""A node opens a data set by its name: rows for the model, and the identity of their ledger."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hansa import errors
from hansa.models.features import encoder_of_public_sample
from hansa.participant.data_rows import open_data
from hansa.participant.registered_data import registered_names
from hansa.study import ColumnSchema, DataSchema, Study, load_study

STUDY = Path(__file__).resolve().parents[2] / "examples/bank/study.toml"
FILE = """schema = "hansa/datasets/v1"
[[dataset]]
name = "cards"
kind = "csv"
path = "cards.csv"
policy = "policy.toml"
[[dataset]]
name = "copies"
kind = "csv"
path = "cards.csv"
"""
COLUMNS = (
    ColumnSchema(name="income", kind="numeric", minimum=0, maximum=100),
    ColumnSchema(name="region", kind="categorical", values=(7, 3)),
)


@pytest.fixture
def study() -> Study:
    return load_study(STUDY).model_copy(update={"data": DataSchema(label="y", columns=COLUMNS)})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "datasets.toml").write_text(FILE)
    (tmp_path / "cards.csv").write_text("income,region,y\n5,7,0\n500,3,1\n,9,1\n")
    return tmp_path


def test_rows_are_encoded_and_registered_before_they_are_returned(home: Path, study: Study) -> None:
    encoder = encoder_of_public_sample(study.data, np.array([[0.0], [50.0], [100.0]]), 1, 4)
    opened = open_data(home, "cards", study, encoder, time=0.0)
    expected = encoder.encode(np.array([[5.0], [100.0], [np.nan]]), np.array([[1], [2], [0]]))
    assert torch.equal(opened.rows.features, expected)
    assert opened.rows.labels.tolist() == [0.0, 1.0, 1.0]
    assert opened.rows.labels.dtype == torch.float32
    assert registered_names(home) == {"cards": opened.data_commitment}
    assert opened.policy == home / "policy.toml"
    assert {note.code for note in opened.notes} >= {"out_of_range", "missing_values", "unknown_category"}

    (home / "cards.csv").write_text("income,region,y\n5,7,0\n500,3,1\n,9,1\n1,1,0\n")
    grown = open_data(home, "cards", study, encoder, time=1.0)
    assert (len(grown.rows.labels), grown.data_commitment) == (4, opened.data_commitment)


def test_what_is_refused_is_not_registered(home: Path, study: Study) -> None:
    encoder = encoder_of_public_sample(study.data, np.array([[0.0], [50.0], [100.0]]), 1, 4)
    with pytest.raises(errors.UnknownDataset):
        open_data(home, "loans", study, encoder, time=0.0)
    open_data(home, "cards", study, encoder, time=0.0)
    with pytest.raises(errors.DataAlreadyRegistered, match="'copies' shares 3 keys"):
        open_data(home, "copies", study, encoder, time=0.0)
    (home / "cards.csv").write_text("income,region,y\n5,7,2\n")
    with pytest.raises(errors.SchemaMismatch):
        open_data(home, "cards", study, encoder, time=0.0)
    assert set(registered_names(home)) == {"cards"}


def test_a_study_that_protects_persons_gets_whose_each_row_is(home: Path, study: Study) -> None:
    (home / "datasets.toml").write_text(
        FILE.replace('path = "cards.csv"', 'path = "cards.csv"\nperson = "who"')
    )
    (home / "cards.csv").write_text("income,region,y,who\n5,7,0,anna\n50,3,1,bela\n9,9,1,anna\n1,1,0,cora\n")
    encoder = encoder_of_public_sample(study.data, np.array([[0.0], [50.0], [100.0]]), 1, 4)
    privacy = study.privacy.model_copy(update={"unit": "person", "records_per_person": 2})
    opened = open_data(home, "cards", study.model_copy(update={"privacy": privacy}), encoder, time=0.0)
    assert opened.rows.persons is not None
    assert opened.rows.persons.tolist() == [0, 1, 0, 2]
    assert open_data(home, "cards", study, encoder, time=0.0).rows.persons is None
