"""Secret randomness and Gaussian noise: the right distribution, on every entry, independent, invisible, reproducible in tests."""

import math

import numpy as np
import pytest
from scipy import stats

from hansa.privacy import noise
from hansa.privacy.noise import SecretRandom, gaussian_noise

SEED = bytes(range(32))
FAR_TOO_UNLIKELY = 1e-9  # the seed is fixed, so an accepted test stays accepted


def draw(count: int, sigma: float, seed: bytes = SEED) -> np.ndarray:
    return gaussian_noise(count, clip_norm=0.5, noise_multiplier=sigma, random=SecretRandom(seed))


def p_value(values: np.ndarray, deviation: float) -> float:
    return float(stats.kstest(values, "norm", args=(0.0, deviation)).pvalue)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 20.0])
def test_noise_is_normal_with_standard_deviation_sigma_times_clip_norm_and_no_other(sigma: float) -> None:
    values = draw(20_000, sigma)
    assert p_value(values, sigma * 0.5) > 0.01
    assert p_value(values, sigma * 0.5 * 2 / 3) < FAR_TOO_UNLIKELY
    assert p_value(values, sigma * 0.5 * 3 / 2) < FAR_TOO_UNLIKELY


def test_tails_and_moments_are_those_of_a_normal() -> None:
    values = SecretRandom(SEED).normal(400_000)
    assert abs(values.mean()) < 4 / math.sqrt(len(values))
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / len(values))
    assert abs(stats.skew(values)) < 4 * math.sqrt(6 / len(values))
    assert abs(stats.kurtosis(values)) < 4 * math.sqrt(24 / len(values))
    for bound in (3.0, 4.0):
        expected = len(values) * 2 * stats.norm.sf(bound)
        assert abs((np.abs(values) > bound).sum() - expected) < 4 * math.sqrt(expected)


def test_every_entry_is_noised_whether_a_sample_touched_it_or_not() -> None:
    # over many steps each single entry has the full deviation: none is skipped, none gets less
    random = SecretRandom(SEED)
    steps = np.stack(
        [gaussian_noise(301, clip_norm=2.0, noise_multiplier=1.5, random=random) for _ in range(400)]
    )
    assert (steps != 0.0).all()
    deviations = steps.std(axis=0)
    assert deviations.min() > 3.0 * 0.8
    assert deviations.max() < 3.0 * 1.2
    assert len(np.unique(steps)) == steps.size  # fresh in every entry and step


