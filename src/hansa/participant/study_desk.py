"""The studies that a participant was asked to take part in: what was proposed, what it said, what runs.

Everything lies in files of the home that agent and commands both read: signed documents, and which data set serves the study.

    studies/SESSION/proposal.json     as its author signed it, verified before it was kept
    studies/SESSION/answer.json       own approval or denial
    studies/SESSION/data-set          name of the data set that serves the study
    studies/SESSION/start.json        as its author signed it, verified with all approvals
    studies/SESSION/approvals/NAME    the approvals that the start names
    studies/SESSION/command.json      the last command that was carried out

A participant takes part in a study after its own approval and a start that was verified, and in nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from hansa.errors import AlreadyAnswered, CommandStale, DocumentMalformed, Error, StudyUnknown, UsageError
from hansa.federation.answers import Approval, Decider, Denial, approve, deny
from hansa.federation.consortium import Consortium
from hansa.federation.documents import Document, read_document
from hansa.federation.files import make_folder, read_file, write_file
from hansa.federation.proposals import Proposal, verify_proposal
from hansa.federation.starts import Command, Start, verify_command, verify_start
from hansa.participant.policy import Policy
from hansa.secure_agg.certificates import RevocationList
from hansa.secure_agg.identity import Identity

State = Literal["undecided", "approved", "denied", "started", "paused", "stopped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeskStudy:
    """A study as this participant has it.

    Attributes:
        proposal: The proposal, verified.
        answer: Own answer, if there is one.
        data_set: Data set that serves it; empty before an approval.
        start: The start, verified, if there is one.
        command: The last command, verified.
    """

    proposal: Document[Proposal]
    answer: Document[Approval] | Document[Denial] | None = None
    data_set: str = ""
    start: Document[Start] | None = None
    command: Document[Command] | None = None

    @property
    def session(self) -> str:
        """Session id, 32 hexadecimal digits."""
        return self.proposal.body.session_id.hex()

    @property
    def name(self) -> str:
        """Short name of the study."""
        return str(self.proposal.body.study["name"])

    @property
    def state(self) -> State:
        """Where it stands here."""
        if self.answer is None:
            return "undecided"
        if isinstance(self.answer.body, Denial):
            return "denied"
        if self.start is None:
            return "approved"
        action = "" if self.command is None else self.command.body.action
        return {"pause": "paused", "stop": "stopped"}.get(action, "started")  # type: ignore[return-value]


def policy_for(policy: Policy, study: DeskStudy) -> Policy:
    """Give the rules that hold for a study: an approval by hand is an agreement to its id, and to nothing else."""
    return replace(policy, studies=policy.studies | {study.proposal.body.study_id.hex()})


def verify_allowed(policy: Policy, study: DeskStudy) -> None:
    """Check a proposed study against the owner's rules; raises as `Policy.verify_study`."""
    body = study.proposal.body
    policy.verify_study(body.agreement(), model_hash=body.base_model.hex(), submitter=body.author)


