"""Everything that the demo's arms start from: one base, one test set, the banks' rows. It sees all data, as no study can."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hansa.demo.bank_data import BankData, Partition, load_bank, partition
from hansa.demo.baselines import LabelledRows
from hansa.demo.metrics import auc
from hansa.models.features import FeatureEncoder, encoder_of_public_sample
from hansa.models.pretraining import Base
from hansa.participant.dataset import Table
from hansa.participant.trainer import Rows
from hansa.study import Study

_CHUNK = 1500


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """AUC of a model: on the consortium-wide test set, and on rows like each bank's own, mean over banks."""

    test: float
    own: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """The demo's data, encoded.

    Attributes:
        study: The agreement.
        names: The banks.
        notes: What the partition maker re-drew or moved.
        banks: Private rows of each bank.
        test: Consortium-wide test rows.
        own_test: Rows of `test` that are like each bank's own.
        public: Encoded public rows.
        used_JZ: Which encoded values are used.
        flat_banks: Private rows of each bank for a linear model.
        flat_test: Test rows for a linear model.
        flat_public: Public rows for a linear model.
    """

    study: Study
    names: tuple[str, ...]
    notes: tuple[str, ...]
    banks: tuple[Rows, ...]
    test: Rows
    own_test: tuple[NDArray[np.int64], ...]
    public: Tensor
    used_JZ: Tensor
    flat_banks: tuple[LabelledRows, ...]
    flat_test: LabelledRows
    flat_public: NDArray[np.float64]


def prepare(study: Study, parquet: Path, *, kind: str, seed: int) -> Ground:
    """Read, split, deal out and encode the data; errors as of `load_bank` and `partition`."""
    data = load_bank(parquet, study, seed=seed)
    dealt = partition(data, kind=kind, participants=study.aggregation.participants, seed=seed)
    return encode(study, data, dealt)


def encode(study: Study, data: BankData, dealt: Partition) -> Ground:
    """Encode the split data with statistics of the public sample."""
    public = data.public
    encoder = encoder_of_public_sample(
        study.data, public.numeric, public.categorical.shape[1], study.model.quantile_bins
    )
    tables = [data.private.rows(index) for index in dealt.indices]
    return Ground(
        study=study,
        names=tuple(f"bank-{number:02d}" for number in range(1, len(tables) + 1)),
        notes=dealt.notes,
        banks=tuple(_rows(encoder, table) for table in tables),
        test=_rows(encoder, data.test),
        own_test=dealt.own_test,
        public=encoder.encode(public.numeric, public.categorical),
        used_JZ=encoder.used(),
        flat_banks=tuple(_flat(encoder, table) for table in tables),
        flat_test=_flat(encoder, data.test),
        flat_public=encoder.flat(public.numeric, public.categorical),
    )


class Evaluator:
    """Scores trained vectors on the test set.

    Args:
        ground: The data.
        base: The base that the vectors belong to.
    """

    def __init__(self, ground: Ground, base: Base) -> None:
        self._ground, self._layout, self._model = ground, base.layout, base.model()

    def score(self, values: NDArray[np.float64]) -> Score:
        """Score a trained vector."""
        return self.score_of(self.outputs(values))

    def score_own(self, values: NDArray[np.float64], bank: int) -> Score:
        """Score a bank's own model: on the test set, and on rows like that bank's own; 0.5 where these have one class."""
        outputs = self.outputs(values)
        labels = self._ground.test.labels.numpy().astype(np.float64)
        rows = self._ground.own_test[bank]
        return Score(test=auc(outputs, labels), own=auc(outputs[rows], labels[rows]))

    def score_of(self, outputs: NDArray[np.float64]) -> Score:
        """Score the outputs of a model on the test rows."""
        labels = self._ground.test.labels.numpy().astype(np.float64)
        own = [
            auc(outputs[rows], labels[rows]) for rows in self._ground.own_test if len(set(labels[rows])) > 1
        ]
        return Score(test=auc(outputs, labels), own=float(np.mean(own)) if own else 0.5)

    def outputs(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute the logits of the test rows."""
        self._layout.load(self._model, values)
        return logits(self._model, self._ground.test.features)


def logits(model: torch.nn.Module, features: Tensor) -> NDArray[np.float64]:
    """Compute logits a chunk at a time, so that memory stays small."""
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.split(features, _CHUNK)]).double().numpy()


def _rows(encoder: FeatureEncoder, table: Table) -> Rows:
    labels = torch.tensor(table.labels, dtype=torch.float32)
    return Rows(features=encoder.encode(table.numeric, table.categorical), labels=labels)


def _flat(encoder: FeatureEncoder, table: Table) -> LabelledRows:
    return LabelledRows(features=encoder.flat(table.numeric, table.categorical), labels=table.labels)
