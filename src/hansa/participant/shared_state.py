"""The state that all participants hold in common, bit for bit, on unlike hardware.

Trained vector, optimizer moments, round and transcript. Everything here is computed from exact integers and elementwise float64
operations (+ - * / sqrt, each correctly rounded by IEEE 754) in a fixed order: no matrix product, no power, no fused operation.
The model in float32 is derived from it and may differ in the last bit between machines; the hash covers this state only.

The state is the participants' secret. The coordinator sees a keyed tag of its hash, which shows equality and nothing else.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hansa import labels
from hansa.study import Study

Vector = NDArray[np.float64]
FIRST_TRANSCRIPT = bytes(32)


@dataclass(kw_only=True, slots=True, eq=False)
class SharedState:
    """Adam's state (Kingma & Ba 2015, algorithm 1) over the trained vector, with one clock an entry.

    An entry that is not in a round's support does not move and its moments do not decay.

    Attributes:
        values: (P,) trained vector.
        first: (P,) first moment.
        second: (P,) second moment.
        decay_first: (P,) β1 to the number of rounds that the entry took part in.
        decay_second: (P,) the same for β2.
        round: Rounds applied.
        transcript: Last link of the transcript, 32 bytes.
    """

    values: Vector
    first: Vector = field(init=False)
    second: Vector = field(init=False)
    decay_first: Vector = field(init=False)
    decay_second: Vector = field(init=False)
    round: int = 0
    transcript: bytes = FIRST_TRANSCRIPT

    def __post_init__(self) -> None:
        self.first = np.zeros_like(self.values)
        self.second = np.zeros_like(self.values)
        self.decay_first = np.ones_like(self.values)
        self.decay_second = np.ones_like(self.values)

    def __repr__(self) -> str:
        return f"SharedState(round {self.round})"

    def scores(self, always: NDArray[np.int64]) -> Vector:
        """Say how much each entry is wanted in the next support: its mean squared aggregate so far.

        Args:
            always: Positions that move in every round by agreement; they get the largest score.
        """
        scores = self.second / np.maximum(1.0 - self.decay_second, np.finfo(np.float64).tiny)
        scores[always] = np.finfo(np.float64).max
        return scores

    def apply(self, support: NDArray[np.int64], mean: Vector, study: Study, transcript: bytes) -> None:
        """Take one optimizer step on the support with the mean update, a gradient.

        Args:
            support: (K,) positions.
            mean: (K,) mean over participants.
            study: Optimizer and schedule.
            transcript: The round's link of the transcript.
        """
        settings = study.training.server_optimizer
        first = settings.beta1 * self.first[support] + (1.0 - settings.beta1) * mean
        second = settings.beta2 * self.second[support] + (1.0 - settings.beta2) * (mean * mean)
        decay_first = self.decay_first[support] * settings.beta1
        decay_second = self.decay_second[support] * settings.beta2
        corrected_first = first / (1.0 - decay_first)
        corrected_second = second / (1.0 - decay_second)
        rate = learning_rate(study, self.round)
        self.values[support] -= rate * corrected_first / (np.sqrt(corrected_second) + settings.epsilon)
        self.first[support], self.second[support] = first, second
        self.decay_first[support], self.decay_second[support] = decay_first, decay_second
        self.round += 1
        self.transcript = transcript

    def skip(self, transcript: bytes) -> None:
        """Leave a round behind whose sum could not be opened: nothing moves but the round and the transcript."""
        self.round += 1
        self.transcript = transcript

    def digest(self, study_id: str) -> bytes:
        """Hash the whole state, 32 bytes."""
        digest = hashlib.sha256(labels.MODEL_STATE)
        digest.update(bytes.fromhex(study_id))
        digest.update(self.round.to_bytes(8, "big"))
        digest.update(self.transcript)
        for vector in (self.values, self.first, self.second, self.decay_first, self.decay_second):
            digest.update(len(vector).to_bytes(8, "big"))
            digest.update(vector.astype("<f8").tobytes())
        return digest.digest()


def result_of(start: Vector, values: Vector, study: Study) -> Vector:
    """Give the result of a study: the agreed share of the way from the base to the last state.

    A run whose noise is large against what it learned can end below a base that solves the task already; a shorter way stays nearer
    to that base (`docs/utility.md`). It looks at nothing but what was released: no privacy is spent.

    Args:
        start: (P,) the base's trained vector, public.
        values: (P,) the state's.
        study: The agreement.

    Returns:
        (P,) a vector of its own.

    Guarantees:
        - The same bits at all members that hold one state: start + share · (values - start), elementwise.
        - With a share of 1, the state's own bits.
    """
    share = study.training.result_share
    return values.copy() if share == 1.0 else start + share * (values - start)


def learning_rate(study: Study, applied_rounds: int) -> float:
    """Step size of the next round: constant, or falling linearly to a tenth over the study's rounds."""
    rate = study.training.server_optimizer.learning_rate
    if study.training.learning_rate_schedule == "constant":
        return rate
    return rate * (1.0 - 0.9 * applied_rounds / study.training.rounds)
