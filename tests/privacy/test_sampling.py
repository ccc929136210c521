"""Poisson sampling: binomial sizes without a cap, every record alike and independent of the others."""

import numpy as np
import pytest
from scipy import stats

from hansa.privacy.noise import SecretRandom
from hansa.privacy.sampling import poisson_sample

SEED = bytes(range(32))


def draws(records: int, rate: float, times: int) -> np.ndarray:
    """Which records took part, (times, records) of 0 and 1."""
    random = SecretRandom(SEED)
    taken = np.zeros((times, records))
    for row in taken:
        row[poisson_sample(records, rate, random.bytes)] = 1.0
    return taken


@pytest.mark.parametrize(("records", "rate"), [(40, 0.2), (200, 0.01), (100, 0.9)])
def test_the_batch_is_not_capped_its_size_is_binomial(records: int, rate: float) -> None:
    sizes = draws(records, rate, 5000).sum(axis=1)
    binomial = stats.binom(records, rate)
    low, high = int(binomial.ppf(0.002)), int(binomial.ppf(0.998))
    edges = np.arange(low, high + 1)
    counted = [(sizes <= low).sum(), *((sizes == k).sum() for k in edges[1:-1]), (sizes >= high).sum()]
    expected = [binomial.cdf(low), *(binomial.pmf(k) for k in edges[1:-1]), binomial.sf(high - 1)]
    assert stats.chisquare(counted, np.array(expected) * len(sizes)).pvalue > 0.001
    assert sizes.max() > binomial.ppf(0.99)  # batches far above the mean do occur


def test_each_record_is_drawn_independently_with_probability_q() -> None:
    taken = draws(30, 0.3, 20_000)
    deviation = np.sqrt(0.3 * 0.7 / len(taken))
    assert np.abs(taken.mean(axis=0) - 0.3).max() < 4.5 * deviation
    correlation = np.corrcoef(taken.T) - np.eye(30)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(taken))
    steps = np.corrcoef(taken[:-1, 0], taken[1:, 0])[0, 1]
    assert abs(steps) < 5 / np.sqrt(len(taken))


def test_a_wrong_rate_is_noticed() -> None:
    """Negative control of the tests above."""
    taken = draws(30, 0.33, 20_000)
    assert np.abs(taken.mean(axis=0) - 0.3).min() > 4.5 * np.sqrt(0.3 * 0.7 / len(taken))


def test_indices_ascend_and_exist() -> None:
    batch = poisson_sample(1000, 0.5, SecretRandom(SEED).bytes)
    assert (np.diff(batch) > 0).all()
    assert 0 <= batch[0] <= batch[-1] < 1000


def test_the_edges_of_the_rate() -> None:
    random = SecretRandom(SEED)
    assert poisson_sample(5, 1.0, random.bytes).tolist() == [0, 1, 2, 3, 4]
    assert poisson_sample(5, 2.0**-64, random.bytes).tolist() == []
    assert poisson_sample(0, 0.5, random.bytes).tolist() == []
    assert poisson_sample(5, 1.0 - 2.0**-53, random.bytes).tolist() == [0, 1, 2, 3, 4]
    # the threshold itself: a word is taken if it is below q · 2⁶⁴
    words = np.array([2**62 - 1, 2**62, 0, 2**64 - 1], dtype="<u8").tobytes()
    assert poisson_sample(4, 0.25, lambda count: words[:count]).tolist() == [0, 2]
