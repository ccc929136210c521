"""One participant of one study: everything that happens behind its walls, step by step.

    1 advertise  make a one-time round key
    2 train      check policy, reserve the budget, train privately, protect, upload
    3 open       download the sum, open it, apply it, commit the budget, confirm the state
    4 close      check that all members confirmed the same state

What leaves: signed round keys, signed upload headers, ciphertexts, signed confirmations, error codes. Nothing else.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hansa.errors import OutOfOrder, StaleRound
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.participant.policy import Policy
from hansa.participant.shared_state import SharedState
from hansa.participant.trainer import Rows, Trainer, update_bound
from hansa.privacy.accounting import calibrate
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.noise import SecretRandom
from hansa.secure_agg.agreement import verify_results
from hansa.secure_agg.bfv import HeKey
from hansa.secure_agg.codec import dequantise_sum, kept_entries, quantise, select_support
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.parameters import layout_for
from hansa.secure_agg.participant import ParticipantRound, UsedKeys
from hansa.study import Study

T = TypeVar("T")


class AggregatorClient(Protocol):
    """How a participant reaches the aggregator."""

    def upload(self, round_index: int, attempt: int, header: bytes, ciphertexts: Iterable[bytes]) -> None:
        """Send the signed header and the ciphertexts."""

    def download(self, round_index: int, attempt: int) -> tuple[list[bytes], list[bytes]]:
        """Receive the signed headers of all members and the aggregate's ciphertexts; both are untrusted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """What joins a participant to a consortium; installed locally, never taken from the coordinator.

    Attributes:
        roster: Members and their identity keys.
        he_key: Common encryption key; secret.
        group_key: 32 bytes common to the participants; secret.
    """

    roster: Roster
    he_key: HeKey
    group_key: bytes

    def __repr__(self) -> str:
        return f"Membership({len(self.roster.members)} members)"


class ParticipantNode:
    """A participant.

    Args:
        name: Own id in the roster.
        identity: Own signing key.
        study: The agreement that this participant holds.
        policy: Its own rules.
        membership: Roster and keys.
        model: The public base model; this node's own copy.
        layout: Order of the trained part.
        rows: Private records, encoded.
        state_directory: Own folder for the ledger.
        aggregator: Way to the aggregator.
        random: Secret randomness; the operating system's unless a test injects it.

    Guarantees:
        - No record is read before the policy agreed and the round's ε is on the disk as reserved.
        - Every value that a private record influenced is noised before it is compressed, masked and encrypted.
        - Rounds are the study's, from 1 on, one after another: none is skipped, none follows one that was not closed.
    """

    def __init__(
        self,
        *,
        name: str,
        identity: Identity,
        study: Study,
        policy: Policy,
        membership: Membership,
        model: FeatureTransformer,
        layout: TrainableLayout,
        rows: Rows,
        state_directory: Path,
        aggregator: AggregatorClient,
        random: SecretRandom | None = None,
    ) -> None:
        self.name, self._identity, self._study, self._policy = name, identity, study, policy
        self._membership, self._layout, self._aggregator = membership, layout, aggregator
        self._random = SecretRandom() if random is None else random
        privacy, training = study.privacy, study.training
        self._packing = layout_for(study.aggregation.participants, study.compression.bits)
        self._kept = kept_entries(layout.size, study.compression.kept_share, self._packing)
        self.noise_multiplier = calibrate(
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            sample_rate=privacy.sample_rate,
            steps=training.rounds * training.local_steps,
        )
        self._bound = update_bound(study, self.noise_multiplier)
        self._always = layout.positions(study.compression.always)
        self._trainer = Trainer(
            study, model, layout, rows, noise_multiplier=self.noise_multiplier, random=self._random
        )
        self.state = SharedState(values=layout.gather(model))
        self.budget = Budget(
            state_directory / "ledger.jsonl", epsilon_limit=policy.epsilon_limit, delta=privacy.delta
        )
        self._used_keys = UsedKeys()
        self._round: ParticipantRound | None = None
        self._at = (0, 0)  # round and attempt of `_round`
        self._awaits_close = False
        self._halted = False
        self._support = np.zeros(0, dtype=np.int64)
        self._spending: Spending | None = None
        # Local only: durations tell about the number of records.
        self.seconds: dict[str, float] = {}

    def advertise(self, round_index: int, attempt: int) -> bytes:
        """Step 1: make the signed one-time key of an attempt.

        Raises:
            CohortMismatch: The roster has not as many members as the study.
            StaleRound: The round is over.
            OutOfOrder: It is not the next one of the study, or the last one was not closed.
            PackageReuse: This attempt was entered before; what runs goes on.
        """
        self._verify_next(round_index)
        entered = ParticipantRound(
            participant=self.name,
            identity=self._identity,
            roster=self._membership.roster,
            he_key=self._membership.he_key,
            layout=self._packing,
            round_index=round_index,
            attempt=attempt,
            used_keys=self._used_keys,
            random_bytes=self._random.bytes,
        )
        signed = entered.advertise()
        self._round, self._at, self._spending = entered, (round_index, attempt), None
        return signed

    def train(self, round_index: int, attempt: int, round_keys: Sequence[bytes]) -> bytes:
        """Step 2: take part in a round.

        Returns:
            The signed upload header; the ciphertexts have gone to the aggregator.

        Raises:
            PolicyRefusal: The policy or the budget refuses; nothing was read or spent.
            ProtocolError: The cohort is not the agreed one, or this is not the attempt that was advertised.
        """
        running = self._running(round_index, attempt)
        # 2.1 policy and cohort, before anything is spent
        self._policy.verify_study(self._study)
        running.start(round_keys)
        # 2.2 budget
        self._spending = self._reserve(round_index, attempt)
        # 2.3 private training on the support
        compression = self._study.compression
        self._support = self._timed(
            "select the support",
            lambda: select_support(
                self.state.scores(self._always),
                self._kept,
                compression.explore_share,
                group_key=self._membership.group_key,
                transcript=self.state.transcript,
                round_index=round_index,
            ),
        )
        update = self._timed("train", lambda: self._trainer.update(self.state.values, self._support))
        # 2.4 compress, mask, encrypt
        levels = quantise(update, self._bound, compression.bits, self._random.uniform)
        header, ciphertexts = self._timed(
            "mask and encrypt",
            lambda: running.protect(levels, self._state_tag(), self.state.transcript),
        )
        # 2.5 upload
        self._timed("upload", lambda: self._aggregator.upload(round_index, attempt, header, ciphertexts))
        return header

    def open(self, round_index: int, attempt: int) -> bytes:
        """Step 3: open the sum and apply it.

        Returns:
            The signed confirmation of the new state.

        Raises:
            ProtocolError: This is not the attempt that was trained, or headers and sum are not its; nothing was applied.
        """
        running = self._running(round_index, attempt)
        if self._spending is None:
            raise OutOfOrder(f"round {round_index} was opened before it was trained")
        headers, aggregate = self._timed("download", lambda: self._aggregator.download(round_index, attempt))
        total = self._timed("decrypt", lambda: self._opened(running, headers, aggregate))
        mean = dequantise_sum(
            total, self._bound, self._study.compression.bits, self._study.aggregation.participants
        )
        self._timed(
            "apply",
            lambda: self.state.apply(self._support, mean, self._study, running.transcript(total)),
        )
        self._awaits_close = True
        self.budget.commit(self._spending)
        self._spending = None
        return running.confirm(self._state_tag())

    def close(self, round_index: int, attempt: int, results: Sequence[bytes]) -> None:
        """Step 4: check that all members ended the round with this participant's state.

        Raises:
            ModelDivergence: Two members differ. No later round is entered then.
            OutOfOrder: The round was not opened, or is closed already.
        """
        self._running(round_index, attempt)
        if not self._awaits_close:
            raise OutOfOrder(f"round {round_index} is not open")
        verify_results(results, self._membership.roster, round_index, attempt)
        self._awaits_close = False

    def _opened(
        self, running: ParticipantRound, headers: Sequence[bytes], aggregate: Sequence[bytes]
    ) -> NDArray[np.int64]:
        """Open a sum; after one that cannot be opened this participant takes part in nothing more.

        BFV is not secure against chosen ciphertexts: each answer to one tells a bit about the key, so there is one at most.
        """
        self._halted = True
        total = running.open(headers, aggregate)
        self._halted = False
        return total

    def _verify_next(self, round_index: int) -> None:
        if self._halted:
            raise OutOfOrder(f"round {round_index} was asked for after a sum that could not be opened")
        expected = self.state.round + 1
        if round_index < expected:
            raise StaleRound(f"round {round_index} is over, the next one is {expected}")
        if self._awaits_close:
            raise OutOfOrder(f"round {round_index} was asked for before round {self.state.round} was closed")
        if round_index > expected or round_index > self._study.training.rounds:
            raise OutOfOrder(
                f"round {round_index} is not the next one, {expected} of {self._study.training.rounds}"
            )

    def _running(self, round_index: int, attempt: int) -> ParticipantRound:
        if self._round is None or self._at != (round_index, attempt):
            raise OutOfOrder(f"round {round_index} attempt {attempt} is not the one that was advertised")
        return self._round

    def _reserve(self, round_index: int, attempt: int) -> Spending:
        spending = Spending(
            study=self._study.id,
            round=round_index,
            attempt=attempt,
            noise_multiplier=self.noise_multiplier,
            sample_rate=self._study.privacy.sample_rate,
            steps=self._study.training.local_steps,
        )
        self._timed("reserve the budget", lambda: self.budget.reserve(spending))
        return spending

    def _state_tag(self) -> bytes:
        return self.state.tag(self._study.id, self._membership.group_key)

    def _timed(self, step: str, action: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = action()
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started
        return result

    def step_seconds(self) -> Mapping[str, float]:
        """Wall seconds spent in each step so far; for the owner only."""
        return dict(self.seconds)
