"""Shape of the model: every size that a study fixes."""

from dataclasses import dataclass

from hansa.study import Study


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes of the feature-token Mixture-of-Experts transformer.

    Attributes:
        dim: Width of a token, D.
        layers: Number of blocks.
        heads: Attention heads; divides `dim`.
        experts: Routed experts a block, E.
        top_k: Experts that serve a token, K.
        expert_dim: Hidden width of a routed expert, F.
        shared_expert_dim: Hidden width of the shared expert that serves every token; 0 for none.
        rank: Rank of the adapters, r.
        alpha: Scale of the adapters: an adapter adds alpha / rank · x A B.
        targets: Which matrices carry adapters: "attention" (query, key, value, output), "experts" (gate, up, down).
        factor_seed: Public seed of the frozen orthonormal factors A.
    """

    dim: int = 32
    layers: int = 2
    heads: int = 4
    experts: int = 128
    top_k: int = 4
    expert_dim: int = 8
    shared_expert_dim: int = 16
    rank: int = 4
    alpha: float = 8.0
    targets: tuple[str, ...] = ("attention", "experts")
    factor_seed: int = 0

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
