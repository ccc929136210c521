"""One participant's side of the rounds of an epoch, as a state machine without I/O.

    E4 packages   make round-key packages ahead of need
    R0 start      check the cohort's packages and the shares dealt to this member, fix the cohort
    R1 protect    pack, tag, mask, encrypt, sign the header of the upload
    R2 answer     check roster and aggregate; all there: release (R4), otherwise consent (R3)
    R3 consents   T consents to one roster with dropouts: release
    R4            one share for each member of the cohort: of its self-mask if it uploaded, else of its mask key
    R5 unmask     T releases: recover the masks, open the sum
       void       it cannot be opened: say so, and with T that say so leave the round behind
    R6 confirm, finish

E4 to R1 are in `uploading.py`. In strict mode there are no shares: R0, R1, then `open` takes headers and aggregate at
once. Three invariants hold over crashes and epochs, each on the store before the act that it guards: a package serves
one cohort (I1), shares are released once for a model state (I2), masks serve one upload (I3). After a restart a new
object on the same store sends again what was stored, and nothing else for the same attempt.
"""

import hmac
from collections.abc import Callable, Sequence

from hansa.errors import (
    AlreadyReleased,
    CohortMismatch,
    CohortTooSmall,
    DuplicateMessage,
    NotEnoughConsents,
    OutOfOrder,
    RosterEquivocation,
    StaleRound,
    TranscriptDivergence,
)
from hansa.secure_agg.attempt import (
    LOCK,
    UPLOAD,
    UPLOAD_CIPHERTEXTS,
    Attempt,
    RosterView,
    load,
    release_record,
    save,
    save_attempt,
    view_roster,
)
from hansa.secure_agg.cohort import cohort_hash, open_each, state_tag, verify_round, void_link
from hansa.secure_agg.messages import Consent, Package, Release, RoundResult, Void, sign_message
from hansa.secure_agg.packages import verify_form
from hansa.secure_agg.recovery import Leaves
from hansa.secure_agg.sealing import release_key, seal
from hansa.secure_agg.shamir import SHARE_BYTES
from hansa.secure_agg.unmasking import Opened, open_sum, unmask
from hansa.secure_agg.uploading import HASH_BYTES, UploadMachine
from hansa.secure_agg.voiding import UNOPENABLE, failed_sum, note_failure, verify_voids


