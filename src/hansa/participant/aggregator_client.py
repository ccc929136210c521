"""A participant's uploads and downloads over gRPC; see `federation/aggregator.proto`.

An upload begins with the question how much of it is there already. So whatever broke - the connection, the participant's own
process, the coordinator's - only the rest is sent, or nothing.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from hansa.errors import CiphertextSizeMismatch, MalformedMessage, MessageTooLarge
from hansa.federation.aggregator_pb2 import (
    Attempt,
    DownloadBegin,
    DownloadPart,
    DownloadRequest,
    PackageLeavesRequest,
    UploadBegin,
    UploadChunk,
    UploadPart,
    UploadStatusRequest,
)
from hansa.federation.aggregator_pb2_grpc import AggregatorStub
from hansa.federation.transfer import UPLOAD_CHUNK, attempt_of, header_hash, split_download
from hansa.participant.coordinator_channel import CoordinatorChannel
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES
from hansa.secure_agg.parameters import MAXIMUM_PARTICIPANTS

MOST_CIPHERTEXTS = 1 << 16  # what a header can say


class GrpcAggregatorClient:
    """The `AggregatorClient` of a participant that reaches the aggregator over a network.

    Args:
        channel: To the coordinator.
        session_id: Session that the participant takes part in, 16 bytes.
        most_ciphertexts: Longest aggregate that is taken.

    Guarantees:
        - An upload that was cut goes on where it ended; one that had arrived is not sent again.
        - What a coordinator answers is bounded before it is kept: members' headers, `most_ciphertexts` ciphertexts of their length.
    """

    def __init__(
        self, channel: CoordinatorChannel, session_id: bytes, *, most_ciphertexts: int = MOST_CIPHERTEXTS
    ) -> None:
        self._channel, self._session_id, self._most = channel, session_id, most_ciphertexts

    def upload(self, round_index: int, attempt: int, header: bytes, ciphertexts: Sequence[bytes]) -> None:
        """Send the signed header and the ciphertexts.

        Raises:
            DuplicateMessage: Another upload of this participant came whole, or is on its way.
            StaleRound: The attempt is over.
            StoreNotWritable, SpoolQuotaExceeded: The coordinator has no room.
            CoordinatorUnreachable, AuthenticationFailed, CertificateRejected: See `CoordinatorChannel.call`.
            See `RoundAggregator.accept` for everything else.
        """
        at = attempt_of(self._session_id, round_index, attempt)
        question = UploadStatusRequest(attempt=at, header_hash=header_hash(header))

        def send(channel: Any, seconds: float) -> None:
            stub = AggregatorStub(channel)
            status = stub.UploadStatus(question, timeout=seconds)
            if status.accepted:
                return
            if status.ciphertexts_held > len(ciphertexts):
                raise MalformedMessage(
                    f"the coordinator holds {status.ciphertexts_held} of {len(ciphertexts)} ciphertexts"
                )
            parts = _parts(at, header, ciphertexts, status.ciphertexts_held)
            receipt = stub.Upload(parts, timeout=seconds)
            if receipt.ciphertext_count != len(ciphertexts):
                raise CiphertextSizeMismatch(
                    f"the coordinator has taken {receipt.ciphertext_count} of {len(ciphertexts)} ciphertexts"
                )

        self._channel.call(send)

    def download(self, round_index: int, attempt: int) -> tuple[list[bytes], list[bytes]]:
        """Receive the signed headers of the roster and the aggregate's ciphertexts; both are untrusted.

        Raises:
            StaleRound, ResultExpired: There is no such result, or not any more.
            MessageTooLarge, MalformedMessage, CiphertextSizeMismatch: The answer has not the form of one.
            CoordinatorUnreachable, AuthenticationFailed, CertificateRejected: See `CoordinatorChannel.call`.
        """
        at = attempt_of(self._session_id, round_index, attempt)
        headers: list[bytes] = []
        aggregate: list[bytes] = []  # across tries: what came is not asked for again

        def receive(channel: Any, seconds: float) -> None:
            request = DownloadRequest(attempt=at, first_index=len(aggregate))
            parts = AggregatorStub(channel).Download(request, timeout=seconds)
            try:
                begin = self._begin_of(next(parts, DownloadPart()), len(aggregate))
                headers[:] = begin.signed_headers
                for part in parts:
                    _take(part.chunk, aggregate, begin.ciphertext_count)
            finally:
                parts.cancel()
            if len(aggregate) != begin.ciphertext_count:
                raise CiphertextSizeMismatch(
                    f"{len(aggregate)} ciphertexts of the aggregate came, {begin.ciphertext_count} were announced"
                )

        self._channel.call(receive)
        return headers, aggregate

    def package_leaves(self, round_index: int, attempt: int, dealer: str) -> bytes:
        """Receive the leaves of a dealer's package, joined in roster order; untrusted.

        Raises:
            PackageLeavesMissing: The coordinator has none.
            CoordinatorUnreachable, AuthenticationFailed, CertificateRejected: See `CoordinatorChannel.call`.
        """
        at = attempt_of(self._session_id, round_index, attempt)
        request = PackageLeavesRequest(attempt=at, dealer=dealer)

        def ask(channel: Any, seconds: float) -> bytes:
            return bytes(AggregatorStub(channel).PackageLeaves(request, timeout=seconds).leaves)

        return self._channel.call(ask)

    def _begin_of(self, part: DownloadPart, have: int) -> DownloadBegin:
        """Return the begin of an answer, untrusted."""
        begin = part.begin
        if part.WhichOneof("part") != "begin":
            raise MalformedMessage("an aggregate does not begin with its headers")
        if len(begin.signed_headers) > MAXIMUM_PARTICIPANTS:
            raise MessageTooLarge(
                f"{len(begin.signed_headers)} headers came, the bound is {MAXIMUM_PARTICIPANTS}"
            )
        if not have <= begin.ciphertext_count <= self._most:
            raise MessageTooLarge(
                f"an aggregate of {begin.ciphertext_count} ciphertexts is announced, the bound is {self._most}"
            )
        return begin


def _parts(
    at: Attempt, header: bytes, ciphertexts: Sequence[bytes], first_index: int
) -> Iterator[UploadPart]:
    yield UploadPart(
        begin=UploadBegin(
            attempt=at,
            signed_header=header,
            ciphertext_count=len(ciphertexts),
            ciphertext_bytes=len(ciphertexts) * SEEDED_BYTES,
            first_index=first_index,
        )
    )
    for start in range(first_index, len(ciphertexts), UPLOAD_CHUNK):
        chunk = b"".join(ciphertexts[start : start + UPLOAD_CHUNK])
        yield UploadPart(chunk=UploadChunk(first_index=start, ciphertexts=chunk))


def _take(chunk: Any, aggregate: list[bytes], count: int) -> None:
    """Keep a chunk of an aggregate, untrusted."""
    if chunk.first_index != len(aggregate):
        raise MalformedMessage(f"ciphertext {chunk.first_index} came, {len(aggregate)} is the next one")
    taken = list(split_download(chunk.ciphertexts))
    if len(aggregate) + len(taken) > count:
        raise MessageTooLarge(f"more ciphertexts came than the {count} that were announced")
    aggregate += taken
