"""The canary audit's step through the participant's own trainer, which holds the canaries as its records.

So what is audited is the object that trains in a study: its sampling, clipping, noise, division and sum. Where the unit is a
person, each canary is a person with several equal records, so that clipping records instead of their sum shows.
"""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from hansa.models.transformer import FeatureTransformer
from hansa.participant.trainer import Rows, Trainer
from hansa.privacy.accounting import Mechanism
from hansa.privacy.canary import Planted, Step
from hansa.privacy.noise import SecretRandom
from hansa.study import Study

_RECORDS_MOST = 4


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
            _rows(planted, study.privacy.records_per_person),
            noise_multiplier=mechanism.noise_multiplier,
            random=random,
        )
        size = planted.layout.size
        update = trainer.update(np.zeros(size), np.arange(size))
        return update * mechanism.sample_rate * study.privacy.nominal_records

    return step


def _rows(planted: Planted, records_per_person: int | None) -> Rows:
    if records_per_person is None:
        return Rows(features=planted.features, labels=planted.labels)
    records = min(records_per_person, _RECORDS_MOST)
    return Rows(
        features=planted.features.repeat_interleave(records, dim=0),
        labels=planted.labels.repeat_interleave(records),
        persons=torch.arange(len(planted.labels)).repeat_interleave(records),
    )
