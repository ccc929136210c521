"""A whole study at the level of its engine: training, noise, rounding and optimizer as members run them; no masks, no encryption.

What masks and encryption carry is an exact sum of integers (`tests/secure_agg`), so the model that comes out has the
distribution of the protocol's; `tests/demo/test_engine.py` holds one study against the embedded consortium. It sees all
participants' rows, as no study can.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hansa.models.pretraining import Base
from hansa.participant.distributed_update import DistributedUpdates
from hansa.participant.shared_state import SharedState
from hansa.participant.trainer import Rows, Trainer, summed_gradient, update_bound
from hansa.privacy.accounting import calibrate
from hansa.privacy.noise import SecretRandom
from hansa.privacy.sampling import poisson_sample
from hansa.secure_agg.codec import dequantise_sum, kept_entries, quantise, select_support
from hansa.secure_agg.parameters import layout_for
from hansa.study import Study

Vector = NDArray[np.float64]
Index = NDArray[np.int64]
AfterRound = Callable[[SharedState], None]


class _Round(Protocol):
    def __call__(self, values: Vector, support: Index) -> Vector:
        """Give the mean update of all participants."""


def simulate(
    study: Study, base: Base, parties: Sequence[Rows], *, after_round: AfterRound | None = None
) -> SharedState:
    """Run every round of a study, with the noise that it names.

    Args:
        study: The agreement; local or distributed noise.
        base: Where to start.
        parties: Each participant's rows.
        after_round: Called with the common state after each round.

    Returns:
        The common state after the last round.

    Guarantees:
        - Support, clipped sums, noise, integers, mean and optimizer are computed by the code that members run.
    """
    make = _distributed if study.privacy.mode == "distributed" else _local
    return _rounds(study, base, make(study, base, parties), after_round)


def simulate_without_privacy(
    study: Study, base: Base, parties: Sequence[Rows], *, after_round: AfterRound | None = None
) -> SharedState:
    """Run every round of a study without clipping, noise and rounding: what federated training without privacy reaches.

    Support and optimizer are the study's.
    """
    return _rounds(study, base, _plain(study, base, parties), after_round)


def entries_of(study: Study, trained: int) -> int:
    """Entries that move in a round, of so many trained ones."""
    packing = layout_for(study.aggregation.participants, study.compression.bits)
    return kept_entries(trained, study.compression.kept_share, packing)


def noise_multiplier_of(study: Study) -> float:
    """Noise multiplier that the study's target needs."""
    privacy, training = study.privacy, study.training
    return calibrate(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sample_rate=privacy.sample_rate,
        steps=training.rounds * training.local_steps,
    )


def _rounds(study: Study, base: Base, mean_of: _Round, after_round: AfterRound | None) -> SharedState:
    state = SharedState(values=base.layout.gather(base.model()))
    always = base.layout.positions(study.compression.always)
    kept = entries_of(study, base.layout.size)
    for _ in range(study.training.rounds):
        support = select_support(
            state.scores(always),
            kept,
            study.compression.explore_share,
            group_key=bytes(32),
            transcript=state.transcript,
            round_index=state.round + 1,
        )
        state.apply(support, mean_of(state.values, support), study, bytes(32))
        if after_round is not None:
            after_round(state)
    return state


def _trainers(study: Study, base: Base, parties: Sequence[Rows], random: SecretRandom) -> list[Trainer]:
    model, sigma = base.model(), noise_multiplier_of(study)
    return [
        Trainer(study, model, base.layout, rows, noise_multiplier=sigma, random=random) for rows in parties
    ]


def _local(study: Study, base: Base, parties: Sequence[Rows]) -> _Round:
    random = SecretRandom()
    trainers = _trainers(study, base, parties, random)
    bits, bound = study.compression.bits, update_bound(study, noise_multiplier_of(study))

    def mean(values: Vector, support: Index) -> Vector:
        total = np.zeros(len(support), dtype=np.int64)
        for trainer in trainers:
            total += quantise(trainer.update(values, support), bound, bits, random.uniform)
        return dequantise_sum(total, bound, bits, len(trainers))

    return mean


def _distributed(study: Study, base: Base, parties: Sequence[Rows]) -> _Round:
    random = SecretRandom()
    trainers = _trainers(study, base, parties, random)
    updates = DistributedUpdates(study, entries_of(study, base.layout.size), random)

    def mean(values: Vector, support: Index) -> Vector:
        total = np.zeros(len(support), dtype=np.int64)
        for trainer in trainers:
            total += updates.train(trainer, values, support)
        return updates.plan.mean(total, len(trainers))

    return mean


def _plain(study: Study, base: Base, parties: Sequence[Rows]) -> _Round:
    random, model, privacy = SecretRandom(), base.model(), study.privacy
    divisor = privacy.sample_rate * privacy.nominal_records * len(parties)

    def mean(values: Vector, support: Index) -> Vector:
        base.layout.load(model, values)
        total = np.zeros(len(support))
        for rows in parties:
            batch = poisson_sample(len(rows.labels), privacy.sample_rate, random.bytes)
            total += summed_gradient(model, base.layout, rows, batch, support=support, clip_norm=None)
        return total / divisor

    return mean
