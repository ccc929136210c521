"""Poisson sampling with a public rate: every record joins a step independently with probability q.

The accountant's amplification holds for this sampler only; shuffled or fixed-size batches have no such guarantee
(Chua et al. 2024, "How Private are DP-SGD Implementations?").
"""

import numpy as np
from numpy.typing import NDArray

from hansa.privacy.noise import RandomBytes

_WORD = 2.0**64


def poisson_sample(records: int, sample_rate: float, random_bytes: RandomBytes) -> NDArray[np.int64]:
    """Draw the records of one step.

    Args:
        records: Number of records of the participant; stays with it.
        sample_rate: q in (0, 1], public.
        random_bytes: Source of secret random bytes.

    Returns:
        Ascending indices of the records that take part; may be empty.

    Guarantees:
        - Each record is drawn independently with probability q, to within 2⁻⁶⁴.
        - The batch is not capped: its size is binomial.
    """
    if sample_rate >= 1.0:
        return np.arange(records)
    words = np.frombuffer(random_bytes(8 * records), dtype="<u8")
    return np.flatnonzero(words < np.uint64(int(sample_rate * _WORD)))
