"""The private half of a round: pay, train, quantise and keep an update; apply the sum that the round opened.

1.2 reserve   the round's epsilon, on disk before a record is read
1.3 train     privately, on the support
1.4 quantise  at random to few bits; kept before it is masked for the first time
3.1 apply     the optimizer step on the mean, the same bits at every member
3.2 settle    commit what was reserved, forget the update
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.participant.distributed_update import DistributedUpdates
from hansa.participant.node_state import TrainedUpdate, drop_update, load_update, save_update
from hansa.participant.shared_state import SharedState
from hansa.participant.trainer import Rows, Trainer, update_bound
from hansa.privacy.accounting import calibrate
from hansa.privacy.budget import Budget, Gate, Spending
from hansa.privacy.ledger import LedgerOwner
from hansa.privacy.noise import SecretRandom
from hansa.secure_agg.codec import dequantise_sum, kept_entries, quantise, select_support
from hansa.secure_agg.ledger_heads import NO_LEDGER, encode_head
from hansa.secure_agg.parameters import Layout
from hansa.secure_agg.store import Store
from hansa.secure_agg.unmasking import Opened
from hansa.study import Study

T = TypeVar("T")


class Clock:
    """Wall seconds by step, for the owner only: durations tell about the number of records."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def timed(self, step: str, action: Callable[[], T]) -> T:
        """Run an action and add its duration to a step."""
        started = time.perf_counter()
        result = action()
        self._seconds[step] = self._seconds.get(step, 0.0) + time.perf_counter() - started
        return result

    def seconds(self) -> Mapping[str, float]:
        """Give the wall seconds spent in each step so far."""
        return dict(self._seconds)


class LocalUpdates:
    """One participant's updates to one study.

    Args:
        study: The agreement.
        model: The public base model; this participant's own copy.
        layout: Order of the trained part.
        packing: Layout of an update in its slots.
        rows: Private records, encoded.
        ledger: File of the privacy budget.
        owner: Whose ledger it is, of which data, and who signs it.
        epsilon_limit: ε that the data set may ever spend.
        store: Durable storage.
        random: Secret randomness.
        clock: Counts durations.

    Attributes:
        budget: The data set's budget.
        noise_multiplier: σ, from the study alone.
        kept: Entries of an update.

    Guarantees:
        - The reservation is on disk before a record is read; an update is on the store before it is given out.
        - A model state is trained from once: asked again, also after a crash, it gives the same levels and spends nothing.
          Under the keys of another epoch they are on that epoch's support: the same level for every entry that was trained, and
          for another one 0, or noise alone where noise is distributed.
    """

    def __init__(
        self,
        *,
        study: Study,
        model: FeatureTransformer,
        layout: TrainableLayout,
        packing: Layout,
        rows: Rows,
        ledger: Path,
        owner: LedgerOwner,
        epsilon_limit: float,
        store: Store,
        random: SecretRandom,
        clock: Clock,
    ) -> None:
        self._study, self._store, self._random, self._clock = study, store, random, clock
        privacy, training = study.privacy, study.training
        self.kept = kept_entries(layout.size, study.compression.kept_share, packing)
        self.noise_multiplier = calibrate(
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            sample_rate=privacy.sample_rate,
            steps=training.rounds * training.local_steps,
        )
        self._bound = update_bound(study, self.noise_multiplier)
        self._distributed = (
            DistributedUpdates(study, self.kept, random) if privacy.mode == "distributed" else None
        )
        self._always = layout.positions(study.compression.always)
        self._trainer = Trainer(
            study, model, layout, rows, noise_multiplier=self.noise_multiplier, random=random
        )
        self.budget = Budget(ledger, epsilon_limit=epsilon_limit, delta=privacy.delta, owner=owner)

    def levels(
        self, state: SharedState, round_index: int, attempt: int, group_key: bytes, gate: Gate
    ) -> NDArray[np.int64]:
        """Steps 1.2 to 1.4: give the update of a round, as it was kept or made now.

        Args:
            state: The state that all hold in common.
            round_index: Round number.
            attempt: Attempt number.
            group_key: The epoch's group key.
            gate: The owner's rules for what is reserved.

        Raises:
            BudgetExhausted: The round would pass a limit; nothing was read.
        """
        model_hash = state.digest(self._study.id)
        support = self._clock.timed(
            "select the support", lambda: self._support(state, round_index, group_key)
        )
        kept = load_update(self._store, model_hash)
        if kept is not None:
            return self._again(kept, support)
        # 1.2
        spending = Spending(
            study=self._study.id,
            round=round_index,
            attempt=attempt,
            noise_multiplier=self.noise_multiplier,
            sample_rate=self._study.privacy.sample_rate,
            steps=self._study.training.local_steps,
        )
        if self._distributed is not None:
            spending = self._distributed.reserved(spending)
        self._clock.timed("reserve the budget", lambda: self.budget.reserve(spending, gate=gate))
        # 1.3, 1.4
        levels = self._clock.timed("train", lambda: self._trained(state.values, support))
        trained = TrainedUpdate(model_hash=model_hash, support=support, levels=levels, spending=spending)
        self._clock.timed("keep the update", lambda: save_update(self._store, trained))
        return levels

    def ledger_head(self) -> bytes:
        """Give the tree head of the data set's ledger, for the header of an upload: it covers the reservation of this round."""
        head = self.budget.head
        return NO_LEDGER if head is None else encode_head(head.size, head.root)

    def _trained(self, values: NDArray[np.float64], support: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._distributed is not None:
            return self._distributed.train(self._trainer, values, support)
        update = self._trainer.update(values, support)
        return quantise(update, self._bound, self._study.compression.bits, self._random.uniform)

    def _again(self, kept: TrainedUpdate, support: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the levels of an update that was kept, on the support of the running epoch."""
        if self._distributed is None:
            return kept.levels_on(support)
        moved = self._distributed.moved(kept, support)
        if moved is not kept:
            save_update(self._store, moved)
        return moved.levels

    def apply(self, state: SharedState, round_index: int, opened: Opened, group_key: bytes) -> None:
        """Step 3.1: take the optimizer step, in memory."""
        contributors = len(opened.contributors)
        if self._distributed is not None:
            mean = self._distributed.plan.mean(opened.total, contributors)
        else:
            mean = dequantise_sum(opened.total, self._bound, self._study.compression.bits, contributors)
        support = self._support(state, round_index, group_key)
        state.apply(support, mean, self._study, opened.transcript)

    def settle(self, applied_rounds: int, contributors: int = 0) -> None:
        """Step 3.2: commit what an applied round had reserved, and forget its update. May be repeated.

        Args:
            applied_rounds: Rounds applied.
            contributors: Members whose updates are in the sum of the last of them, if this one's is; otherwise 0.
        """
        update = load_update(self._store)
        if update is not None and update.spending.round <= applied_rounds:
            in_last = update.spending.round == applied_rounds
            self.budget.commit(update.spending, contributors=contributors if in_last else 0)
            drop_update(self._store)

    def _support(self, state: SharedState, round_index: int, group_key: bytes) -> NDArray[np.int64]:
        return select_support(
            state.scores(self._always),
            self.kept,
            self._study.compression.explore_share,
            group_key=group_key,
            transcript=state.transcript,
            round_index=round_index,
        )
