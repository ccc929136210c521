"""The canary audit's step through the participant's own trainer, which holds the canaries as its records.

So what is audited is the object that trains in a study: its sampling, clipping, noise, division and sum.
"""

from typing import cast

import numpy as np
from numpy.typing import NDArray

from hansa.models.transformer import FeatureTransformer
from hansa.participant.trainer import Rows, Trainer
from hansa.privacy.accounting import Mechanism
from hansa.privacy.canary import Planted, Step
from hansa.privacy.noise import SecretRandom
from hansa.study import Study


def trainer_step(study: Study) -> Step:
    """Make the step that one local step of a study's trainer takes.

    Args:
        study: The agreement; the audit's own sample rate and clip norm replace the study's, and a step is one local step.
    """

    def step(
        planted: Planted, mechanism: Mechanism, clip_norm: float, random: SecretRandom
    ) -> NDArray[np.float64]:
        changed = study.model_copy(
            update={
                "privacy": study.privacy.model_copy(
                    update={"clip_norm": clip_norm, "sample_rate": mechanism.sample_rate}
                ),
                "training": study.training.model_copy(update={"local_steps": 1}),
            }
        )
        trainer = Trainer(
            changed,
            cast(FeatureTransformer, planted.model),  # it trains whatever leaves records on a tape
            planted.layout,
            Rows(features=planted.features, labels=planted.labels),
            noise_multiplier=mechanism.noise_multiplier,
            random=random,
        )
        size = planted.layout.size
        update = trainer.update(np.zeros(size), np.arange(size))
        return update * mechanism.sample_rate * study.privacy.nominal_records

    return step
