"""The gradient-inversion check: the same attack on the same gradient, without the noise and with it.

    base       a small text model with experts, random and known to the attacker; one text of random tokens
    attack     layer 0, left to right: for each position, the candidate with the most evidence of `hansa.privacy.inversion`
    without    the un-noised gradient must give the text away, or the check would show nothing
    with       clipped and noised as a study does, the attacker must do no better than a guess, even if it is told all tokens before

A study's own clip norm and σ are used, through the code that clips and adds noise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hansa.errors import AuditFailed
from hansa.models.attention import Attention
from hansa.models.block import Block
from hansa.models.config import ModelConfig
from hansa.models.objectives import next_token_loss
from hansa.models.router import route_tokens
from hansa.models.text import TextTransformer
from hansa.models.trainable import TrainableLayout
from hansa.privacy.inversion import Spans, chance_p_value, gradient_spans, span_evidence
from hansa.privacy.noise import SecretRandom, gaussian_noise
from hansa.privacy.per_sample import clipped_sum

_FACTOR = "blocks.0.experts.gate_up_B"
_RECOVERED_LEAST = 0.25  # without noise; an attack that finds less would prove nothing by failing


@dataclass(frozen=True, kw_only=True, slots=True)
class Victim:
    """A model that the attacker knows, and how its trained part lies in a vector."""

    model: TextTransformer
    layout: TrainableLayout

    @property
    def vocabulary(self) -> int:
        """Number of candidates for each token."""
        return len(self.model.embedding)


NoisedGradient = Callable[[Victim, Tensor, float, float, SecretRandom], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class InversionCheck:
    """How much of the texts the attack recovers.

    Attributes:
        tokens: Tokens attacked.
        recovered_without_noise: Share of them that the un-noised gradient gives away.
        recovered: Share that the noised one gives away, each with the tokens before it known.
        chance: Share that a guess would find.
        p_value: Probability of so many by guessing.
        confidence: 1 − the p-value at which the check fails.
    """

    tokens: int
    recovered_without_noise: float
    recovered: float
    chance: float
    p_value: float
    confidence: float

    @property
    def passed(self) -> bool:
        """Whether the attack works without noise and not with it."""
        return self.recovered_without_noise >= _RECOVERED_LEAST and self.p_value >= 1.0 - self.confidence


def verify_inversion(found: InversionCheck) -> None:
    """Check that the attack works without noise and not with it.

    Raises:
        AuditFailed: It recovers more than a guess from the noised gradient, or too little from the bare one.
    """
    if found.passed:
        return
    if found.recovered_without_noise < _RECOVERED_LEAST:
        raise AuditFailed(
            f"the inversion attack recovers {found.recovered_without_noise:.1%} of the tokens without noise, below "
            f"{_RECOVERED_LEAST:.0%}, so it can show nothing",
            hint="report this: the attack no longer fits the model",
        )
    raise AuditFailed(
        f"the noised gradient gives away {found.recovered:.1%} of {found.tokens} tokens, chance is {found.chance:.2%} "
        f"(confidence {found.confidence:g})"
    )


def make_victim(
    *, experts: int = 64, vocabulary: int = 1024, rank: int = 8, dim: int = 64, seed: int = 0
) -> Victim:
    """Make the model under attack: random and public, adapters on the experts, as at the start of a training."""
    config = ModelConfig.of_text(
        vocabulary,
        dim=dim,
        layers=2,
        heads=4,
        experts=experts,
        top_k=4,
        expert_dim=32,
        shared_expert_dim=0,
        rank=rank,
        alpha=float(rank),
        targets=("experts",),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TextTransformer(config).eval()
    layout = TrainableLayout(model, [])
    layout.freeze_rest(model)
    return Victim(model=model, layout=layout)


def noised_gradient(
    victim: Victim, text_T: Tensor, clip_norm: float, noise_multiplier: float, random: SecretRandom
) -> NDArray[np.float64]:
    """One text's gradient by the code that trains: clip, noise; (P,), before the public divisor."""
    return bare_gradient(victim, text_T, clip_norm) + gaussian_noise(
        victim.layout.size, clip_norm=clip_norm, noise_multiplier=noise_multiplier, random=random
    )


def bare_gradient(victim: Victim, text_T: Tensor, clip_norm: float) -> NDArray[np.float64]:
    """One text's clipped gradient, (P,). It gives the text away."""
    text_BT = text_T.unsqueeze(0)
    return clipped_sum(
        victim.model,
        victim.layout,
        text_BT,
        text_BT,
        support_K=None,
        clip_norm=clip_norm,
        loss=next_token_loss,
    ).sum_K


