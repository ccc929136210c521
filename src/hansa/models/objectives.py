"""What a text model is trained for: one loss a sample, averaged inside the sample, nothing across samples.

    next token       L_b = − mean_t log p(x[t+1] | x[≤ t])
    classes          L_b = − log p(class_b | x)
    preference       L_b = − log σ(β [(log π(y₊) − log π₀(y₊)) − (log π(y₋) − log π₀(y₋))])

A mean over the batch would divide a sample's gradient by a number that the other samples decide, and clipping would no longer bound
one sample's influence. Losses are computed in float32 at least.
Source: Rafailov et al. 2023, "Direct Preference Optimization", equation 7.

Shape suffixes: B samples, T tokens, V vocabulary, C classes, P = 2: preferred and rejected.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hansa.models.linear import Adapted
from hansa.models.norms import widened
from hansa.models.tape import Tape

IGNORED = -1  # target that does not count: padding, or a prompt that is not to be learned


def token_log_probabilities(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Log-probability of each next token, 0 where it is ignored: (B, T, V) and (B, T) -> (B, T − 1)."""
    chosen_BT = targets_BT[:, 1:]
    log_p = torch.log_softmax(widened(logits_BTV[:, :-1]), dim=-1)
    picked = log_p.gather(2, chosen_BT.clamp(min=0).unsqueeze(2)).squeeze(2)
    return torch.where(chosen_BT == IGNORED, torch.zeros_like(picked), picked)


def next_token_loss(model: nn.Module, tokens_BT: Tensor, targets_BT: Tensor, tape: Tape | None) -> Tensor:
    """Mean cross-entropy of each sample's own next tokens.

    Args:
        model: A language model.
        tokens_BT: Texts, −1 for padding at the end.
        targets_BT: The same texts; −1 also where a token is not to be predicted.
        tape: Receives the records.

    Returns:
        (B,); 0 for a sample without a token to predict.

    Guarantees:
        - A sample's loss depends on that sample only, and is divided by its own number of tokens.
    """
    log_p_BT = token_log_probabilities(model(tokens_BT, tape), targets_BT)
    count_B = (targets_BT[:, 1:] != IGNORED).sum(dim=1).clamp(min=1)
    return -log_p_BT.sum(dim=1) / count_B


def class_loss(model: nn.Module, tokens_BT: Tensor, classes_B: Tensor, tape: Tape | None) -> Tensor:
    """Cross-entropy of each sample's class, (B,)."""
    return F.cross_entropy(widened(model(tokens_BT, tape)), classes_B, reduction="none")


def preference_loss(beta: float) -> Callable[[nn.Module, Tensor, Tensor, Tape | None], Tensor]:
    """Make the loss of direct preference optimisation against the base without its adapters.

    Args:
        beta: How strongly to leave the base costs, β.

    Returns:
        A loss of (model, tokens_BPT, targets_BPT, tape) -> (B,). Row 0 of a sample is the preferred text, row 1 the rejected one;
        targets are −1 on the prompt and on padding. A sample is the pair: its record on the tape is the pair's.
    """

    def loss(model: nn.Module, tokens_BPT: Tensor, targets_BPT: Tensor, tape: Tape | None) -> Tensor:
        tokens, targets = tokens_BPT.flatten(0, 1), targets_BPT.flatten(0, 1)
        with torch.no_grad(), without_adapters(model):
            reference_BP = _log_probability(model, tokens, targets, None)
        if tape is not None:
            tape.fold(2)
        return preference_terms(_log_probability(model, tokens, targets, tape), reference_BP, beta)

    return loss


def preference_terms(policy_BP: Tensor, reference_BP: Tensor, beta: float) -> Tensor:
    """Equation 7 of the paper, from the log-probabilities of whole answers: (B, 2) each -> (B,)."""
    gain_BP = policy_BP - reference_BP
    return -F.logsigmoid(beta * (gain_BP[:, 0] - gain_BP[:, 1]))


def _log_probability(model: nn.Module, tokens: Tensor, targets: Tensor, tape: Tape | None) -> Tensor:
    return token_log_probabilities(model(tokens, tape), targets).sum(dim=1).view(-1, 2)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Let the model compute what its base computes."""
    adapted = [module for module in model.modules() if isinstance(module, Adapted)]
    before = [module.active for module in adapted]
    for module in adapted:
        module.active = False
    try:
        yield
    finally:
        for module, active in zip(adapted, before, strict=True):
            module.active = active
