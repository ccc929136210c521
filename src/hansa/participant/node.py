"""One participant of one study: everything that happens behind its walls, step by step.

    0 epoch     join, deal or check the common keys, vote, enter; make round-key packages
    1 train     check policy and cohort, reserve the budget, train privately, keep the update, protect, upload
    2 answer    check roster and aggregate; release shares, or consent to a smaller roster first
    3 unmask    open the sum from the members' releases, apply it, commit the budget, confirm the state;
                a sum that T members cannot open is left behind
    4 close     check that the members confirmed the same state
    5 catch up  open and apply a round that was missed, from its certificate

Every step is on the store before it is acted on. A node that is made anew on its store goes on where it was: it sends
what it had made, and trains, noises and charges nothing twice.

What leaves: signed protocol messages, sealed shares, ciphertexts, error codes. Nothing else.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from hansa.errors import (
    DuplicateMessage,
    KeyRotationDue,
    ModelDivergence,
    OutOfOrder,
    RosterEquivocation,
    StaleRound,
)
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.participant.local_update import Clock, LocalUpdates
from hansa.participant.membership import Membership
from hansa.participant.node_state import (
    load_state,
    save_state,
)
from hansa.participant.policy import Policy
from hansa.participant.shared_state import SharedState
from hansa.participant.trainer import Rows
from hansa.privacy.budget import Budget
from hansa.privacy.noise import SecretRandom
from hansa.secure_agg.attempt import verify_results
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.participant import RoundMachine
from hansa.secure_agg.recovery import Leaves
from hansa.secure_agg.store import Store
from hansa.secure_agg.unmasking import Opened, verify_certificate
from hansa.study import Study

T = TypeVar("T")
Packages = list[tuple[bytes, list[bytes]]]


class AggregatorClient(Protocol):
    """How a participant reaches the aggregator."""

    def upload(self, round_index: int, attempt: int, header: bytes, ciphertexts: Iterable[bytes]) -> None:
        """Send the signed header and the ciphertexts."""

    def download(self, round_index: int, attempt: int) -> tuple[list[bytes], list[bytes]]:
        """Receive the signed headers of the roster and the aggregate's ciphertexts; both are untrusted."""

    def package_leaves(self, round_index: int, attempt: int, dealer: str) -> bytes:
        """Receive the leaves of a dealer's package, joined in roster order; untrusted."""


