"""Noise that several members add up to: each draws a share of it, and only the sum is differentially private.

    x     sum of clipped gradients on the support, float64, un-noised: in memory only
    R     x / γ rounded at random to integers; γ, the grid, follows from study and model sizes alone
    z     independent discrete Gaussian integers of variance σ² on every entry
    y     R + z, unbounded: what the masks hide
    Y     Σ y over the roster, what a round opens

**Argument.** An adversary knows the draws of C colluding members. What is left in Y is X + Z with X the honest members' integers
and Z the sum of h = members − C discrete Gaussians. Write ρ_s(v) = exp(−v² / 2s²). By Poisson's summation formula
Σ_v ρ_s(v − c) over the integers is s √2π (1 + θ) with |θ| ≤ ε_s = 2 Σ_k exp(−2π² s² k²), whatever c is. Two consequences:

1  The sum of two discrete Gaussians of variances a², b² has, at every integer, the probability of one of variance a² + b² within a
   factor of (1 + ε_s) / (1 − ε_s), s² = a² b² / (a² + b²). So h equal ones add up to one of variance h σ², with s ≥ σ / √2.
2  Rounding a continuous N(X, τ²) to v with probability ∝ ρ_η(v − ·) gives X + a discrete Gaussian of variance τ² + η², within the
   same factor at s = η. (Both: Peikert 2010, theorem 3.1. The steps are the completion of a square and the formula above.)

So a round is post-processing of N(X, h σ² − η²) up to a factor, and h σ² − η² is what is accounted. With η = 2.5 and σ ≥ 4 all
factors of d entries and T rounds together are within exp(±6·10⁻³⁹) for d T = 10¹² and 258 members (`approximation_error`), and what
the sampler's tables cut off adds less than 10⁻⁶⁰ to δ. No ε or δ in double precision can show either.

**Sensitivity.** With the same uniform number, rounding is monotone and moves an entry by less than one beyond its own move. One
unit more or less moves R by less than Δ = C/γ + √d in ℓ₂ norm on d entries, whatever rounding and sampling of the others came to;
divergences are jointly convex, so this is the bound for their mixture. Hence a round is a Poisson-subsampled Gaussian with noise
multiplier √(h σ² − η²) / Δ, and is accounted by the same privacy loss distributions as local noise.

**Nothing is clamped.** A clamp before the sum would depend on data that its own member's noise does not hide. Y is read modulo the
range of a lane (`secure_agg.wrapping`); an entry beyond it comes out wrong. That is post-processing, so harmless for privacy, and
rare: `NoisePlan.wrap_chance`.
Source for noise in sums: Kairouz, Liu & Steinke 2021, "The Distributed Discrete Gaussian Mechanism".
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hansa.errors import InvalidValue, UpdateNotFinite
from hansa.privacy.accounting import calibrate
from hansa.privacy.discrete_gaussian import ERROR_BITS, VARIANCE_MOST, DiscreteGaussian
from hansa.privacy.noise import SecretRandom
from hansa.study import Study

SMOOTHING = 2.5  # η, grid units
VARIANCE_LEAST = 16  # σ ≥ 4 > η √2, so that both consequences hold at η
_MULTIPLIERS_PER_UNIT = 1000  # noise multipliers are stated in thousandths, rounded down
_RANGE_DEVIATIONS_LEAST = 12.0  # of the sum's noise: 2 exp(−72) that noise alone wraps an entry


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedNoise:
    """The noise of one round, in integers: all that an auditor needs to compute its noise multiplier.

    Attributes:
        contributors: Members whose noise is in the sum, or the least that are demanded.
        colluders: Members whose noise is not counted, for they may tell it.
        variance: σ² of each member's discrete Gaussian, in squared grid units.
        clip_levels: Clip norm in grid units, C / γ.
        entries: Entries d that were rounded and noised.
    """

    contributors: int
    colluders: int
    variance: int
    clip_levels: int
    entries: int

    @property
    def honest(self) -> int:
        """Members whose noise counts, h."""
        return self.contributors - self.colluders

    @property
    def sensitivity(self) -> float:
        """Δ in grid units, rounding included."""
        return self.clip_levels + math.sqrt(self.entries)

    @property
    def noise_multiplier(self) -> float:
        """√(h σ² − η²) / Δ, rounded down to thousandths; one addition, product, quotient and root, so the same everywhere."""
        deviation = math.sqrt(max(0.0, self.honest * self.variance - SMOOTHING**2))
        return math.floor(deviation / self.sensitivity * _MULTIPLIERS_PER_UNIT) / _MULTIPLIERS_PER_UNIT

    def arrived(self, contributors: int) -> "DistributedNoise":
        """Give the same noise with another number of members in the sum."""
        return replace(self, contributors=contributors)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisePlan:
    """How a study's rounds are rounded, noised and read; equal at all participants.

    Attributes:
        noise: The noise with the least members that the study demands.
        participants: Members n of the study.
        clip_norm: C.
        divisor: Public divisor, sample rate times nominal records.
        half_range: Largest sum, in grid units, that is read without wrapping.
    """

    noise: DistributedNoise
    participants: int
    clip_norm: float
    divisor: float
    half_range: int

    def integers(self, clipped: NDArray[np.float64], random: SecretRandom) -> NDArray[np.int64]:
        """Round a clipped sum at random and add this member's share of the noise.

        Args:
            clipped: (d,) sum of clipped gradients, un-noised.
            random: The participant's secret randomness.

        Returns:
            (d,) int64, in grid units, not bounded. Private until it is masked: alone it has too little noise.

        Raises:
            UpdateNotFinite: An entry is NaN or infinite, which clipping rules out.

        Guarantees:
            - Nothing is clamped: for any two inputs the difference of the outputs has the same distribution of noise.
            - Every entry is noised, whether a sample touched it or not.
        """
        if not np.isfinite(clipped).all():
            raise UpdateNotFinite(f"{np.count_nonzero(~np.isfinite(clipped))} entries are not finite")
        scaled = clipped * (self.noise.clip_levels / self.clip_norm)
        floor = np.floor(scaled)
        rounded = floor.astype(np.int64) + (random.uniform(scaled.size) < scaled - floor)
        return rounded + self.noise_only(scaled.size, random)

    def noise_only(self, count: int, random: SecretRandom) -> NDArray[np.int64]:
        """Draw this member's share of the noise for entries that carry none of its data, (count,) int64."""
        return DiscreteGaussian(self.noise.variance).draw(count, random.bytes)

    def mean(self, total: NDArray[np.int64], contributors: int) -> NDArray[np.float64]:
        """Give the mean update from the opened sum, in the unit of a gradient; the same bits everywhere."""
        per_unit = np.float64(self.noise.clip_levels) * contributors * self.divisor
        return total.astype(np.float64) * np.float64(self.clip_norm) / per_unit

    def wrap_chance(self, signal: float = 0.0) -> float:
        """Bound the probability that an entry of a sum of up to all members is read wrongly.

        Args:
            signal: Size of the un-noised sum over all members on that entry, in clip norms. It is at most the number of
                records that were sampled, and that only if all their gradients point at one entry.

        Returns:
            2 exp(−m² / 2nσ²) for a margin of m grid units; 1 where there is none. A discrete Gaussian is subgaussian with its own
            parameter: E exp(tz) = exp(t² σ² / 2) Σ ρ(v − tσ²) / Σ ρ(v), and by Poisson's formula the quotient is at most 1.
        """
        margin = self.half_range - signal * self.noise.clip_levels - self.participants
        if margin <= 0:
            return 1.0
        return min(1.0, 2 * math.exp(-(margin**2) / (2 * self.participants * self.noise.variance)))


