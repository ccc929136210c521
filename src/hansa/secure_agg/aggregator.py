"""The coordinator's side of one attempt of one round: check, add, relay. It holds no secret.

    R1 accept          uploads: header, ciphertexts, sum
    R2 close           no more uploads; headers and aggregate for the members of the roster
    R3 accept_answer   consents, until T of them can be relayed
    R4 accept_answer   releases, until T of them can be relayed: the certificate of the round

1.1 the header: form, signature, session, epoch, round, a member of the cohort, first one of its sender
1.2 the header against those accepted before: cohort, key, count
1.3 the ciphertexts against the header: lengths, count, hash
1.4 every ciphertext parsed
1.5 only then all of them added
"""

from collections.abc import Callable, Collection, Iterable, Sequence

from hansa.errors import (
    AggregateHashMismatch,
    CiphertextSizeMismatch,
    CohortMismatch,
    CohortTooSmall,
    DuplicateMessage,
    HeParameterMismatch,
    MalformedMessage,
    NotEnoughConsents,
    NotEnoughShares,
    NotInCohort,
    OutOfOrder,
    RosterEquivocation,
    RosterTooSmall,
)
from hansa.secure_agg.bfv import CiphertextSum, parse_seeded
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES, verify_wire_length
from hansa.secure_agg.cohort import ciphertext_list_hash, roster_hash, verify_round
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.messages import Consent, Release, UploadHeader, message_type, open_signed
from hansa.secure_agg.parameters import Terms

CheckCiphertexts = Callable[[Sequence[bytes]], None]


