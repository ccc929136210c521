"""An audit of the mechanism itself: plant records that a step must hide, and measure how well it hides them.

A canary is a record whose gradient is large and lies on one entry of its own (a Dirac gradient; Nasr et al. 2023, section 4).
Half of them, by coins, are in the data. The real code samples, clips and adds noise; the sum over the steps, read at a canary's
entry, is its score. No adversary of the protocol sees a step that clearly, so what the scores show is the least that the mechanism
leaks to the strongest one, and it must not be above the ε that the ledger claims for the same steps.

Two settings, because one has no power over everything:
    noise and clipping   every record in every step, as many steps as make the canaries about one deviation apart
    sampling             the public rate q, with a noise at which a wrong rate shows
A canary has several tokens of the same gradient, so clipping by tokens instead of samples shows as well.
Not shown: leaks that other records or the protocol around the step could have; they have tests of their own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hansa.errors import AuditFailed
from hansa.models.adapters import dense_factor
from hansa.models.tape import Tape
from hansa.models.trainable import TrainableLayout
from hansa.privacy.accounting import Mechanism, epsilon_of
from hansa.privacy.lower_bound import LowerBound, lower_bound
from hansa.privacy.noise import SecretRandom, gaussian_noise
from hansa.privacy.per_sample import clipped_sum
from hansa.privacy.sampling import poisson_sample

_TOKENS = 4
_STRENGTH = 40.0  # times the clip norm: how long a canary's gradient is before it is clipped, at least
_BLOCK_LEAST, _BLOCK_MOST = 250, 2000  # canaries that share a model
_BLOCK_BATCH = 50  # records a step that a block aims at: its work grows with them times its width
_DEVIATIONS = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0)  # thresholds, from half way between in and out
_SAMPLING_NOISE, _SAMPLING_APART = 2.0, 0.4  # σ, and how many deviations apart in and out are wanted
_SAMPLING_STEPS_MOST, _NOISE_STEPS_MOST = 400, 64


class CanaryModel(nn.Module):
    """A linear model with one weight a canary, over tokens that name a canary each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.canaries = nn.Parameter(torch.zeros(width, 1))

    def forward(self, features_BTZ: Tensor, tape: Tape | None = None) -> Tensor:
        """Compute the logits, (B, T, Z) -> (B,)."""
        return dense_factor(features_BTZ, self.canaries, "canaries", tape).sum((1, 2))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Planted:
    """Canaries that share a model, those that are in the data.

    Attributes:
        model: Gives record k a gradient on entry `entries[k]` only.
        layout: One trained entry a canary, in the data or not.
        features: (n, T, Z) of the records in the data.
        labels: (n,) of them.
        inside: Whether each canary is in the data, (Z,).
    """

    model: CanaryModel
    layout: TrainableLayout
    features: Tensor
    labels: Tensor
    inside: NDArray[np.bool_]


Step = Callable[[Planted, Mechanism, float, SecretRandom], NDArray[np.float64]]


def noised_sum(
    planted: Planted, mechanism: Mechanism, clip_norm: float, random: SecretRandom
) -> NDArray[np.float64]:
    """One step by the code that trains: sample, clip, noise; (Z,), before the public divisor."""
    batch = poisson_sample(len(planted.labels), mechanism.sample_rate, random.bytes)
    noise = gaussian_noise(
        planted.layout.size, clip_norm=clip_norm, noise_multiplier=mechanism.noise_multiplier, random=random
    )
    part = torch.from_numpy(batch)
    clipped = clipped_sum(
        planted.model,
        planted.layout,
        planted.features[part],
        planted.labels[part],
        support_K=None,
        clip_norm=clip_norm,
    )
    return clipped.sum_K + noise


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryAudit:
    """What canaries showed, beside what was claimed.

    Attributes:
        mechanism: σ, q and steps that were run.
        delta: δ.
        claimed: ε by the accountant.
        shown: Lower bounds by the canaries.
        confidence: Probability with which they hold.
        canaries: How many.
    """

    mechanism: Mechanism
    delta: float
    claimed: float
    shown: LowerBound
    confidence: float
    canaries: int

    @property
    def largest(self) -> float:
        """The larger one of the two lower bounds."""
        return max(self.shown.epsilon, self.shown.epsilon_free)

    @property
    def passed(self) -> bool:
        """Whether no bound is above the claim."""
        return self.largest <= self.claimed


def verify_claim(found: CanaryAudit) -> None:
    """Check that the canaries show no more than was claimed.

    Raises:
        AuditFailed: The lower bound is above the claim.
    """
    sigma, rate, steps = found.mechanism
    if not found.passed:
        raise AuditFailed(
            f"canaries show epsilon {found.largest:.3f} or more in {steps} steps at sample rate {rate:g} and noise multiplier "
            f"{sigma:g}, above the claimed {found.claimed:.3f} (confidence {found.confidence:g})"
        )


