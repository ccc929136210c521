"""The aggregation service over gRPC: `federation/aggregator.proto` for members that call over mutual TLS.

Every call goes through the same gate: who calls (`callers.py`), whether the caller is a member of the session, how many calls it
has. Uploads that arrive lie with `upload_desk.py`; nothing of them is parsed in this process (`ciphertext_adder.py`).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.callers import Caller, Callers
from hansa.coordinator.spool_quota import SpoolQuota
from hansa.coordinator.stalls import Progress, StallWatch
from hansa.coordinator.upload_desk import Announced, UploadDesk, UploadStream
from hansa.errors import MalformedMessage, WrongSession
from hansa.federation.aggregator_pb2 import (
    Attempt,
    DownloadBegin,
    DownloadChunk,
    DownloadPart,
    DownloadRequest,
    PackageLeavesReply,
    PackageLeavesRequest,
    UploadPart,
    UploadReceipt,
    UploadStatusReply,
    UploadStatusRequest,
)
from hansa.federation.error_status import answering
from hansa.federation.transfer import DOWNLOAD_CHUNK, in_chunks
from hansa.secure_agg.identity import SESSION_BYTES, Roster, verify_participant_id

SERVICE_NAME = "hansa.v1.Aggregator"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    service: AggregationService
    roster: Roster
    desk: UploadDesk


class AggregatorServicer:
    """Answers the calls of the service `Aggregator`, for any number of sessions.

    Args:
        callers: Tells who calls.
        quota: Room for uploads.
        stalls: Watches streams; its owner starts and stops it.
        report: Receives what was not foreseen.

    Guarantees:
        - A caller that is no member of a session learns nothing of it and changes nothing in it, and one whose certificate ends or
          is revoked while it sends is stopped at the next chunk.
        - An upload is taken from the member that signed its header only.
        - Memory of a call is a few messages of one mebibyte, whatever the size of an upload or an aggregate.
    """

    def __init__(
        self,
        callers: Callers,
        *,
        quota: SpoolQuota,
        stalls: StallWatch,
        report: Callable[[Exception], None],
    ) -> None:
        self._callers, self._quota, self._stalls, self._report = callers, quota, stalls, report
        self._lock = threading.Lock()
        self._sessions: dict[bytes, _Session] = {}

    def open_session(self, service: AggregationService, roster: Roster) -> None:
        """Serve a session from now on, under the roster's session id. What was served under this id before is served no more."""
        session_id = roster.session_id

        def reserve(member: str, upload_bytes: int) -> None:
            with self._lock:
                desks = [session.desk for session in self._sessions.values()]
            for desk in desks:
                desk.sweep()
            self._quota.reserve(member, session_id, upload_bytes)

        desk = UploadDesk(service, reserve, lambda member: self._quota.release(member, session_id))
        with self._lock:
            self._sessions[session_id] = _Session(service=service, roster=roster, desk=desk)

    def close_session(self, session_id: bytes) -> None:
        """Serve a session no more."""
        with self._lock:
            session = self._sessions.pop(session_id, None)
        for member in session.roster.participants if session else ():
            self._quota.release(member, session_id)

    # -- the calls: their names are those of the .proto file -------------------------------------------------

    def Upload(self, parts: Iterator[UploadPart], context: Any) -> UploadReceipt:
        """Step R1 at the network: take one stream of one upload; see `UploadDesk`."""
        with self._answering(context) as caller, self._stalls.watching(context) as progress:
            begin = next(parts, UploadPart()).begin
            progress.waits_for_us()
            session = self._session_of(begin.attempt, caller)
            stream = session.desk.begin(
                caller.participant,
                Announced(
                    at=(begin.attempt.round, begin.attempt.attempt),
                    signed_header=begin.signed_header,
                    ciphertext_count=begin.ciphertext_count,
                    ciphertext_bytes=begin.ciphertext_bytes,
                    first_index=begin.first_index,
                ),
            )
            self._take(parts, stream, caller, progress)
            count = stream.finish()
        return UploadReceipt(ciphertext_count=count)

    def UploadStatus(self, request: UploadStatusRequest, context: Any) -> UploadStatusReply:
        """Say how much of the caller's upload is here."""
        with self._answering(context) as caller:
            session = self._session_of(request.attempt, caller)
            at = (request.attempt.round, request.attempt.attempt)
            held, accepted = session.desk.status(caller.participant, at, request.header_hash)
        return UploadStatusReply(ciphertexts_held=held, accepted=accepted)

    def Download(self, request: DownloadRequest, context: Any) -> Iterator[DownloadPart]:
        """Step R2 at the network: give headers and aggregate of an attempt whose roster is closed."""
        with self._answering(context) as caller, self._stalls.watching(context) as progress:
            session = self._session_of(request.attempt, caller)
            at, index = (request.attempt.round, request.attempt.attempt), request.first_index
            headers, ciphertexts = session.service.stream(*at, index)
            count = session.service.result_count(*at)
            yield DownloadPart(begin=DownloadBegin(signed_headers=headers, ciphertext_count=count))
            for chunk in in_chunks(ciphertexts, DOWNLOAD_CHUNK):
                progress.moved()
                caller.verify()
                yield DownloadPart(chunk=DownloadChunk(first_index=index, ciphertexts=chunk))
                index += DOWNLOAD_CHUNK

    def PackageLeaves(self, request: PackageLeavesRequest, context: Any) -> PackageLeavesReply:
        """Give the leaves of a dealer's package."""
        with self._answering(context) as caller:
            session = self._session_of(request.attempt, caller)
            verify_participant_id(request.dealer)
            at = (request.attempt.round, request.attempt.attempt)
            leaves = session.service.package_leaves(*at, request.dealer)
        return PackageLeavesReply(leaves=leaves)

    # -- inside ------------------------------------------------------------------------------------------

    @contextmanager
    def _answering(self, context: Any) -> Iterator[Caller]:
        with answering(context, self._report), self._callers.admitted(context) as caller:
            yield caller

    def _take(
        self, parts: Iterator[UploadPart], stream: UploadStream, caller: Caller, progress: Progress
    ) -> None:
        while True:
            progress.moved()
            part = next(parts, None)
            if part is None:
                break
            progress.waits_for_us()
            caller.verify()
            if part.WhichOneof("part") != "chunk":
                raise MalformedMessage("after its begin an upload holds chunks")
            stream.write(part.chunk.first_index, part.chunk.ciphertexts)
        progress.waits_for_us()

    def _session_of(self, attempt: Attempt, caller: Caller) -> _Session:
        """Return the session that a call is about, for a member of it.

        Raises:
            MalformedMessage: The call names no session.
            WrongSession: It is not served here, or the caller is no member of it: both look alike from outside.
        """
        if len(attempt.session_id) != SESSION_BYTES:
            raise MalformedMessage(f"a session id has {len(attempt.session_id)} bytes, not {SESSION_BYTES}")
        with self._lock:
            session = self._sessions.get(attempt.session_id)
        if session is None or caller.participant not in session.roster.participants:
            raise WrongSession(
                f"{caller.participant!r} has no session {attempt.session_id.hex()} at this coordinator"
            )
        return session
