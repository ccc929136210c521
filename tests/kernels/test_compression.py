"""Gather, rounding and packing: bit by bit what the numpy definition gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.kernels import compression
from hansa.kernels.compression import compress
from hansa.secure_agg.codec import quantise
from hansa.secure_agg.packing import pack, unpack_sum
from hansa.secure_agg.parameters import SLOTS, TAG_SLOTS, Layout


def slots_of(layout: Layout, count: int) -> int:
    return layout.ciphertexts_for(count) * SLOTS - TAG_SLOTS


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    participants=st.integers(3, 258),
    bits=st.integers(2, 16),
    count=st.integers(1, 30_000),
    dtype=st.sampled_from([np.float32, np.float64]),
    bound=st.sampled_from([0.1, 1.0, 3e-5]),
    block=st.sampled_from([100, 1 << 16]),
    seed=st.integers(0, 2**31),
)
def test_equal_to_the_numpy_definition_bit_by_bit(
    participants: int, bits: int, count: int, dtype: type, bound: float, block: int, seed: int
) -> None:
    layout, draws = Layout(participants=participants, bits=bits), np.random.default_rng(seed)
    values = (draws.standard_normal(count + 50) * bound).astype(dtype)
    values[draws.integers(0, count, 5)] = [0.0, bound, -bound, bound / 2, -0.0]
    support = np.sort(draws.choice(count + 50, count, replace=False))
    uniforms = draws.random(count)
    uniforms[: count // 3] = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "_BLOCK", block)
        packed = compress(
            torch.from_numpy(values),
            torch.from_numpy(support),
            torch.from_numpy(uniforms),
            bound=bound,
            bits=bits,
            radix=layout.radix,
            lanes=layout.lanes,
            slots=slots_of(layout, count),
        )
    levels = quantise(values[support], bound, bits, lambda _: uniforms)
    expected = pack(levels, layout)
    assert packed.dtype == torch.int64
    assert np.array_equal(packed.numpy().view(np.uint64), expected)


def test_sums_of_packed_updates_decode() -> None:
    layout, count = Layout(participants=3), 5000
    draws = torch.Generator().manual_seed(0)
    total, plain = torch.zeros(slots_of(layout, count), dtype=torch.int64), np.zeros(count, dtype=np.int64)
    for _ in range(3):
        values, uniforms = (torch.rand(count, generator=draws, dtype=torch.float64) for _ in range(2))
        total += compress(
            values,
            torch.arange(count),
            uniforms,
            bound=0.9,
            bits=8,
            radix=layout.radix,
            lanes=layout.lanes,
            slots=len(total),
        )
        plain += quantise(values.numpy(), 0.9, 8, lambda _, u=uniforms: u.numpy())
    assert np.array_equal(unpack_sum(total.numpy().view(np.uint64), layout, count), plain)


def test_values_that_are_not_finite_are_clamped() -> None:
    values = torch.tensor([float("inf"), float("-inf"), float("nan")])
    packed = compress(
        values, torch.arange(3), torch.zeros(3).double(), bound=1.0, bits=3, radix=10, lanes=1, slots=3
    )
    assert packed.tolist() == [6, 0, 3]


@pytest.mark.parametrize(
    "changed",
    [{"bound": 0.0}, {"bound": float("nan")}, {"bits": 1}, {"radix": 254}, {"lanes": 9}, {"slots": 1}],
    ids=str,
)
def test_what_does_not_fit_is_refused(changed: dict[str, float]) -> None:
    sizes = {"bound": 1.0, "bits": 8, "radix": 255, "lanes": 1, "slots": 4} | changed
    with pytest.raises(ValueError, match=r"bound|places|digits"):
        compress(torch.zeros(9), torch.arange(4), torch.zeros(4).double(), **sizes)  # type: ignore[arg-type]
