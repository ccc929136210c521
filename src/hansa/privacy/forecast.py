"""What further rounds of a study will cost a data set, before anything is spent.

All numbers follow from the study and the ledger; they are the same that the participant's gate will compute. A study's constants
are public, so without a ledger one forecast holds for every participant. Where noise is distributed the gate may count a little
more noise than the study's ε needs (`distributed.plan_noise`), and commits may lower ε later: there a forecast is an upper bound.
"""

import math
from dataclasses import dataclass

from hansa.errors import LedgerMismatch
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
        delta: δ at which ε is stated: that of the ledger, or of the study where there is none.
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
    delta: float | None = None,
    limit: float | None = None,
) -> Forecast:
    """Compute what further rounds will cost.

    Args:
        study: The agreement; its σ is calibrated for its own number of rounds, whatever `rounds` is.
        rounds: Further rounds; None for those of the study that are not reserved yet.
        reservations: What the data set has spent already, by this study and others.
        delta: δ of the data set's ledger, at which the gate states ε; None where there is no ledger yet.
        limit: ε that may be spent; None for the study's own.

    Raises:
        PrivacyTargetUnreachable: No σ reaches the study's target.
        AccountantsDisagree: The last value is in dispute.
        LedgerMismatch: The ledger was opened at a larger δ than the study's: the gate would refuse every round.

    Guarantees:
        - ε is stated at the δ at which `Budget` states it.
        - ε after N further rounds is `epsilon_of_all` of everything, to one part in a million.
        - The round that passes the limit is the first one at which `epsilon_of_all` of everything is above it.
    """
    privacy, training = study.privacy, study.training
    stated_at = privacy.delta if delta is None else delta
    if stated_at > privacy.delta:
        raise LedgerMismatch(
            f"the ledger states epsilon at delta {stated_at:g}, and the study asks for {privacy.delta:g}"
        )
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
    numbers, curve = _curve(one_round, count, stated_at, before)
    most = privacy.epsilon if limit is None else limit
    everything = merged([*before, one_round._replace(steps=training.local_steps * count)])
    finite = all(one.noise_multiplier > 0 for one in everything)
    return Forecast(
        round_mechanism=one_round,
        delta=stated_at,
        limit=most,
        epsilon_before=epsilon_of_all(before, stated_at),
        rounds_before=done,
        rounds=numbers,
        epsilons=curve,
        passes_at=_passes_at(numbers, curve, most, before, one_round, stated_at),
        check=cross_check_all(everything, stated_at) if finite else None,
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