class StudyDesk:
    """The studies in a participant's home.

    Args:
        folder: The home.
        consortium: The pinned consortium.
        participant: Own name.
        identity: Own public identity key.
        now: Clock.

    Guarantees:
        - Nothing is kept that does not verify under what is pinned here.
        - An own answer stands: another one to the same proposal is refused.
        - A command is carried out once, and never after a later one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        consortium: Consortium,
        participant: str,
        identity: bytes,
        now: Callable[[], datetime],
    ) -> None:
        self._folder, self._consortium = folder / "studies", consortium
        self._participant, self._identity, self._now = participant, identity, now

    def folder_of(self, session: str) -> Path:
        """Where the files of a study are; also those of its node."""
        return self._folder / session

    def all(self) -> list[DeskStudy]:
        """Return all studies, in the order in which they were proposed."""
        found = [self._read(path) for path in self._folder.glob("*/proposal.json")]
        return sorted(found, key=lambda study: (study.proposal.body.created, study.session))

    def find(self, name: str) -> DeskStudy:
        """Return the study that somebody means by its name or the begin of its session.

        Of several with one name it is the only one that is not decided, otherwise the latest.

        Raises:
            StudyUnknown: There is none.
            UsageError: Several undecided ones have this name.
        """
        studies = self.all()
        found = [study for study in studies if study.name == name] or [
            study for study in studies if len(name) >= 4 and study.session.startswith(name)
        ]
        if not found:
            raise StudyUnknown(
                f"no study {name[:80]!r} was proposed to {self._participant!r}",
                hint="`hansa participant study list` shows those that were",
            )
        undecided = [study for study in found if study.state == "undecided"]
        if len(undecided) > 1:
            sessions = ", ".join(study.session[:8] for study in undecided)
            raise UsageError(
                f"{len(undecided)} undecided studies have the name {name!r}",
                hint=f"name a session: {sessions}",
            )
        return (undecided or found)[-1]

    def propose(self, raw: bytes, revoked: RevocationList | None) -> DeskStudy | None:
        """Take a proposal that came from anywhere.

        Returns:
            The study if it is new, None if it was known.

        Raises:
            DocumentMalformed, DocumentRejected, CertificateRejected, MessageTooLarge: See `verify_proposal`.
        """
        document = read_document(raw, Proposal)
        place = self.folder_of(document.body.session_id.hex())
        if (place / "proposal.json").exists():
            return None
        verify_proposal(
            document,
            consortium=self._consortium,
            now=self._now(),
            revoked=revoked,
            participant=self._participant,
            identity=self._identity,
        )
        make_folder(self._folder)
        make_folder(place)
        write_file(place / "proposal.json", document.encode() + b"\n")
        return DeskStudy(proposal=document)

    def approve(
        self, study: DeskStudy, data_set: str, *, by: Decider, identity: Identity
    ) -> Document[Approval]:
        """Approve a study; the rules were checked before.

        Raises:
            AlreadyAnswered: It was answered before, otherwise or for another data set.
        """
        place = self.folder_of(study.session)
        if study.answer is not None:
            if isinstance(study.answer.body, Approval) and study.data_set == data_set:
                return read_document(study.answer.encode(), Approval)
            raise AlreadyAnswered(f"{study.name!r} was answered before, or for another data set")
        write_file(place / "data-set", data_set.encode())
        body = approve(study.proposal, self._participant, by=by, at=self._now())
        document = Document.sign(body, identity.sign)
        write_file(place / "answer.json", document.encode() + b"\n")
        return document

    def deny(
        self, study: DeskStudy, *, by: Decider, identity: Identity, reason: str = ""
    ) -> Document[Denial]:
        """Refuse a study.

        Raises:
            AlreadyAnswered: It was approved before.
        """
        if study.answer is not None:
            if isinstance(study.answer.body, Denial):
                return read_document(study.answer.encode(), Denial)
            raise AlreadyAnswered(f"{study.name!r} was approved before")
        body = deny(study.proposal, self._participant, by=by, at=self._now(), reason=reason)
        document = Document.sign(body, identity.sign)
        write_file(self.folder_of(study.session) / "answer.json", document.encode() + b"\n")
        return document

    def begin(
        self, study: DeskStudy, raw: bytes, approvals: Sequence[bytes], revoked: RevocationList | None
    ) -> DeskStudy:
        """Take the start of a study that this participant approved.

        Raises:
            DocumentMalformed, DocumentRejected, CertificateRejected, MessageTooLarge: See `verify_start`; also if this participant
                is not in the roster, or did not approve.
        """
        document = read_document(raw, Start)
        shown = [read_document(one, Approval) for one in approvals]
        if study.start is not None:
            return study  # a start stands
        if study.state != "approved":
            raise StudyUnknown(f"{study.name!r} was not approved by this participant")
        verify_start(
            document,
            proposal=study.proposal,
            approvals=shown,
            consortium=self._consortium,
            now=self._now(),
            revoked=revoked,
        )
        place = self.folder_of(study.session)
        make_folder(place / "approvals")
        for approval in shown:
            write_file(place / "approvals" / approval.body.participant, approval.encode() + b"\n")
        write_file(place / "start.json", document.encode() + b"\n")
        return replace(study, start=document)

    def command(self, study: DeskStudy, raw: bytes, revoked: RevocationList | None) -> DeskStudy:
        """Take a command to a study; one that was carried out before changes nothing.

        Raises:
            DocumentMalformed, DocumentRejected, CertificateRejected, MessageTooLarge: See `verify_command`.
        """
        document = read_document(raw, Command)
        last = study.command
        if last is not None and last.encode() == document.encode():
            return study
        try:
            verify_command(
                document,
                proposal=study.proposal,
                last_counter=0 if last is None else last.body.counter,
                consortium=self._consortium,
                now=self._now(),
                revoked=revoked,
            )
        except CommandStale:
            return study
        write_file(self.folder_of(study.session) / "command.json", document.encode() + b"\n")
        return replace(study, command=document)

    # -- inside ------------------------------------------------------------------------------------------

    def _read(self, path: Path) -> DeskStudy:
        place = path.parent
        proposal = read_document(read_file(path, Proposal.BYTES_MOST), Proposal)
        study = DeskStudy(proposal=proposal)
        if (place / "answer.json").exists():
            raw = read_file(place / "answer.json")
            study = replace(study, answer=_answer(raw))
            if isinstance(study.answer, Document) and isinstance(study.answer.body, Approval):
                study = replace(study, data_set=read_file(place / "data-set").decode())
        if (place / "start.json").exists():
            raw = read_file(place / "start.json", Start.BYTES_MOST)
            study = replace(study, start=read_document(raw, Start))
        if (place / "command.json").exists():
            study = replace(study, command=read_document(read_file(place / "command.json"), Command))
        return study


def _answer(raw: bytes) -> Document[Approval] | Document[Denial]:
    try:
        return read_document(raw, Approval)
    except DocumentMalformed:
        return read_document(raw, Denial)


def describe(error: Error) -> str:
    """Say an error in one line, for status and log."""
    return f"{error.message} [{error.code}]"