class RoundAggregator:
    """Sums and answers of one attempt.

    Args:
        roster: The members; identity keys are public.
        terms: Mode and threshold.
        epoch: Number of the epoch.
        round_index: Round number.
        attempt: Attempt number.
        cohort: Ids whose packages serve this attempt; the whole roster where it is not given.
        check_ciphertexts: Called with the ciphertexts of an upload before this process parses them, such as a check
            in a process of its own; raises MalformedCiphertext.

    Attributes:
        uplink_bytes: Headers and ciphertexts accepted so far, of all members together.

    Raises:
        CohortTooSmall: Fewer members in the cohort than the threshold.

    Guarantees:
        - An upload or answer that is refused, for whatever reason, leaves sums, headers and counts as they were.
        - A member is added once at most, and none after `close`.
        - There is one running sum for each ciphertext of an upload, whatever the number of members.
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
        check_ciphertexts: CheckCiphertexts | None = None,
    ) -> None:
        self._roster, self._terms, self._epoch = roster, terms, epoch
        self._round, self._attempt = round_index, attempt
        self.cohort = tuple(sorted(roster.participants if cohort is None else cohort))
        if len(self.cohort) < terms.threshold:
            raise CohortTooSmall(f"a cohort of {len(self.cohort)} is below the threshold {terms.threshold}")
        self._check_ciphertexts = check_ciphertexts
        self._headers: dict[str, bytes] = {}
        self._first: UploadHeader | None = None
        self._sums: list[CiphertextSum] = []
        self._aggregate: list[bytes] = []
        self._roster_hash = b""
        self._consents: dict[str, bytes] = {}
        self._releases: dict[str, bytes] = {}
        self.uplink_bytes = 0

    @property
    def contributors(self) -> tuple[str, ...]:
        """Members whose upload was accepted, sorted."""
        return tuple(sorted(self._headers))

    @property
    def complete(self) -> bool:
        """Whether every member of the cohort has uploaded."""
        return len(self._headers) == len(self.cohort)

    @property
    def needs_consents(self) -> bool:
        """Whether the roster that was closed is smaller than the cohort."""
        return bool(self._roster_hash) and not self.complete

    def accept(self, signed_header: bytes, ciphertexts: Iterable[bytes]) -> str:
        """Step R1: check one member's upload and add it.

        Args:
            signed_header: Signed UploadHeader, untrusted.
            ciphertexts: Seeded ciphertexts in order, untrusted; read no further than the header's count and
                one.

        Returns:
            The member's id.

        Raises:
            OutOfOrder: The roster was closed.
            MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch: See `messages.open_signed`.
            StaleRound, StateRollback: Another round or attempt.
            NotInCohort: A member outside the cohort.
            DuplicateMessage: This member was added before.
            CohortMismatch, HeParameterMismatch, CiphertextSizeMismatch: Not the cohort, key or count of the
                others.
            AggregateHashMismatch: The ciphertexts are not those that the header was signed for.
            MalformedCiphertext: A ciphertext is not of the accepted form.
        """
        # 1.1
        header = open_signed(signed_header, UploadHeader, self._roster, self._epoch)
        verify_round(header, self._round, self._attempt)
        if header.sender not in self.cohort:
            raise NotInCohort(f"{header.sender!r} is not in the cohort of round {self._round}")
        if header.sender in self._headers:
            raise DuplicateMessage(f"{header.sender!r} has uploaded already")
        if self._roster_hash:
            raise OutOfOrder(f"the roster of round {self._round} attempt {self._attempt} is closed")
        # 1.2
        self._verify_like_first(header)
        # 1.3
        received = _receive(ciphertexts, header.ciphertext_count)
        if ciphertext_list_hash(received) != header.ciphertext_list_hash:
            raise AggregateHashMismatch(f"the ciphertexts of {header.sender!r} are not those that it signed")
        # 1.4
        if self._check_ciphertexts is not None:
            self._check_ciphertexts(received)
        parsed = [parse_seeded(ciphertext) for ciphertext in received]
        # 1.5
        if self._first is None:
            self._first = header
            self._sums = [CiphertextSum() for _ in parsed]
        for running, ciphertext in zip(self._sums, parsed, strict=True):
            running.add_parsed(ciphertext)
        self._headers[header.sender] = signed_header
        self.uplink_bytes += len(signed_header) + sum(len(ciphertext) for ciphertext in received)
        return header.sender

    def _verify_like_first(self, header: UploadHeader) -> None:
        if self._first is None:
            return
        who = f"the upload of {header.sender!r}"
        if header.cohort_hash != self._first.cohort_hash:
            raise CohortMismatch(f"{who} is for another cohort than that of {self._first.sender!r}")
        if header.he_key_id != self._first.he_key_id:
            raise HeParameterMismatch(f"{who} is under another key than that of {self._first.sender!r}")
        if header.ciphertext_count != self._first.ciphertext_count:
            raise CiphertextSizeMismatch(
                f"{who} has {header.ciphertext_count} ciphertexts, not {self._first.ciphertext_count}"
            )

    def close(self) -> tuple[list[bytes], list[bytes]]:
        """Step R2: take no more uploads, and return signed headers by sorted id and the aggregate.

        Raises:
            RosterTooSmall: Fewer uploads than the threshold; uploads are still taken.

        Guarantees:
            - Calls after the first return the same.
        """
        if not self._roster_hash:
            if self._first is None or len(self._headers) < self._terms.threshold:
                raise RosterTooSmall(
                    f"{len(self._headers)} of {len(self.cohort)} members have uploaded,"
                    f" the threshold is {self._terms.threshold}"
                )
            self._aggregate = [running.serialise() for running in self._sums]
            self._roster_hash = roster_hash(
                self._first.cohort_hash, self._headers, ciphertext_list_hash(self._aggregate)
            )
        return [self._headers[name] for name in self.contributors], list(self._aggregate)

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
        if self._first is None or not self._roster_hash:
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
        if (body.cohort_hash, body.roster_hash) != (self._first.cohort_hash, self._roster_hash):
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
        """Step R5: return the releases, the certificate of the round; NotEnoughShares below the threshold."""
        if len(self._releases) < self._terms.threshold:
            raise NotEnoughShares(f"{len(self._releases)} releases are fewer than {self._terms.threshold}")
        return [self._releases[name] for name in sorted(self._releases)]


def _receive(ciphertexts: Iterable[bytes], count: int) -> list[bytes]:
    """Take exactly `count` ciphertexts of the right length; a longer stream is not read to its end."""
    received: list[bytes] = []
    for ciphertext in ciphertexts:
        if len(received) == count:
            raise CiphertextSizeMismatch(f"more ciphertexts came than the {count} of the header")
        verify_wire_length(ciphertext, SEEDED_BYTES)
        received.append(ciphertext)
    if len(received) != count:
        raise CiphertextSizeMismatch(f"{len(received)} ciphertexts came, the header says {count}")
    return received
