"""Private training at one participant: some DP-SGD steps on the round's support, from the state that all hold in common.

    for each of S steps:
      1 sample    every record with probability q (Poisson)
      2 clip      per-sample gradients, restricted to the support, to ℓ₂ norm C
      3 noise     N(0, (σC)²) on every entry of the support
      4 divide    by the public divisor q · nominal records
    the update is the sum of the S noised gradients

Source: Abadi et al. 2016, algorithm 1. No step depends on the number of records but for which of them are sampled.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.privacy.noise import SecretRandom, gaussian_noise
from hansa.privacy.per_sample import clipped_sum
from hansa.privacy.sampling import poisson_sample
from hansa.study import Study

MICRO_BATCH = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Encoded private records: features (n, J, Z) and labels (n,)."""

    features: Tensor
    labels: Tensor

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
        privacy = self._study.privacy
        batch = poisson_sample(len(self._rows.labels), privacy.sample_rate, self._random.bytes)
        return summed_gradient(
            self._model, self._layout, self._rows, batch, support=support, clip_norm=privacy.clip_norm
        )


def summed_gradient(
    model: FeatureTransformer,
    layout: TrainableLayout,
    rows: Rows,
    batch: NDArray[np.int64],
    *,
    support: NDArray[np.int64] | None,
    clip_norm: float | None,
) -> NDArray[np.float64]:
    """Add up the clipped gradients of a batch, a micro-batch at a time, so that memory does not grow with the batch."""
    total = np.zeros(layout.size if support is None else len(support))
    for start in range(0, len(batch), MICRO_BATCH):
        part = torch.from_numpy(batch[start : start + MICRO_BATCH])
        total += clipped_sum(
            model, layout, rows.features[part], rows.labels[part], support_K=support, clip_norm=clip_norm
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
