"""Inversion of a gradient: the span test on made-up experts, the attack on a real model, and its end at the noise."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from hansa.errors import AuditFailed
from hansa.models.router import route_tokens
from hansa.models.text import TextTransformer
from hansa.privacy import inversion_check
from hansa.privacy.inversion import chance_p_value, gradient_spans, span_evidence
from hansa.privacy.inversion_check import (
    InversionCheck,
    Victim,
    attack,
    bare_gradient,
    check_inversion,
    make_victim,
    verify_inversion,
)
from hansa.privacy.noise import SecretRandom

EXPERTS, RANK, COLUMNS = 6, 8, 20


def seeded(number: int = 1) -> SecretRandom:
    return SecretRandom(bytes([number]) * 32)


@pytest.fixture(scope="module")
def victim() -> Victim:
    return make_victim()


def of_tokens(served: list[int], seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Gradient of experts that serve so many tokens each, and the tokens' inputs."""
    draws = np.random.default_rng(seed)
    inputs = [draws.normal(size=(n, RANK)) for n in served]
    return np.stack([z.T @ draws.normal(size=(len(z), COLUMNS)) for z in inputs]), inputs


def test_weights_are_the_rank_of_each_expert() -> None:
    gradient, _ = of_tokens([0, 1, 3, 7, 8, 12])
    for scale in (1.0, 1e-30, 1e30):
        weights = gradient_spans(gradient * scale).weights_Er
        assert weights.sum(axis=1) == pytest.approx([0, 1, 3, 7, 8, 8], abs=1e-6)


def test_noise_alone_has_little_weight_and_a_signal_far_above_it_keeps_its_own() -> None:
    noise = seeded().normal(EXPERTS * RANK * COLUMNS).reshape(EXPERTS, RANK, COLUMNS)
    signal, _ = of_tokens([2] * EXPERTS)
    for size in (1e-6, 1e-3, 1e3):
        assert gradient_spans(size * noise).weights_Er.max() < 0.3
    spans = gradient_spans(signal + 1e-6 * noise)
    assert (spans.weights_Er[:, :2] > 0.999).all()
    assert (spans.weights_Er[:, 2:] < 0.3).all()


def test_tokens_that_were_served_stand_out_and_crowded_or_idle_experts_say_nothing() -> None:
    gradient, inputs = of_tokens([0, 1, 3, 7, 8, 12])
    spans = gradient_spans(gradient)
    draws = np.random.default_rng(5)
    for expert, served in enumerate(inputs):
        strangers = draws.normal(size=(200, 1, RANK))
        others = span_evidence(spans, strangers, np.full((200, 1), expert))
        for z in served:
            (own,) = span_evidence(spans, z.reshape(1, 1, RANK), np.array([[expert]]))
            (longer,) = span_evidence(spans, 1e4 * z.reshape(1, 1, RANK), np.array([[expert]]))
            assert longer == pytest.approx(own)
            if len(served) < RANK:
                assert own > others.max()
        if len(served) in (0, 8, 12):
            assert np.abs(others).max() < 1e-4


def test_a_factor_with_fewer_columns_than_its_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 8 has 8 columns"):
        gradient_spans(np.zeros((2, 8, 8)))


def test_the_chance_of_lucky_guesses() -> None:
    for hits, trials, chance in ((0, 10, 0.2), (3, 10, 0.2), (10, 10, 0.5)):
        wanted = sum(
            math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(hits, trials + 1)
        )
        assert chance_p_value(hits, trials, chance) == pytest.approx(wanted)
    for hits, trials, chance in ((3, 2, 0.5), (-1, 2, 0.5), (1, 2, 0.0), (1, 2, 1.0)):
        with pytest.raises(ValueError, match="cannot be"):
            chance_p_value(hits, trials, chance)


# -- the attack ------------------------------------------------------------------------------------------


def test_the_reader_computes_what_the_experts_of_the_first_layer_read(victim: Victim) -> None:
    text = torch.arange(100, 107)
    seen: list[Any] = []
    experts = victim.model.get_submodule("blocks.0.experts")
    hook = experts.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        victim.model(text.unsqueeze(0))
        hook.remove()
        reader = inversion_check._Reader(victim)
        for position, token in enumerate(text.tolist()):
            read = reader.stream(text[:position].numpy())[token]
            assert torch.allclose(read, seen[0][0, position], atol=1e-5)


def test_a_text_is_recovered_without_noise_but_for_its_last_token(victim: Victim) -> None:
    recovered = []
    for seed in range(3):
        text = np.random.default_rng(seed).integers(victim.vocabulary, size=32)
        found = attack(victim, bare_gradient(victim, torch.from_numpy(text), 0.5), 32)
        recovered.append((found == text).mean())
    assert np.mean(recovered) > 0.8


def test_with_many_tokens_an_expert_the_attack_is_blocked() -> None:
    """Few experts and a low rank: each gradient spans everything. The attack lives on experts that few tokens reach."""
    crowded = make_victim(experts=4, rank=4)
    text = np.random.default_rng(0).integers(crowded.vocabulary, size=64)
    with torch.no_grad():
        routing = route_tokens(torch.randn(64, 4), crowded.model.config, None)
    assert routing.ends_E[0] > 4
    found = attack(crowded, bare_gradient(crowded, torch.from_numpy(text), 0.5), 64)
    assert (found == text).mean() < 0.1


@pytest.mark.parametrize("sigma", [0.3, 1.544])
def test_the_studys_noise_stops_it(victim: Victim, sigma: float) -> None:
    found = check_inversion(noise_multiplier=sigma, clip_norm=0.5, victim=victim, random=seeded())
    assert found.recovered_without_noise > 0.8
    assert found.recovered < 0.05
    assert found.tokens == 64
    assert found.chance == 1 / 1024
    assert found.passed
    verify_inversion(found)


@pytest.mark.parametrize("deviation", [0.0, 1e-3])
def test_noise_that_is_missing_or_far_too_small_is_caught(
    victim: Victim, deviation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = inversion_check.gaussian_noise
    monkeypatch.setattr(inversion_check, "gaussian_noise", lambda *a, **k: deviation / 1.5 * real(*a, **k))
    found = check_inversion(noise_multiplier=1.5, clip_norm=0.5, victim=victim, random=seeded())
    assert not found.passed
    with pytest.raises(AuditFailed, match=r"gives away \d+\.\d% of 64 tokens, chance is 0\.10%"):
        verify_inversion(found)


def test_an_attack_that_does_not_work_proves_nothing() -> None:
    weak = InversionCheck(
        tokens=64, recovered_without_noise=0.1, recovered=0.0, chance=0.001, p_value=1.0, confidence=0.999
    )
    with pytest.raises(AuditFailed, match=r"recovers 10\.0% of the tokens without noise, below 25%"):
        verify_inversion(weak)


def test_the_victim_is_public_and_its_adapters_start_at_zero(victim: Victim) -> None:
    again = make_victim()
    assert isinstance(victim.model, TextTransformer)
    for (name, one), (_, other) in zip(
        victim.model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other)
        assert not (name.endswith("_B") and one.any())