def plan_noise(study: Study, entries: int) -> NoisePlan:
    """Choose grid and noise of a study in distributed mode.

    The grid gives every member the room that `compression.range_noise_multiples` says: so many deviations of the noise that it
    would add in local mode, in the levels of its `compression.bits`. A sum of n members has n times the room, so its own noise, √n
    shares, is far from wrapping.

    Args:
        study: The agreement.
        entries: Entries d of a round's support.

    Raises:
        InvalidValue: The grid is so coarse that rounding would double the noise, or the sum's noise alone could wrap.
        PrivacyTargetUnreachable: See `accounting.calibrate`.

    Guarantees:
        - With the least honest members the noise multiplier is at least the calibrated one, so all rounds together cost at most
          the study's ε.
        - Follows from the study and `entries` only.
    """
    privacy, compression = study.privacy, study.compression
    contributors, colluders = privacy.noise_contributors or 0, privacy.colluders or 0
    honest = contributors - colluders
    target = calibrate(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sample_rate=privacy.sample_rate,
        steps=study.training.rounds * study.training.local_steps,
    )
    maximum_level = 2 ** (compression.bits - 1) - 1
    clip_levels = math.floor(maximum_level / (compression.range_noise_multiples * target))
    if clip_levels**2 < entries:
        raise InvalidValue(
            f"a grid of {clip_levels} levels a clip norm is too coarse for {entries} entries: rounding would more than double the"
            f" noise; raise compression.bits above {compression.bits}, or lower kept_share or range_noise_multiples"
        )
    noise = DistributedNoise(
        contributors=contributors,
        colluders=colluders,
        variance=_variance(target, honest, clip_levels + math.sqrt(entries)),
        clip_levels=clip_levels,
        entries=entries,
    )
    while noise.noise_multiplier < target:  # the last bit of a root, never more than a step or two
        noise = replace(noise, variance=noise.variance + 1)
    participants = study.aggregation.participants
    half_range = participants * maximum_level
    if half_range < _RANGE_DEVIATIONS_LEAST * math.sqrt(participants * noise.variance):
        raise InvalidValue(
            f"range_noise_multiples = {compression.range_noise_multiples:g} leaves a sum less than"
            f" {_RANGE_DEVIATIONS_LEAST:g} deviations of its noise; raise it"
        )
    return NoisePlan(
        noise=noise,
        participants=participants,
        clip_norm=privacy.clip_norm,
        divisor=privacy.sample_rate * privacy.nominal_records,
        half_range=half_range,
    )


