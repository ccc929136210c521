"""A participant's way to the service `Consortium`. Every document that comes is checked here against what the participant pins."""

import hashlib
import os
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hansa.errors import ChecksumMismatch, DocumentRejected, Error, StoreNotWritable
from hansa.federation.answers import Approval, Denial
from hansa.federation.consortium_pb2 import (
    AnswerRequest,
    BaseModelRequest,
    CommandsRequest,
    ProposalsRequest,
    RevocationListsRequest,
    StartsRequest,
    VersionsRequest,
)
from hansa.federation.consortium_pb2_grpc import ConsortiumStub
from hansa.federation.documents import Document, read_document
from hansa.federation.enrolment_pb2 import SignedDocument
from hansa.federation.enrolments import Enrolment
from hansa.federation.files import sync_folder
from hansa.federation.proposals import Proposal, verify_proposal
from hansa.federation.requests import RenewalRequest
from hansa.federation.service_errors import CONSORTIUM_ERRORS
from hansa.federation.starts import Command, Start, verify_command, verify_start
from hansa.federation.versions import TIME
from hansa.participant.coordinator_channel import CoordinatorChannel
from hansa.participant.home import ParticipantHome
from hansa.secure_agg.certificates import RevocationList, utc_now

_MOST_DOCUMENTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedStudy:
    """A start with everything that it rests on, verified.

    Attributes:
        proposal: What the participant approved.
        start: The author's start.
        approvals: Those of the roster, in its order.
    """

    proposal: Document[Proposal]
    start: Document[Start]
    approvals: tuple[Document[Approval], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the coordinator shows as a proposal to this participant.

    Attributes:
        proposal: The proposal, verified; None where it is not one to decide on.
        problem: Why not.
    """

    proposal: Document[Proposal] | None
    problem: Error | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorFacts:
    """What a coordinator says of itself; a doctor shows it, and nothing is decided by it.

    Attributes:
        versions: Packages and protocol.
        ahead_seconds: How far its clock is ahead of this one; None where it does not say.
    """

    versions: dict[str, str]
    ahead_seconds: float | None


class ConsortiumClient:
    """Calls the service `Consortium`.

    Args:
        home: The home of a member: its pins, its keys, and the revocation list that it has seen.
        channel: The way to the service.
        now: Clock.

    Guarantees:
        - What it returns was verified against pinned values; nothing that the coordinator made up is returned.
        - A revocation list that was seen once is never forgotten for an older one.
    """

    def __init__(
        self, home: ParticipantHome, channel: CoordinatorChannel, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._home, self._channel, self._now = home, channel, now

    def versions(self) -> dict[str, str]:
        """Return the versions that the coordinator says it runs."""
        return self.facts().versions

    def facts(self) -> CoordinatorFacts:
        """Return what the coordinator says of itself."""
        began = self._now()
        reply = self._call(lambda stub, seconds: stub.Versions(VersionsRequest(), timeout=seconds))
        ended = self._now()
        versions = {str(key)[:100]: str(value)[:100] for key, value in list(reply.versions.items())[:100]}
        return CoordinatorFacts(versions=versions, ahead_seconds=_ahead(versions.pop(TIME, ""), began, ended))

    def revocations(self) -> RevocationList:
        """Fetch the latest revocation list and keep it.

        Raises:
            CertificateRejected: What came is no list of the pinned authority, is older than the known one, or has ended.
            DocumentRejected: None came.
        """
        reply = self._call(
            lambda stub, seconds: stub.RevocationLists(RevocationListsRequest(), timeout=seconds)
        )
        if len(reply.lists) != 1:
            raise DocumentRejected(f"the coordinator gives {len(reply.lists)} revocation lists, not one")
        return self._home.take_revocations(reply.lists[0], self._now())

    def proposals(self, known: Container[bytes] = ()) -> list[Offer]:
        """Fetch the proposals that invite this participant; what is wrong with one keeps no other from being seen.

        Args:
            known: Encoded documents that the participant has: they are left out, and not checked again.
        """
        identity, revoked = self._home.identity().public, self._home.revocations()
        offers = []
        for part in self._stream("Proposals", ProposalsRequest()):
            if part.encoded in known:
                continue
            try:
                document = read_document(part.encoded, Proposal)
                verify_proposal(
                    document,
                    consortium=self._home.consortium,
                    now=self._now(),
                    revoked=revoked,
                    participant=self._home.name,
                    identity=identity,
                )
                offers.append(Offer(proposal=document))
            except Error as error:
                offers.append(Offer(proposal=None, problem=error))
        return offers

    def answer(self, document: Document[Approval] | Document[Denial]) -> tuple[int, int]:
        """Send an answer; the same one may be sent again.

        Returns:
            How many have approved so far, as the coordinator says, and how many the study needs.

        Raises:
            AlreadyAnswered: Another answer of this participant is there.
            UnknownStudy, DocumentRejected: The coordinator has no such proposal, or its time is over.
        """
        encoded = document.encode()
        request = (
            AnswerRequest(approval=encoded)
            if isinstance(document.body, Approval)
            else AnswerRequest(denial=encoded)
        )
        reply = self._call(lambda stub, seconds: stub.Answer(request, timeout=seconds))
        return int(reply.approvals), int(reply.needed)

    def starts(
        self, approved: Iterable[Document[Proposal]], report: Callable[[Error], None]
    ) -> list[StartedStudy]:
        """Fetch the starts of studies that this participant has approved.

        Args:
            approved: The proposals that it approved, as it kept them itself.
            report: Receives what is wrong with a start, see `verify_start`; it keeps no other from being seen.

        Guarantees:
            - A start of a study that is not among `approved`, or without this participant in its roster, is not returned.
        """
        known = {document.digest: document for document in approved}
        found = []
        for part in self._stream("Starts", StartsRequest()):
            proposal = known.get(part.proposal)
            if proposal is None:
                continue
            try:
                start = read_document(part.start, Start)
                approvals = tuple(read_document(raw, Approval) for raw in part.approvals[:_MOST_DOCUMENTS])
                self._verify_start(start, proposal, approvals)
            except Error as error:
                report(error)
                continue
            found.append(StartedStudy(proposal=proposal, start=start, approvals=approvals))
        return found

    def commands(self, proposal: Document[Proposal], after: int) -> list[Document[Command]]:
        """Fetch the commands to a study, above the counter of the last one that was carried out.

        Raises:
            CommandStale, DocumentRejected, CertificateRejected: See `verify_command`.
        """
        request, found = CommandsRequest(proposal=proposal.digest, after=after), []
        revoked = self._home.revocations()
        for part in self._stream("Commands", request):
            document = read_document(part.encoded, Command)
            verify_command(
                document,
                proposal=proposal,
                last_counter=after,
                consortium=self._home.consortium,
                now=self._now(),
                revoked=revoked,
            )
            after = document.body.counter
            found.append(document)
        return found

    def renew(self, document: Document[RenewalRequest]) -> Document[Enrolment]:
        """Ask for new certificates; see `finish_renewal` for the check of what comes.

        Raises:
            EnrolmentPending: The admin has to make them.
        """
        request = SignedDocument(encoded=document.encode())
        reply = self._call(lambda stub, seconds: stub.Renew(request, timeout=seconds))
        return read_document(reply.encoded, Enrolment)

    def fetch_model(self, proposal: Document[Proposal], path: Path) -> None:
        """Fetch the base model of a study into a file; a transfer that broke off goes on where it was.

        Args:
            proposal: The proposal that names it.
            path: The file; nothing is done where it is there.

        Raises:
            ChecksumMismatch: What came is not what the proposal names; nothing was kept.
            UnknownStudy: The coordinator has no such model for this participant.
            StoreNotWritable: The disk is full.

        Guarantees:
            - The file is there only when it has the length and SHA-256 of the proposal.
        """
        if path.exists():
            return
        partial = path.with_name(f".{path.name}.partial")
        self._call(lambda stub, seconds: self._fetch(stub, proposal.body, partial, seconds))
        _verify_model(partial, proposal.body)
        try:
            partial.rename(path)
            sync_folder(path.parent)
        except OSError as error:
            raise StoreNotWritable(f"{path.name} cannot be written: {error.strerror}") from error

    def give_up(self) -> None:
        """End every call, now and from now on; see `CoordinatorChannel.give_up`."""
        self._channel.give_up()

    # -- inside ------------------------------------------------------------------------------------------

    def _fetch(self, stub: Any, body: Proposal, partial: Path, seconds: float) -> None:
        try:
            with open(partial, "ab") as file:
                held = file.tell()
                if held >= body.base_model_bytes:
                    return
                request = BaseModelRequest(sha256=body.base_model, offset=held)
                for part in stub.BaseModel(request, timeout=seconds):
                    held += len(part.data)
                    if held > body.base_model_bytes:
                        break
                    file.write(part.data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreNotWritable(f"{partial.name} cannot be written: {error.strerror}") from error

    def _verify_start(
        self, start: Document[Start], proposal: Document[Proposal], approvals: Sequence[Document[Approval]]
    ) -> None:
        verify_start(
            start,
            proposal=proposal,
            approvals=approvals,
            consortium=self._home.consortium,
            now=self._now(),
            revoked=self._home.revocations(),
        )
        own = proposal.body.member(self._home.name)
        if own not in start.body.roster:
            raise DocumentRejected(
                f"the coordinator shows {self._home.name!r} a start in which it takes no part"
            )

    def _stream(self, method: str, request: Any) -> list[Any]:
        def read(stub: Any, seconds: float) -> list[Any]:
            found: list[Any] = []
            for part in getattr(stub, method)(request, timeout=seconds):
                found.append(part)
                if len(found) > _MOST_DOCUMENTS:
                    raise DocumentRejected(f"the coordinator gives more than {_MOST_DOCUMENTS} documents")
            return found

        result: list[Any] = self._call(read)
        return result

    def _call(self, step: Callable[[Any, float], Any]) -> Any:
        make_stub: Any = ConsortiumStub  # generated, without types
        return self._channel.call(
            lambda channel, seconds: step(make_stub(channel), seconds), kinds=CONSORTIUM_ERRORS
        )


def _ahead(said: str, began: datetime, ended: datetime) -> float | None:
    """Say how far a clock is ahead that showed a time between two moments; within them, and its second, it is right."""
    try:
        there = datetime.strptime(said, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
    if there > ended:
        return (there - ended).total_seconds()
    return min((there + timedelta(seconds=1) - began).total_seconds(), 0.0)


def _verify_model(path: Path, body: Proposal) -> None:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
        length = file.tell()
    if length != body.base_model_bytes or digest.digest() != body.base_model:
        path.unlink()
        raise ChecksumMismatch(
            f"the base model that came has {length} bytes and SHA-256 {digest.hexdigest()[:16]}, the proposal names"
            f" {body.base_model_bytes} bytes and {body.base_model.hex()[:16]}",
            hint="do not take part: the coordinator gives another model than the study names",
        )
