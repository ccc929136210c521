"""ε after every round at once: the same numbers as one at a time, in seconds."""

import math
import time

import numpy as np
import pytest

from hansa.privacy import epsilon_curve
from hansa.privacy.accounting import epsilon_of, epsilon_of_all
from hansa.privacy.epsilon_curve import epsilons_by_round, epsilons_of_sequence

DELTA = 1e-5


def curve(
    sigma: float,
    rate: float,
    steps: int,
    rounds: int,
    delta: float = DELTA,
    before: tuple[tuple[float, float, int], ...] = (),
) -> np.ndarray:
    return epsilons_by_round(
        noise_multiplier=sigma,
        sample_rate=rate,
        steps_per_round=steps,
        rounds=rounds,
        delta=delta,
        before=before,
    )


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "rounds", "delta", "before"),
    [
        (1.0, 0.01, 1, 300, 1e-5, ()),
        (1.5, 0.4, 3, 20, 1e-6, ()),
        (0.3, 0.01, 1, 5, 1e-5, ()),
        (6.0, 0.4, 2, 30, 1e-5, ((1.0, 0.01, 1000), (3.0, 1.0, 2))),
        (2.0, 1.0, 1, 10, 1e-9, ()),
        (200.0, 0.001, 1, 3, 1e-5, ()),  # epsilon 0: delta alone suffices
    ],
)
def test_every_round_equals_the_accountant_asked_for_it_alone(
    sigma: float, rate: float, steps: int, rounds: int, delta: float, before: tuple
) -> None:
    found = curve(sigma, rate, steps, rounds, delta, before)
    assert found.shape == (rounds,)
    for number in sorted({1, 2, rounds // 2, rounds}):
        expected = epsilon_of_all([*before, (sigma, rate, steps * number)], delta)
        assert found[number - 1] == pytest.approx(expected, rel=1e-6)


def test_golden_value_at_the_end_of_a_thousand_rounds() -> None:
    assert curve(1.0, 0.01, 1, 1000)[-1] == pytest.approx(1.828, rel=0.005)


def test_never_falls_from_one_round_to_the_next() -> None:
    for before in ((), ((1.0, 0.05, 200),)):
        found = curve(1.1, 0.1, 2, 150, before=before)
        assert (np.diff(found) >= 0).all()
        assert (np.diff(found) > 0).mean() > 0.99


def test_unlike_rounds_in_any_order_equal_the_accountant_asked_after_each() -> None:
    early, late = (1.0, 0.05, 2), (4.0, 0.4, 3)
    sequence = [early] * 20 + [late, early] * 10 + [(2.0, 0.2, 0)] + [late] * 20 + [(1.5, 1.0, 1)]
    found = epsilons_of_sequence(sequence, delta=DELTA)
    assert found.shape == (len(sequence),)
    for number in (1, 20, 21, 33, 41, 61, 62):
        assert found[number - 1] == pytest.approx(epsilon_of_all(sequence[:number], DELTA), rel=1e-6)
    assert (np.diff(found) >= 0).all()
    assert found[40] == found[39]  # a round without steps costs nothing


def test_a_sequence_of_equal_rounds_is_the_curve_of_a_study() -> None:
    found = epsilons_of_sequence([(1.1, 0.1, 2)] * 50, delta=DELTA)
    assert found == pytest.approx(curve(1.1, 0.1, 2, 50), rel=1e-9)


def test_edges_of_a_sequence() -> None:
    assert epsilons_of_sequence([], delta=DELTA).shape == (0,)
    assert list(epsilons_of_sequence([(1.0, 0.1, 0)], delta=DELTA)) == [0.0]
    found = epsilons_of_sequence([(1.0, 0.1, 1), (0.0, 0.1, 1), (1.0, 0.1, 1)], delta=DELTA)
    assert 0 < found[0] < math.inf
    assert (found[1:] == math.inf).all()
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0.0


def test_edges() -> None:
    assert curve(1.0, 0.1, 1, 0).shape == (0,)
    assert (curve(0.0, 0.1, 1, 3) == math.inf).all()
    assert (curve(1.0, 0.1, 1, 3, before=((0.0, 0.1, 1),)) == math.inf).all()
    assert (curve(1.0, 0.1, 1, 3, delta=1e-18) == math.inf).all()
    with pytest.raises(ValueError, match="read-only"):
        curve(1.0, 0.1, 1, 3)[0] = 0.0


def test_fifteen_participants_over_a_thousand_rounds_in_under_ten_seconds() -> None:
    epsilon_curve._epsilons.cache_clear()
    started = time.process_time()
    accounts = [curve(7.642, 0.4, 1, 1000) for _ in range(15)]
    assert time.process_time() - started < 10.0
    assert all(account[-1] == accounts[0][-1] for account in accounts)
    single = epsilon_of(noise_multiplier=7.642, sample_rate=0.4, steps=1000, delta=DELTA)
    assert accounts[0][-1] == pytest.approx(single, rel=1e-6)
