"""The one-run bound: exact where everything can be enumerated, never above the truth, and as published."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from hansa.privacy.noise import SecretRandom
from hansa.privacy.one_run import GUESSED_SHARES, epsilon_refuted, one_run_bound, p_value, true_positive_rate


def exact_tail(guesses: int, correct: int, right: Fraction) -> Fraction:
    return sum(
        (
            math.comb(guesses, k) * right**k * (1 - right) ** (guesses - k)
            for k in range(correct, guesses + 1)
        ),
        Fraction(0),
    )


def exact_p_value(canaries: int, guesses: int, correct: int, right: Fraction, delta: Fraction) -> Fraction:
    """The theorem in rational numbers, term by term."""
    tail = exact_tail(guesses, correct, right)
    near = max(
        ((exact_tail(guesses, correct - i, right) - tail) / i for i in range(1, correct + 1)),
        default=Fraction(0),
    )
    return min(Fraction(1), tail + 2 * canaries * delta * near)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct"), [(1, 1, 1), (4, 3, 2), (20, 20, 17), (50, 13, 0), (200, 60, 55)]
)
@pytest.mark.parametrize("odds", [1, 3, 20])
@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 10**5), Fraction(1, 1000)])
def test_the_p_value_is_the_theorems(
    canaries: int, guesses: int, correct: int, odds: int, delta: Fraction
) -> None:
    found = p_value(
        canaries=canaries, guesses=guesses, correct=correct, epsilon=math.log(odds), delta=float(delta)
    )
    wanted = exact_p_value(canaries, guesses, correct, Fraction(odds, odds + 1), delta)
    assert found == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize("odds", [1, 2, 9])
def test_randomised_response_reaches_the_bound_exactly(odds: int) -> None:
    """Every coin and every answer of a mechanism that lies with probability 1 / (1 + odds), enumerated."""
    canaries = 5
    chance = dict.fromkeys(range(canaries + 1), Fraction(0))
    for coins in itertools.product((0, 1), repeat=canaries):
        for answers in itertools.product((0, 1), repeat=canaries):
            right = sum(c == a for c, a in zip(coins, answers, strict=True))
            weight = Fraction(odds, odds + 1) ** right * Fraction(1, odds + 1) ** (canaries - right)
            chance[right] += weight / 2**canaries
    for correct in range(canaries + 1):
        truth = sum(chance[k] for k in range(correct, canaries + 1))
        found = p_value(
            canaries=canaries, guesses=canaries, correct=correct, epsilon=math.log(odds), delta=0.0
        )
        assert found == pytest.approx(float(truth), rel=1e-12)


@pytest.mark.parametrize("delta", [Fraction(1, 100), Fraction(1, 20)])
@pytest.mark.parametrize("reveal_all", [False, True])
def test_no_private_run_is_above_the_bound(delta: Fraction, reveal_all: bool) -> None:
    """With probability delta a coin is told as it is, each by itself or all of them at once; otherwise randomised response."""
    canaries, right = 6, Fraction(3, 4)
    for correct in range(canaries + 1):
        all_at_once = delta + (1 - delta) * exact_tail(canaries, correct, right)
        each = exact_tail(canaries, correct, delta + (1 - delta) * right)
        truth = all_at_once if reveal_all else each
        found = p_value(
            canaries=canaries, guesses=canaries, correct=correct, epsilon=math.log(3), delta=float(delta)
        )
        assert float(truth) <= found + 1e-12


def test_the_p_value_grows_and_falls_as_it_says() -> None:
    def at(**changes: float) -> float:
        usual = {"canaries": 200, "guesses": 60, "correct": 45, "epsilon": 0.7, "delta": 1e-4}
        return p_value(**(usual | changes))  # type: ignore[arg-type]

    for name, steps in {
        "epsilon": np.linspace(0, 6, 40),
        "delta": np.linspace(0, 2.5e-3, 20),
        "canaries": range(60, 900, 60),
    }.items():
        values = [at(**{name: step}) for step in steps]
        assert values == sorted(values), name
    falling = [at(correct=v) for v in range(61)]
    assert falling == sorted(falling, reverse=True)


def test_golden_lower_bounds() -> None:
    """Solved by hand where there is no delta: (e^eps / (1 + e^eps))^r = alpha; with delta, by rational arithmetic below."""
    for guesses in (10, 100, 1000):
        root = 0.05 ** (1 / guesses)
        found = epsilon_refuted(canaries=1000, guesses=guesses, correct=guesses, delta=0.0, confidence=0.95)
        assert found == pytest.approx(math.log(root / (1 - root)), abs=1e-6)
    assert epsilon_refuted(canaries=1000, guesses=1000, correct=1000, delta=0.0, confidence=0.95) == (
        pytest.approx(5.8090, abs=1e-4)
    )
    with_delta = epsilon_refuted(canaries=1000, guesses=100, correct=95, delta=1e-5, confidence=0.95)
    p = exact_p_value(
        1000, 100, 95, Fraction(1 / (1 + math.exp(-with_delta))).limit_denominator(10**15), Fraction(1, 10**5)
    )
    assert float(p) == pytest.approx(0.05, rel=1e-6)
    assert with_delta < epsilon_refuted(canaries=1000, guesses=100, correct=95, delta=0.0, confidence=0.95)


def test_the_lower_bound_grows_with_right_guesses_and_falls_with_confidence_and_delta() -> None:
    def at(correct: int = 80, delta: float = 1e-5, confidence: float = 0.95) -> float:
        return epsilon_refuted(canaries=500, guesses=100, correct=correct, delta=delta, confidence=confidence)

    grows = [at(correct=v) for v in range(0, 101, 5)]
    assert grows == sorted(grows)
    assert grows[10] == 0.0 < grows[-1]
    for falls in ([at(confidence=c) for c in (0.8, 0.95, 0.999)], [at(delta=d) for d in (0.0, 1e-4, 1e-3)]):
        assert falls == sorted(falls, reverse=True)
        assert falls[0] > falls[-1]


def test_what_makes_no_sense_is_refused() -> None:
    for canaries, guesses, correct in ((5, 6, 1), (5, 3, 4), (5, 3, -1)):
        with pytest.raises(ValueError, match="cannot be right"):
            p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=1.0, delta=0.0)
    for epsilon, delta in ((-1.0, 0.0), (1.0, 2.0), (math.nan, 0.0)):
        with pytest.raises(ValueError, match="below 0 or delta"):
            p_value(canaries=5, guesses=3, correct=2, epsilon=epsilon, delta=delta)
    with pytest.raises(ValueError, match="too large for 600 canaries"):
        epsilon_refuted(canaries=600, guesses=10, correct=10, delta=1e-3, confidence=0.95)
    with pytest.raises(ValueError, match="do not fit"):
        one_run_bound(np.zeros(3), np.zeros(4, dtype=bool), delta=0.0, confidence=0.95)


# -- guesses by scores -----------------------------------------------------------------------------------


def noisy(seed: int, canaries: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    random = SecretRandom(bytes([seed]) * 32)
    inside = random.uniform(canaries) < 0.5
    return random.normal(canaries) + apart * inside, inside


def test_scores_of_randomised_response_are_never_above_its_epsilon_more_often_than_allowed() -> None:
    """400 runs of a mechanism of epsilon ln 3; at confidence 0.8 a fifth may be above, and Bonferroni leaves fewer."""
    above = 0
    for seed in range(400):
        random = np.random.default_rng(seed)
        inside = random.random(60) < 0.5
        told = np.where(random.random(60) < 0.75, inside, ~inside)
        found = one_run_bound(told + 1e-3 * random.random(60), inside, delta=0.0, confidence=0.8)
        above += found.epsilon > math.log(3)
    assert above <= 0.2 * 400


def test_clear_scores_show_what_so_many_canaries_can_show_and_no_scores_show_nothing() -> None:
    scores, inside = noisy(1, 1000, 50.0)
    clear = one_run_bound(scores, inside, delta=1e-5, confidence=0.95)
    assert clear.true_positive_rate == 1.0
    assert 0.6 * clear.epsilon_most < clear.epsilon <= clear.epsilon_most
    nothing = one_run_bound(np.zeros(1000), inside, delta=1e-5, confidence=0.95)
    assert nothing.epsilon < 0.2
    assert nothing.true_positive_rate == 0.0
    between = one_run_bound(*noisy(1, 1000, 2.0), delta=1e-5, confidence=0.95)
    assert nothing.epsilon < between.epsilon < clear.epsilon


def test_a_growing_function_of_the_scores_changes_nothing() -> None:
    scores, inside = noisy(2, 400, 1.5)
    one, other = (one_run_bound(s, inside, delta=1e-5, confidence=0.95) for s in (scores, np.exp(scores) - 7))
    assert one == other


def test_a_score_that_is_no_number_counts_as_the_lowest() -> None:
    scores, inside = noisy(3, 400, 3.0)
    gone, lowest = scores.copy(), scores.copy()
    gone[:5], lowest[:5] = np.nan, -1e9
    one, other = (one_run_bound(s, inside, delta=1e-5, confidence=0.95) for s in (gone, lowest))
    assert one == other


def test_the_confidence_is_shared_among_the_numbers_of_guesses() -> None:
    scores, inside = noisy(4, 500, 50.0)
    share = GUESSED_SHARES[3]
    alone, among = (
        one_run_bound(scores, inside, delta=0.0, confidence=c, shares=[share]).epsilon for c in (0.95, 0.99)
    )
    assert among < alone
    five = one_run_bound(scores, inside, delta=0.0, confidence=0.95, shares=[share] * 5).epsilon
    assert five == pytest.approx(among)


def test_the_true_positive_rate_allows_one_percent_of_false_alarms() -> None:
    inside = np.repeat([False, True], 200)
    scores = np.concatenate([np.arange(200.0), np.full(200, 197.5)])
    assert true_positive_rate(scores, inside) == 1.0  # two of 200 are above
    scores[200:] = 196.5
    assert true_positive_rate(scores, inside) == 0.0
    scores[200:250] = 500.0
    assert true_positive_rate(scores, inside) == 0.25
    for one_sided in (np.ones(5, dtype=bool), np.zeros(5, dtype=bool)):
        assert true_positive_rate(np.arange(5.0), one_sided) == 0.0
