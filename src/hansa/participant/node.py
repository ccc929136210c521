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

What leaves: signed protocol messages, sealed shares, ciphertexts, error codes. Nothing else; `outputs.py` has the list.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from hansa.errors import (
    DuplicateMessage,
    ModelDivergence,
    OutOfOrder,
    ProtocolError,
    RosterEquivocation,
)
from hansa.participant.node_core import NodeCore, Packages
from hansa.participant.node_state import save_state
from hansa.participant.outputs import verify_upload
from hansa.participant.seen_heads import keep_heads
from hansa.secure_agg.attempt import verify_results
from hansa.secure_agg.messages import RoundResult, open_signed
from hansa.secure_agg.unmasking import verify_certificate


class ParticipantNode(NodeCore):
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
        data_commitment: Which data the records are; see `registered_data.register_data`.
        state_directory: Own folder for the ledgers, one a data set.
        aggregator: Way to the aggregator.
        random: Secret randomness; the operating system's unless a test injects it.
        credentials: Gives the own certificate and the revocation list; see `membership.Credentials`.
        model_hash: Hash of the base model, hexadecimal, that the policy's list of models is compared with; None where it is not
            known, which no such list allows.
        submitter: Who submits the study, for the policy's list of submitters; None likewise.

    Raises:
        LedgerDamaged: The ledger is an older copy than one whose head this participant has signed in this study, or another one.

    Guarantees:
        - No record is read before the policy agreed and the round's ε is on the disk as reserved.
        - A round that passes any limit of the policy, for ever, of the study or of the month, is refused by its code; it reads
          nothing and spends nothing.
        - Every value that a private record influenced is noised before it is compressed, masked and encrypted.
        - A model state is trained from once: another attempt at its round, or a restart, sends the same update under
          other masks and spends nothing.
        - A ledger that was put back to an older copy spends nothing: a node is not made on it while its store knows better.
        - The header of an upload carries the ledger's tree head with this round's reservation in it; of the others the header with
          the longest one is kept.
        - Rounds are the study's, from 1 on, one after another: none is skipped, none follows one that was not closed.
    """

    # -- 0 the epoch -------------------------------------------------------------------------------------

    def join(self, epoch: int) -> bytes:
        """Step 0.1: return the signed Join of an epoch.

        Raises:
            PolicyRefusal: The policy does not allow the study.
        """
        self._verify_study()
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
            StateRollback: The store is an older copy: the cohort holds an own package that it does not know.
            ProtocolError: The cohort cannot be one, or this is not the next round of the study.
        """
        machine = self.membership.entered[1]
        stored = machine.upload if machine.running and machine.entered == (round_index, attempt) else None
        if stored is not None:
            return self._send(round_index, attempt, *stored)  # the answer was lost: the same bytes again
        machine.verify_not_rolled_back(packages)
        self._verify_next(round_index)
        # 1.1 policy and cohort, before anything is spent
        self._verify_study()
        machine.start(
            round_index,
            attempt,
            packages,
            shares,
            model_hash=self._model_hash(),
            transcript=self.state.transcript,
        )
        # 1.2 to 1.4 the update, once for a model state
        gate = self._policy.verify_round
        levels = self.updates.levels(self.state, round_index, attempt, self._group_key(), gate)
        head = self.updates.ledger_head()
        # 1.5 mask and encrypt
        header, ciphertexts = self._clock.timed("mask and encrypt", lambda: machine.protect(levels, head))
        # 1.6 upload
        return self._send(round_index, attempt, header, ciphertexts)

    def _send(self, round_index: int, attempt: int, header: bytes, ciphertexts: list[bytes]) -> bytes:
        verify_upload(header, ciphertexts)
        with suppress(DuplicateMessage):  # it had arrived, and the answer was lost
            self._clock.timed(
                "upload", lambda: self._aggregator.upload(round_index, attempt, header, ciphertexts)
            )
        return header

    def answer(self, round_index: int, attempt: int) -> bytes:
        """Step 2: check roster and aggregate; return a Release if all have uploaded, otherwise a Consent."""
        return self._answer(self._running(round_index, attempt), round_index, attempt)

    def consents(self, round_index: int, attempt: int, consents: Sequence[bytes]) -> bytes:
        """Step 2.1: return a Release for a smaller roster that T members consented to."""
        return self._answered(round_index, attempt).consents(consents)

    def unmask(self, round_index: int, attempt: int, releases: Sequence[bytes]) -> tuple[bytes, Packages]:
        """Step 3: open the sum and apply it; the same confirmation when asked again.

        Returns:
            The signed confirmation of the new state, and the unused round-key packages.
        """
        if self._progress.awaits_close == (round_index, attempt):
            return self._confirmed()
        machine, leaves = self._answered(round_index, attempt), self._leaves(round_index, attempt)
        opened = self._clock.timed("unmask and decrypt", lambda: machine.unmask(releases, leaves))
        return self._applied(machine, round_index, attempt, opened)

    def void(self, round_index: int, attempt: int) -> bytes:
        """Step 3.1: return the signed Void of a round whose sum this participant could not open."""
        if round_index != self.state.round + 1:
            raise OutOfOrder(f"round {round_index} is not the next one, {self.state.round + 1}")
        machine = self.membership.entered[1]
        return machine.void(round_index, attempt, transcript=self.state.transcript)

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
        with self._advancing():
            self.rosters.note_void(round_index)
            self.state.skip(link)
            self._progress = replace(
                self._progress, result=b"", roster_hash=b"", awaits_close=None, contributors=0
            )
        self._finish(machine, round_index, attempt)
        return machine.packages()

    def open(self, round_index: int, attempt: int) -> tuple[bytes, Packages]:
        """Steps 2 and 3 in strict mode: open the sum of the whole roster and apply it; as `unmask`."""
        if self._has_confirmed(round_index, attempt):  # also after its close: a restarted coordinator asks
            return self._confirmed()
        machine = self._running(round_index, attempt)
        headers, aggregate = self._clock.timed(
            "download", lambda: self._aggregator.download(round_index, attempt)
        )
        opened = self._clock.timed("unmask and decrypt", lambda: machine.open(headers, aggregate))
        keep_heads(self._store, headers)
        return self._applied(machine, round_index, attempt, opened)

    def close(self, round_index: int, attempt: int, results: Sequence[bytes]) -> None:
        """Step 4: check that T members or more ended the round with this participant's state. May be repeated.

        Raises:
            ModelDivergence: Two members differ, or one of them from this participant. No later round is entered then.
            OutOfOrder: The round was not opened here, or a later one was.
            See `attempt.verify_results` for everything else.
        """
        own = self._progress.result
        if self._progress.awaits_close not in (None, (round_index, attempt)) or not own:
            raise OutOfOrder(f"round {round_index} attempt {attempt} is not open")
        epoch = self.membership.entered[0]
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

    def _has_confirmed(self, round_index: int, attempt: int) -> bool:
        """Whether this attempt is the one that was opened last, under the keys of this epoch."""
        if round_index != self.state.round or not self._progress.result:
            return False
        epoch = self.membership.entered[0]
        with suppress(ProtocolError):  # of an earlier epoch
            own = open_signed(self._progress.result, RoundResult, self._roster, epoch.number)
            return (own.round, own.attempt) == (round_index, attempt)
        return False

    def _confirmed(self) -> tuple[bytes, Packages]:
        """Give what was answered when the round was opened; the answer was lost."""
        return self._progress.result, self.membership.entered[1].packages()

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
        keep_heads(self._store, headers)
        with self._advancing():
            self._apply(round_index, opened)
            self._progress = replace(
                self._progress,
                result=b"",
                roster_hash=opened.roster_hash,
                awaits_close=None,
                contributors=self._contributors(opened),
            )
        self._finish(machine, round_index, attempt)
        return machine.packages()

    def _verify_applied(self, round_index: int, attempt: int, releases: Sequence[bytes]) -> None:
        """Take the certificate of the round applied last in place of the confirmations that were missed."""
        epoch = self.membership.entered[0]
        verify_certificate(epoch, round_index, attempt, self._progress.roster_hash, releases)
        if self._progress.awaits_close is not None:
            self._progress.awaits_close = None
            save_state(self._store, self.state, self._progress)
