"""A participant's steps up to its upload: packages, the start of an attempt, the protected update.

R1 in detail:

1.1 pack the levels, append their tag
1.2 take the package's secrets: whatever fails from here, there is no second upload under them
1.3 mask, encrypt, sign
1.4 on the store, then out
"""

import hmac
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from hansa.errors import (
    AlreadyReleased,
    CiphertextSizeMismatch,
    InvalidValue,
    KeyRotationDue,
    NotInCohort,
    OutOfOrder,
    OwnKeyMismatch,
    PackageReuse,
    ProtocolError,
    StaleRound,
    StateRollback,
    UploadReuse,
)
from hansa.secure_agg.attempt import (
    LOCK,
    UPLOAD,
    UPLOAD_CIPHERTEXTS,
    Attempt,
    RosterView,
    load,
    load_attempt,
    release_record,
    save,
    save_attempt,
    verify_cohort_size,
)
from hansa.secure_agg.cohort import ciphertext_list_hash, cohort_hash, open_each, state_tag
from hansa.secure_agg.epoch import Epoch
from hansa.secure_agg.identity import Identity, RandomBytes
from hansa.secure_agg.ledger_heads import NO_LEDGER
from hansa.secure_agg.masks import add_mask, net_mask, pair_seed, pair_sign, self_seed
from hansa.secure_agg.messages import Envelope, Package, RoundBody, UploadHeader, open_signed, sign_message
from hansa.secure_agg.packages import OwnPackage, make_package, open_shares, verify_form
from hansa.secure_agg.parameters import SLOTS
from hansa.secure_agg.store import Store
from hansa.secure_agg.tag import SumTag
from hansa.secure_agg.voiding import MOST_FAILURES, failures
from hansa.secure_agg.wrapping import pack_update

UNUSED_PACKAGES = 2
HASH_BYTES = 32


