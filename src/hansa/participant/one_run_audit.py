"""The one-run audit of a study: canaries in the table of one participant, a whole training, and what the model learnt of them.

    1 draw      m canaries from the public ranges; each is in the table with probability ½
    2 train     the study's rounds with the participant's trainer, rounding and optimizer; this participant alone
    3 score     how much the loss of each canary fell from the base to the trained model
    4 guess     the highest scores were in, the lowest were not (hansa.privacy.one_run)

The other participants are left out: what they add is known to an adversary that colludes with them, and in `local` mode their noise
is not counted on. The rows are synthetic, so nothing is read and nothing is charged. On a participant's own records the model would
be a release like any other one and would have to be reserved in the ledger first.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hansa.errors import AuditFailed
from hansa.models.features import FeatureEncoder
from hansa.models.pretraining import Base
from hansa.models.transformer import FeatureTransformer
from hansa.participant.shared_state import SharedState
from hansa.participant.synthetic_table import canary_rows, synthetic_base
from hansa.participant.trainer import MICRO_BATCH, Rows, Trainer, update_bound
from hansa.privacy.accounting import Mechanism, epsilon_of
from hansa.privacy.noise import SecretRandom
from hansa.privacy.one_run import OneRunBound, one_run_bound
from hansa.secure_agg.codec import dequantise_sum, kept_entries, quantise, select_support
from hansa.secure_agg.parameters import layout_for
from hansa.study import Study

CANARIES_LEAST = 100
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class OneRunAudit:
    """What one training showed, beside what was claimed.

    Attributes:
        mechanism: σ, q and the steps that were run.
        delta: δ.
        claimed: ε of these steps by the accountant.
        shown: Lower bound by the guesses.
        rounds: Rounds that were run.
    """

    mechanism: Mechanism
    delta: float
    claimed: float
    shown: OneRunBound
    rounds: int

    @property
    def passed(self) -> bool:
        """Whether the bound is not above the claim."""
        return self.shown.epsilon <= self.claimed


def verify_one_run(found: OneRunAudit) -> None:
    """Check that the training showed no more than was claimed.

    Raises:
        AuditFailed: The lower bound is above the claim.
    """
    if not found.passed:
        shown = found.shown
        raise AuditFailed(
            f"one training shows epsilon {shown.epsilon:.3f} or more ({shown.correct} of {shown.guesses} guesses right), above "
            f"the claimed {found.claimed:.3f} of its {found.mechanism.steps} steps (confidence {shown.confidence:g})"
        )


def audit_one_run(
    study: Study,
    *,
    noise_multiplier: float,
    canaries: int = 1000,
    confidence: float = 0.95,
    seconds_most: float = 120.0,
    others: Rows | None = None,
    foundation: tuple[FeatureEncoder, Base] | None = None,
    progress: Progress | None = None,
    random: SecretRandom | None = None,
) -> OneRunAudit:
    """Train once with canaries and bound ε from below.

    Args:
        study: The agreement; its rounds, local steps, support, rounding and optimizer are run.
        noise_multiplier: σ, to run and to claim.
        canaries: m, at least 100; no more are taken than 1 / 2δ, beyond which the bound shows nothing.
        confidence: Probability with which the bound holds.
        seconds_most: No round begins after so many seconds; the claim is that of the rounds that were run.
        others: Further synthetic or public records that are in the table whatever the coins say; none lets canaries show most.
        foundation: Encoder and base; made from the public ranges where it is not given.
        progress: Called with the rounds done and the study's.
        random: Secret randomness; a test may inject it.

    Guarantees:
        - Coins, canaries, sampling, noise and rounding come from `random` only.
        - A trainer of a small study that neither clips nor adds noise and claims an ε of 0.3 is caught. Larger claims need faults
          and models that learn single records better; `shown.epsilon_most` says which claims this run could refute at all.
    """
    if canaries < CANARIES_LEAST:
        raise ValueError(f"an audit needs at least {CANARIES_LEAST} canaries, got {canaries}")
    random = SecretRandom() if random is None else random
    delta = study.privacy.delta
    canaries = min(canaries, int(1.0 / (2.0 * delta)))
    encoder, base = synthetic_base(study) if foundation is None else foundation
    planted = canary_rows(study.data, encoder, canaries, random.uniform)
    inside = random.uniform(canaries) < 0.5
    model = base.model()
    start = base.layout.gather(model)
    before = _losses(model, planted)
    trained, rounds = _train(
        study,
        base,
        model,
        _table(planted, inside, others, persons=study.privacy.unit == "person"),
        noise_multiplier=noise_multiplier,
        ends=time.monotonic() + seconds_most,
        progress=progress,
        random=random,
    )
    base.layout.load(model, trained)
    scores = before - _losses(model, planted)
    base.layout.load(model, start)
    mechanism = Mechanism(noise_multiplier, study.privacy.sample_rate, rounds * study.training.local_steps)
    return OneRunAudit(
        mechanism=mechanism,
        delta=delta,
        claimed=epsilon_of(**mechanism._asdict(), delta=delta),
        shown=one_run_bound(scores, inside, delta=delta, confidence=confidence),
        rounds=rounds,
    )


def _table(planted: Rows, inside: NDArray[np.bool_], others: Rows | None, *, persons: bool) -> Rows:
    """Put the canaries inside and the other records together; where units are persons, each record is one of its own."""
    chosen = torch.from_numpy(inside)
    features, labels = planted.features[chosen], planted.labels[chosen]
    if others is not None:
        features = torch.cat([features, others.features])
        labels = torch.cat([labels, others.labels])
    return Rows(features=features, labels=labels, persons=torch.arange(len(labels)) if persons else None)


def _train(
    study: Study,
    base: Base,
    model: FeatureTransformer,
    rows: Rows,
    *,
    noise_multiplier: float,
    ends: float,
    progress: Progress | None,
    random: SecretRandom,
) -> tuple[NDArray[np.float64], int]:
    """Run the study's rounds as a consortium of this participant alone; give the trained vector and the rounds that were run."""
    compression, rounds = study.compression, study.training.rounds
    trainer = Trainer(study, model, base.layout, rows, noise_multiplier=noise_multiplier, random=random)
    state = SharedState(values=base.layout.gather(model))
    always = base.layout.positions(compression.always)
    packing = layout_for(study.aggregation.participants, compression.bits)
    kept = kept_entries(base.layout.size, compression.kept_share, packing)
    bound, group_key, transcript = update_bound(study, noise_multiplier), random.bytes(32), random.bytes(32)
    while state.round < rounds and (state.round == 0 or time.monotonic() < ends):
        support = select_support(
            state.scores(always),
            kept,
            compression.explore_share,
            group_key=group_key,
            transcript=transcript,
            round_index=state.round + 1,
        )
        levels = quantise(trainer.update(state.values, support), bound, compression.bits, random.uniform)
        state.apply(support, dequantise_sum(levels, bound, compression.bits, 1), study, transcript)
        if progress is not None:
            progress(state.round, rounds)
    return state.values, state.round


def _losses(model: FeatureTransformer, rows: Rows) -> NDArray[np.float64]:
    """Logistic loss of each row, (n,)."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(rows.labels), MICRO_BATCH):
            part = slice(start, start + MICRO_BATCH)
            parts.append(
                torch.nn.functional.binary_cross_entropy_with_logits(
                    model(rows.features[part]), rows.labels[part], reduction="none"
                )
            )
    return torch.cat(parts).double().numpy()
