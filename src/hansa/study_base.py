"""Makes the base of a study from public rows, as a file that a proposal names by its hash."""

from collections.abc import Callable
from pathlib import Path

from hansa.errors import OutputNotWritable
from hansa.models.base_files import save_base
from hansa.models.features import encoder_of_public_sample
from hansa.models.pretraining import PretrainingConfig, make_base
from hansa.participant.dataset import read_table
from hansa.study import Study


def make_base_file(
    study: Study,
    public: Path,
    output: Path,
    *,
    seed: int = 0,
    steps: int = 300,
    progress: Callable[[int, float], None] | None = None,
) -> str:
    """Pretrain a base on public rows, without their labels, and write it.

    Args:
        study: Columns, sizes and adapters.
        public: Public rows, .parquet or .csv, with the study's columns; the label column is read and thrown away.
        output: Where the file goes.
        seed: Public seed of initialisation, batches and hidden tokens.
        steps: Optimizer steps.
        progress: Called with the number of steps done and the latest loss.

    Returns:
        SHA-256 of the file, hexadecimal.

    Raises:
        DataError: The rows cannot be read, or do not fit the study.
        OutputNotWritable: The file is there already, or cannot be written.
    """
    if output.exists():
        raise OutputNotWritable(f"{str(output)!r} is there already", hint="choose another name for the base")
    table = read_table(public, study.data).without_labels()
    encoder = encoder_of_public_sample(
        study.data, table.numeric, table.categorical.shape[1], study.model.quantile_bins
    )
    base = make_base(
        study,
        encoder.encode(table.numeric, table.categorical),
        encoder.used(),
        seed=seed,
        pretraining=PretrainingConfig(steps=steps),
        progress=progress,
    )
    return save_base(base, encoder, study, output)