def check_inversion(
    *,
    noise_multiplier: float,
    clip_norm: float,
    texts: int = 2,
    tokens: int = 32,
    confidence: float = 0.999,
    victim: Victim | None = None,
    gradient: NoisedGradient = noised_gradient,
    random: SecretRandom | None = None,
) -> InversionCheck:
    """Attack the gradients of single texts, without noise and with the study's.

    Args:
        noise_multiplier: σ.
        clip_norm: C.
        texts: How many, each attacked on its own.
        tokens: Length of a text.
        confidence: The check fails where guessing would find so many tokens with probability 1 − confidence only.
        victim: The model under attack.
        gradient: The noised gradient under audit.
        random: Secret randomness of texts and noise; a test may inject it.

    Guarantees:
        - Without noise more than 80 % of the tokens are recovered at the default sizes.
        - Noise that is left out fails, and so does noise of a thousandth of the clip norm on each entry.
    """
    random = SecretRandom() if random is None else random
    victim = make_victim() if victim is None else victim
    bare_hits = hits = 0
    for _ in range(texts):
        drawn = np.floor(random.uniform(tokens) * victim.vocabulary).astype(np.int64)
        text_T = torch.from_numpy(drawn)
        bare = bare_gradient(victim, text_T, clip_norm)
        bare_hits += int((attack(victim, bare, tokens) == drawn).sum())
        noised = gradient(victim, text_T, clip_norm, noise_multiplier, random)
        hits += int((attack(victim, noised, tokens, known=drawn) == drawn).sum())
    total = texts * tokens
    chance = 1.0 / victim.vocabulary
    return InversionCheck(
        tokens=total,
        recovered_without_noise=bare_hits / total,
        recovered=hits / total,
        chance=chance,
        p_value=chance_p_value(hits, total, chance),
        confidence=confidence,
    )


@torch.no_grad()
def attack(
    victim: Victim,
    gradient: NDArray[np.float64],
    tokens: int,
    *,
    known: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Recover a text from its gradient, from left to right.

    Args:
        victim: The model.
        gradient: (P,) of the one text.
        tokens: Length of the text.
        known: The text, where the attacker is told the tokens before the one it looks for; otherwise it goes by what it found.

    Returns:
        (tokens,) the candidate with the most evidence at each position. The last token leaves no trace, for nothing follows it.
    """
    slot = next(slot for slot in victim.layout.slots if slot.name == _FACTOR)
    factor = gradient[slot.start : slot.stop].reshape(slot.shape)
    spans = gradient_spans(factor)
    reader = _Reader(victim)
    found = np.zeros(tokens, dtype=np.int64)
    for position in range(tokens):
        before = (found if known is None else known)[:position]
        found[position] = int(reader.evidence(spans, before).argmax())
    return found


class _Reader:
    """The first layer as a function of tokens: what its experts read at a position, for every candidate at once.

    The keys and values of layer 0 depend on a token alone, so they are computed once for the vocabulary.
    """

    def __init__(self, victim: Victim) -> None:
        model, block = victim.model, victim.model.blocks[0]
        if not (isinstance(block, Block) and isinstance(block.attention, Attention)):
            raise TypeError("the attack reads a first block with grouped-query attention")
        self._model, self._block, self._attention = model, block, block.attention
        normed_1VD = block.attention_norm(model.embedding).unsqueeze(0)
        self._query, self._key, self._value = (
            block.attention.get_submodule(part)(normed_1VD, None).view(
                victim.vocabulary, model.config.heads, -1
            )
            for part in ("query", "key", "value")
        )

    def stream(self, before: NDArray[np.int64]) -> Tensor:
        """Give the normalised input of the experts for each candidate after some tokens, (V, D)."""
        past = torch.from_numpy(before)
        scale = self._attention.width**-0.5
        scores_VHt = torch.einsum("vhd,thd->vht", self._query, self._key[past]) * scale
        if self._attention.slopes_H is not None:
            back_t = torch.arange(len(before), 0, -1)
            scores_VHt = scores_VHt - self._attention.slopes_H.view(-1, 1) * back_t
        own_VH1 = (self._query * self._key).sum(2, keepdim=True) * scale
        weights_VHT = torch.softmax(torch.cat([scores_VHt, own_VH1], dim=2), dim=2)
        mixed = torch.einsum("vht,thd->vhd", weights_VHT[..., :-1], self._value[past])
        mixed = mixed + weights_VHT[..., -1:] * self._value
        output = self._attention.get_submodule("output")(mixed.flatten(1).unsqueeze(0), None).squeeze(0)
        normed: Tensor = self._block.experts_norm(self._model.embedding + output)
        return normed

    def evidence(self, spans: Spans, before: NDArray[np.int64]) -> NDArray[np.float64]:
        """Give the evidence of each candidate for the token that follows some others, (V,)."""
        experts, x_VD = self._block.experts, self.stream(before)
        expert_VK = route_tokens(x_VD @ experts.router, self._model.config, experts.bias).expert_TK
        factors_VKDr = experts.get_buffer("factor_A_in")[expert_VK]
        inputs_VKr = torch.einsum("vd,vkdr->vkr", x_VD, factors_VKDr)
        found = span_evidence(spans, inputs_VKr.double().numpy(), expert_VK.numpy())
        if len(before) == 1:
            found[before[0]] = (
                0.0  # the first token repeated reads the same as the first token, and is always in its span
            )
        return found