def pairs_of_one_point(values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two values of each point of the polar method in the first block, and their squares."""
    # One block keeps π/4 of its points; where its halves meet is found by the stream itself.
    points = noise._BLOCK_POINTS
    pair = SecretRandom(SEED)._symmetric(2 * points)
    kept = int((pair[:points] ** 2 + pair[points:] ** 2 < 1).sum())
    one, other = values[:kept], values[kept : 2 * kept]
    assert np.array_equal(np.sign(one), np.sign(pair[:points][pair[:points] ** 2 + pair[points:] ** 2 < 1]))
    return [(one, other), (one**2, other**2)]


def test_entries_and_steps_are_independent() -> None:
    random = SecretRandom(SEED)
    first, second = random.normal(100_000), random.normal(100_000)
    for one, other in (
        (first, second),
        (first[:-1], first[1:]),
        (first[:50_000], first[50_000:]),
        (first[:50_000] ** 2, first[50_000:] ** 2),
        *pairs_of_one_point(first),
    ):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / math.sqrt(len(one))


def test_two_objects_made_without_a_seed_give_independent_streams() -> None:
    one, other = SecretRandom(), SecretRandom()
    a, b = one.bytes(4096), other.bytes(4096)
    assert a != b
    differing = sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))
    assert abs(differing - 4096 * 4) < 6 * math.sqrt(4096 * 8 / 4)  # half of the bits, six deviations
    assert abs(np.corrcoef(one.normal(20_000), other.normal(20_000))[0, 1]) < 6 / math.sqrt(20_000)


def test_the_seed_comes_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise.os, "urandom", lambda count: SEED[:count])
    assert SecretRandom().bytes(64) == SecretRandom(SEED).bytes(64)


def test_an_injected_seed_gives_the_stream_of_rfc_8439() -> None:
    # RFC 8439, appendix A.1, test vector 1: key, nonce and counter zero
    assert SecretRandom(bytes(32)).bytes(32).hex() == (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    )


def test_golden_first_values_of_an_injected_seed() -> None:
    assert SecretRandom(SEED).bytes(16).hex() == "39fd2b7dd9c5196a8dbd0377b8dc4a49"
    # computed from the stream with the standard library: 53 bits of each little-endian word; 52 bits, then the polar method
    uniform = [0.41445576247967597, 0.2862985563615571, 0.7985057077456481]
    normal = [
        -0.20922587124417985,
        -0.43289448461578567,
        1.4357216456088429,
        0.17869126890015646,
        0.40356861825927576,
    ]
    assert SecretRandom(SEED).uniform(3).tolist() == uniform
    np.testing.assert_allclose(SecretRandom(SEED).normal(5), normal, rtol=1e-13)
    noised = gaussian_noise(5, clip_norm=3.0, noise_multiplier=2.0, random=SecretRandom(SEED))
    np.testing.assert_allclose(noised, 6.0 * np.array(normal), rtol=1e-13)


def test_the_stream_does_not_repeat_or_depend_on_the_size_of_the_requests() -> None:
    random = SecretRandom(SEED)
    assert b"".join(random.bytes(count) for count in (1, 7, 64, 0, 100)) == SecretRandom(SEED).bytes(172)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_any_count(count: int) -> None:
    assert SecretRandom(SEED).normal(count).shape == (count,)
    assert SecretRandom(SEED).uniform(count).shape == (count,)


def test_uniform_is_in_its_interval_and_the_extremes_give_finite_normals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = SecretRandom(SEED).uniform(100_000)
    assert values.min() >= 0.0
    assert values.max() < 1.0
    assert stats.kstest(values, "uniform").pvalue > 0.01
    least, most = 2.0**-52, 1 - 2.0**-52
    points = np.array(
        [least, most, least, least, least, most]
    )  # three x, three y: centre, and the rim on both axes
    monkeypatch.setattr(SecretRandom, "_symmetric", lambda self, count: np.resize(points, count))
    monkeypatch.setattr(noise, "_BLOCK_POINTS", 3)
    normals = SecretRandom(SEED).normal(6)
    assert np.isfinite(normals).all()
    assert np.abs(normals).max() < 13
    for stream in (bytes, lambda count: b"\xff" * count):
        monkeypatch.setattr(SecretRandom, "bytes", lambda self, count, stream=stream: stream(count))
        assert 0.0 <= SecretRandom(SEED).uniform(1)[0] < 1.0


def test_the_objects_repr_shows_nothing_of_its_state() -> None:
    random = SecretRandom(SEED)
    assert repr(random) == f"{random}" == "SecretRandom(...)"


def test_a_copy_in_a_forked_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    random = SecretRandom(SEED)
    child = noise.os.getpid() + 1
    monkeypatch.setattr(noise.os, "getpid", lambda: child)
    with pytest.raises(RuntimeError, match="another process"):
        random.bytes(1)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_seed_of_another_length_is_refused_without_showing_it(length: int) -> None:
    with pytest.raises(ValueError, match=f"32 bytes, got {length}"):
        SecretRandom(bytes(length))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000, 3 * noise._BLOCK_POINTS + 1])
def test_as_many_values_as_were_asked_for(count: int) -> None:
    values = SecretRandom(SEED).normal(count)
    assert values.shape == (count,)
    assert np.isfinite(values).all()


def test_a_block_joins_the_next_without_a_seam() -> None:
    values = SecretRandom(SEED).normal(10 * noise._BLOCK_POINTS)
    assert p_value(values, 1.0) > 0.01
    for start in range(0, len(values), 10_000):
        assert abs(values[start : start + 10_000].mean()) < 5 / math.sqrt(10_000)


def test_points_are_symmetric_and_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    random = SecretRandom(SEED)
    words = np.array([0, 1, 2**12, 2**63, 2**64 - 1], dtype="<u8")
    monkeypatch.setattr(random, "bytes", lambda count: words.tobytes()[:count])
    found = random._symmetric(5)
    assert list(found) == [2.0**-52 - 1, 2.0**-52 - 1, 3 * 2.0**-52 - 1, 2.0**-52, 1 - 2.0**-52]
