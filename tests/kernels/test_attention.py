"""Window attention: the blocks equal the whole matrix, forward and backward, and cost grows with the length only."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hansa.kernels import attention
from hansa.kernels.attention import Pattern, window_attention, window_attention_reference

PROPERTY = settings(deadline=None, max_examples=25, derandomize=True)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 3e-2}


def operands(
    batch: int, heads: int, groups: int, tokens: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(tokens)
    shapes = (
        (batch, heads, tokens, width),
        (batch, groups, tokens, width),
        (batch, groups, tokens, width),
        (batch, heads, tokens, width),
    )
    q, k, v, g = (torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v, g


def slopes(heads: int) -> Tensor:
    return 2.0 ** -torch.arange(1, heads + 1)


def one_query_at_a_time(q: Tensor, k: Tensor, v: Tensor, slopes_H: Tensor | None, pattern: Pattern) -> Tensor:
    """Independent of both implementations: loops over samples, heads and queries, in float64."""
    y = torch.zeros(q.shape, dtype=torch.float64)
    batch, heads, tokens, _ = q.shape
    for b in range(batch):
        for h in range(heads):
            keys, values = (x[b, h * x.shape[1] // heads].double() for x in (k, v))
            for i in range(tokens):
                window = pattern.window or tokens
                first = max(0, i - window + 1)
                last = i if pattern.causal else min(tokens - 1, i + window - 1)
                seen = torch.arange(first, last + 1)
                scores = pattern.scale * keys[seen] @ q[b, h, i].double()
                if slopes_H is not None:
                    scores -= slopes_H[h].double() * (i - seen).abs()
                y[b, h, i] = torch.softmax(scores, dim=0) @ values[seen]
    return y


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 5, 40])
def test_both_forms_equal_one_query_at_a_time(window: int | None, causal: bool, dtype: torch.dtype) -> None:
    q, k, v, _ = operands(2, 4, 2, 23, 6, dtype)
    pattern = Pattern(window=window, causal=causal, scale=0.4)
    for slopes_H in (None, slopes(4)):
        expected = one_query_at_a_time(q, k, v, slopes_H, pattern)
        y = window_attention(q, k, v, window=window, slopes_H=slopes_H, scale=0.4, causal=causal)
        assert (y.shape, y.dtype) == (q.shape, dtype)
        close(y, expected, dtype)
        close(window_attention_reference(q, k, v, slopes_H=slopes_H, pattern=pattern), expected, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("tokens", "window", "groups", "alibi"),
    [(1, None, 1, True), (128, 128, 2, False), (300, 37, 1, True), (413, 200, 4, True), (290, None, 2, True)],
)
def test_forward_and_gradients_equal_the_reference(
    tokens: int, window: int | None, groups: int, alibi: bool, causal: bool, dtype: torch.dtype
) -> None:
    q, k, v, g = operands(2, 4, groups, tokens, 8, dtype)
    slopes_H, pattern = slopes(4) if alibi else None, Pattern(window=window, causal=causal, scale=0.5)

    def outcome(fast: bool) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        if fast:
            y = window_attention(*leaves, window=window, slopes_H=slopes_H, scale=0.5, causal=causal)
        else:
            y = window_attention_reference(*leaves, slopes_H=slopes_H, pattern=pattern)
        return [y, *torch.autograd.grad(y, leaves, g)]

    for actual, expected in zip(outcome(True), outcome(False), strict=True):
        assert actual.dtype == dtype
        scale = max(1.0, expected.abs().max().item())
        close(actual / scale, expected / scale, dtype)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 3])
def test_gradients_equal_finite_differences(
    window: int | None, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        attention, "_QUERIES", 4
    )  # several blocks at a size that finite differences can afford
    leaves = [x.requires_grad_() for x in operands(1, 2, 1, 7, 3, torch.float64)[:3]]
    assert torch.autograd.gradcheck(
        lambda q, k, v: window_attention(
            q, k, v, window=window, slopes_H=slopes(2), scale=0.7, causal=causal
        ),
        leaves,
        fast_mode=True,
    )


@PROPERTY
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    repeats=st.integers(1, 2),
    tokens=st.integers(1, 70),
    window=st.none() | st.integers(1, 80),
    causal=st.booleans(),
    block_bytes=st.sampled_from([1, 3000, 20_000]),
)
def test_however_the_blocks_are_cut(
    batch: int, groups: int, repeats: int, tokens: int, window: int | None, causal: bool, block_bytes: int
) -> None:
    heads = groups * repeats
    q, k, v, _ = operands(batch, heads, groups, tokens, 4, torch.float64)
    pattern = Pattern(window=window, causal=causal, scale=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_BLOCK_BYTES", block_bytes)
        y = window_attention(q, k, v, window=window, slopes_H=slopes(heads), scale=0.5, causal=causal)
    expected = window_attention_reference(q, k, v, slopes_H=slopes(heads), pattern=pattern)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)


@PROPERTY
@given(at=st.integers(0, 199), window=st.integers(1, 150), causal=st.booleans())
def test_a_query_depends_on_the_keys_that_it_sees_only(at: int, window: int, causal: bool) -> None:
    q, k, v, _ = operands(2, 2, 1, 200, 4, torch.float32)
    distance = at - torch.arange(200)
    seen = (distance.abs() < window) & ((distance >= 0) | (not causal))
    other_k, other_v = k.clone(), v.clone()
    other_k[1, :, ~seen], other_v[1, :, ~seen] = 50.0, 7.0
    other_k[0], other_v[0] = torch.nan, torch.nan  # the other sample
    before, after = (
        window_attention(q, keys, values, window=window, slopes_H=None, scale=0.5, causal=causal)
        for keys, values in ((k, v), (other_k, other_v))
    )
    torch.testing.assert_close(after[1, :, at], before[1, :, at])


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (1, 2, 0, 4)])
@pytest.mark.parametrize("window", [None, 2])
def test_nothing_to_attend_to(shape: tuple[int, ...], window: int | None) -> None:
    q = torch.zeros(shape, requires_grad=True)
    y = window_attention(q, q, q, window=window, slopes_H=slopes(2), scale=1.0)
    y.sum().backward()
    assert y.shape == shape
    assert q.grad is not None


def test_operands_in_any_layout_of_memory() -> None:
    """Heads usually come as views of (B, T, H, D)."""
    q, k, v, g = operands(2, 4, 2, 150, 8, torch.float64)
    results = []
    for spread in (lambda x: x, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)):
        leaves = [spread(x).detach().requires_grad_() for x in (q, k, v)]
        y = window_attention(*leaves, window=20, slopes_H=None, scale=0.5)
        results.append([y, *torch.autograd.grad(y, leaves, spread(g))])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("shape", "slopes_of", "window"),
    [((1, 3, 4, 8), 4, 2), ((1, 2, 5, 8), 4, 2), ((1, 2, 4, 8), 3, 2), ((1, 2, 4, 8), 4, 0)],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], slopes_of: int, window: int) -> None:
    with pytest.raises(ValueError, match=r"do not fit|window"):
        window_attention(
            torch.zeros(1, 4, 4, 8),
            torch.zeros(shape),
            torch.zeros(shape),
            window=window,
            slopes_H=slopes(slopes_of),
            scale=1.0,
        )


def largest_block_bytes(tokens: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Largest matrix of scores that is ever formed, and the entries of all of them together."""
    sizes, original = [], torch.softmax

    def counted(x: Tensor, dim: int) -> Tensor:
        sizes.append(x.numel())
        return original(x, dim=dim)

    q, k, v, g = operands(1, 2, 1, tokens, 4, torch.float32)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "softmax", counted)
        window_attention(*leaves, window=window, slopes_H=None, scale=0.5).backward(g)
    return max(sizes) * 4, sum(sizes)


def test_cost_of_a_windowed_layer_is_linear_and_memory_of_a_full_one_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, short = largest_block_bytes(2048, 128, monkeypatch)
    _, long = largest_block_bytes(4096, 128, monkeypatch)
    assert long == pytest.approx(2 * short, rel=0.05)
    monkeypatch.setattr(attention, "_BLOCK_BYTES", 1 << 18)
    for tokens in (512, 2048):
        largest, _ = largest_block_bytes(tokens, None, monkeypatch)
        assert largest <= max(1 << 18, 2 * 16 * tokens * 4)
