"""One participant's side of one attempt of one round in strict mode, as a state machine without I/O.

    1 advertise   make a one-time key, sign it
    2 start       check the signed keys of the whole roster, fix the cohort
    3 protect     pack, mask, encrypt, sign the header of the upload
    4 open        check all headers, decrypt the aggregate, check its range
    5 transcript  chain the result to the history
    6 confirm     sign what this participant holds now

A step that is asked for too early or too late is refused. Nothing here survives a crash; a run that stops
starts afresh with new keys, in a new session.
"""

import hmac
import os
from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.errors import (
    AggregateHashMismatch,
    CiphertextSizeMismatch,
    CohortMismatch,
    OutOfOrder,
    OwnKeyMismatch,
    PackageReuse,
    StaleRound,
    UpdateShapeMismatch,
    UploadReuse,
)
from hansa.secure_agg.agreement import verify_agreement
from hansa.secure_agg.bfv import HeKey
from hansa.secure_agg.ciphertext_format import EXPANDED_BYTES, verify_wire_length
from hansa.secure_agg.cohort import (
    ciphertext_list_hash,
    cohort_hash,
    open_whole_roster,
    roster_hash,
    transcript_hash,
)
from hansa.secure_agg.identity import Identity, RandomBytes, Roster
from hansa.secure_agg.masks import RoundSecret, net_mask
from hansa.secure_agg.messages import RoundKey, RoundResult, UploadHeader, sign_message
from hansa.secure_agg.packing import pack, unpack_sum
from hansa.secure_agg.parameters import PLAIN_MODULUS, Layout


class UsedKeys:
    """A participant's memory of the attempts it took part in during a session.

    Guarantees:
        - An attempt is entered once (PackageReuse), and none after a later one was entered (StaleRound).
    """

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        self._latest: tuple[int, int] | None = None

    def enter(self, round_index: int, attempt: int) -> None:
        """Take note of an attempt before its key exists."""
        wanted = (round_index, attempt)
        if self._latest is not None and wanted <= self._latest:
            was = f"round {self._latest[0]} attempt {self._latest[1]} was entered"
            if wanted == self._latest:
                raise PackageReuse(f"{was} already; a round key serves one attempt")
            raise StaleRound(f"round {round_index} attempt {attempt} is over: {was}")
        self._latest = wanted


class _Step(Enum):
    NEW = "new"
    ADVERTISED = "advertised"
    STARTED = "started"
    PROTECTED = "protected"
    OPENED = "opened"
    CLOSED = "closed"


