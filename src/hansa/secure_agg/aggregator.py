"""The coordinator's side of one attempt of one round: check, add, relay. It holds no secret.

    R1 accept          uploads: header, ciphertexts, sum
    R2 seal            no more uploads; headers and aggregate for the members of the roster
    R3 accept_answer   consents, until T of them can be relayed
    R4 accept_answer   releases, until T of them can be relayed: the certificate of the round

1.1 the header: form, signature, session, epoch, round, a member of the cohort, first one of its sender
1.2 the header against what is expected: history, cohort, key, state, count (`expected.py`), ledger head (`ledger_heads.py`)
1.3 the ciphertexts against the header, one by one as they come: lengths, count, hash (`arriving.py`)
1.4 what was not known beforehand is decided by T equal headers; until then uploads wait, unread
1.5 the ciphertexts parsed and added, all or none (`sums.py`)
"""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping

from hansa.errors import (
    CohortMismatch,
    CohortTooSmall,
    DuplicateMessage,
    Error,
    MalformedMessage,
    NotEnoughConsents,
    NotEnoughShares,
    NotInCohort,
    OutOfOrder,
    ProtocolError,
    RosterEquivocation,
    RosterTooSmall,
)
from hansa.secure_agg.arriving import ArrivingUpload, IsLate, never_late
from hansa.secure_agg.cohort import CiphertextListHash, open_each, roster_hash, verify_round
from hansa.secure_agg.expected import ExpectedHeader
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.ledger_heads import LedgerHeads
from hansa.secure_agg.messages import Consent, Release, UploadHeader, message_type, open_signed
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.sums import Sums, SumsInProcess

# T releases open a round, the others are there for holders that release wrong shares. From 52 members on, all of them would
# cost every member more bytes than its packages do.
SPARE_RELEASES = 16


