"""What a data set has spent already, as the mechanisms that were reserved on it.

Limits are checked on mechanisms and not on sums of ε: the ε of several rounds is composed anew each time (accounting.py).
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hansa.errors import SpentFileMissing
from hansa.privacy.accounting import Mechanism
from hansa.privacy.ledger import read_ledger


class Spent(Protocol):
    """Look up what a data set has spent; the ledger answers, a test may."""

    def __call__(self, *, study: str | None = None, month: str | None = None) -> Sequence[Mechanism]:
        """Give the mechanisms reserved so far.

        Args:
            study: Only those of this study id; None for all.
            month: Only those of this month, YYYY-MM in UTC; None for all.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """One reserved round of a ledger, or a charge, which is of no round."""

    study: str
    round: int | None
    mechanism: Mechanism


@dataclass(frozen=True, kw_only=True, slots=True)
class SpentSoFar:
    """What a ledger says was spent.

    Attributes:
        reservations: In their order.
        delta: δ at which the ledger states ε, whatever a study's is; None where the ledger has no entry.
    """

    reservations: tuple[Reservation, ...]
    delta: float | None


def reservations_in(ledger: Path) -> tuple[Reservation, ...]:
    """Give the reservations of `read_spent`."""
    return read_spent(ledger).reservations


def read_spent(ledger: Path) -> SpentSoFar:
    """Read a ledger file; committed or not, a reservation counts.

    Raises:
        SpentFileMissing: There is no such file, or it cannot be read.
        LedgerDamaged: A line, a link or a signature does not hold.
    """
    if not ledger.is_file() or not os.access(ledger, os.R_OK):
        raise SpentFileMissing(f"ledger {str(ledger)!r} cannot be read")
    history = read_ledger(ledger).history
    paid = [(found.counted, found.purpose) for found in history.reservations]
    reservations = tuple(
        Reservation(
            study=spending.study,
            round=None if purpose else spending.round,
            mechanism=Mechanism(spending.noise_multiplier, spending.sample_rate, spending.steps),
        )
        for spending, purpose in paid
    )
    return SpentSoFar(
        reservations=reservations, delta=None if history.opening is None else history.opening.delta
    )


def rounds_of(study: str, reservations: Iterable[Reservation]) -> int:
    """Count the rounds of a study that were reserved, repeated attempts once."""
    return len({one.round for one in reservations if one.study == study} - {None})