class ParticipantRound:
    """One participant in one attempt of one round.

    Args:
        participant: Own id in the roster.
        identity: Own signing key.
        roster: The pinned roster.
        he_key: The participants' common encryption key.
        layout: Layout for exactly this roster.
        round_index: Round number.
        attempt: Attempt number.
        used_keys: The session's memory, one object for all rounds of a participant.
        random_bytes: Source of the one-time key; the operating system outside of tests.

    Raises:
        UnknownSender: `participant` is not in the roster.
        OwnKeyMismatch: The roster holds another identity key under this id.
        CohortMismatch: The layout is for another number of participants.

    Guarantees:
        - The round key serves one cohort, its masks one upload; after `protect` the private round key is
          gone.
        - The aggregate is decrypted at most once, and only under headers signed by the whole roster.
        - repr() shows no secret.
    """

    def __init__(
        self,
        *,
        participant: str,
        identity: Identity,
        roster: Roster,
        he_key: HeKey,
        layout: Layout,
        round_index: int,
        attempt: int,
        used_keys: UsedKeys,
        random_bytes: RandomBytes = os.urandom,
    ) -> None:
        if not hmac.compare_digest(roster.public_key(participant), identity.public):
            raise OwnKeyMismatch(f"the roster holds another identity key for {participant!r}")
        if layout.participants != len(roster.members):
            raise CohortMismatch(
                f"a layout for {layout.participants} does not fit {len(roster.members)} members"
            )
        self._participant, self._identity, self._roster = participant, identity, roster
        self._he_key, self._layout = he_key, layout
        self._round, self._attempt, self._used_keys = round_index, attempt, used_keys
        self._random_bytes = random_bytes
        self._step = _Step.NEW
        self._secret: RoundSecret
        self._own_key = b""
        self._own_header = b""
        self._public_keys: dict[str, bytes] = {}
        self._cohort = b""
        self._count = 0
        self._header: UploadHeader
        self._roster_hash = b""
        self._aggregate_hash = b""

    def __repr__(self) -> str:
        what = f"round {self._round} attempt {self._attempt} is {self._step.value}"
        return f"ParticipantRound({self._participant!r}, {what})"

    def _require(self, step: _Step, action: str) -> None:
        if self._step is not step:
            raise OutOfOrder(f"{action} needs the step {step.value!r}, this round is at {self._step.value!r}")

    def _signed(self, kind: type[RoundKey | UploadHeader | RoundResult], **values: Any) -> bytes:
        body = kind(
            session=self._roster.session_id,
            study=self._roster.study_id,
            round=self._round,
            attempt=self._attempt,
            sender=self._participant,
            **values,
        )
        return sign_message(self._identity, body)

    def advertise(self) -> bytes:
        """Step 1: make the one-time key of this attempt.

        Returns:
            The signed RoundKey.

        Raises:
            OutOfOrder: Called before.
            PackageReuse, StaleRound: This attempt was entered before, or a later one was.
        """
        self._require(_Step.NEW, "advertise")
        self._used_keys.enter(self._round, self._attempt)
        self._secret = RoundSecret(self._random_bytes)
        self._own_key = self._signed(RoundKey, public_key=self._secret.public)
        self._step = _Step.ADVERTISED
        return self._own_key

    def start(self, round_keys: Sequence[bytes]) -> None:
        """Step 2: accept the cohort. After an error the same step can be tried with other messages.

        Args:
            round_keys: The signed RoundKey of every member, own one included, in any order; untrusted.

        Raises:
            PackageReuse: A cohort was accepted before, or two members show one key.
            OutOfOrder: Nothing was advertised.
            OwnKeyMismatch: The key under the own name is not the one that was advertised.
            MalformedMessage, UnknownSender, BadSignature, WrongSession, StaleRound, DuplicateMember,
            CohortMismatch:
                See `cohort.open_whole_roster`.
        """
        if self._step in (_Step.STARTED, _Step.PROTECTED, _Step.OPENED, _Step.CLOSED):
            raise PackageReuse(f"the round key of round {self._round} attempt {self._attempt} has its cohort")
        self._require(_Step.ADVERTISED, "start")
        found = open_whole_roster(round_keys, RoundKey, self._roster, self._round, self._attempt)
        if not hmac.compare_digest(found[self._participant][1], self._own_key):
            raise OwnKeyMismatch(f"the round key shown for {self._participant!r} is not the one that it made")
        public_keys = {participant: body.public_key for participant, (body, _) in found.items()}
        if len(set(public_keys.values())) != len(public_keys):
            raise PackageReuse("two members show the same round key")
        self._public_keys = public_keys
        signed = {participant: data for participant, (_, data) in found.items()}
        self._cohort = cohort_hash(self._roster, self._round, self._attempt, signed)
        self._step = _Step.STARTED

    def protect(
        self, levels: NDArray[np.int64], state_tag: bytes, previous_transcript: bytes
    ) -> tuple[bytes, list[bytes]]:
        """Step 3: pack, mask and encrypt the update of this round.

        Args:
            levels: (m,) int64 quantised update.
            state_tag: 32 bytes, tag of the model state that the update belongs to.
            previous_transcript: 32 bytes, last link of the transcript.

        Returns:
            (signed UploadHeader, ciphertexts in seeded form).

        Raises:
            UploadReuse: Called before; the masks of an attempt cover one upload.
            OutOfOrder: No cohort was accepted.
            UpdateShapeMismatch, UpdateOutOfRange: See `packing.pack`; nothing was masked, the step can be
                repeated.
            MalformedMessage: A tag has the wrong length, or a peer's round key is of low order.

        Guarantees:
            - Each ciphertext of the upload holds the packed update plus a mask that is uniform modulo t.
        """
        if self._step in (_Step.PROTECTED, _Step.OPENED, _Step.CLOSED):
            raise UploadReuse(f"round {self._round} attempt {self._attempt} has its upload already")
        self._require(_Step.STARTED, "protect")
        slots = pack(levels, self._layout)
        self._step = _Step.PROTECTED  # before any mask exists: whatever fails from here, no second upload
        try:
            seeds = self._secret.signed_seeds(
                self._participant, self._public_keys, self._cohort, self._round, self._attempt
            )
        finally:
            self._secret.erase()
        masked = (slots + net_mask(seeds, slots.size).reshape(slots.shape)) % np.uint64(PLAIN_MODULUS)
        ciphertexts = [self._he_key.encrypt(row) for row in masked]
        self._own_header = self._signed(
            UploadHeader,
            cohort_hash=self._cohort,
            he_key_id=self._he_key.key_id,
            state_tag=state_tag,
            previous_transcript=previous_transcript,
            ciphertext_count=len(ciphertexts),
            ciphertext_list_hash=ciphertext_list_hash(ciphertexts),
        )
        self._count = levels.size
        return self._own_header, ciphertexts

    def open(self, headers: Sequence[bytes], aggregate: Sequence[bytes]) -> NDArray[np.int64]:
        """Step 4: decrypt the sum of the whole cohort. It is tried once; any error ends the round.

        Args:
            headers: The signed UploadHeader of every member, own one included, in any order; untrusted.
            aggregate: Ciphertexts in expanded form; untrusted.

        Returns:
            (m,) int64, the sum of the levels of all members.

        Raises:
            OutOfOrder: Nothing was uploaded, or `open` was called before.
            MalformedMessage, UnknownSender, BadSignature, WrongSession, StaleRound, DuplicateMember,
            CohortMismatch:
                See `cohort.open_whole_roster`; CohortMismatch also for a header of another cohort hash.
            HeParameterMismatch, ModelDivergence, CiphertextSizeMismatch, AggregateHashMismatch: A header
                disagrees with the own one on key, state or history, length, or is not the own one under the
                own name.
            MalformedCiphertext, AggregateRangeViolation: The aggregate is not a sum of the uploads.

        Guarantees:
            - For honest uploads the result equals the sum of the levels, integer for integer.
        """
        self._require(_Step.PROTECTED, "open")
        self._step = _Step.CLOSED
        found = open_whole_roster(headers, UploadHeader, self._roster, self._round, self._attempt)
        own = found[self._participant][0]
        if not hmac.compare_digest(found[self._participant][1], self._own_header):
            raise AggregateHashMismatch(
                f"the header shown for {self._participant!r} is not the one that it signed"
            )
        for header, _ in found.values():
            verify_agreement(header, own)
        if len(aggregate) != own.ciphertext_count:
            raise CiphertextSizeMismatch(
                f"{len(aggregate)} ciphertexts, the headers say {own.ciphertext_count}"
            )
        for ciphertext in aggregate:
            verify_wire_length(ciphertext, EXPANDED_BYTES)
        slots = np.stack([self._he_key.decrypt(ciphertext) for ciphertext in aggregate])
        total = unpack_sum(slots, self._layout, self._count)
        signed = {participant: data for participant, (_, data) in found.items()}
        self._aggregate_hash = ciphertext_list_hash(aggregate)
        self._roster_hash = roster_hash(self._cohort, signed, self._aggregate_hash)
        self._header = own
        self._step = _Step.OPENED
        return total

    def transcript(self, total: NDArray[np.int64]) -> bytes:
        """Step 5: return the next link of the transcript, 32 bytes, for the sum that `open` returned."""
        self._require(_Step.OPENED, "transcript")
        if total.shape != (self._count,) or total.dtype != np.int64:
            raise UpdateShapeMismatch(
                f"a sum of shape {total.shape} and type {total.dtype} is not ({self._count},) int64"
            )
        return transcript_hash(
            self._header.previous_transcript, self._roster_hash, self._aggregate_hash, total
        )

    def confirm(self, state_tag: bytes) -> bytes:
        """Step 6: return the signed RoundResult with the tag of the model state after the round."""
        self._require(_Step.OPENED, "confirm")
        return self._signed(
            RoundResult, cohort_hash=self._cohort, roster_hash=self._roster_hash, state_tag=state_tag
        )