class RoundAggregator:
    """Sums and answers of one attempt. Uploads may arrive at the same time, from several threads.

    Args:
        roster: The members; identity keys are public.
        terms: Mode and threshold.
        epoch: Number of the epoch.
        round_index: Round number.
        attempt: Attempt number.
        cohort: Ids whose packages serve this attempt; the whole roster where it is not given.
        sums: Who parses and adds; this process itself where it is not given.
        expected: What every header must say, as far as it is known.
        heads: Ledger heads that the members signed before; kept up by the uploads that are taken here.

    Attributes:
        uplink_bytes: Headers and ciphertexts that came whole and as signed so far, of all members together.

    Raises:
        CohortTooSmall: Fewer members in the cohort than the threshold.

    Guarantees:
        - An upload or answer that is refused, for whatever reason, leaves sums, headers and counts as they were.
        - A member is added once at most, and none after `seal`.
        - A member whose header differs from what is expected, or from what T members say, costs itself alone, whether
          it comes first or last.
        - There is one running sum for each ciphertext of an upload, and no upload in memory, whatever the number of
          members, where the sums are kept by a process of their own.
        - A member that sends slowly holds up no other one.
        - There is no secret in this object or behind it.
    """

    def __init__(
        self,
        *,
        roster: Roster,
        terms: Terms,
        epoch: int,
        round_index: int,
        attempt: int,
        cohort: Collection[str] | None = None,
        sums: Sums | None = None,
        expected: ExpectedHeader | None = None,
        heads: LedgerHeads | None = None,
    ) -> None:
        self._roster, self._terms, self._epoch = roster, terms, epoch
        self._round, self._attempt = round_index, attempt
        self.cohort = tuple(sorted(roster.participants if cohort is None else cohort))
        if len(self.cohort) < terms.least_roster:
            raise CohortTooSmall(
                f"a cohort of {len(self.cohort)} is below the least roster {terms.least_roster}"
            )
        self._sums: Sums = SumsInProcess() if sums is None else sums
        self._expected = ExpectedHeader() if expected is None else expected
        self._heads = LedgerHeads() if heads is None else heads
        self._lock = threading.RLock()  # held while an upload is added, never while one arrives
        self._arriving: dict[str, ArrivingUpload] = {}
        self._waiting: dict[str, ArrivingUpload] = {}
        self._headers: dict[str, bytes] = {}
        self._refused: dict[str, Error] = {}
        self._cohort_hash = self._roster_hash = b""
        self._consents: dict[str, bytes] = {}
        self._releases: dict[str, bytes] = {}
        self.uplink_bytes = 0

    @property
    def contributors(self) -> tuple[str, ...]:
        """Members whose upload was accepted, sorted; until T headers agree some of them may yet be refused."""
        return tuple(sorted([*self._headers, *self._waiting]))

    @property
    def refused(self) -> Mapping[str, Error]:
        """Why members whose upload was accepted were refused afterwards: T members say otherwise, or it did not parse."""
        return dict(self._refused)

    @property
    def complete(self) -> bool:
        """Whether every member of the cohort has uploaded."""
        return len(self.contributors) == len(self.cohort)

    @property
    def needs_consents(self) -> bool:
        """Whether the roster that was closed is smaller than the cohort."""
        return bool(self._roster_hash) and not self.complete

    # -- R1 ----------------------------------------------------------------------------------------------

    def accept(
        self, signed_header: bytes, ciphertexts: Iterable[bytes], *, is_late: IsLate = never_late
    ) -> str:
        """Step R1: check one member's upload and add it.

        Args:
            signed_header: Signed UploadHeader, untrusted.
            ciphertexts: Seeded ciphertexts in order, untrusted; read no further than the header's count and
                one.
            is_late: Whether the upload has taken longer than it may; asked after each ciphertext.

        Returns:
            The member's id.

        Raises:
            OutOfOrder: The roster was closed.
            MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch: See `messages.open_signed`.
            StaleRound, StateRollback: Another round or attempt.
            NotInCohort: A member outside the cohort.
            DuplicateMessage: This member was added before, or its upload is on its way.
            CohortMismatch, HeParameterMismatch, TranscriptDivergence, ModelDivergence, CiphertextSizeMismatch: Not the
                cohort, key, history, state or count that is expected, or that T members have.
            LedgerRewound: The member showed a longer or another history of its privacy ledger before.
            UploadTooSlow: The ciphertexts did not come in time.
            AggregateHashMismatch: The ciphertexts are not those that the header was signed for.
            MalformedCiphertext: A ciphertext is not of the accepted form.
            StoreNotWritable, WorkerFailed: There is no room for the upload, or nobody to add it.
        """
        arriving = self.begin_upload(signed_header, is_late=is_late)
        arriving.take_all(ciphertexts)
        return arriving.header.sender

    def begin_upload(self, signed_header: bytes, *, is_late: IsLate = never_late) -> ArrivingUpload:
        """Step R1 up to 1.2: check the header, and make a place for the ciphertexts; see `accept`."""
        # 1.1
        header = open_signed(signed_header, UploadHeader, self._roster, self._epoch)
        verify_round(header, self._round, self._attempt)
        sender = header.sender
        if sender not in self.cohort:
            raise NotInCohort(f"{sender!r} is not in the cohort of round {self._round}")
        with self._lock:
            if (
                sender in self._headers or sender in self._waiting
            ):  # also after the end: whoever asks again has arrived
                raise DuplicateMessage(f"{sender!r} has uploaded already")
            self._verify_open()
            before = self._arriving.get(sender)
            if before is not None and not before.is_late():
                raise DuplicateMessage(f"an upload of {sender!r} is on its way")
            # 1.2
            self._expected.verify(header)
            self._heads.verify(header)
            if (
                before is not None
            ):  # whoever feeds it still waits for bytes, and will find out with the next ones
                before.discard()
            place = self._sums.open(header.ciphertext_count)
            self._arriving[sender] = ArrivingUpload(self, header, signed_header, place, is_late)
            return self._arriving[sender]

    def take(self, upload: ArrivingUpload) -> None:
        """Steps 1.4 and 1.5: take an upload that came whole and as signed; called by its `finish`."""
        sender = upload.header.sender
        with self._lock:
            self._verify_open()
            if self._arriving.get(sender) is not upload:
                raise OutOfOrder(f"this upload of {sender!r} was given up")
            if not self._expected.complete:
                waiting = [other.header for other in self._waiting.values()]
                leading, votes = self._expected.leading([*waiting, upload.header])
                if votes >= self._terms.threshold:
                    self._expected = leading
            self._expected.verify(upload.header)  # more may be known than when it began
            self._heads.verify(upload.header)
            if self._expected.complete:
                self._add_waiting()
                upload.commit()
                self._headers[sender] = upload.signed
            else:
                self._waiting[sender] = upload
            self._heads.take(upload.header)
            del self._arriving[sender]
            self._refused.pop(sender, None)
            self.uplink_bytes += upload.upload_bytes

    def drop(self, upload: ArrivingUpload) -> None:
        """Forget an upload that was given up while it arrived; called by its `discard`."""
        with self._lock:
            if self._arriving.get(upload.header.sender) is upload:
                del self._arriving[upload.header.sender]

    def _add_waiting(self) -> None:
        """Add what came before it was known what to expect, and refuse by name what differs."""
        for sender, upload in sorted(self._waiting.items()):
            try:
                self._expected.verify(upload.header)
                upload.commit()
            except ProtocolError as error:
                self._refused[sender] = error
                upload.discard()
            except Error:
                return  # no fault of the upload: it waits for the next occasion
            else:
                self._headers[sender] = upload.signed
            del self._waiting[sender]

    def _verify_open(self) -> None:
        if self._roster_hash:
            raise OutOfOrder(f"the roster of round {self._round} attempt {self._attempt} is closed")

    # -- R2 ----------------------------------------------------------------------------------------------

    def seal(self, keep: Callable[[bytes], None]) -> list[bytes]:
        """Step R2: take no more uploads, give out the aggregate, and return the signed headers by sorted id.

        Args:
            keep: Called with each ciphertext of the aggregate, in order.

        Raises:
            RosterTooSmall: Fewer uploads than the threshold; uploads are still taken.
            WorkerFailed: The sums cannot be given; uploads are still taken. So they are if `keep` fails.

        Guarantees:
            - Calls after the first give the same.
            - An upload that is on its way is given up.
        """
        with self._lock:
            if self._expected.complete:
                self._add_waiting()
            self._verify_enough()
            running = CiphertextListHash()
            for total in self._sums.totals():
                keep(total)
                running.update(total)
            self._cohort_hash = self._expected.cohort_hash or b""
            self._roster_hash = roster_hash(self._cohort_hash, self._headers, running.digest())
            for sender, upload in self._waiting.items():
                self._refused[sender] = OutOfOrder(
                    f"{sender!r} could not be added before the roster was closed"
                )
                upload.discard()
            self._waiting.clear()
            for upload in list(self._arriving.values()):
                upload.discard()
            return [self._headers[name] for name in sorted(self._headers)]

    def _verify_enough(self) -> None:
        have, threshold = len(self._headers), self._terms.least_roster
        if have >= threshold:
            return
        came, why = have + len(self._waiting), ""
        if came >= threshold:
            leading, _ = self._expected.leading(upload.header for upload in self._waiting.values())
            differ = [
                name for name, upload in sorted(self._waiting.items()) if leading.differs(upload.header)
            ]
            why = f", and {', '.join(differ)} do not agree with the others"
        raise RosterTooSmall(
            f"{came} of {len(self.cohort)} members have uploaded, the threshold is {threshold}{why}"
        )

    def close(self) -> tuple[list[bytes], list[bytes]]:
        """Step R2 with the whole aggregate in memory: return headers and aggregate; see `seal`."""
        aggregate: list[bytes] = []
        return self.seal(aggregate.append), aggregate

    def reseal(self, headers: Iterable[bytes], aggregate: Iterable[bytes]) -> None:
        """Step R2 after a restart: stand where `seal` had ended, from what it gave.

        Args:
            headers: Signed headers of the roster.
            aggregate: Ciphertexts of the aggregate, in order; hashed only.

        Raises:
            MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch: See `messages.open_signed`.
            StaleRound, StateRollback: Another round or attempt.
            NotInCohort: A member outside the cohort.
            CohortMismatch: The headers are not all of one cohort.
            RosterTooSmall: Fewer than the threshold.

        Guarantees:
            - Answers that were signed for the roster before the restart are taken, and no others.
        """
        found = open_each(headers, UploadHeader, self._roster, self._epoch)
        cohorts = {header.cohort_hash for header, _ in found.values()}
        for header, _ in found.values():
            verify_round(header, self._round, self._attempt)
            if header.sender not in self.cohort:
                raise NotInCohort(f"{header.sender!r} is not in the cohort of round {self._round}")
        if len(cohorts) > 1:
            raise CohortMismatch(f"the headers of round {self._round} are of {len(cohorts)} cohorts")
        running = CiphertextListHash()
        for ciphertext in aggregate:
            running.update(ciphertext)
        with self._lock:
            self._headers = {name: signed for name, (_, signed) in found.items()}
            self._verify_enough()
            self._cohort_hash = cohorts.pop()
            self._roster_hash = roster_hash(self._cohort_hash, self._headers, running.digest())

    # -- R3, R4 --------------------------------------------------------------------------------------

    def accept_answer(self, signed: bytes) -> str:
        """Steps R3 and R4: take one member's Consent or Release. The same bytes may come again.

        Returns:
            The member's id.

        Raises:
            OutOfOrder: The roster is not closed.
            MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch: See `messages.open_signed`.
            StaleRound, StateRollback: Another round or attempt.
            NotInCohort: A member that is not in the roster.
            RosterEquivocation: The answer is to another roster.
            DuplicateMessage: The member answered otherwise before.
        """
        if not self._roster_hash:
            raise OutOfOrder("an answer came before the roster was closed")
        answers = {Consent.TYPE: self._consents, Release.TYPE: self._releases}
        claimed = message_type(signed)
        if claimed not in answers:
            raise MalformedMessage(f"a {claimed} stands where a consent or a release is expected")
        kind: type[Consent | Release] = Consent if claimed == Consent.TYPE else Release
        body = open_signed(signed, kind, self._roster, self._epoch)
        verify_round(body, self._round, self._attempt)
        if body.sender not in self._headers:
            raise NotInCohort(f"{body.sender!r} is not in the roster of round {self._round}")
        if (body.cohort_hash, body.roster_hash) != (self._cohort_hash, self._roster_hash):
            raise RosterEquivocation(f"{body.sender!r} answers another roster")
        if answers[claimed].setdefault(body.sender, signed) != signed:
            raise DuplicateMessage(f"{body.sender!r} sent two different answers")
        return body.sender

    def consents(self) -> list[bytes]:
        """Step R3: return the consents; NotEnoughConsents below the threshold."""
        if len(self._consents) < self._terms.threshold:
            raise NotEnoughConsents(f"{len(self._consents)} consents are fewer than {self._terms.threshold}")
        return [self._consents[name] for name in sorted(self._consents)]

    def releases(self) -> list[bytes]:
        """Step R5: return releases of T + 16 members at most, the certificate; NotEnoughShares below the threshold.

        Guarantees:
            - While all or T + 16 members release, 16 of them, or all beyond T, may release wrong shares.
        """
        if len(self._releases) < self._terms.threshold:
            raise NotEnoughShares(f"{len(self._releases)} releases are fewer than {self._terms.threshold}")
        names = sorted(self._releases)[: self._terms.threshold + SPARE_RELEASES]
        return [self._releases[name] for name in names]
