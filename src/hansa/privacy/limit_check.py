"""Whether a data set's reservations kept to the limits that they state, each at its own time.

A reservation was allowed on what its owner knew then: rounds whose commit stands above it cost what their commit says, all others
what they had reserved. Where noise is distributed a commit may lower ε, so ε does not only grow; but what is known later is never
more than what was known before, and each round adds something. So one value bounds all reservations of a stretch:

    everything before the stretch as it was known at its first, and the stretch itself as reserved

Stretches within their limit are passed over whole, others are cut until the first reservation above its limit stands alone.
"""

from collections import Counter
from collections.abc import Sequence

from hansa.errors import LedgerNotVerified
from hansa.privacy.ledger_history import Reservation
from hansa.privacy.spending import Mechanism, total_epsilon

# ε of one ledger on unlike processors differs in the last bits; a limit may be met exactly.
_EPSILON_TOLERANCE = 1e-9


def verify_limits(name: str, delta: float, reservations: Sequence[Reservation]) -> None:
    """Check that at no reservation ε was above the limit stated there.

    Args:
        name: Name of the ledger, for the message.
        delta: δ at which ε is stated.
        reservations: All of them, in order, as the whole ledger tells of them.

    Raises:
        LedgerNotVerified: One was above; the message names the first.

    Guarantees:
        - Refuses exactly where some reservation, at its time, was above its limit.
    """
    start = 0
    while start < len(reservations):
        stop = _same_limit(reservations, start)
        limit = reservations[start].epsilon_limit
        while limit is not None and start < stop:
            start = _passed(name, delta, reservations, start, stop)
        start = stop


def is_above(epsilon: float, limit: float | None) -> bool:
    """Tell whether ε passes a limit by more than the last bits in which unlike processors differ."""
    return limit is not None and not epsilon <= limit * (1 + _EPSILON_TOLERANCE)


def _same_limit(reservations: Sequence[Reservation], start: int) -> int:
    """End of the stretch that states the limit of its first."""
    stop = start + 1
    while stop < len(reservations) and reservations[stop].epsilon_limit == reservations[start].epsilon_limit:
        stop += 1
    return stop


def _passed(name: str, delta: float, reservations: Sequence[Reservation], start: int, stop: int) -> int:
    """Find a stretch from `start` on that is within its limit, and return its end."""
    limit = reservations[start].epsilon_limit
    while True:
        epsilon = _bound(delta, reservations, start, stop)
        if limit is None or not is_above(epsilon, limit):
            return stop
        if stop == start + 1:
            raise LedgerNotVerified(
                f"line {reservations[start].line} of {name} spends epsilon {epsilon:.6g}, above the limit {limit:g}"
                " that it states"
            )
        stop = (start + stop) // 2


def _bound(delta: float, reservations: Sequence[Reservation], start: int, stop: int) -> float:
    """ε that bounds that of every reservation from `start` to before `stop`; exact where there is one."""
    line, steps = reservations[start].line, Counter[Mechanism]()
    for reservation in reservations[:stop]:
        known = 0 < reservation.committed_line < line
        spent = reservation.counted if known else reservation.spending
        steps[spent.mechanism] += spent.steps
    return total_epsilon(steps, delta)
