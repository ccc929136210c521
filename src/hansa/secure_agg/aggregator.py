"""The coordinator's side of one attempt of one round: check uploads, add ciphertexts. It holds no secret.

1 the header: form, signature, session, round, first one of its sender
2 the header against those accepted before: cohort, key, count
3 the ciphertexts against the header: lengths, count, hash
4 every ciphertext parsed
5 only then all of them added
"""

from collections.abc import Iterable

from hansa.errors import (
    AggregateHashMismatch,
    CiphertextSizeMismatch,
    CohortMismatch,
    DuplicateMember,
    HeParameterMismatch,
    OutOfOrder,
)
from hansa.secure_agg.bfv import CiphertextSum, parse_seeded
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES, verify_wire_length
from hansa.secure_agg.cohort import ciphertext_list_hash, verify_round
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.messages import UploadHeader, open_signed


class RoundAggregator:
    """Sums of the uploads of one attempt.

    Args:
        roster: Who may upload; identity keys are public.
        round_index: Round number.
        attempt: Attempt number.

    Attributes:
        uplink_bytes: Headers and ciphertexts accepted so far, of all members together.
        downlink_bytes: What all members together download: every header and the aggregate, once each per
            member; 0 until `aggregate` was called.

    Guarantees:
        - An upload that is refused, for whatever reason, leaves sums, headers and counts as they were.
        - A member is added once at most.
        - There is no secret in this object or behind it.
    """

    def __init__(self, roster: Roster, round_index: int, attempt: int) -> None:
        self._roster, self._round, self._attempt = roster, round_index, attempt
        self._headers: dict[str, bytes] = {}
        self._first: UploadHeader | None = None
        self._sums: list[CiphertextSum] = []
        self.uplink_bytes = 0
        self.downlink_bytes = 0

    @property
    def complete(self) -> bool:
        """Whether every member of the roster has uploaded."""
        return len(self._headers) == len(self._roster.members)

    def accept(self, signed_header: bytes, ciphertexts: Iterable[bytes]) -> None:
        """Check one member's upload and add it.

        Args:
            signed_header: Signed UploadHeader, untrusted.
            ciphertexts: Seeded ciphertexts in order, untrusted; read no further than the header's count and
                one.

        Raises:
            MalformedMessage, UnknownSender, BadSignature, WrongSession: See `messages.open_signed`.
            StaleRound: Another round or attempt.
            DuplicateMember: This member was added before.
            CohortMismatch, HeParameterMismatch, CiphertextSizeMismatch: Not the cohort, key or count of the
                others.
            AggregateHashMismatch: The ciphertexts are not those that the header was signed for.
            MalformedCiphertext: A ciphertext is not of the accepted form.
        """
        # 1
        header = open_signed(signed_header, UploadHeader, self._roster)
        verify_round(header, self._round, self._attempt)
        if header.sender in self._headers:
            raise DuplicateMember(f"{header.sender!r} has uploaded already")
        # 2
        self._verify_like_first(header)
        # 3
        received = _receive(ciphertexts, header.ciphertext_count)
        if ciphertext_list_hash(received) != header.ciphertext_list_hash:
            raise AggregateHashMismatch(f"the ciphertexts of {header.sender!r} are not those that it signed")
        # 4
        parsed = [parse_seeded(ciphertext) for ciphertext in received]
        # 5
        if self._first is None:
            self._first = header
            self._sums = [CiphertextSum() for _ in parsed]
        for running, ciphertext in zip(self._sums, parsed, strict=True):
            running.add_parsed(ciphertext)
        self._headers[header.sender] = signed_header
        self.uplink_bytes += len(signed_header) + sum(len(ciphertext) for ciphertext in received)

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

    def headers(self) -> list[bytes]:
        """Return the signed headers accepted so far, sorted by id."""
        return [self._headers[participant] for participant in sorted(self._headers)]

    def aggregate(self) -> list[bytes]:
        """Return the sums in expanded form; OutOfOrder until every member has uploaded."""
        if not self.complete:
            raise OutOfOrder(f"{len(self._headers)} of {len(self._roster.members)} members have uploaded")
        sums = [running.serialise() for running in self._sums]
        download_bytes = sum(len(data) for data in (*sums, *self._headers.values()))
        self.downlink_bytes = download_bytes * len(self._roster.members)
        return sums


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
