"""What a round asks for, and what a list of such rounds costs together: the same numbers for the owner and for the auditor."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from hansa.privacy.accounting import epsilon_of_all
from hansa.privacy.distributed import DistributedNoise

# A privacy loss wider than this is not computed with but counted as infinite: its ε is in the hundreds, and the
# grid over it would not fit in memory. A ledger from elsewhere must not be able to stop its reader.
_LOG_SPREAD_MOST = 2 * math.log(1000.0)

_LAST_SECOND = 253_402_300_799  # of the year 9999

Mechanism = tuple[float, float]  # noise multiplier σ, Poisson rate q


@dataclass(frozen=True, kw_only=True, slots=True)
class Spending:
    """What a round asks for: equal Poisson-subsampled Gaussian steps.

    Attributes:
        study: Id of the study.
        round: Round number.
        attempt: Attempt number.
        noise_multiplier: σ in units of the sensitivity.
        sample_rate: Poisson rate q.
        steps: Number of steps.
        distributed: Where several members' noise adds up: which; None where the participant's own noise suffices. The noise
            multiplier is then that of the members counted on, until it is known how many took part.
    """

    study: str
    round: int
    attempt: int
    noise_multiplier: float
    sample_rate: float
    steps: int
    distributed: DistributedNoise | None = None

    @property
    def mechanism(self) -> Mechanism:
        """The mechanism of each step."""
        return self.noise_multiplier, self.sample_rate

    @property
    def place(self) -> tuple[str, int, int]:
        """Study, round and attempt that it is for."""
        return self.study, self.round, self.attempt

    @property
    def contributors(self) -> int:
        """Members whose noise it counts; 1 where the participant's own suffices."""
        return 1 if self.distributed is None else self.distributed.contributors

    def arrived(self, contributors: int) -> "Spending":
        """Give what the round cost with so many members' noise in the sum; itself where its noise is not distributed."""
        if self.distributed is None:
            return self
        noise = self.distributed.arrived(contributors)
        return replace(self, distributed=noise, noise_multiplier=noise.noise_multiplier)

    def may_end_as(self, other: "Spending") -> bool:
        """Tell whether a commit may state `other` for a reservation of this: the same, or with more members' noise."""
        if self.distributed is None or other.distributed is None:
            return self == other
        members = other.distributed.contributors
        return members >= self.distributed.contributors and self.arrived(members) == other

    def fields(self) -> dict[str, Any]:
        """Give the values by name; those of distributed noise below their own name, if there are any."""
        values = asdict(self)
        if self.distributed is None:
            del values["distributed"]
        return values

    @classmethod
    def of_fields(cls, values: Mapping[str, Any]) -> "Spending":
        """Make it of what `fields` gave."""
        noise = values.get("distributed")
        return cls(**{**values, "distributed": None if noise is None else DistributedNoise(**noise)})


def month_of(epoch_seconds: float) -> str:
    """Name the calendar month of a time, YYYY-MM in UTC; times before 1970 and after 9999 count as the first and last month."""
    return _month_of_day(int(min(max(epoch_seconds, 0), _LAST_SECOND)) // 86_400)


@lru_cache(maxsize=4096)
def _month_of_day(day: int) -> str:
    return datetime.fromtimestamp(86_400 * day, UTC).strftime("%Y-%m")


def total_epsilon(steps: Mapping[Mechanism, int], delta: float) -> float:
    """Compute ε of all steps together.

    Args:
        steps: Number of steps of each mechanism.
        delta: δ of the whole.

    Guarantees:
        - A mechanism without noise costs `inf`, and so does one with so little that nobody's limit is above it.
        - Does not depend on the order in which the steps were taken.
    """
    if not steps:
        return 0.0
    if any(_is_unbounded(sigma, rate, count) for (sigma, rate), count in steps.items()):
        return math.inf
    return epsilon_of_all([(sigma, rate, count) for (sigma, rate), count in steps.items()], delta)


def _is_unbounded(noise_multiplier: float, sample_rate: float, steps: int) -> bool:
    """Tell whether the variance of the privacy loss, q² T (exp(1/σ²) - 1) or less, is beyond what is computed with."""
    if steps == 0 or not sample_rate > 0.0:
        return False
    if noise_multiplier < 0.02:  # 1/σ² alone is above 2500
        return True
    return 2 * math.log(sample_rate) + math.log(steps) + noise_multiplier**-2 > _LOG_SPREAD_MOST
