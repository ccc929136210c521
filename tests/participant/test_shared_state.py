"""The common state: Adam to the last bit, entries that rest, one hash of everything, and a tag that tells equality only."""

import hashlib
import hmac
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hansa import labels
from hansa.participant.shared_state import FIRST_TRANSCRIPT, SharedState, learning_rate, result_of
from hansa.secure_agg.cohort import state_tag
from hansa.study import Study

Makes = Callable[..., Study]
STUDY_ID, OTHER_ID = "11" * 32, "22" * 32
KEY = b"k" * 32
VECTORS = ("values", "first", "second", "decay_first", "decay_second")


def adam(study_with: Makes, **training: object) -> Study:
    optimizer = {"learning_rate": 0.03, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6}
    return study_with(training={"rounds": 10, "server_optimizer": optimizer, **training})


def applied(study_with: Makes) -> SharedState:
    """A small fixed state after two applications."""
    state = SharedState(values=np.array([0.5, -1.25, 3.0, 2.0**-30, 0.1]))
    study = adam(study_with, learning_rate_schedule="linear")
    state.apply(np.array([0, 1, 4]), np.array([0.25, -1e-3, 7.0]), study, b"\x01" * 32)
    state.apply(np.array([1, 2]), np.array([1 / 3, -0.7]), study, b"\x02" * 32)
    return state


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_with_every_entry_in_the_support_it_is_adam(study_with: Makes, schedule: str) -> None:
    study = adam(study_with, learning_rate_schedule=schedule)
    draws = np.random.default_rng(0)
    values = draws.normal(size=50)
    state = SharedState(values=values.copy())
    parameter = torch.nn.Parameter(torch.from_numpy(values.copy()))
    optimizer = torch.optim.Adam([parameter], lr=0.03, betas=(0.8, 0.95), eps=1e-6)
    for round_index in range(8):
        mean = draws.normal(size=50) * 10.0 ** draws.uniform(-4, 2)
        if schedule == "linear":
            optimizer.param_groups[0]["lr"] = 0.03 * (1 - 0.9 * round_index / 10)
        parameter.grad = torch.from_numpy(mean)
        optimizer.step()
        state.apply(np.arange(50), mean, study, bytes([round_index]) * 32)
        np.testing.assert_allclose(state.values, parameter.detach().numpy(), rtol=1e-12, atol=1e-15)
    assert (state.round, state.transcript) == (8, b"\x07" * 32)


def test_each_entry_is_adam_over_the_rounds_that_it_took_part_in_to_the_last_bit(study_with: Makes) -> None:
    """Against a loop in Python floats, whose + - * / and square root IEEE 754 rounds correctly on every machine."""
    study = adam(study_with)
    draws = np.random.default_rng(1)
    state = SharedState(values=draws.normal(size=20))
    expected = [[float(v), 0.0, 0.0, 1.0, 1.0] for v in state.values]
    for _ in range(9):
        support = np.flatnonzero(draws.random(20) < 0.4)
        mean = draws.normal(size=len(support))
        state.apply(support, mean, study, bytes(32))
        for i, g in zip(support.tolist(), mean.tolist(), strict=True):
            value, m, v, decay1, decay2 = expected[i]
            m, v = 0.8 * m + (1.0 - 0.8) * g, 0.95 * v + (1.0 - 0.95) * (g * g)
            decay1, decay2 = decay1 * 0.8, decay2 * 0.95
            value -= 0.03 * (m / (1.0 - decay1)) / (math.sqrt(v / (1.0 - decay2)) + 1e-6)
            expected[i] = [value, m, v, decay1, decay2]
    for column, name in enumerate(VECTORS):
        assert getattr(state, name).tolist() == [entry[column] for entry in expected]


def test_an_entry_that_is_not_in_the_support_does_not_move_and_its_moments_do_not_decay(
    study_with: Makes,
) -> None:
    state = applied(study_with)
    before = {name: getattr(state, name).copy() for name in VECTORS}
    state.apply(np.array([2, 4]), np.array([1.0, -1.0]), adam(study_with), bytes(32))
    for name in VECTORS:
        after = getattr(state, name)
        np.testing.assert_array_equal(after[[0, 1, 3]], before[name][[0, 1, 3]])
        assert (after[[2, 4]] != before[name][[2, 4]]).all()
    # an entry that never took part is as it was at the start
    assert [before[name][3] for name in VECTORS] == [2.0**-30, 0.0, 0.0, 1.0, 1.0]


def test_an_empty_support_moves_nothing_but_the_round(study_with: Makes) -> None:
    state, twin = applied(study_with), applied(study_with)
    state.apply(np.zeros(0, dtype=np.int64), np.zeros(0), adam(study_with), b"\x03" * 32)
    for name in VECTORS:
        np.testing.assert_array_equal(getattr(state, name), getattr(twin, name))
    assert state.round == 3
    assert state.digest(STUDY_ID) != twin.digest(STUDY_ID)


def test_golden_digest(study_with: Makes) -> None:
    """Frozen: a machine that finds another digest cannot take part in a study with one that finds this."""
    # both found independently, with Python floats, struct and hashlib
    assert SharedState(values=np.array([0.5, -1.25])).digest(STUDY_ID).hex() == (
        "561c8c274a0bf231776658da85f9854b38cdf6c233638e4e773dac55c99062f3"
    )
    assert applied(study_with).digest(STUDY_ID).hex() == (
        "323c764c514a1de923f5642f08b0f8f4536e8b0bd1b60965183ac6bb129c2953"
    )