def _variance(target: float, honest: int, sensitivity: float) -> int:
    """The least σ² with which h members reach a noise multiplier, at least 16."""
    wanted = ((target * sensitivity) ** 2 + SMOOTHING**2) / honest
    if wanted > VARIANCE_MOST:
        raise InvalidValue(f"noise of variance {wanted:.3g} squared grid units is above {VARIANCE_MOST:g}")
    return max(VARIANCE_LEAST, math.ceil(wanted))


def approximation_error(*, honest: int, entries: int, rounds: int) -> tuple[float, float]:
    """Bound how far a study's rounds are from the Gaussian mechanism that is accounted in their place.

    Per entry and round there are at most 2h factors of (1 + ε_η) / (1 − ε_η): one for each draw above σ = 1024, which is itself a
    sum of two, h − 1 for adding the draws, and one for the continuous Gaussian.

    Returns:
        κ and τ: every probability is within exp(±κ) of the accounted mechanism's, but for a total variation of τ. If that one is
        (ε, δ)-DP, the rounds are (ε + 2κ, e^κ δ + (1 + e^(ε + κ)) τ)-DP.
    """
    smooth = 2.0 * math.exp(
        -2.0 * (math.pi * SMOOTHING) ** 2
    )  # the other terms of the series are below 10^-160
    places = entries * rounds
    return 2 * honest * places * 2.001 * smooth, 2 * honest * places * 2.0**-ERROR_BITS
