"""Uploads of one session that arrive over a network: they outlive the streams that bring them.

An upload belongs to a member and an attempt. A stream brings ciphertexts in order; where it breaks off, the next one goes on. Of
two streams for one upload the later one counts: the earlier may be a connection that died without anybody noticing.
"""

import hmac
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hansa.coordinator.aggregator import AggregationService
from hansa.errors import (
    CiphertextSizeMismatch,
    DuplicateMessage,
    Error,
    OutOfOrder,
    StaleRound,
    UnknownSender,
)
from hansa.federation.transfer import header_hash, split_upload
from hansa.secure_agg.arriving import ArrivingUpload
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES
from hansa.secure_agg.messages import Envelope

At = tuple[int, int]
Reserve = Callable[[str, int], None]
Release = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class _Arrival:
    """One member's upload, whatever streams bring it. `lock` is held while ciphertexts are written and added."""

    at: At
    header_hash: bytes
    count: int
    arriving: ArrivingUpload
    held: int = 0
    stream: int = 0
    accepted: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What a stream says before its first ciphertext; untrusted.

    Attributes:
        at: Round and attempt.
        signed_header: The signed UploadHeader.
        ciphertext_count: Ciphertexts of the whole upload.
        ciphertext_bytes: Their bytes.
        first_index: Index of the first ciphertext in this stream.
    """

    at: At
    signed_header: bytes
    ciphertext_count: int
    ciphertext_bytes: int
    first_index: int


class UploadDesk:
    """The uploads that arrive for one aggregation service.

    Args:
        service: Where they go.
        reserve: Called with member and bytes before an upload is begun; raises SpoolQuotaExceeded.
        release: Called with the member when its upload takes no more room.

    Guarantees:
        - What a broken stream brought is kept, and what comes again of it is refused: no ciphertext is taken twice.
        - An upload goes on only under the header with which it began.
        - After a later stream, or a question for its status, an earlier stream of the same upload writes nothing.
        - A member's header that another member shows begins nothing and ends nothing.
    """

    def __init__(self, service: AggregationService, reserve: Reserve, release: Release) -> None:
        self._service, self._reserve, self._release = service, reserve, release
        self._lock = threading.Lock()  # of the table; never held while bytes come or are added
        self._arrivals: dict[str, _Arrival] = {}

    def sweep(self) -> None:
        """Forget what belongs to attempts that are over; the service has given those uploads up itself."""
        running = self._service.running_at
        with self._lock:
            outdated = [name for name, found in self._arrivals.items() if found.at != running]
            for member in outdated:
                del self._arrivals[member]
                self._release(member)

    def status(self, member: str, at: At, wanted_hash: bytes) -> tuple[int, bool]:
        """Say how many ciphertexts of an upload are there, and whether it came whole; earlier streams of it are over.

        Raises:
            StaleRound: Another attempt runs.
        """
        arrival = self._find(member, at, wanted_hash)
        if arrival is None:
            return 0, False
        with arrival.lock:
            arrival.stream += 1
            if arrival.accepted:
                return arrival.count, self._service.has_upload(*at, member)
            if arrival.arriving.is_late():
                self.forget(member, arrival)
                return 0, False
            return arrival.held, False

    def begin(self, member: str, announced: Announced) -> "UploadStream":
        """Begin an upload, or go on with it.

        Args:
            member: Who calls.
            announced: What it says, untrusted.

        Raises:
            UnknownSender: The header is another member's.
            StaleRound: Another attempt runs.
            DuplicateMessage: The upload came whole, or one under another header is on its way.
            OutOfOrder: It does not go on where the last stream ended.
            CiphertextSizeMismatch: Count or bytes are not those of the header.
            SpoolQuotaExceeded: There is no room for it.
            See `RoundAggregator.begin_upload` for everything else.
        """
        header, count = announced.signed_header, announced.ciphertext_count
        claimed = Envelope.decode(header).sender  # before anything happens in another member's name
        if claimed != member:
            raise UnknownSender(f"{member!r} shows a header of {claimed!r}")
        if announced.ciphertext_bytes != count * SEEDED_BYTES:
            raise CiphertextSizeMismatch(
                f"{count} ciphertexts have {count * SEEDED_BYTES} bytes, not {announced.ciphertext_bytes}"
            )
        arrival = self._find(member, announced.at, header_hash(header))
        if arrival is None or (arrival.accepted and not self._service.has_upload(*announced.at, member)):
            arrival = self._begin_new(member, announced)
        with arrival.lock:
            if arrival.accepted:
                raise DuplicateMessage(f"{member!r} has uploaded already")
            if (announced.first_index, count) != (arrival.held, arrival.count):
                raise OutOfOrder(
                    f"a stream begins at {announced.first_index} of {count} ciphertexts, here are {arrival.held} of {arrival.count}"
                )
            arrival.stream += 1
            return UploadStream(self, member, arrival, arrival.stream)

    def _begin_new(self, member: str, announced: Announced) -> _Arrival:
        with self._lock:
            known = self._arrivals.get(member)
        if known is not None:
            if not known.accepted and not known.arriving.is_late():
                raise DuplicateMessage(f"an upload of {member!r} under another header is on its way")
            self.forget(member, known)
        self._reserve(member, announced.ciphertext_bytes)
        try:
            arriving = self._service.begin_upload(*announced.at, announced.signed_header)
            if arriving.header.ciphertext_count != announced.ciphertext_count:
                arriving.discard()
                raise CiphertextSizeMismatch(
                    f"{announced.ciphertext_count} ciphertexts are announced,"
                    f" the header says {arriving.header.ciphertext_count}"
                )
        except BaseException:
            self._release(member)
            raise
        arrival = _Arrival(
            at=announced.at,
            header_hash=header_hash(announced.signed_header),
            count=announced.ciphertext_count,
            arriving=arriving,
        )
        with self._lock:
            self._arrivals[member] = arrival
        return arrival

    def _find(self, member: str, at: At, wanted_hash: bytes) -> _Arrival | None:
        if self._service.running_at != at:
            raise StaleRound(f"round {at[0]} attempt {at[1]} is not running")
        self.sweep()
        with self._lock:
            arrival = self._arrivals.get(member)
        same = arrival is not None and hmac.compare_digest(arrival.header_hash, wanted_hash)
        return arrival if same else None

    def forget(self, member: str, arrival: _Arrival) -> None:
        """Give an upload up; its member may begin again."""
        if not arrival.accepted:
            arrival.arriving.discard()
        with self._lock:
            if self._arrivals.get(member) is arrival:
                del self._arrivals[member]
                self._release(member)


class UploadStream:
    """One stream of an upload; made by `UploadDesk.begin`."""

    def __init__(self, desk: UploadDesk, member: str, arrival: _Arrival, number: int) -> None:
        self._desk, self._member, self._arrival, self._number = desk, member, arrival, number

    def write(self, first_index: int, ciphertexts: bytes) -> None:
        """Take the next chunk, untrusted.

        Raises:
            OutOfOrder: It is not the next one, or a later stream has taken over. What came before is kept.
            CiphertextSizeMismatch, MessageTooLarge: See `transfer.split`. What came before is kept.
            See `ArrivingUpload.write` for everything else, after which the upload begins again.
        """
        with self._arrival.lock:
            self._verify_current()
            if first_index != self._arrival.held:
                raise OutOfOrder(f"ciphertext {first_index} came, {self._arrival.held} is the next one")
            for ciphertext in split_upload(ciphertexts):
                with self._giving_up():
                    self._arrival.arriving.write(ciphertext)
                self._arrival.held += 1

    def finish(self) -> int:
        """Hand the upload over and return its number of ciphertexts.

        Raises:
            OutOfOrder: The stream ended too early, or a later one has taken over. What came before is kept.
            See `ArrivingUpload.finish` for everything else, after which the upload begins again.
        """
        arrival = self._arrival
        with arrival.lock:
            self._verify_current()
            if arrival.held != arrival.count:
                raise OutOfOrder(f"a stream ended after {arrival.held} of {arrival.count} ciphertexts")
            with self._giving_up():
                arrival.arriving.finish()
            arrival.accepted = True
            return arrival.count

    def _verify_current(self) -> None:
        if self._arrival.stream != self._number:
            raise OutOfOrder("a later stream, or a question for its status, has taken over this upload")

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except Error:
            self._desk.forget(self._member, self._arrival)
            raise
