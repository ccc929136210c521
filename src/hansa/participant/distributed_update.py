"""A participant's updates where noise is distributed: rounded, noised with its share, and read from the sum.

An update has no bound here and too little noise to be seen alone. It exists in memory and on the sealed store only, and leaves
masked; the protocol opens no sum of fewer members than the study counts on (`secure_agg.attempt.verify_noise`).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hansa.participant.node_state import TrainedUpdate
from hansa.participant.trainer import Trainer
from hansa.privacy.distributed import NoisePlan, plan_noise
from hansa.privacy.noise import SecretRandom
from hansa.privacy.spending import Spending
from hansa.study import Study


class DistributedUpdates:
    """The distributed mode of `LocalUpdates`.

    Args:
        study: An agreement in distributed mode.
        entries: Entries of an update.
        random: Secret randomness.

    Attributes:
        plan: Grid and noise, from the study and the model's sizes alone.

    Guarantees:
        - Every entry of every update that leaves carries this participant's share of the noise, whichever epoch chose the entries.
    """

    def __init__(self, study: Study, entries: int, random: SecretRandom) -> None:
        self.plan: NoisePlan = plan_noise(study, entries)
        self._random = random

    def reserved(self, spending: Spending) -> Spending:
        """Say in a reservation whose noise is counted on."""
        return replace(
            spending, distributed=self.plan.noise, noise_multiplier=self.plan.noise.noise_multiplier
        )

    def train(
        self, trainer: Trainer, values: NDArray[np.float64], support: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Make an update; the un-noised sum does not outlive this call."""
        return self.plan.integers(trainer.clipped_sum(values, support), self._random)

    def moved(self, update: TrainedUpdate, support: NDArray[np.int64]) -> TrainedUpdate:
        """Put an update that was kept on another support of the same size, as a new epoch's keys choose one.

        An entry that was not trained gets noise alone: with nothing there, others' data on that entry would lack this share. It is
        drawn once and has to be kept, like the update.

        Returns:
            The same object where the support is the same.
        """
        if np.array_equal(update.support, support):
            return update
        noise = self.plan.noise_only(support.size, self._random)
        trained = np.isin(support, update.support)
        return replace(update, support=support, levels=np.where(trained, update.levels_on(support), noise))