class RoundMachine(UploadMachine):
    """One participant in the rounds of one epoch.

    Args:
        epoch: The epoch that was entered.
        identity: Own signing key.
        store: Durable storage; the same one for all epochs of a participant.
        random_bytes: Source of one-time keys; the operating system outside of tests.

    Raises:
        OwnKeyMismatch: The roster holds another identity key for this participant.

    Guarantees:
        - A package serves one cohort; masks serve one upload; shares are released once for a model hash. Each holds
          over restarts on the same store.
        - No member's share of both kinds is ever released by this participant.
        - An aggregate is decrypted only under a roster that T members stand behind, and only one an attempt.
        - repr() shows no secret.
    """

    # -- R2, R3, R4 --------------------------------------------------------------------------------------

    def answer(self, headers: Sequence[bytes], aggregate: Sequence[bytes]) -> bytes:
        """Step R2: check roster and aggregate, and answer.

        Args:
            headers: Signed UploadHeader of each member of the roster, own one included; untrusted.
            aggregate: Ciphertexts in expanded form; untrusted.

        Returns:
            The signed Release if the roster is the whole cohort, otherwise the signed Consent. The same bytes for
            the same roster, also after a restart.

        Raises:
            OutOfOrder: Nothing was uploaded in this attempt, or the mode is strict.
            RosterEquivocation: Another roster or aggregate was shown before.
            AlreadyReleased: Shares were released for this model state in another attempt (I2).
            See `attempt.view_roster` for everything else.
        """
        if self._epoch.terms.strict:
            raise OutOfOrder("strict mode has no shares to release; the sum is opened at once")
        attempt, view = self._locked(headers, aggregate)
        if view.full:
            return self._release(attempt, view)
        return self._sign(Consent, attempt, cohort_hash=attempt.cohort_hash, roster_hash=view.roster_hash)

    def _locked(self, headers: Sequence[bytes], aggregate: Sequence[bytes]) -> tuple[Attempt, RosterView]:
        attempt, record = self._running(), self._upload_record()
        if record is None:
            raise OutOfOrder(f"nothing was uploaded in round {attempt.round} attempt {attempt.attempt}")
        view = view_roster(
            self._epoch,
            attempt,
            record["header"],
            record["count"],
            headers,
            aggregate,
            must_contain_own=True,
        )
        self._verify_lock(attempt, view)
        save(self._store, LOCK, cohort=attempt.cohort_hash, roster=view.roster_hash)
        self._view = view
        return attempt, view

    def _verify_lock(self, attempt: Attempt, view: RosterView) -> None:
        lock = load(self._store, LOCK)
        if lock is not None and lock["cohort"] == attempt.cohort_hash and lock["roster"] != view.roster_hash:
            raise RosterEquivocation(
                f"another roster or aggregate was shown before for round {attempt.round}"
            )

    def consents(self, consents: Sequence[bytes]) -> bytes:
        """Steps R3 and R4: release shares for a roster with dropouts that T members consented to.

        Args:
            consents: Signed Consent messages; untrusted. Those to another roster do not count.

        Returns:
            The signed Release.

        Raises:
            OutOfOrder: No roster was answered by this object; after a restart `answer` comes first.
            NotEnoughConsents: Fewer than T members of the roster consent to it.
            AlreadyReleased: See `answer`.
            DuplicateMessage, StaleRound, StateRollback: Twice from one member, or of another round.
            MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch: See `messages.open_signed`.
        """
        attempt, view = self._running(), self._view
        if view is None:
            raise OutOfOrder("consents came before a roster")
        found = open_each(consents, Consent, self._epoch.roster, self._epoch.number, DuplicateMessage)
        agreed = 0
        for name, (body, _) in found.items():
            verify_round(body, attempt.round, attempt.attempt)
            same = (body.cohort_hash, body.roster_hash) == (attempt.cohort_hash, view.roster_hash)
            agreed += same and name in view.headers
        if agreed < self._epoch.terms.threshold:
            raise NotEnoughConsents(
                f"{agreed} members consent to the roster, the threshold is {self._epoch.terms.threshold}"
            )
        return self._release(attempt, view)

    def _release(self, attempt: Attempt, view: RosterView) -> bytes:
        key = release_record(attempt.model_hash)
        record = load(self._store, key)
        if record is not None:
            if (record["cohort"], record["roster"]) != (attempt.cohort_hash, view.roster_hash):
                raise AlreadyReleased(f"shares were released for the model state of round {attempt.round}")
            stored: bytes = record["signed"]
            return stored
        shares = b"".join(
            attempt.shares[name][:SHARE_BYTES] if name in view.headers else attempt.shares[name][SHARE_BYTES:]
            for name in attempt.cohort
        )
        sealing_key = release_key(self._epoch.group_key, view.roster_hash, self._epoch.participant)
        signed = self._sign(
            Release,
            attempt,
            cohort_hash=attempt.cohort_hash,
            roster_hash=view.roster_hash,
            sealed_shares=seal(sealing_key, shares, attempt.cohort_hash),
        )
        save(self._store, key, cohort=attempt.cohort_hash, roster=view.roster_hash, signed=signed)  # I2
        self._forget_shares(attempt)
        return signed

    # -- R5, R6 ------------------------------------------------------------------------------------------

    def unmask(self, releases: Sequence[bytes], leaves: Leaves | None = None) -> Opened:
        """Step R5: open the sum of the roster that was answered, from the releases of T of its members.

        Args:
            releases: Signed Release messages; untrusted.
            leaves: Fetches the leaves of a dealer's package; see `recovery.recover_secrets`.

        Raises:
            OutOfOrder: No roster was answered by this object, or nothing was released for it.
            See `unmasking.unmask` for everything else.
        """
        attempt, view, record = self._running(), self._view, self._upload_record()
        if view is None or record is None or self._released(attempt) is None:
            raise OutOfOrder("releases came before this member has released")
        return self._noting(
            attempt, view, lambda: unmask(self._epoch, attempt, view, record["count"], releases, leaves)
        )

    def open(self, headers: Sequence[bytes], aggregate: Sequence[bytes]) -> Opened:
        """Step R2 in strict mode: open the sum of the whole roster.

        Raises:
            OutOfOrder: Nothing was uploaded in this attempt, or the mode is quorum.
            RosterEquivocation: Another aggregate was shown before.
            See `attempt.view_roster` and `unmasking.open_sum` for everything else.
        """
        if not self._epoch.terms.strict:
            raise OutOfOrder("in quorum mode a sum is opened from released shares")
        attempt, view = self._locked(headers, aggregate)
        record = self._upload_record() or {}
        return self._noting(
            attempt, view, lambda: open_sum(self._epoch, attempt, view, record["count"], None)
        )

    def _noting(self, attempt: Attempt, view: RosterView, opening: Callable[[], Opened]) -> Opened:
        """Open a sum; a failure is on the store before anybody learns of it."""
        try:
            return opening()
        except UNOPENABLE:
            note_failure(self._store, attempt, view.roster_hash)
            raise

    def catch_up(
        self,
        round_index: int,
        attempt: int,
        packages: Sequence[bytes],
        headers: Sequence[bytes],
        aggregate: Sequence[bytes],
        releases: Sequence[bytes],
        *,
        count: int,
        model_hash: bytes,
        transcript: bytes,
        leaves: Leaves | None = None,
    ) -> Opened:
        """Open a round that this member missed, in whole or from some step on.

        The T signed releases over one roster are the certificate that this is the round's result. Nothing is
        released. Then `finish` with the same numbers.

        Args:
            round_index: Round number.
            attempt: Attempt number.
            packages: As for `start`.
            headers: As for `answer`; the own one is there only if this member uploaded.
            aggregate: As for `answer`.
            releases: As for `unmask`.
            count: Entries of an update in this round.
            model_hash: Hash of the model state before the round.
            transcript: Last link of the transcript before the round.
            leaves: As for `unmask`.

        Raises:
            StaleRound: A later attempt was entered.
            StateRollback: The roster holds an upload signed by this member that its store does not know.
            RosterEquivocation: This member answered another roster of the same attempt.
            See `start`, `attempt.view_roster` and `unmasking.unmask` for everything else.
        """
        if self._epoch.terms.strict:
            raise OutOfOrder("strict mode has no certificates; nobody can miss a round")
        if (round_index, attempt) < self.entered:
            raise StaleRound(f"round {round_index} attempt {attempt} is over: {self.entered} was entered")
        found = open_each(packages, Package, self._epoch.roster, self._epoch.number)
        if len(found) < self._epoch.terms.threshold:
            raise CohortTooSmall(f"a cohort of {len(found)} is below {self._epoch.terms.threshold}")
        for body, _ in found.values():
            verify_form(body, strict=False)
        signed = {name: data for name, (_, data) in found.items()}
        missed = Attempt(
            epoch=self._epoch.number,
            round=round_index,
            attempt=attempt,
            cohort_hash=cohort_hash(self._epoch.manifest_hash, round_index, attempt, signed, transcript),
            model_hash=model_hash,
            transcript=transcript,
            packages=signed,
            shares={},
            used={},
            bodies={name: body for name, (body, _) in found.items()},
        )
        record = load(self._store, UPLOAD)
        own_header = record["header"] if record and record["cohort"] == missed.cohort_hash else None
        view = view_roster(self._epoch, missed, own_header, count, headers, aggregate, must_contain_own=False)
        self._verify_lock(missed, view)
        opened = self._noting(
            missed, view, lambda: unmask(self._epoch, missed, view, count, releases, leaves)
        )
        self._caught_up = {name: body.number for name, (body, _) in found.items()}
        return opened

    def void(self, round_index: int, attempt: int, *, transcript: bytes) -> bytes:
        """Step R5: return the signed Void of a round whose sum this member could not open, in its time or later.

        T members had released for that sum, or this one could not have tried.

        Args:
            round_index: Round number.
            attempt: Attempt number.
            transcript: Last link of the transcript before the round.

        Raises:
            OutOfOrder: The last sum that failed here was another one, or the mode is strict: there nothing was
                released, and another attempt is the way on.
        """
        epoch = self._epoch
        failed = failed_sum(self._store, epoch.number, round_index, attempt)
        if failed is None or epoch.terms.strict:
            raise OutOfOrder(f"the sum of round {round_index} attempt {attempt} did not fail here")
        body = Void(
            session=epoch.roster.session_id,
            study=epoch.roster.study_id,
            epoch=epoch.number,
            sender=epoch.participant,
            round=round_index,
            attempt=attempt,
            cohort_hash=failed[0],
            roster_hash=failed[1],
            transcript=void_link(epoch.group_key, transcript, failed[1]),
        )
        return sign_message(self._identity, body)

    def skip(self, round_index: int, attempt: int, voids: Sequence[bytes], *, transcript: bytes) -> bytes:
        """Step R5: check that T members declare a round void. Then `finish` with the same numbers.

        Args:
            round_index: Round number.
            attempt: Attempt number.
            voids: Signed Void of T members; untrusted.
            transcript: Last link of the transcript before the round.

        Returns:
            The link of the void round, 32 bytes.

        Raises:
            StaleRound: A later attempt was entered.
            CohortMismatch, RosterEquivocation: This member takes part in another cohort, or was shown another roster.
            TranscriptDivergence: The voids belong to another history.
            See `voiding.verify_voids` for everything else.
        """
        if (round_index, attempt) < self.entered:
            raise StaleRound(f"round {round_index} attempt {attempt} is over: {self.entered} was entered")
        body = verify_voids(self._epoch, round_index, attempt, voids)
        own, lock = self._attempt, load(self._store, LOCK)
        if own is not None and not own.closed and (own.round, own.attempt) == (round_index, attempt):
            if own.cohort_hash != body.cohort_hash:
                raise CohortMismatch(f"round {round_index} is declared void for another cohort")
            if lock is not None and lock["cohort"] == own.cohort_hash and lock["roster"] != body.roster_hash:
                raise RosterEquivocation(f"round {round_index} is declared void for another roster")
        link = void_link(self._epoch.group_key, transcript, body.roster_hash)
        if not hmac.compare_digest(link, body.transcript):
            raise TranscriptDivergence(f"the voids of round {round_index} continue another history")
        return link

    def confirm(self, opened: Opened, model_hash: bytes) -> bytes:
        """Step R6: return the signed RoundResult with the tag of the model state after the round, and the history's."""
        attempt = self._running()
        return self._sign(
            RoundResult,
            attempt,
            cohort_hash=attempt.cohort_hash,
            roster_hash=opened.roster_hash,
            state_tag=state_tag(self._epoch.group_key, model_hash),
            transcript=opened.transcript,
        )

    def finish(self, round_index: int, attempt: int) -> None:
        """Close an attempt: no later message of it is answered. Call it when the new state is durable.

        Raises:
            StaleRound: A later attempt was entered.
        """
        if (round_index, attempt) < self.entered:
            raise StaleRound(f"round {round_index} attempt {attempt} is over: {self.entered} was entered")
        used = self._used()
        for name, number in self._caught_up.items():
            used[name] = max(number, used.get(name, 0))
        closed = Attempt(
            epoch=self._epoch.number,
            round=round_index,
            attempt=attempt,
            cohort_hash=bytes(HASH_BYTES),
            model_hash=bytes(HASH_BYTES),
            transcript=bytes(HASH_BYTES),
            packages={},
            shares={},
            used=used,
            closed=True,
        )
        save_attempt(self._store, closed)
        self._attempt, self._own, self._view, self._caught_up = closed, None, None, {}
        for key in (UPLOAD_CIPHERTEXTS, UPLOAD, LOCK):
            self._store.delete(key)
        self._drop_spent_packages()
