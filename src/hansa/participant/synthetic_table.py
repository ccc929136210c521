"""Records that are nobody's: drawn from the public ranges of a study's columns, for audits that must not read data.

sample   anywhere in the ranges, from a public seed: what the encoder's bins and the base are made from
canaries at the ends of the ranges, with labels that follow nothing, from secret randomness
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from hansa.models.features import FeatureEncoder, encoder_of_public_sample
from hansa.models.pretraining import Base, PretrainingConfig, make_base
from hansa.participant.trainer import Rows
from hansa.study import DataSchema, Study

_SAMPLE_ROWS = 2000

Uniform = Callable[[int], NDArray[np.float64]]


def synthetic_base(
    study: Study, *, seed: int = 0, pretraining_steps: int = 50
) -> tuple[FeatureEncoder, Base]:
    """Make encoder and base of a study from uniform rows of its public ranges.

    Args:
        study: Columns and sizes.
        seed: Public seed of the rows and the base.
        pretraining_steps: Steps of pretraining.

    Guarantees:
        - Depends on the arguments only.
    """
    draws = np.random.default_rng(seed)
    numeric, codes = _rows(study.data, _SAMPLE_ROWS, draws.random, ends=False)
    encoder = encoder_of_public_sample(study.data, numeric, codes.shape[1], study.model.quantile_bins)
    base = make_base(
        study,
        encoder.encode(numeric, codes),
        encoder.used(),
        seed=seed,
        pretraining=PretrainingConfig(steps=pretraining_steps),
    )
    return encoder, base


def canary_rows(schema: DataSchema, encoder: FeatureEncoder, count: int, uniform: Uniform) -> Rows:
    """Draw canaries: each numeric column at its least or greatest value, any category, a label by a coin.

    Args:
        schema: The study's columns.
        encoder: The study's encoder.
        count: How many.
        uniform: Source of uniform values in [0, 1).

    Guarantees:
        - Depends on the schema, the encoder and `uniform` only.
    """
    numeric, codes = _rows(schema, count, uniform, ends=True)
    labels = torch.from_numpy((uniform(count) < 0.5).astype(np.float32))
    return Rows(features=encoder.encode(numeric, codes), labels=labels)


def _rows(
    schema: DataSchema, count: int, uniform: Uniform, *, ends: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draw numeric values and codes, (count, columns) each."""
    numeric, codes = np.empty((count, len(schema.numeric))), np.empty((count, len(schema.categorical)), int)
    for place, column in enumerate(schema.numeric):
        least, most = float(column.minimum or 0.0), float(column.maximum or 0.0)
        share = uniform(count)
        numeric[:, place] = least + (most - least) * ((share < 0.5) if ends else share)
    for place, column in enumerate(schema.categorical):
        codes[:, place] = np.floor(uniform(count) * (len(column.values) + 1))
    return numeric, codes
