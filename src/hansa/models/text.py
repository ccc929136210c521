"""A Mixture-of-Experts transformer over the tokens of a text, with the same blocks and adapters as the one over tables.

    x = embedding[tokens];  blocks, causal;  logits = norm(x) head, one row a token or, for classes, at the last token

Padding is the token −1, at the end of a text only: what comes after a token does not reach it, so padding changes no other output.
No operation couples the samples of a batch.

Shape suffixes: B samples, T tokens, D model width, V vocabulary, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hansa.errors import InvalidValue
from hansa.models.adapters import dense_factor
from hansa.models.block import Block, run_blocks
from hansa.models.config import ModelConfig
from hansa.models.norms import Norm
from hansa.models.tape import Tape
from hansa.models.trainable import is_adapter

PADDING = -1


class TextTransformer(nn.Module):
    """The whole model: tokens in, logits of the next token or of the classes out.

    Args:
        config: Sizes, with a vocabulary.

    Guarantees:
        - A token's output depends on the tokens before it and itself, of its own sample, only.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.vocabulary:
            raise InvalidValue("a text model has a vocabulary, got 0")
        self.config = config
        self.embedding = nn.Parameter(torch.randn(config.vocabulary, config.dim))
        self.blocks = nn.ModuleList(Block(f"blocks.{i}", config, i) for i in range(config.layers))
        self.final_norm = Norm(config.dim, config.norm_epsilon, gain=config.norm_gain)
        if config.head == "classes":
            self.head = nn.Parameter(torch.zeros(config.dim + 1, config.classes))
        elif not config.tied:
            self.head = nn.Parameter(torch.randn(config.dim, config.vocabulary) * config.dim**-0.5)

    def hidden(self, tokens_BT: Tensor, tape: Tape | None = None) -> Tensor:
        """Run the blocks and the last norm, (B, T) -> (B, T, D).

        Raises:
            InvalidValue: The text is longer than the context, or a token is not in the vocabulary.
        """
        if tokens_BT.shape[1] > self.config.context:
            raise InvalidValue(
                f"a text of {tokens_BT.shape[1]} tokens is above the context of {self.config.context}"
            )
        if tokens_BT.numel() and not PADDING <= int(tokens_BT.min()) <= int(tokens_BT.max()) < len(
            self.embedding
        ):
            raise InvalidValue(f"a token is outside of the vocabulary of {len(self.embedding)}")
        x_BTD = F.embedding(tokens_BT.clamp(min=0), self.embedding)
        x_BTD = run_blocks(self.blocks, x_BTD, tape, last_queries=None, again=self.config.checkpointing)
        normed: Tensor = self.final_norm(x_BTD)
        return normed

    def forward(self, tokens_BT: Tensor, tape: Tape | None = None) -> Tensor:
        """Compute the logits; a tape, where given, receives the per-sample records on backward.

        Args:
            tokens_BT: Tokens, int64; −1 for padding at the end.
            tape: Where records go.

        Returns:
            (B, T, V) of a language model, (B, C) of a classifier.
        """
        h_BTD = self.hidden(tokens_BT, tape)
        if self.config.head == "classes":
            last_B = (tokens_BT >= 0).sum(dim=1).clamp(min=1) - 1
            h_B1D = h_BTD[torch.arange(len(h_BTD), device=h_BTD.device), last_B].unsqueeze(1)
            z_B1Z = torch.cat([h_B1D, h_B1D.new_ones(len(h_B1D), 1, 1)], dim=2)
            return dense_factor(z_B1Z, self.head, "head", tape).squeeze(1)
        if self.config.tied:
            return h_BTD @ self.embedding.t()
        return dense_factor(h_BTD, self.head, "head", tape)


def is_wide(name: str) -> bool:
    """Say whether a tensor keeps at least float32: adapters, router, gains and biases."""
    last = name.rpartition(".")[2]
    return is_adapter(name) or last in {"router", "gain", "bias"}


def use_compute_type(model: TextTransformer, dtype: torch.dtype) -> None:
    """Compute in another type, in place: the frozen matrices take it; adapters, router, gains and biases keep float32 at least.

    Softmax, norms, router and losses are computed in float32 at least, whatever the type.
    """
    wide = torch.promote_types(dtype, torch.float32)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        kept = is_wide(name) or (name == "head" and model.config.head == "classes")
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(wide if kept else dtype)
