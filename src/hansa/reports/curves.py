"""ε after each round of many ledgers, for the price of a few: participants of one study run through the same curve."""

import math
from collections import Counter
from collections.abc import Sequence

from hansa.privacy.accounting import Mechanism
from hansa.privacy.audit import LedgerAudit
from hansa.privacy.epsilon_curve import epsilons_by_round, epsilons_of_sequence
from hansa.privacy.spending import total_epsilon

_Kind = tuple[Mechanism, float]  # a round and δ


class Curves:
    """ε by round of some ledgers.

    Args:
        audits: All of them: the longest run of equal rounds is computed, and shorter ones are read off it.
    """

    def __init__(self, audits: Sequence[LedgerAudit]) -> None:
        self._longest: Counter[_Kind] = Counter()
        for audit in audits:
            kind = _only_kind(audit)
            if kind is not None:
                self._longest[kind] = max(self._longest[kind], len(audit.reservations))

    def after(self, audit: LedgerAudit) -> list[float]:
        """Give ε of the data set after each reservation.

        Guarantees:
            - The last one is `LedgerAudit.epsilon`; the others equal the accountant's to one part in a million and never fall.
        """
        count, end = len(audit.reservations), audit.epsilon
        if not count or math.isinf(end):
            return [math.inf] * count
        kind = _only_kind(audit)
        if kind is None:
            sequence = [(*one.counted.mechanism, one.counted.steps) for one in audit.reservations]
            curve = epsilons_of_sequence(sequence, delta=audit.opening.delta)
        else:
            one, delta = kind
            curve = epsilons_by_round(
                noise_multiplier=one.noise_multiplier,
                sample_rate=one.sample_rate,
                steps_per_round=one.steps,
                rounds=self._longest[kind],
                delta=delta,
            )
        return [min(float(value), end) for value in curve[: count - 1]] + [end]

    def composed(self, audits: Sequence[LedgerAudit]) -> float:
        """Compute ε of somebody with a unit in every one of these data sets, at the smallest δ of their ledgers."""
        steps: Counter[tuple[float, float]] = Counter()
        for audit in audits:
            for one in audit.reservations:
                steps[one.counted.mechanism] += one.counted.steps
        return total_epsilon(steps, min((audit.opening.delta for audit in audits), default=0.5))


def _only_kind(audit: LedgerAudit) -> _Kind | None:
    kinds = {Mechanism(*one.counted.mechanism, one.counted.steps) for one in audit.reservations}
    if len(kinds) != 1 or next(iter(kinds)).steps == 0:
        return None
    return next(iter(kinds)), audit.opening.delta
