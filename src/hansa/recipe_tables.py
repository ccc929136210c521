"""Public tables for a recipe: the rows of a study's columns, encoded, labels dropped."""

from pathlib import Path

from torch import Tensor

from hansa.models.config import ModelConfig
from hansa.models.features import encoder_of_public_sample
from hansa.participant.dataset import Table, read_table
from hansa.study import Study


class StudyTables:
    """Encodes files with the statistics of the first one.

    Args:
        study: Columns and sizes.
        first: File of the first phase; a participant of the study must encode with its statistics too.

    Raises:
        DataError: The file does not fit the study.

    Guarantees:
        - Labels reach neither the encoder nor the features.
    """

    def __init__(self, study: Study, first: Path) -> None:
        self._study = study
        table = read_table(first, study.data)
        self._encoder = encoder_of_public_sample(
            study.data, table.numeric, table.categorical.shape[1], study.model.quantile_bins
        )
        self._known: dict[Path, Table] = {first: table}
        self.config, self.used_JZ = ModelConfig.of_study(study), self._encoder.used()

    def features(self, path: Path) -> Tensor:
        """Give the encoded rows of a file, (n, J, Z); errors as of the constructor."""
        table = self._known.get(path) or read_table(path, self._study.data)
        return self._encoder.encode(table.numeric, table.categorical)
