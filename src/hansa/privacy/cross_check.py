"""The reported ε against two accountants of other makers and other mathematics.

    PLD   privacy loss distribution, dp-accounting: the number that hansa shows, an upper bound
    PRV   privacy random variables, Opacus: an interval that holds the true ε (Gopi et al. 2021, theorem 5.5)
    RDP   Rényi divergence, Opacus: an upper bound, looser than the others (Mironov 2017; Mironov et al. 2019)

So PLD must lie inside the PRV interval and not above RDP; a number that does not is not shown. No Gaussian or central-limit
accountant is used: it is an approximation and may lie below the true ε.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

from hansa.errors import AccountantsDisagree
from hansa.privacy.accounting import Mechanism, calibrate, epsilon_of_all, merged

# The PRV mesh shrinks with its error and its cost grows, so a large ε is checked to half a percent.
_PRV_ERROR_LEAST, _PRV_ERROR_SHARE = 0.01, 0.005
_PRV_DELTA_SHARE = 1e-3
# Any set of orders gives a valid bound; the large ones serve a small ε, the small ones a large ε.
_ORDERS = (*(1 + k / 20 for k in range(1, 200)), *range(11, 64), *(2**k for k in range(6, 15)))


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossCheck:
    """ε by three accountants, found to agree.

    Attributes:
        pld: What hansa reports.
        prv_low: Lower end of the PRV interval, its stated error included.
        prv_high: Upper end.
        rdp: The Rényi bound.
    """

    pld: float
    prv_low: float
    prv_high: float
    rdp: float


def cross_check(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> CrossCheck:
    """Compute ε of equal steps three times.

    Args:
        noise_multiplier: σ in units of the clip norm.
        sample_rate: Poisson rate q.
        steps: Number of steps, at least 1.
        delta: δ.

    Raises:
        AccountantsDisagree: PLD is outside of the PRV interval or above RDP, or PRV has no answer.

    Guarantees:
        - What is returned satisfies prv_low ≤ pld ≤ prv_high and pld ≤ rdp.
    """
    return cross_check_all([(noise_multiplier, sample_rate, steps)], delta)


def cross_check_all(mechanisms: Iterable[tuple[float, float, int]], delta: float) -> CrossCheck:
    """Compute ε of unlike mechanisms three times; as `cross_check` does for one."""
    return _cross_check(merged(mechanisms), delta)


def calibrate_checked(
    *, epsilon: float, delta: float, sample_rate: float, steps: int
) -> tuple[float, CrossCheck]:
    """Calibrate σ and check its ε by the other accountants.

    Raises:
        PrivacyTargetUnreachable: No σ reaches the target.
        AccountantsDisagree: The ε of the σ that was found is in dispute.

    Guarantees:
        - The σ is that of `calibrate`, and the `pld` beside it is at most `epsilon`.
    """
    sigma = calibrate(epsilon=epsilon, delta=delta, sample_rate=sample_rate, steps=steps)
    return sigma, cross_check(sigma, sample_rate, steps, delta)


@lru_cache(maxsize=256)
def _cross_check(mechanisms: tuple[Mechanism, ...], delta: float) -> CrossCheck:
    if not mechanisms:
        return CrossCheck(pld=0.0, prv_low=0.0, prv_high=0.0, rdp=0.0)
    pld = epsilon_of_all(mechanisms, delta)
    if not math.isfinite(pld):
        raise AccountantsDisagree(f"{_named(mechanisms)} have no finite epsilon at delta {delta:g}")
    prv_low, prv_high = prv_interval(mechanisms, delta, error=max(_PRV_ERROR_LEAST, _PRV_ERROR_SHARE * pld))
    rdp = rdp_bound(mechanisms, delta)
    if not prv_low <= pld <= prv_high:  # this way round, so that NaN is a disagreement
        raise AccountantsDisagree(
            f"{_named(mechanisms)} cost epsilon {pld:.6g} by PLD, outside of [{prv_low:.6g}, {prv_high:.6g}] by PRV"
        )
    if not pld <= rdp:
        raise AccountantsDisagree(
            f"{_named(mechanisms)} cost epsilon {pld:.6g} by PLD, above the bound {rdp:.6g} by RDP"
        )
    return CrossCheck(pld=pld, prv_low=prv_low, prv_high=prv_high, rdp=rdp)


def prv_interval(mechanisms: tuple[Mechanism, ...], delta: float, *, error: float) -> tuple[float, float]:
    """Compute the ends of an interval that holds the true ε, by Opacus' PRV accountant.

    Raises:
        AccountantsDisagree: Opacus finds δ too small for floating point, or no mesh fits.
    """
    accountant = PRVAccountant()
    accountant.history = [tuple(one) for one in mechanisms]
    try:
        with warnings.catch_warnings():
            # Opacus warns where its first guess of the window is wide, and of log 0 at q = 1; both are right there.
            warnings.simplefilter("ignore")
            # `get_epsilon` gives the upper end only; the interval stands in the distribution below it.
            distribution = accountant._get_dprv(eps_error=error, delta_error=delta * _PRV_DELTA_SHARE)
            low, _, high = distribution.compute_epsilon(delta, delta * _PRV_DELTA_SHARE, error)
    except (ValueError, RuntimeError, IndexError, MemoryError) as problem:
        raise AccountantsDisagree(
            f"PRV has no epsilon for {_named(mechanisms)} at delta {delta:g}"
        ) from problem
    return float(low), float(high)


def rdp_bound(mechanisms: tuple[Mechanism, ...], delta: float) -> float:
    """Compute the Rényi upper bound of ε, by Opacus' moments."""
    total = sum(
        compute_rdp(q=one.sample_rate, noise_multiplier=one.noise_multiplier, steps=one.steps, orders=_ORDERS)
        for one in mechanisms
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an order at the end of the list is a looser bound, not a wrong one
        epsilon, _ = get_privacy_spent(orders=_ORDERS, rdp=total, delta=delta)
    return float(epsilon)


def _named(mechanisms: tuple[Mechanism, ...]) -> str:
    return " and ".join(
        f"{one.steps} steps at sample rate {one.sample_rate:g} and noise multiplier {one.noise_multiplier:g}"
        for one in mechanisms
    )