def audit_settings(noise_multiplier: float, sample_rate: float) -> tuple[Mechanism, Mechanism]:
    """Choose what to run so that faults show: for noise and clipping, then for sampling, with a study's own σ and q."""
    noise_steps = min(_NOISE_STEPS_MOST, max(1, round(noise_multiplier**2)))
    # A fourfold rate must stand out of the confidence interval, a tenth to a fifth of a deviation wide.
    wanted = (_SAMPLING_APART * _SAMPLING_NOISE / sample_rate) ** 2
    sampling_steps = min(_SAMPLING_STEPS_MOST, max(1, round(wanted)))
    return (
        Mechanism(noise_multiplier, 1.0, noise_steps),
        Mechanism(_SAMPLING_NOISE, sample_rate, sampling_steps),
    )


def audit_mechanism(
    *,
    noise_multiplier: float,
    sample_rate: float,
    delta: float,
    clip_norm: float = 1.0,
    canaries: int = 10_000,
    confidence: float = 0.999,
    step: Step = noised_sum,
    random: SecretRandom | None = None,
) -> tuple[CanaryAudit, CanaryAudit]:
    """Audit noise and clipping, then sampling, with a study's own σ and q.

    Returns:
        The audit of noise and clipping and the one of sampling, both passed.

    Raises:
        AuditFailed: The canaries show a larger ε than the accountant claims.

    Guarantees:
        - The step that hansa trains with passes, but for a chance of 1 − confidence in each audit.
        - Noise divided by √2, no clipping, clipping by tokens and a fourfold sample rate (q up to 0.25) are each caught, for σ up
          to 16 and q down to 0.01.
    """
    random = SecretRandom() if random is None else random
    noise, sampling = (
        audit_canaries(
            mechanism,
            delta=delta,
            clip_norm=clip_norm,
            canaries=canaries,
            confidence=confidence,
            step=step,
            random=random,
        )
        for mechanism in audit_settings(noise_multiplier, sample_rate)
    )
    return noise, sampling


def audit_canaries(
    mechanism: Mechanism,
    *,
    delta: float,
    clip_norm: float = 1.0,
    canaries: int = 10_000,
    confidence: float = 0.999,
    step: Step = noised_sum,
    random: SecretRandom | None = None,
) -> CanaryAudit:
    """Run canaries through a number of steps, and check what they show; arguments as of `measure_canaries`.

    Raises:
        AuditFailed: The lower bound is above the claim.
    """
    found = measure_canaries(
        mechanism,
        delta=delta,
        clip_norm=clip_norm,
        canaries=canaries,
        confidence=confidence,
        step=step,
        random=random,
    )
    verify_claim(found)
    return found


def measure_canaries(
    mechanism: Mechanism,
    *,
    delta: float,
    clip_norm: float = 1.0,
    canaries: int = 10_000,
    confidence: float = 0.999,
    step: Step = noised_sum,
    random: SecretRandom | None = None,
) -> CanaryAudit:
    """Run canaries through a number of steps, and say what they show beside what is claimed.

    Args:
        mechanism: σ, q and steps to run and to claim.
        delta: δ of the claim.
        clip_norm: C.
        canaries: How many, at least 100; the interval narrows with the root.
        confidence: Probability with which the lower bound holds.
        step: The step under audit.
        random: Secret randomness; a test may inject it.
    """
    if canaries < 100:
        raise ValueError(f"an audit needs at least 100 canaries, got {canaries}")
    random = SecretRandom() if random is None else random
    scores, inside = _scores(mechanism, clip_norm, canaries, step, random)
    sigma, rate, steps = mechanism
    deviation = sigma * math.sqrt(steps)
    middle = rate * steps / 2
    shown = lower_bound(
        scores[inside],
        scores[~inside],
        [middle + factor * deviation for factor in _DEVIATIONS],
        delta=delta,
        confidence=confidence,
    )
    return CanaryAudit(
        mechanism=mechanism,
        delta=delta,
        claimed=epsilon_of(noise_multiplier=sigma, sample_rate=rate, steps=steps, delta=delta),
        shown=shown,
        confidence=confidence,
        canaries=canaries,
    )


def _scores(
    mechanism: Mechanism, clip_norm: float, canaries: int, step: Step, random: SecretRandom
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Score of each canary, in clip norms, and whether it was in."""
    scores, inside = [], []
    block = min(_BLOCK_MOST, max(_BLOCK_LEAST, round(_BLOCK_BATCH / mechanism.sample_rate)))
    for start in range(0, canaries, block):
        planted = _plant(min(block, canaries - start), clip_norm, random)
        total = np.zeros(planted.layout.size)
        for _ in range(mechanism.steps):
            total += step(planted, mechanism, clip_norm, random)
        scores.append(total / clip_norm)
        inside.append(planted.inside)
    return np.concatenate(scores), np.concatenate(inside)


def _plant(count: int, clip_norm: float, random: SecretRandom) -> Planted:
    """Draw which canaries are in, and make their records."""
    inside = random.uniform(count) < 0.5
    entries = torch.from_numpy(np.flatnonzero(inside))
    features = torch.zeros(len(entries), _TOKENS, count)
    # The weight is 0, so a record of label 0 has the gradient 1/2 · feature for each of its tokens.
    features[torch.arange(len(entries)), :, entries] = 2.0 * _STRENGTH * clip_norm / _TOKENS
    model = CanaryModel(count)
    layout = TrainableLayout(model, ["canaries"])
    layout.freeze_rest(model)
    return Planted(
        model=model, layout=layout, features=features, labels=torch.zeros(len(entries)), inside=inside
    )