class UploadMachine:
    """Steps E4 to R1; the first half of `participant.RoundMachine`, which documents arguments and guarantees."""

    def __init__(
        self, *, epoch: Epoch, identity: Identity, store: Store, random_bytes: RandomBytes = os.urandom
    ) -> None:
        if not hmac.compare_digest(epoch.roster.public_key(epoch.participant), identity.public):
            raise OwnKeyMismatch(f"the roster holds another identity key for {epoch.participant!r}")
        self._epoch, self._identity, self._store, self._random_bytes = epoch, identity, store, random_bytes
        self._own: OwnPackage | None = None  # only between start and protect of this very object
        self._view: RosterView | None = None
        self._caught_up: dict[str, int] = {}
        self._attempt = load_attempt(store)
        self._drop_spent_packages()
        if self._attempt is not None and self._attempt.shares and self._released(self._attempt) is not None:
            self._forget_shares(self._attempt)

    def __repr__(self) -> str:
        return f"RoundMachine({self._epoch.participant!r}, epoch {self._epoch.number}, {self._attempt!r})"

    # -- what is stored ----------------------------------------------------------------------------------

    @property
    def entered(self) -> tuple[int, int]:
        """Round and attempt entered last; (0, -1) before any."""
        return (0, -1) if self._attempt is None else (self._attempt.round, self._attempt.attempt)

    @property
    def running(self) -> bool:
        """Whether the attempt that was entered last is still open in this epoch."""
        attempt = self._attempt
        return attempt is not None and not attempt.closed and attempt.epoch == self._epoch.number

    @property
    def answered(self) -> bool:
        """Whether this very object has checked a roster of the running attempt; after a restart it has not."""
        return self._view is not None

    @property
    def locked(self) -> bool:
        """Whether this member has answered a roster of the running attempt, now or before a restart."""
        lock = load(self._store, LOCK)
        return lock is not None and self.running and lock["cohort"] == self._running().cohort_hash

    @property
    def upload(self) -> tuple[bytes, list[bytes]] | None:
        """Header and ciphertexts of the running attempt, to be sent again after a restart."""
        record = self._upload_record()
        stored = record and load(self._store, UPLOAD_CIPHERTEXTS)
        return (record["header"], stored["ciphertexts"]) if record and stored else None

    @property
    def release(self) -> bytes | None:
        """The signed Release of the running attempt, to be sent again after a restart."""
        return None if self._attempt is None else self._released(self._attempt)

    def _running(self) -> Attempt:
        attempt = self._attempt
        if attempt is None or attempt.closed or attempt.epoch != self._epoch.number:
            raise OutOfOrder("no attempt is running")
        return attempt

    def _upload_record(self) -> dict[str, Any] | None:
        record = load(self._store, UPLOAD)
        if record is None or self._attempt is None or record["cohort"] != self._attempt.cohort_hash:
            return None
        return record

    def _released(self, attempt: Attempt) -> bytes | None:
        record = load(self._store, release_record(attempt.model_hash))
        if record is None or record["cohort"] != attempt.cohort_hash:
            return None
        signed: bytes = record["signed"]
        return signed

    def _used(self) -> dict[str, int]:
        attempt = self._attempt
        return dict(attempt.used) if attempt is not None and attempt.epoch == self._epoch.number else {}

    def _forget_shares(self, attempt: Attempt) -> None:
        """Drop the share kinds that were not released, and those that were: the release holds them sealed."""
        self._attempt = replace(attempt, shares={})
        save_attempt(self._store, self._attempt)

    def _package_key(self, number: int) -> str:
        return f"package/{self._epoch.number:010}/{number:010}"

    def _drop_spent_packages(self) -> None:
        spent = self._package_key(self._used().get(self._epoch.participant, 0))
        for key in self._store.keys("package/"):
            if key <= spent:
                self._store.delete(key)

    def _sign(self, kind: type[RoundBody], attempt: Attempt, **values: Any) -> bytes:
        body = kind(
            session=self._epoch.roster.session_id,
            study=self._epoch.roster.study_id,
            epoch=self._epoch.number,
            sender=self._epoch.participant,
            round=attempt.round,
            attempt=attempt.attempt,
            **values,
        )
        return sign_message(self._identity, body)

    # -- E4 ----------------------------------------------------------------------------------------------

    def packages(self, handed_out: int = 0) -> list[tuple[bytes, list[bytes]]]:
        """Step E4: return the unused packages, made up to two; the same bytes until one is used.

        Args:
            handed_out: Largest number of the own packages that the coordinator says it has used, also in attempts that
                never reached this member. These are dropped.

        Returns:
            (signed Package, posted shares in roster order) of each, oldest first. In strict mode the shares are empty.

        Raises:
            StateRollback: This store never made a package of that number.

        Guarantees:
            - The secrets are on the store before the package is returned.
            - No number is given twice.
        """
        prefix = f"package/{self._epoch.number:010}/"
        stored = [OwnPackage.decode(self._store.get(key) or b"") for key in self._store.keys(prefix)]
        last = self._last_number()
        if not 0 <= handed_out <= last:
            raise StateRollback(f"package {handed_out} was never made here, the last one is {last}")
        unused = [package for package in stored if package.number > handed_out]
        while len(unused) < UNUSED_PACKAGES:
            last += 1
            made = make_package(
                self._epoch,
                self._identity,
                number=last,
                round_index=self.entered[0],
                random_bytes=self._random_bytes,
            )
            self._store.put(self._package_key(last), made.encode())
            unused.append(made)
        for package in stored:
            if package.number <= handed_out:
                self._store.delete(self._package_key(package.number))
        return [(package.signed, list(package.posted)) for package in unused]

    def _last_number(self) -> int:
        """Return the largest number that a package of this member has in this epoch, as far as its store knows."""
        made = [int(key.rsplit("/", 1)[1]) for key in self._store.keys(f"package/{self._epoch.number:010}/")]
        return max([self._used().get(self._epoch.participant, 0), *made])

    def verify_not_rolled_back(self, packages: Sequence[bytes]) -> None:
        """Check that no package that this member signed is newer than what its store knows. It changes nothing.

        Raises:
            StateRollback: One is: this store is an older copy of one that was in use.
        """
        name = self._epoch.participant
        for data in packages:
            with suppress(ProtocolError):  # anything else that is wrong with a cohort is found by `start`
                if Envelope.decode(data).sender != name:
                    continue
                number = open_signed(data, Package, self._epoch.roster, self._epoch.number).number
                if number > self._last_number():
                    break
        else:
            return
        raise StateRollback(f"package {number} of this member is newer than its store")

    # -- R0 ----------------------------------------------------------------------------------------------

    def start(
        self,
        round_index: int,
        attempt: int,
        packages: Sequence[bytes],
        blobs: Sequence[bytes],
        *,
        model_hash: bytes,
        transcript: bytes,
    ) -> tuple[str, ...]:
        """Step R0: accept a cohort. After an error nothing has changed and another cohort may be offered.

        Args:
            round_index: Round number, from 1.
            attempt: Attempt number, from 0.
            packages: One signed Package of each member of the cohort; untrusted.
            blobs: In the order of `packages`, the shares that each sealed to this member, as delivered; anything for
                the own one, and in strict mode. Untrusted.
            model_hash: 32 bytes, hash of the model state that the update is for.
            transcript: Last link of the transcript, 32 bytes.

        Returns:
            The ids of the cohort, sorted.

        Raises:
            StaleRound: This attempt or a later one was entered.
            KeyRotationDue: Two sums under this epoch's keys could not be opened.
            AlreadyReleased: Shares were released for this model state (I2).
            MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch: See `messages.open_signed`.
            DuplicateMember, CohortTooSmall, TooLittleNoise, NotInCohort: The cohort is not one, or too small.
            StateRollback: A peer made its package in a later round.
            PackageReuse: A package was used before (I1), or two members show the same key.
            OwnKeyMismatch: The package under the own name is not one of the unused own ones.
            PackageHashMismatch, ShareOpenFailed, ShareHashMismatch: See `packages.open_shares`.
        """
        if (round_index, attempt) <= self.entered:
            raise StaleRound(f"round {round_index} attempt {attempt} is over: {self.entered} was entered")
        if len(model_hash) != HASH_BYTES or len(transcript) != HASH_BYTES or not 0 <= attempt < 2**16:
            raise InvalidValue("model hash and transcript are 32 bytes, an attempt is 0 to 65535")
        if failures(self._store, self._epoch.number) >= MOST_FAILURES:
            raise KeyRotationDue(
                f"{MOST_FAILURES} sums of epoch {self._epoch.number} could not be opened; its keys are not used again"
            )
        if self._store.get(release_record(model_hash)) is not None:
            raise AlreadyReleased(f"shares were released for the model state before round {round_index}")
        if len(blobs) != len(packages):
            raise CiphertextSizeMismatch(f"{len(blobs)} sealed shares came with {len(packages)} packages")
        found = open_each(packages, Package, self._epoch.roster, self._epoch.number)
        bodies = {name: body for name, (body, _) in found.items()}
        own = self._verify_cohort(round_index, bodies)
        if not hmac.compare_digest(found[self._epoch.participant][1], own.signed):
            raise OwnKeyMismatch("the package shown under the own name is not the one that was made")
        by_package = dict(zip(packages, blobs, strict=True))
        shares = {}
        if not self._epoch.terms.strict:
            for name, (body, data) in found.items():
                is_own = name == self._epoch.participant
                shares[name] = own.own_shares if is_own else open_shares(self._epoch, body, by_package[data])
        signed = {name: data for name, (_, data) in found.items()}
        entered = Attempt(
            epoch=self._epoch.number,
            round=round_index,
            attempt=attempt,
            cohort_hash=cohort_hash(self._epoch.manifest_hash, round_index, attempt, signed, transcript),
            model_hash=model_hash,
            transcript=transcript,
            packages=signed,
            shares=shares,
            used=self._used() | {name: body.number for name, (body, _) in found.items()},
            bodies=bodies,
        )
        save_attempt(self._store, entered)  # I1
        self._attempt, self._own, self._view = entered, own, None
        self._drop_spent_packages()  # from here the own secrets are in memory only: a crash abandons the attempt
        return entered.cohort

    def _verify_cohort(self, round_index: int, found: dict[str, Package]) -> OwnPackage:
        terms, name = self._epoch.terms, self._epoch.participant
        verify_cohort_size(terms, len(found))
        if name not in found:
            raise NotInCohort(f"{name!r} is not in the cohort of round {round_index}")
        used = self._used()
        for body in found.values():
            verify_form(body, strict=terms.strict)
            if body.round > round_index:
                raise StateRollback(
                    f"{body.sender!r} made its package in round {body.round}, this is round {round_index}"
                )
            if body.number <= used.get(body.sender, 0):
                raise PackageReuse(f"package {body.number} of {body.sender!r} or a later one was used")
        if len({body.mask_key for body in found.values()}) != len(found):
            raise PackageReuse("two members show the same mask key")
        stored = self._store.get(self._package_key(found[name].number))
        if stored is None:
            raise OwnKeyMismatch("the package shown under the own name was never made here")
        return OwnPackage.decode(stored)

    # -- R1 ----------------------------------------------------------------------------------------------

    def protect(self, levels: NDArray[np.int64], ledger_head: bytes = NO_LEDGER) -> tuple[bytes, list[bytes]]:
        """Step R1: pack, tag, mask and encrypt the update of the running attempt.

        Args:
            levels: (m,) int64 quantised update.
            ledger_head: Head of the member's privacy ledger after the update was paid for; see `ledger_heads`.

        Returns:
            (signed UploadHeader, ciphertexts in seeded form). To send them again take `upload`.

        Raises:
            OutOfOrder: No attempt is running.
            UploadReuse: The masks were used, or the process was restarted since `start`: this attempt is abandoned.
            UpdateShapeMismatch, UpdateOutOfRange: See `wrapping.pack_update`; nothing was masked, the step can be repeated.
            MalformedMessage: A peer's mask key is of low order.

        Guarantees:
            - Each slot of the upload is the update's plus a mask that is uniform modulo t.
            - The upload is on the store, and the secrets of its masks are deleted, before it is returned.
        """
        attempt = self._running()
        if self._own is None:
            raise UploadReuse(
                f"round {attempt.round} attempt {attempt.attempt} has its upload or was interrupted"
            )
        slots = pack_update(levels, self._epoch.terms)
        own, self._own = self._own, None  # before any mask exists: whatever fails from here, no second upload
        tagged = SumTag(self._epoch.group_key, attempt.cohort_hash).append(slots)
        masked = add_mask(tagged, net_mask(self._mask_seeds(attempt, own), tagged.size))
        ciphertexts = [self._epoch.he_key.encrypt(row) for row in masked.reshape(-1, SLOTS)]
        header = self._sign(
            UploadHeader,
            attempt,
            cohort_hash=attempt.cohort_hash,
            he_key_id=self._epoch.he_key.key_id,
            state_tag=state_tag(self._epoch.group_key, attempt.model_hash),
            previous_transcript=attempt.transcript,
            ciphertext_count=len(ciphertexts),
            ciphertext_list_hash=ciphertext_list_hash(ciphertexts),
            ledger_head=ledger_head,
        )
        save(self._store, UPLOAD_CIPHERTEXTS, ciphertexts=ciphertexts)
        save(self._store, UPLOAD, cohort=attempt.cohort_hash, header=header, count=levels.size)  # I3
        return header, ciphertexts

    def _mask_seeds(self, attempt: Attempt, own: OwnPackage) -> list[tuple[int, bytes]]:
        name, at = self._epoch.participant, {"round_index": attempt.round, "attempt": attempt.attempt}
        private = X25519PrivateKey.from_private_bytes(own.mask_private)
        seeds = [
            (
                pair_sign(name, peer),
                pair_seed(private, package.mask_key, attempt.cohort_hash, participant=name, peer=peer, **at),
            )
            for peer, package in attempt.opened_packages().items()
            if peer != name
        ]
        if own.seed:
            seeds.append((1, self_seed(own.seed, attempt.cohort_hash, participant=name, **at)))
        return seeds
