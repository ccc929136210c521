"""What further rounds of a study will cost a data set, before anything is spent.

All numbers follow from the study and the ledger; they are the same that the participant's gate will compute. A study's constants
are public, so without a ledger one forecast holds for every participant.
"""

import math
from dataclasses import dataclass

from hansa.privacy.accounting import Mechanism, calibrate, epsilon_of_all, merged
from hansa.privacy.cross_check import CrossCheck, cross_check_all
from hansa.privacy.epsilon_curve import epsilons_by_round
from hansa.privacy.spent import Reservation, rounds_of
from hansa.study import Study

_NEAR = 1e-6  # how well the curve is known
_POINTS_MOST = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """ε of a data set after each of some further rounds.

    Attributes:
        round_mechanism: What one round costs: σ, q and the local steps.
        delta: δ.
        limit: ε that may be spent.
        epsilon_before: ε spent already.
        rounds_before: Rounds of the study that were reserved already.
        rounds: Numbers of further rounds: each one, or of more than a thousand every few and the last.
        epsilons: ε after each of them.
        passes_at: Number of further rounds at which ε passes the limit first; None if it does not.
        check: The last value by three accountants; None where there is no finite one.
    """

    round_mechanism: Mechanism
    delta: float
    limit: float
    epsilon_before: float
    rounds_before: int
    rounds: tuple[int, ...]
    epsilons: tuple[float, ...]
    passes_at: int | None
    check: CrossCheck | None


def forecast(
    study: Study,
    *,
    rounds: int | None = None,
    reservations: tuple[Reservation, ...] = (),
    limit: float | None = None,
) -> Forecast:
    """Compute what further rounds will cost.

    Args:
        study: The agreement; its σ is calibrated for its own number of rounds, whatever `rounds` is.
        rounds: Further rounds; None for those of the study that are not reserved yet.
        reservations: What the data set has spent already, by this study and others.
        limit: ε that may be spent; None for the study's own.

    Raises:
        PrivacyTargetUnreachable: No σ reaches the study's target.
        AccountantsDisagree: The last value is in dispute.

    Guarantees:
        - ε after N further rounds is `epsilon_of_all` of everything, to one part in a million.
        - The round that passes the limit is the first one at which `epsilon_of_all` of everything is above it.
    """
    privacy, training = study.privacy, study.training
    sigma = calibrate(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sample_rate=privacy.sample_rate,
        steps=training.rounds * training.local_steps,
    )
    done = rounds_of(study.id, reservations)
    count = max(0, training.rounds - done) if rounds is None else rounds
    before = merged(one.mechanism for one in reservations)
    one_round = Mechanism(sigma, privacy.sample_rate, training.local_steps)
    numbers, curve = _curve(one_round, count, privacy.delta, before)
    most = privacy.epsilon if limit is None else limit
    everything = merged([*before, one_round._replace(steps=training.local_steps * count)])
    finite = all(one.noise_multiplier > 0 for one in everything)
    return Forecast(
        round_mechanism=one_round,
        delta=privacy.delta,
        limit=most,
        epsilon_before=epsilon_of_all(before, privacy.delta),
        rounds_before=done,
        rounds=numbers,
        epsilons=curve,
        passes_at=_passes_at(numbers, curve, most, before, one_round, privacy.delta),
        check=cross_check_all(everything, privacy.delta) if finite else None,
    )


def _curve(
    one: Mechanism, count: int, delta: float, before: tuple[Mechanism, ...]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Numbers of rounds and ε after them."""
    every = max(1, math.ceil(count / _POINTS_MOST))
    curve = epsilons_by_round(
        noise_multiplier=one.noise_multiplier,
        sample_rate=one.sample_rate,
        steps_per_round=one.steps * every,
        rounds=count // every,
        delta=delta,
        before=before,
    )
    numbers, epsilons = [every * k for k in range(1, len(curve) + 1)], [float(value) for value in curve]
    if count % every:
        numbers.append(count)
        epsilons.append(_after(one, count, delta, before))
    return tuple(numbers), tuple(epsilons)


def _after(one: Mechanism, count: int, delta: float, before: tuple[Mechanism, ...]) -> float:
    return epsilon_of_all([*before, one._replace(steps=one.steps * count)], delta)


def _passes_at(
    numbers: tuple[int, ...],
    curve: tuple[float, ...],
    limit: float,
    before: tuple[Mechanism, ...],
    one: Mechanism,
    delta: float,
) -> int | None:
    """Find the first round above the limit; where the curve comes too near to tell, ask the accountant itself."""
    low = 0  # this many rounds do not pass
    for number, value in zip(numbers, curve, strict=True):
        sure = not value <= limit * (1 + _NEAR)
        if value <= limit * (1 - _NEAR) or not (sure or _after(one, number, delta, before) > limit):
            low = number
            continue
        high = number
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _after(one, middle, delta, before) > limit else (middle, high)
        return high
    return None
