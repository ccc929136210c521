"""The service `Consortium`: revocation lists, studies and base models for members that call over mutual TLS."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from hansa.coordinator.callers import Caller, Callers
from hansa.coordinator.members import Members
from hansa.coordinator.renewals import Renewals
from hansa.coordinator.revocations import Revocations
from hansa.coordinator.study_desk import ProposedStudy, StudyDesk
from hansa.errors import DocumentRejected, MalformedMessage, NotAMember, UnknownStudy
from hansa.federation.answers import Approval, Denial
from hansa.federation.consortium_pb2 import (
    AnswerReply,
    AnswerRequest,
    BaseModelPart,
    BaseModelRequest,
    CommandsRequest,
    ProposalsRequest,
    RevocationListsReply,
    RevocationListsRequest,
    StartedStudy,
    StartsRequest,
    VersionsReply,
    VersionsRequest,
)
from hansa.federation.documents import read_document
from hansa.federation.enrolment_pb2 import SignedDocument
from hansa.federation.error_status import answering
from hansa.federation.fields import utc_text
from hansa.federation.requests import RenewalRequest
from hansa.federation.versions import TIME, versions_here
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import utc_now

SERVICE_NAME = "hansa.v1.Consortium"
MODEL_PART_BYTES = 1 << 18


class ConsortiumServicer:
    """Answers the calls of the service `Consortium`.

    Args:
        callers: Tells who calls, and checks certificate and revocation list.
        members: Who is a member now.
        renewals: Takes requests for renewal.
        revocations: Gives the revocation list.
        desk: Keeps the documents of studies.
        models: Folder of base models, each under its SHA-256.
        authority: Gives the authority where its key is at hand, None where it is not.
        report: Receives what was not foreseen.
        now: Clock.

    Guarantees:
        - Only a present member is answered: one that was revoked a moment ago is not, whatever its certificate says.
        - A member learns of no study that does not invite it, and answers in no other's name.
        - A call holds no more than a few messages in memory, whatever the size of a base model.
    """

    def __init__(
        self,
        callers: Callers,
        *,
        members: Members,
        renewals: Renewals,
        revocations: Revocations,
        desk: StudyDesk,
        models: Path,
        authority: Callable[[], CertificateAuthority | None],
        report: Callable[[Exception], None],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._callers, self._members, self._renewals = callers, members, renewals
        self._revocations, self._desk, self._models = revocations, desk, models
        self._authority, self._report, self._now = authority, report, now

    # -- the calls: their names are those of the .proto file -------------------------------------------------

    def Versions(self, _request: VersionsRequest, context: Any) -> VersionsReply:
        """Say which versions run here, and what time it is here."""
        with self._answering(context):
            return VersionsReply(versions={**versions_here(), TIME: utc_text(self._now())})

    def RevocationLists(self, _request: RevocationListsRequest, context: Any) -> RevocationListsReply:
        """Give the latest revocation list."""
        with self._answering(context):
            found = self._revocations.current()
        return RevocationListsReply(lists=[found] if found else [])

    def Proposals(self, _request: ProposalsRequest, context: Any) -> Iterator[SignedDocument]:
        """Give the proposals that invite the caller."""
        with self._answering(context) as caller:
            for study in self._desk.invited(caller.participant):
                yield SignedDocument(encoded=study.proposal.encode())

    def Answer(self, request: AnswerRequest, context: Any) -> AnswerReply:
        """Take the caller's answer to a proposal."""
        with self._answering(context) as caller:
            kind = request.WhichOneof("answer")
            if kind is None:
                raise MalformedMessage("an answer holds neither an approval nor a denial")
            document = (
                read_document(request.approval, Approval)
                if kind == "approval"
                else read_document(request.denial, Denial)
            )
            if document.body.participant != caller.participant:
                raise DocumentRejected(
                    f"{caller.participant!r} answers in the name of {document.body.participant!r}"
                )
            study = self._desk.answer(document)
        return AnswerReply(approvals=len(study.approvals), needed=study.proposal.body.approvals_needed)

    def Starts(self, _request: StartsRequest, context: Any) -> Iterator[StartedStudy]:
        """Give the starts of studies in whose roster the caller is."""
        with self._answering(context) as caller:
            for study in self._desk.started(caller.participant):
                if study.start is not None:
                    yield StartedStudy(
                        proposal=study.digest,
                        start=study.start.encode(),
                        approvals=[approval.encode() for approval in study.roster_approvals],
                    )

    def Commands(self, request: CommandsRequest, context: Any) -> Iterator[SignedDocument]:
        """Give the commands to a study in whose roster the caller is, above a counter."""
        with self._answering(context) as caller:
            for command in self._taking_part(caller, request.proposal).commands:
                if command.body.counter > request.after:
                    yield SignedDocument(encoded=command.encode())

    def Renew(self, request: SignedDocument, context: Any) -> SignedDocument:
        """Give the caller new certificates."""
        with self._answering(context) as caller:
            document = read_document(request.encoded, RenewalRequest)
            if document.body.participant != caller.participant:
                raise DocumentRejected(
                    f"{caller.participant!r} asks in the name of {document.body.participant!r}"
                )
            found = self._renewals.ask(document, self._authority())
        return SignedDocument(encoded=found.encode())

    def BaseModel(self, request: BaseModelRequest, context: Any) -> Iterator[BaseModelPart]:
        """Give a base model of a study that invites the caller, from an offset on."""
        with self._answering(context) as caller:
            wanted = request.sha256.hex()
            invited = self._desk.invited(caller.participant)
            path = self._models / wanted
            if (
                wanted not in {study.proposal.body.base_model.hex() for study in invited}
                or not path.is_file()
            ):
                raise UnknownStudy(
                    f"no study invites {caller.participant!r} with the base model {wanted[:16]}"
                )
            with open(path, "rb") as file:
                file.seek(request.offset)
                while data := file.read(MODEL_PART_BYTES):
                    caller.verify()
                    yield BaseModelPart(data=data)

    # -- inside ------------------------------------------------------------------------------------------

    @contextmanager
    def _answering(self, context: Any) -> Iterator[Caller]:
        with answering(context, self._report), self._callers.admitted(context) as caller:
            record = self._members.find(caller.participant)
            if record is None or record.state != "enrolled":
                raise NotAMember(f"{caller.participant!r} is no member of the consortium now")
            yield caller

    def _taking_part(self, caller: Caller, digest: bytes) -> ProposedStudy:
        for study in self._desk.started(caller.participant):
            if study.digest == digest:
                return study
        raise UnknownStudy(f"{caller.participant!r} takes part in no study {digest.hex()[:16]}")
