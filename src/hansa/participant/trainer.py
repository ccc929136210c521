"""Private training at one participant: some DP-SGD steps on the round's support, from the state that all hold in common.

    for each of S steps:
      1 sample    every unit with probability q (Poisson)
      2 clip      gradients of units, restricted to the support, to ℓ₂ norm C
      3 noise     N(0, (σC)²) on every entry of the support
      4 divide    by the public divisor q · nominal records
    the update is the sum of the S noised gradients

A unit is a record, or a person with its first records (`units.py`), whose gradients are added up before they are clipped.
Source: Abadi et al. 2016, algorithm 1. No step depends on the number of records but for which of them are sampled.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hansa.errors import MissingColumn
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.privacy.noise import SecretRandom, gaussian_noise
from hansa.privacy.per_sample import clipped_sum
from hansa.privacy.sampling import poisson_sample
from hansa.privacy.units import UnitRecords, parts
from hansa.study import Study

MICRO_BATCH = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Encoded private records.

    Attributes:
        features: (n, J, Z).
        labels: (n,).
        persons: (n,) int64, whose each record is: 0 to m - 1 for m persons, in any order of the records; None where the
            unit of privacy is the record.
    """

    features: Tensor
    labels: Tensor
    persons: Tensor | None = None

    def __repr__(self) -> str:
        return "Rows(...)"


class Trainer:
    """Trains one participant's copy of the model.

    Args:
        study: The agreement.
        model: The base; its trained part is overwritten in every step.
        layout: Order of the trained part.
        rows: The participant's records.
        noise_multiplier: σ; 0 is refused, for a study has no way to ask for it.
        random: The participant's secret randomness.

    Raises:
        MissingColumn: The study's unit is a person, and the rows do not say whose they are.
    """

    def __init__(
        self,
        study: Study,
        model: FeatureTransformer,
        layout: TrainableLayout,
        rows: Rows,
        *,
        noise_multiplier: float,
        random: SecretRandom,
    ) -> None:
        if not noise_multiplier > 0.0:
            raise ValueError(f"a noise multiplier is above 0, got {noise_multiplier}")
        self._study, self._model, self._layout, self._rows = study, model, layout, rows
        self._noise_multiplier, self._random = noise_multiplier, random
        self._most = study.privacy.records_per_person  # None where a record is a unit
        self._persons: UnitRecords | None = None  # made when records may be read
        if self._most is not None and rows.persons is None:
            raise MissingColumn(
                "the study's unit of privacy is a person, and the rows do not say whose they are"
            )
        layout.freeze_rest(model)

    def update(self, values: NDArray[np.float64], support: NDArray[np.int64]) -> NDArray[np.float64]:
        """Run the round's local steps.

        Args:
            values: (P,) the common state's trained vector; not changed.
            support: (K,) ascending positions that are trained.

        Returns:
            (K,) noised update: the sum of the steps' gradients.

        Guarantees:
            - Every entry is noised; an empty sample gives pure noise of the same shape.
            - Scale and length depend on the study only, not on the number of records.
        """
        training, privacy = self._study.training, self._study.privacy
        local = values.copy()
        total = np.zeros(len(support))
        for step in range(training.local_steps):
            self._layout.load(self._model, local)
            gradient = self._noised_sum(support) / (privacy.sample_rate * privacy.nominal_records)
            total += gradient
            if step + 1 < training.local_steps:
                local[support] -= training.local_learning_rate * gradient
        return total

    def clipped_sum(self, values: NDArray[np.float64], support: NDArray[np.int64]) -> NDArray[np.float64]:
        """Run steps 1 and 2 once, for noise that is added elsewhere (`privacy.distributed`).

        Returns:
            (K,) sum of clipped gradients. It has no noise: it must be noised in this process, and is never stored or shown.
        """
        self._layout.load(self._model, values)
        return self._clipped_sum(support)

    def _sample(self) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Draw the units of a step; give their records, and whose each is where a unit is a person."""
        rate = self._study.privacy.sample_rate
        if self._most is None or self._rows.persons is None:
            return poisson_sample(len(self._rows.labels), rate, self._random.bytes), None
        if self._persons is None:
            self._persons = UnitRecords(self._rows.persons.numpy(), self._most)
        return self._persons.of(poisson_sample(self._persons.count, rate, self._random.bytes))

    def _noised_sum(self, support: NDArray[np.int64]) -> NDArray[np.float64]:
        clipped = self._clipped_sum(support)  # draws its sample first
        noise = gaussian_noise(
            len(support),
            clip_norm=self._study.privacy.clip_norm,
            noise_multiplier=self._noise_multiplier,
            random=self._random,
        )
        return clipped + noise

    def _clipped_sum(self, support: NDArray[np.int64]) -> NDArray[np.float64]:
        batch, owners = self._sample()
        return summed_gradient(
            self._model,
            self._layout,
            self._rows,
            batch,
            support=support,
            clip_norm=self._study.privacy.clip_norm,
            owners=owners,
        )


def summed_gradient(
    model: FeatureTransformer,
    layout: TrainableLayout,
    rows: Rows,
    batch: NDArray[np.int64],
    *,
    support: NDArray[np.int64] | None,
    clip_norm: float | None,
    owners: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Add up the clipped gradients of a batch, a micro-batch at a time, so that memory does not grow with the batch.

    Args:
        model: The model.
        layout: Order of the trained part.
        rows: Private records.
        batch: (B,) which of them.
        support: Positions that are trained; None for all.
        clip_norm: Bound C of a unit's gradient; None for no clipping (not private).
        owners: (B,) person of each record of the batch, ascending; None where a record is a unit.

    Guarantees:
        - The sum is that of one large batch, up to rounding.
        - A person's records are never divided between two micro-batches.
    """
    total = np.zeros(layout.size if support is None else len(support))
    units = np.arange(len(batch)) if owners is None else owners
    for inside in parts(units, MICRO_BATCH):
        part = torch.from_numpy(batch[inside])
        total += clipped_sum(
            model,
            layout,
            rows.features[part],
            rows.labels[part],
            support_K=support,
            clip_norm=clip_norm,
            unit_B=None if owners is None else owners[inside] - owners[inside][0],
        ).sum_K
    return total


def update_bound(study: Study, noise_multiplier: float) -> float:
    """Clamp range of an update's entries for the codec, known before any data is read.

    The range is a multiple of the standard deviation of the noise of one entry, sqrt(S) σ C / divisor.
    """
    privacy = study.privacy
    divisor = privacy.sample_rate * privacy.nominal_records
    deviation = noise_multiplier * privacy.clip_norm * np.sqrt(study.training.local_steps) / divisor
    return float(study.compression.range_noise_multiples * deviation)