class ParticipantNode:
    """A participant.

    Args:
        name: Own id in the roster.
        identity: Own signing key.
        study: The agreement that this participant holds.
        policy: Its own rules.
        roster: Members and their identity keys; installed locally, never taken from the coordinator.
        store: Durable storage of protocol state; the same one after a restart.
        model: The public base model; this node's own copy.
        layout: Order of the trained part.
        rows: Private records, encoded.
        state_directory: Own folder for the ledger.
        aggregator: Way to the aggregator.
        random: Secret randomness; the operating system's unless a test injects it.

    Guarantees:
        - No record is read before the policy agreed and the round's ε is on the disk as reserved.
        - Every value that a private record influenced is noised before it is compressed, masked and encrypted.
        - A model state is trained from once: another attempt at its round, or a restart, sends the same update under
          other masks and spends nothing.
        - Rounds are the study's, from 1 on, one after another: none is skipped, none follows one that was not closed.
    """

    def __init__(
        self,
        *,
        name: str,
        identity: Identity,
        study: Study,
        policy: Policy,
        roster: Roster,
        store: Store,
        model: FeatureTransformer,
        layout: TrainableLayout,
        rows: Rows,
        state_directory: Path,
        aggregator: AggregatorClient,
        random: SecretRandom | None = None,
    ) -> None:
        self.name, self._study, self._policy = name, study, policy
        self._roster, self._store, self._aggregator = roster, store, aggregator
        random = SecretRandom() if random is None else random
        self._terms, self._clock = terms_of(study), Clock()
        self.updates = LocalUpdates(
            study=study,
            model=model,
            layout=layout,
            packing=self._terms.layout,
            rows=rows,
            ledger=state_directory / "ledger.jsonl",
            epsilon_limit=policy.epsilon_limit,
            store=store,
            random=random,
            clock=self._clock,
        )
        self.membership = Membership(
            participant=name,
            identity=identity,
            roster=roster,
            terms=self._terms,
            store=store,
            random_bytes=random.bytes,
        )
        self.state, self._progress = load_state(store, SharedState(values=layout.gather(model)))
        self.faulty_holders: set[str] = set()
        self._recover()

    def _recover(self) -> None:
        """Finish what a crash left half done: a round whose new state was kept, but whose attempt was not closed."""
        if self.membership.has_entered:
            machine = self.membership.entered[1]
            if machine.running and machine.entered[0] <= self.state.round:
                machine.finish(*machine.entered)
        self.updates.settle(self.state.round)

    # -- 0 the epoch -------------------------------------------------------------------------------------

    def join(self, epoch: int) -> bytes:
        """Step 0.1: return the signed Join of an epoch.

        Raises:
            PolicyRefusal: The policy does not allow the study.
        """
        self._policy.verify_study(self._study)
        return self.membership.join(epoch)

    def deal(self, joins: Sequence[bytes]) -> bytes:
        """Step 0.2, at the dealer: return the signed Deal with the common keys, sealed to every member."""
        return self.membership.deal(joins)

    def vote(self, joins: Sequence[bytes], deal: bytes) -> bytes:
        """Step 0.3: check joins and deal, and return the signed Vote for the manifest."""
        return self.membership.vote(joins, deal)

    def enter(self, votes: Sequence[bytes]) -> Packages:
        """Step 0.4: enter the epoch with everybody's votes, and return the first round-key packages."""
        machine = self.membership.enter(votes)
        self._progress.epoch_rounds = self.state.round
        save_state(self._store, self.state, self._progress)
        return machine.packages()

    def packages(self, handed_out: int) -> Packages:
        """Step 0.5: return the unused round-key packages, without those that the coordinator says it has handed out."""
        return self.membership.entered[1].packages(handed_out)

    # -- 1 to 4 a round ----------------------------------------------------------------------------------

    def train(
        self, round_index: int, attempt: int, packages: Sequence[bytes], shares: Sequence[bytes]
    ) -> bytes:
        """Step 1: take part in a round.

        Returns:
            The signed upload header; the ciphertexts have gone to the aggregator.

        Raises:
            PolicyRefusal: The policy or the budget refuses; nothing was read or spent.
            ProtocolError: The cohort cannot be one, or this is not the next round of the study.
        """
        machine = self.membership.entered[1]
        stored = machine.upload if machine.running and machine.entered == (round_index, attempt) else None
        if stored is not None:
            return self._send(round_index, attempt, *stored)  # the answer was lost: the same bytes again
        self._verify_next(round_index)
        # 1.1 policy and cohort, before anything is spent
        self._policy.verify_study(self._study)
        machine.start(
            round_index,
            attempt,
            packages,
            shares,
            model_hash=self._model_hash(),
            transcript=self.state.transcript,
        )
        # 1.2 to 1.4 the update, once for a model state
        levels = self.updates.levels(self.state, round_index, attempt, self._group_key())
        # 1.5 mask and encrypt
        header, ciphertexts = self._clock.timed("mask and encrypt", lambda: machine.protect(levels))
        # 1.6 upload
        return self._send(round_index, attempt, header, ciphertexts)

    def _send(self, round_index: int, attempt: int, header: bytes, ciphertexts: list[bytes]) -> bytes:
        with suppress(DuplicateMessage):  # it had arrived, and the answer was lost
            self._clock.timed(
                "upload", lambda: self._aggregator.upload(round_index, attempt, header, ciphertexts)
            )
        return header

    def answer(self, round_index: int, attempt: int) -> bytes:
        """Step 2: check roster and aggregate; return a Release if all have uploaded, otherwise a Consent."""
        return self._answer(self._running(round_index, attempt), round_index, attempt)

    def _answer(self, machine: RoundMachine, round_index: int, attempt: int) -> bytes:
        headers, aggregate = self._clock.timed(
            "download", lambda: self._aggregator.download(round_index, attempt)
        )
        return self._clock.timed("answer", lambda: machine.answer(headers, aggregate))

    def consents(self, round_index: int, attempt: int, consents: Sequence[bytes]) -> bytes:
        """Step 2.1: return a Release for a smaller roster that T members consented to."""
        return self._answered(round_index, attempt).consents(consents)

    def unmask(self, round_index: int, attempt: int, releases: Sequence[bytes]) -> tuple[bytes, Packages]:
        """Step 3: open the sum and apply it.

        Returns:
            The signed confirmation of the new state, and the unused round-key packages.
        """
        machine, leaves = self._answered(round_index, attempt), self._leaves(round_index, attempt)
        opened = self._clock.timed("unmask and decrypt", lambda: machine.unmask(releases, leaves))
        return self._applied(machine, round_index, attempt, opened)

    def void(self, round_index: int, attempt: int) -> bytes:
        """Step 3.1: return the signed Void of a round whose sum this participant could not open."""
        return self._running(round_index, attempt).void()

    def skip(self, round_index: int, attempt: int, voids: Sequence[bytes]) -> Packages:
        """Step 3.2: leave a round behind that T members could not open. The model stays, the round counts.

        Returns:
            The unused round-key packages.

        Raises:
            RosterEquivocation: This participant has opened the round.
            OutOfOrder: It is not the next round after those applied.
            See `participant.RoundMachine.skip` for everything else.
        """
        machine = self.membership.entered[1]
        if round_index == self.state.round and not self._progress.roster_hash:
            return machine.packages()  # it was left behind before; the answer was lost
        if round_index <= self.state.round:
            raise RosterEquivocation(f"round {round_index} is declared void, and was opened here")
        if round_index > self.state.round + 1:
            raise OutOfOrder(f"round {round_index} cannot be left behind before {self.state.round + 1}")
        link = machine.skip(round_index, attempt, voids, transcript=self.state.transcript)
        self.state.skip(link)
        self._progress = replace(self._progress, result=b"", roster_hash=b"", awaits_close=None)
        self._keep(machine, round_index, attempt)
        return machine.packages()

    def open(self, round_index: int, attempt: int) -> tuple[bytes, Packages]:
        """Steps 2 and 3 in strict mode: open the sum of the whole roster and apply it."""
        machine = self._running(round_index, attempt)
        headers, aggregate = self._clock.timed(
            "download", lambda: self._aggregator.download(round_index, attempt)
        )
        opened = self._clock.timed("unmask and decrypt", lambda: machine.open(headers, aggregate))
        return self._applied(machine, round_index, attempt, opened)

    def close(self, round_index: int, attempt: int, results: Sequence[bytes]) -> None:
        """Step 4: check that T members or more ended the round with this participant's state.

        Raises:
            ModelDivergence: Two members differ, or one of them from this participant. No later round is entered then.
            OutOfOrder: The round was not opened, or is closed already.
            See `attempt.verify_results` for everything else.
        """
        if self._progress.awaits_close != (round_index, attempt):
            raise OutOfOrder(f"round {round_index} attempt {attempt} is not open")
        epoch, own = self.membership.entered[0], self._progress.result
        # The own one is among them, shown or not: results that agree with each other could differ from it.
        found = results if own in results else [*results, own]
        try:
            verify_results(found, self._roster, epoch.number, round_index, attempt, self._terms.threshold)
        except ModelDivergence:
            self._progress.diverged = True
            save_state(self._store, self.state, self._progress)
            raise
        self._progress.awaits_close = None
        save_state(self._store, self.state, self._progress)

    # -- 5 a round that was missed -----------------------------------------------------------------------

    def catch_up(
        self, round_index: int, attempt: int, packages: Sequence[bytes], releases: Sequence[bytes]
    ) -> Packages:
        """Step 5: open and apply a round that this participant missed, or of which it missed the end.

        Returns:
            The unused round-key packages.

        Raises:
            OutOfOrder: It is not the next round after those applied, or the mode is strict.
            ProtocolError: The certificate is not one; nothing was applied.
        """
        machine = self.membership.entered[1]
        if self._terms.strict:
            raise OutOfOrder("in strict mode nobody can miss a round")
        if round_index < self.state.round:
            return machine.packages()
        if round_index == self.state.round:
            self._verify_applied(round_index, attempt, releases)
            return machine.packages()
        if round_index > self.state.round + 1:
            raise OutOfOrder(f"round {round_index} cannot be caught up before {self.state.round + 1}")
        headers, aggregate = self._aggregator.download(round_index, attempt)
        opened = machine.catch_up(
            round_index,
            attempt,
            packages,
            headers,
            aggregate,
            releases,
            count=self.updates.kept,
            model_hash=self._model_hash(),
            transcript=self.state.transcript,
            leaves=self._leaves(round_index, attempt),
        )
        self._apply(round_index, opened)
        self._progress = replace(
            self._progress, result=b"", roster_hash=opened.roster_hash, awaits_close=None
        )
        self._keep(machine, round_index, attempt)
        return machine.packages()

    def _verify_applied(self, round_index: int, attempt: int, releases: Sequence[bytes]) -> None:
        """Take the certificate of the round applied last in place of the confirmations that were missed."""
        epoch = self.membership.entered[0]
        verify_certificate(epoch, round_index, attempt, self._progress.roster_hash, releases)
        if self._progress.awaits_close is not None:
            self._progress.awaits_close = None
            save_state(self._store, self.state, self._progress)

    # -- inside ------------------------------------------------------------------------------------------

    def _leaves(self, round_index: int, attempt: int) -> Leaves:
        """Give the way to the leaves of a package; it is taken only if somebody released a wrong share."""
        return partial(self._aggregator.package_leaves, round_index, attempt)

    def _applied(
        self, machine: RoundMachine, round_index: int, attempt: int, opened: Opened
    ) -> tuple[bytes, Packages]:
        self._clock.timed("apply", lambda: self._apply(round_index, opened))
        result = machine.confirm(opened, self._model_hash())
        self._progress = replace(
            self._progress,
            result=result,
            roster_hash=opened.roster_hash,
            awaits_close=(round_index, attempt),
        )
        self._clock.timed("keep the state", lambda: self._keep(machine, round_index, attempt))
        return result, machine.packages()

    def _apply(self, round_index: int, opened: Opened) -> None:
        """Take the optimizer step, in memory."""
        self.faulty_holders.update(opened.faulty_holders)
        self.updates.apply(self.state, round_index, opened, self._group_key())

    def _keep(self, machine: RoundMachine, round_index: int, attempt: int) -> None:
        """Make the new state durable, then close the round: attempt, ledger, update. See `_recover`."""
        save_state(self._store, self.state, self._progress)
        machine.finish(round_index, attempt)
        self.updates.settle(self.state.round)

    def _verify_next(self, round_index: int) -> None:
        expected = self.state.round + 1
        if self._progress.diverged:
            raise OutOfOrder(f"round {round_index} was asked for after members held different states")
        if round_index < expected:
            raise StaleRound(f"round {round_index} is over, the next one is {expected}")
        if self._progress.awaits_close is not None:
            raise OutOfOrder(f"round {round_index} was asked for before round {self.state.round} was closed")
        if round_index > expected or round_index > self._study.training.rounds:
            raise OutOfOrder(
                f"round {round_index} is not the next one, {expected} of {self._study.training.rounds}"
            )
        most = self._study.aggregation.rounds_per_epoch
        if most and self.state.round - self._progress.epoch_rounds >= most:
            raise KeyRotationDue(
                f"the keys of this epoch have served the {most} rounds that the study allows"
            )

    def _running(self, round_index: int, attempt: int) -> RoundMachine:
        machine = self.membership.entered[1]
        if machine.entered != (round_index, attempt) or not machine.running:
            raise OutOfOrder(f"round {round_index} attempt {attempt} is not the one that was trained")
        return machine

    def _answered(self, round_index: int, attempt: int) -> RoundMachine:
        """Give the machine, which after a restart has to see its roster again: it gives the same answer."""
        machine = self._running(round_index, attempt)
        if not machine.answered and machine.locked:
            self._answer(machine, round_index, attempt)
        return machine

    def _model_hash(self) -> bytes:
        return self.state.digest(self._study.id)

    def _group_key(self) -> bytes:
        return self.membership.entered[0].group_key

    @property
    def budget(self) -> Budget:
        """The privacy budget of this participant's data set."""
        return self.updates.budget

    @property
    def noise_multiplier(self) -> float:
        """σ of this study."""
        return self.updates.noise_multiplier

    def step_seconds(self) -> Mapping[str, float]:
        """Wall seconds spent in each step so far; for the owner only: they tell about the number of records."""
        return self._clock.seconds()


def terms_of(study: Study) -> Terms:
    """Take the terms of an epoch from the study."""
    aggregation = study.aggregation
    return Terms(participants=aggregation.participants, mode=aggregation.mode, bits=study.compression.bits)
