"""The discrete Gaussian: its own distribution and no other one, symmetric, independent, precise to the last table entry."""

import math
from decimal import Decimal, localcontext
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from hansa.errors import InvalidValue
from hansa.privacy import discrete_gaussian
from hansa.privacy.discrete_gaussian import ERROR_BITS, VARIANCE_MOST, DiscreteGaussian
from hansa.privacy.noise import SecretRandom

SEED = bytes(range(32))
COUNT = 200_000
FAR_TOO_UNLIKELY = 1e-9  # the seed is fixed, so an accepted test stays accepted
TWO_TABLES = 2**20 + 12345


def draw(variance: int, count: int = COUNT, seed: bytes = SEED) -> np.ndarray:
    return DiscreteGaussian(variance).draw(count, SecretRandom(seed).bytes)


def probabilities(variance: float, most: int) -> np.ndarray:
    """P(v) for |v| ≤ most, by the definition."""
    values = np.arange(-most, most + 1)
    weights = np.exp(-(values**2) / (2 * variance))
    return weights / weights.sum()


def p_value(values: np.ndarray, variance: float) -> float:
    """χ² of draws against the definition, in bins of about equal expectation."""
    most = math.ceil(12 * math.sqrt(max(variance, float(values.astype(float).var()))))
    cumulative = np.cumsum(probabilities(variance, most))
    edges = np.unique(np.searchsorted(cumulative, np.linspace(0, 1, 41)[1:-1])) - most
    bins = np.searchsorted(edges, values, side="left")
    upper = np.concatenate([cumulative[edges + most], [1.0]])
    expected = np.diff(upper, prepend=0.0) * len(values)
    observed = np.bincount(bins, minlength=len(expected))
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("variance", [1, 2, 16, 1000, 2**20, TWO_TABLES, 2**34])
def test_draws_have_the_distribution_and_no_neighbouring_one(variance: int) -> None:
    values = draw(variance)
    assert values.dtype == np.int64
    assert p_value(values, variance) > 0.01
    assert p_value(values, variance * 4 / 9) < FAR_TOO_UNLIKELY
    assert p_value(values, variance * 9 / 4) < FAR_TOO_UNLIKELY


@pytest.mark.parametrize("variance", [16, TWO_TABLES])
def test_it_is_symmetric_with_the_moments_of_its_parameter(variance: int) -> None:
    values = draw(variance).astype(np.float64) / math.sqrt(variance)
    assert abs(values.mean()) < 4 / math.sqrt(COUNT)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / COUNT)
    assert abs(stats.skew(values)) < 4 * math.sqrt(6 / COUNT)
    positive, negative = (values > 0).sum(), (values < 0).sum()
    assert abs(positive - negative) < 4 * math.sqrt(COUNT)


def test_draws_are_independent_of_each_other_and_of_their_signs() -> None:
    first, second = draw(400), draw(400, seed=bytes(32))
    for one, other in (
        (first, second),
        (first[:-1], first[1:]),
        (np.abs(first[:-1]), np.abs(first[1:])),
        (first, np.abs(first)),
        (first[: COUNT // 2], first[COUNT // 2 :]),
    ):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / math.sqrt(len(one))


@pytest.mark.parametrize("variance", [1, 16, 900])
def test_the_table_is_within_its_bound_of_the_distribution(variance: int) -> None:
    """Against decimal arithmetic of 120 digits, entry by entry."""
    table = discrete_gaussian._Table(variance)
    most = len(table._cumulative)
    with localcontext() as context:
        context.prec = 120
        weights = [(Decimal(-k * k) / (2 * variance)).exp() for k in range(2 * most)]
        total = 2 * sum(weights) - weights[0]
        true = [(2 if k else 1) * weight / total for k, weight in enumerate(weights)]
        bounds = [0, *table._cumulative, 2**320]
        found = [Decimal(b - a) / Decimal(2**320) for a, b in pairwise(bounds)]
        found += [Decimal(0)] * (len(true) - len(found))
        distance = sum(abs(a - b) for a, b in zip(true, found, strict=True)) / 2
        assert distance < Decimal(2) ** -ERROR_BITS
        # and the test can tell: a table for another variance is far away
        other = [(Decimal(-k * k) / (2 * variance + Decimal(1) / 10**60)).exp() for k in range(2 * most)]
        shifted = 2 * sum(other) - other[0]
        away = sum(abs(a / total - b / shifted) for a, b in zip(weights, other, strict=True))
        assert away > Decimal(2) ** -ERROR_BITS


def test_a_word_that_settles_nothing_is_settled_by_the_bits_after_it() -> None:
    table = discrete_gaussian._Table(16)
    bound = table._cumulative[3]
    word = (bound >> 256).to_bytes(8, "little")

    def magnitude(low: int) -> int:
        given = [word, low.to_bytes(32, "little"), b"\x00"]
        return int(table.draw(1, lambda count: given.pop(0)[:count])[0])

    low = bound & (2**256 - 1)
    assert magnitude(low) == 4  # as many entries are at most the number
    assert magnitude(low - 1) == 3


def test_two_tables_have_the_variance_and_room_for_the_theorem() -> None:
    for variance in (TWO_TABLES, 2**24, 3**17, 2**34 + 1, VARIANCE_MOST):
        parts = DiscreteGaussian(variance)
        assert parts._fine + parts._factor**2 * parts._coarse == variance
        assert parts._fine >= 16 * parts._factor**2
        assert parts._coarse >= 16
        # smoothing parameter of the sum of both, in steps of the coarse one, at least 2.5
        assert 1 / (1 / parts._coarse + parts._factor**2 / parts._fine) >= 2.5**2


def test_the_length_of_what_is_taken_from_the_stream_does_not_depend_on_what_is_drawn() -> None:
    taken = set()
    for seed in (SEED, bytes(32), b"x" * 32):
        stream, lengths = SecretRandom(seed), []

        def counted(count: int, stream: SecretRandom = stream, lengths: list[int] = lengths) -> bytes:
            lengths.append(count)
            return stream.bytes(count)

        assert DiscreteGaussian(TWO_TABLES).draw(10_001, counted).shape == (10_001,)
        taken.add(tuple(lengths))
    assert len(taken) == 1


@pytest.mark.parametrize("count", [0, 1, 7, 2**18 + 1])
def test_any_number_of_values_can_be_drawn(count: int) -> None:
    assert draw(50, count).shape == (count,)


@pytest.mark.parametrize("variance", [0, -1, VARIANCE_MOST + 1])
def test_a_variance_out_of_bounds_is_refused(variance: int) -> None:
    with pytest.raises(InvalidValue, match="variance"):
        DiscreteGaussian(variance)
