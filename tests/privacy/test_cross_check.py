"""Three accountants agree on every golden value, and a wrong one of them does not pass."""

import time
from collections.abc import Callable

import pytest

from hansa.errors import AccountantsDisagree, PrivacyTargetUnreachable
from hansa.privacy import cross_check as module
from hansa.privacy.accounting import calibrate, epsilon_of, epsilon_of_all
from hansa.privacy.cross_check import CrossCheck, calibrate_checked, cross_check, cross_check_all

DELTA = 1e-5
# (sample rate, noise multiplier, steps): epsilon at delta 1e-5 by other programs than ours
GOLDEN = {
    (0.01, 1.0, 1000): 1.828,
    (0.01, 1.0, 2000): 2.584,
    (0.01, 1.0, 5000): 4.202,
    (0.01, 1.0, 10_000): 6.188,
    (0.01, 0.6, 1000): 7.434,
    (1.0, 1.0, 1): 4.3772,
}


@pytest.fixture(autouse=True)
def fresh() -> None:
    module._cross_check.cache_clear()


@pytest.mark.parametrize(("setting", "golden"), GOLDEN.items(), ids=str)
def test_golden_values_lie_between_all_bounds(setting: tuple[float, float, int], golden: float) -> None:
    rate, sigma, steps = setting
    found = cross_check(sigma, rate, steps, DELTA)
    assert found.pld == pytest.approx(golden, rel=0.005)
    assert found.prv_low <= found.pld <= found.prv_high
    assert found.pld <= found.rdp
    assert found.prv_high - found.prv_low < 0.05 + 0.02 * found.pld  # an interval that could fail


@pytest.mark.parametrize(
    "setting",
    [(0.4, 6.0, 30), (0.4, 50.0, 30), (1.0, 5.0, 10), (0.3, 20.0, 1000), (0.001, 200.0, 1)],
    ids=str,
)
def test_accountants_agree_far_from_the_golden_values(setting: tuple[float, float, int]) -> None:
    rate, sigma, steps = setting
    found = cross_check(sigma, rate, steps, DELTA)
    assert found.pld == epsilon_of(noise_multiplier=sigma, sample_rate=rate, steps=steps, delta=DELTA)


def test_unlike_mechanisms_agree_too() -> None:
    mechanisms = [(1.0, 0.01, 500), (6.0, 0.4, 30), (1.0, 0.01, 500)]
    found = cross_check_all(mechanisms, DELTA)
    assert found.pld == epsilon_of_all(mechanisms, DELTA)
    assert found.pld > cross_check(1.0, 0.01, 1000, DELTA).pld
    assert cross_check_all([], DELTA) == CrossCheck(pld=0.0, prv_low=0.0, prv_high=0.0, rdp=0.0)


@pytest.mark.parametrize("factor", [0.97, 1.03, 0.0, float("nan"), float("inf")])
def test_a_pld_that_is_off_by_three_percent_is_caught(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "epsilon_of_all", lambda *given: factor * epsilon_of_all(*given))
    with pytest.raises(AccountantsDisagree, match=r"1000 steps at sample rate 0.01 and noise multiplier 1 "):
        cross_check(1.0, 0.01, 1000, DELTA)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("prv_interval", lambda *_, **__: (1.0, 1.5), r"by PLD, outside of \[1, 1.5\] by PRV"),
        ("prv_interval", lambda *_, **__: (float("nan"), 2.0), "outside of"),
        ("rdp_bound", lambda *_: 1.7, "above the bound 1.7 by RDP"),
        ("rdp_bound", lambda *_: float("nan"), "above the bound"),
    ],
)
def test_another_accountant_that_differs_is_an_error(
    name: str, wrong: Callable[..., object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AccountantsDisagree, match=message) as caught:
        cross_check(1.0, 0.01, 1000, DELTA)
    assert (caught.value.code, caught.value.exit_status) == ("accountants_disagree", 1)


@pytest.mark.parametrize("delta", [1e-18, 1e-15])
def test_a_delta_below_floating_point_is_an_error_and_no_number(delta: float) -> None:
    # here older accountants gave a finite nonsense (0.285), see microsoft/prv_accountant#17
    with pytest.raises(AccountantsDisagree):
        cross_check(1.0, 0.01, 1000, delta)


def test_no_noise_is_no_number() -> None:
    with pytest.raises(AccountantsDisagree, match="no finite epsilon"):
        cross_check(0.0, 0.01, 1, DELTA)


def test_calibration_is_checked_by_the_others_in_under_five_seconds() -> None:
    started = time.process_time()
    sigma, found = calibrate_checked(epsilon=8.0, delta=DELTA, sample_rate=0.4, steps=1000)
    assert time.process_time() - started < 5.0
    assert sigma == calibrate(epsilon=8.0, delta=DELTA, sample_rate=0.4, steps=1000)
    assert 7.98 < found.pld <= 8.0


def test_calibration_to_a_number_in_dispute_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "rdp_bound", lambda *_: 0.1)
    with pytest.raises(AccountantsDisagree):
        calibrate_checked(epsilon=3.0, delta=DELTA, sample_rate=1.0, steps=5)
    with pytest.raises(PrivacyTargetUnreachable):
        calibrate_checked(epsilon=1e-3, delta=DELTA, sample_rate=1.0, steps=10_000)