def test_the_digest_is_the_hash_that_it_says(study_with: Makes) -> None:
    state = applied(study_with)
    content = labels.MODEL_STATE + bytes.fromhex(STUDY_ID) + (2).to_bytes(8, "big") + b"\x02" * 32
    for name in VECTORS:
        content += (5).to_bytes(8, "big") + b"".join(
            np.float64(v).astype("<f8").tobytes() for v in getattr(state, name)
        )
    assert state.digest(STUDY_ID) == hashlib.sha256(content).digest()


def test_the_digest_covers_every_bit_of_the_state(study_with: Makes) -> None:
    reference = applied(study_with).digest(STUDY_ID)
    assert applied(study_with).digest(STUDY_ID) == reference
    digests = {reference, applied(study_with).digest(OTHER_ID)}
    for name in VECTORS:
        state = applied(study_with)
        vector = getattr(state, name)
        vector[3] = np.nextafter(vector[3], 2.0)
        digests.add(state.digest(STUDY_ID))
    state = applied(study_with)
    state.round += 1
    digests.add(state.digest(STUDY_ID))
    state = applied(study_with)
    state.transcript = b"\x02" * 31 + b"\x03"
    digests.add(state.digest(STUDY_ID))
    assert len(digests) == 2 + len(VECTORS) + 2


def test_without_the_group_key_the_tag_tells_whether_two_states_are_equal_and_nothing_else(
    study_with: Makes,
) -> None:
    state, twin, other = applied(study_with), applied(study_with), applied(study_with)
    other.values[0] = np.nextafter(other.values[0], 1.0)
    assert state_tag(KEY, state.digest(STUDY_ID)) == state_tag(KEY, twin.digest(STUDY_ID))
    assert state_tag(KEY, state.digest(STUDY_ID)) != state_tag(KEY, other.digest(STUDY_ID))
    assert state_tag(KEY, state.digest(STUDY_ID)) != state_tag(b"K" * 32, state.digest(STUDY_ID))
    assert state_tag(KEY, state.digest(STUDY_ID)) != state_tag(KEY, state.digest(OTHER_ID))
    assert state.digest(STUDY_ID) not in (
        state_tag(KEY, state.digest(STUDY_ID)),
        state_tag(bytes(32), state.digest(STUDY_ID)),
    )
    # HMAC-SHA256 as a PRF, over the labelled digest
    message = labels.STATE_TAG + state.digest(STUDY_ID)
    assert state_tag(KEY, state.digest(STUDY_ID)) == hmac.new(KEY, message, hashlib.sha256).digest()


def test_the_learning_rate_is_constant_or_falls_linearly_to_a_tenth(study_with: Makes) -> None:
    constant, linear = adam(study_with), adam(study_with, learning_rate_schedule="linear")
    assert [learning_rate(constant, n) for n in (0, 5, 10)] == [0.03] * 3
    rates = [learning_rate(linear, n) for n in range(11)]
    assert rates[0] == 0.03
    assert rates[10] == pytest.approx(0.003)
    np.testing.assert_allclose(np.diff(rates), -0.03 * 0.9 / 10)


def test_scores_are_the_mean_squared_aggregates_so_far(study_with: Makes) -> None:
    study = study_with(training={"server_optimizer": {"learning_rate": 0.01, "beta2": 0.5}})
    state = SharedState(values=np.zeros(5))
    assert state.scores(np.array([], dtype=np.int64)).tolist() == [0.0] * 5
    state.apply(np.array([0, 1]), np.array([3.0, -1.0]), study, bytes(32))
    state.apply(np.array([0]), np.array([1.0]), study, bytes(32))
    scores = state.scores(np.array([4]))
    # entry 0 saw 9 and then 1: weights 1/4 and 1/2 over 3/4; entry 1 saw 1; nothing is known of 2 and 3
    np.testing.assert_allclose(scores[:4], [(9 / 4 + 1 / 2) / (3 / 4), 1.0, 0.0, 0.0])
    assert scores[4] == scores.max() == np.finfo(np.float64).max
    assert state.second[4] == 0.0  # asking changes nothing


def test_a_fresh_state_starts_at_zero() -> None:
    state = SharedState(values=np.array([1.0, 2.0]))
    assert (state.round, state.transcript) == (0, FIRST_TRANSCRIPT)
    assert (state.first.tolist(), state.second.tolist()) == ([0.0, 0.0], [0.0, 0.0])
    assert (state.decay_first.tolist(), state.decay_second.tolist()) == ([1.0, 1.0], [1.0, 1.0])


def test_the_repr_shows_nothing_of_the_secret_state() -> None:
    state = SharedState(values=np.array([123.456]), transcript=b"T" * 32)
    assert repr(state) == f"{state}" == "SharedState(round 0)"


def test_the_result_is_the_agreed_share_of_the_way_from_the_base_to_the_last_bit(study_with: Makes) -> None:
    draws = np.random.default_rng(3)
    start, values = draws.normal(size=40), draws.normal(size=40)
    study = adam(study_with, result_share=0.75)
    found = result_of(start, values, study)
    assert found.tolist() == [
        a + 0.75 * (b - a) for a, b in zip(start.tolist(), values.tolist(), strict=True)
    ]
    assert (
        result_of(start, start, study).tolist() == start.tolist()
    )  # what was not learned leaves the base as it is


def test_the_whole_way_is_the_state_itself_in_a_vector_of_its_own(study_with: Makes) -> None:
    start, values = np.array([1e16, 0.1]), np.array([1.0, 0.3])
    found = result_of(start, values, adam(study_with))
    assert found.tolist() == values.tolist()
    found[0] = 0.0
    assert values[0] == 1.0
