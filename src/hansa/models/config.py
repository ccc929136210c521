"""Shape of the model: every size that fixes what the blocks compute, for tables and for text."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from hansa.errors import InvalidValue
from hansa.kernels.routing import Score
from hansa.study import Study

TARGETS = ("attention", "router", "experts", "shared", "dense")


@dataclass(frozen=True, kw_only=True, slots=True)
class Yarn:
    """Stretching of rotary positions to a longer context (Peng et al. 2023, "YaRN", sections 3.2 to 3.4)."""

    factor: float  # new context over old one, a ratio
    original_context: int  # context of pretraining, tokens
    beta_fast: float = 32.0  # rotations over the old context above which a frequency stays, rotations
    beta_slow: float = 1.0  # rotations below which it is stretched by the whole factor, rotations
    mscale: float = 0.0  # weight of ln(factor) in the size of rotated queries and keys; 0: not given
    mscale_all_dim: float = 0.0  # the same in the scale of all attention scores; 0: not given


@dataclass(frozen=True, kw_only=True, slots=True)
class Latent:
    """Sizes of multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1), features each."""

    kv_rank: int  # width of the latent that keys and values are made from
    query_rank: int  # width of the latent that queries are made from; 0: none, queries come from the token
    plain_dim: int  # part of a query and key that carries no position
    rope_dim: int  # part that is rotated; the key's is shared by all heads
    value_dim: int  # width of a head's value


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes of the Mixture-of-Experts transformer.

    With `vocabulary` 0 it reads a table: feature tokens without order, every token sees every other one. Otherwise it reads text:
    tokens in order, each sees those before it. A study sets the sizes of tables only.

    Raises:
        InvalidValue: Two sizes contradict each other; the message names them.
    """

    dim: int = 32  # width of a token, D, features
    layers: int = 2  # blocks
    vocabulary: int = 0  # tokens that the embedding knows; 0: a table
    context: int = 32_768  # longest text, tokens

    heads: int = 4  # query heads, H
    kv_heads: int = (
        0  # heads of keys and values, G, each shared by H / G query heads; 0: as many as query heads
    )
    head_dim: int = 0  # width of a head, features; 0: dim / heads
    position: Literal["none", "rope", "alibi"] = "none"  # how order enters: rotation, or a slope a head
    rope_base: float = 10_000.0  # longest wavelength of the rotation over 2π, tokens
    yarn: Yarn | None = None  # stretching of the rotation
    window: int = 0  # keys that a token sees, itself among them, tokens; 0: all before it
    full_every: int = 1  # every so-manieth block ignores the window, blocks; 0: none does
    qk_norm: Literal["none", "head", "width"] = (
        "none"  # norm of queries and keys: no, each head, all heads at once
    )
    latent: Latent | None = None  # latent attention in place of grouped queries

    norm_gain: bool = False  # whether norms have a gain a feature
    norm_epsilon: float = 1e-6  # added to the mean square

    experts: int = 128  # routed experts a block, E
    top_k: int = 4  # experts that serve a token, K
    expert_dim: int = 8  # hidden width of a routed expert, F, features
    shared_expert_dim: int = 16  # hidden width of the shared experts together, features; 0: none
    dense_layers: int = 0  # first blocks with one dense network instead of experts, blocks
    dense_dim: int = 0  # hidden width of that network, features
    score: Score = "softmax_after_top_k"  # what turns router logits into gates
    renormalise: bool = True  # whether gates are divided by their sum over the chosen experts
    route_scale: float = 1.0  # factor on the gates, a ratio
    groups: int = 1  # groups of neighbouring experts that compete first, divides `experts`
    top_groups: int = 1  # groups that a token may choose from
    group_score: Literal["max", "top2"] = (
        "max"  # score of a group: its best expert's, or the sum of its two best
    )
    select_bias: bool = False  # whether a frozen bias an expert is added for the choice, not for the gates

    head: Literal["table", "causal_lm", "classes"] = "table"  # one logit a row, one a token, or one a class
    classes: int = 2  # classes of the head "classes"
    tied: bool = False  # whether the head of a language model is the embedding

    rank: int = 4  # rank of the adapters, r
    alpha: float = 8.0  # an adapter adds alpha / rank · x A B
    targets: tuple[str, ...] = ("attention", "experts")  # which matrices carry adapters, of `TARGETS`
    factor_seed: int = 0  # public seed of the frozen orthonormal factors A
    train_factor_A: bool = (
        False  # whether A is trained too; never in a study: sums of updates would not be exact
    )
    checkpointing: bool = False  # whether a block's activations are computed again in the backward pass

    def __post_init__(self) -> None:
        for wrong, message in self._contradictions():
            if wrong:
                raise InvalidValue(message)

    def _contradictions(self) -> list[tuple[bool, str]]:
        kv = self.kv_heads or max(self.heads, 1)
        turned = self.latent.rope_dim if self.latent else self.head_dim or self.dim // max(self.heads, 1)
        routed = self.dense_layers < self.layers
        unknown = sorted(set(self.targets) - set(TARGETS))
        in_groups = self.experts // max(self.groups, 1) * self.top_groups
        return [
            (min(self.dim, self.heads) < 1, f"dim {self.dim} and heads {self.heads} are at least 1"),
            (self.context < 1, f"context {self.context} is below 1"),
            (routed and self.top_k < 1, f"top_k {self.top_k} is below 1"),
            (self.groups < 1 or self.top_groups < 1, f"groups {self.groups} and top_groups are at least 1"),
            (self.position == "rope" and bool(turned % 2), f"a rotated width of {turned} is odd"),
            (not self.rope_base > 1, f"rope_base {self.rope_base} is not above 1"),
            (bool(self.heads % kv), f"heads {self.heads} is not a multiple of kv_heads {kv}"),
            (bool(unknown), f"unknown target {unknown[:1]}, known are {', '.join(TARGETS)}"),
            (routed and self.top_k > self.experts, f"top_k {self.top_k} is above experts {self.experts}"),
            (
                bool(self.experts % max(self.groups, 1)),
                f"experts {self.experts} is not a multiple of groups {self.groups}",
            ),
            (self.top_groups > self.groups, f"top_groups {self.top_groups} is above groups {self.groups}"),
            (
                routed and self.top_k > in_groups,
                f"top_k {self.top_k} is above the {in_groups} experts of top_groups {self.top_groups}",
            ),
            (
                self.dense_layers > 0 and not self.dense_dim,
                f"dense_dim is 0 with dense_layers {self.dense_layers}",
            ),
            (
                bool(self.vocabulary) == (self.head == "table"),
                f"head {self.head!r} does not fit vocabulary {self.vocabulary}",
            ),
            (
                not self.vocabulary and (self.position != "none" or self.window > 0),
                "a table has no order: position is 'none', window 0",
            ),
        ]

    @property
    def causal(self) -> bool:
        """Whether a token sees only itself and those before it."""
        return self.vocabulary > 0

    def window_of(self, layer: int) -> int | None:
        """Give the window of a block, tokens; None for all."""
        full = self.full_every > 0 and (layer + 1) % self.full_every == 0
        return None if full or not self.window else self.window

    @classmethod
    def of_study(cls, study: Study) -> "ModelConfig":
        """Take the sizes that a study agrees on."""
        model, adapters = study.model, study.adapters
        return cls(
            dim=model.dim,
            layers=model.layers,
            heads=model.heads,
            experts=model.experts,
            top_k=model.top_k,
            expert_dim=model.expert_dim,
            shared_expert_dim=model.shared_expert_dim,
            rank=adapters.rank,
            alpha=adapters.alpha,
            targets=tuple(adapters.targets),
            factor_seed=adapters.factor_seed,
        )

    @classmethod
    def of_text(cls, vocabulary: int, **changes: Any) -> "ModelConfig":
        """Give the sizes of a language model that is trained from scratch: ALiBi, windows of 512, every fourth block full."""
        sizes: dict[str, Any] = {
            "vocabulary": vocabulary,
            "head": "causal_lm",
            "position": "alibi",
            "window": 512,
            "full_every": 4,
            "norm_gain": True,
        }
        return cls(**(sizes | changes))

    def with_adapters_of(self, other: "ModelConfig | None") -> "ModelConfig":
        """Give the same model with the adapters of another configuration; without any for None."""
        if other is None:
            return replace(self, targets=())
        return replace(
            self,
            rank=other.rank,
            alpha=other.alpha,
            targets=other.targets,
            factor_seed=other.factor_seed,
            train_factor_A=other.train_factor_A,
        )
