"""The studies that a participant was asked to take part in: what was proposed, what it said, what runs.

Everything lies in files of the home that agent and commands both read: signed documents, and which data set serves the study.

    studies/SESSION/proposal.json     as its author signed it
    studies/SESSION/data-set          name of the data set that serves the study
    studies/SESSION/answer.json       own approval or denial
    studies/SESSION/start.json        as its author signed it
    studies/SESSION/approvals/NAME    the approvals that the start names
    studies/SESSION/command.json      the last command that was carried out
    studies/SESSION/finished          all rounds are applied, or it was stopped; the model is beside it
    studies/SESSION/lock              held by whoever writes an answer

Documents are verified before they come here (`consortium_client.py`). A participant takes part in a study after its own approval
and a start, and in nothing else.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from hansa.errors import (
    AlreadyAnswered,
    DocumentMalformed,
    DocumentRejected,
    Error,
    OutOfOrder,
    StudyUnknown,
    UsageError,
)
from hansa.federation.answers import Approval, Decider, Denial, approve, deny
from hansa.federation.documents import Document, read_document, reread_document
from hansa.federation.fields import utc_text
from hansa.federation.files import holding, make_folder, read_file, write_file
from hansa.federation.proposals import Proposal
from hansa.federation.starts import Command, Start
from hansa.participant.policy import Policy
from hansa.secure_agg.certificates import CLOCK_SKEW
from hansa.secure_agg.identity import Identity

State = Literal["undecided", "approved", "denied", "started", "paused", "stopped", "finished"]
_LEAST_SESSION_DIGITS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class DeskStudy:
    """A study as this participant has it.

    Attributes:
        proposal: The proposal.
        answer: Own answer, if there is one.
        data_set: Data set that serves it; empty before an approval.
        start: The start, if there is one.
        command: The last command.
        is_finished: Whether all its rounds are applied, or it was stopped; the model of what was reached is kept.
    """

    proposal: Document[Proposal]
    answer: Document[Approval] | Document[Denial] | None = None
    data_set: str = ""
    start: Document[Start] | None = None
    command: Document[Command] | None = None
    is_finished: bool = False

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
        action = "resume" if self.command is None else self.command.body.action
        if self.is_finished:
            return "stopped" if action == "stop" else "finished"
        if self.answer is None:
            return "undecided"
        if isinstance(self.answer.body, Denial):
            return "denied"
        if self.start is None:
            return "approved"
        if action == "resume":
            return "started"
        return "paused" if action == "pause" else "stopped"


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
        participant: Own name.
        now: Clock.

    Guarantees:
        - An own answer stands: another one to the same proposal is refused, whichever process gives it.
        - No answer is given when the time for answers is over.
        - A start stands, and a command replaces only one with a smaller counter; a stop is replaced by none.
    """

    def __init__(self, folder: Path, *, participant: str, now: Callable[[], datetime]) -> None:
        self._folder, self._participant, self._now = folder / "studies", participant, now

    def folder_of(self, study: DeskStudy) -> Path:
        """Where the files of a study are; also those of its node."""
        return self._folder / study.session

    def all(self, report: Callable[[Error], None] | None = None) -> list[DeskStudy]:
        """Return all studies, in the order in which they were proposed.

        Args:
            report: Receives what is wrong with a study whose files cannot be read, which is then left out; raised if not given.
        """
        found = []
        for path in self._folder.glob("*/proposal.json"):
            try:
                found.append(self._read(path))
            except Error as error:
                if report is None:
                    raise
                report(type(error)(f"study {path.parent.name[:8]}: {error.message}", hint=error.hint))
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
            study
            for study in studies
            if len(name) >= _LEAST_SESSION_DIGITS and study.session.startswith(name)
        ]
        if not found:
            raise StudyUnknown(
                f"no study {name[:80]!r} was proposed to {self._participant!r}",
                hint="`hansa participant study list` shows those that were; the agent fetches them",
            )
        undecided = [study for study in found if study.state == "undecided"]
        if len(undecided) > 1:
            sessions = ", ".join(study.session[:8] for study in undecided)
            raise UsageError(
                f"{len(undecided)} undecided studies have the name {name!r}",
                hint=f"name a session: {sessions}",
            )
        return (undecided or found)[-1]

    def propose(self, document: Document[Proposal]) -> bool:
        """Keep a proposal; tell whether it is new."""
        place = self._folder / document.body.session_id.hex()
        if (place / "proposal.json").exists():
            return False
        make_folder(place)
        write_file(place / "proposal.json", document.encode() + b"\n")
        return True

    def approve(
        self, study: DeskStudy, data_set: str, *, by: Decider, identity: Identity
    ) -> Document[Approval]:
        """Approve a study; the rules were checked before.

        Raises:
            AlreadyAnswered: It was denied before, or approved for another data set.
            DocumentRejected: The time for answers is over.
        """
        with self._answering(study) as present:
            if present.answer is not None:
                if isinstance(present.answer.body, Approval) and present.data_set == data_set:
                    return read_document(present.answer.encode(), Approval)
                raise AlreadyAnswered(f"{study.name!r} was denied before, or approved for another data set")
            self._verify_in_time(study)
            write_file(self.folder_of(study) / "data-set", data_set.encode())
            body = approve(study.proposal, self._participant, by=by, at=self._now())
            document = Document.sign(body, identity.sign)
            write_file(self.folder_of(study) / "answer.json", document.encode() + b"\n")
            return document

    def deny(
        self, study: DeskStudy, *, by: Decider, identity: Identity, reason: str = ""
    ) -> Document[Denial]:
        """Refuse a study.

        Raises:
            AlreadyAnswered: It was approved before.
            DocumentRejected: The time for answers is over.
        """
        with self._answering(study) as present:
            if present.answer is not None:
                if isinstance(present.answer.body, Denial):
                    return read_document(present.answer.encode(), Denial)
                raise AlreadyAnswered(f"{study.name!r} was approved before")
            self._verify_in_time(study)
            body = deny(study.proposal, self._participant, by=by, at=self._now(), reason=reason)
            document = Document.sign(body, identity.sign)
            write_file(self.folder_of(study) / "answer.json", document.encode() + b"\n")
            return document

    def is_in_time(self, study: DeskStudy) -> bool:
        """Whether an answer to a study may still be given."""
        return self._now() <= study.proposal.body.expires + CLOCK_SKEW

    def begin(
        self, study: DeskStudy, start: Document[Start], approvals: Sequence[Document[Approval]]
    ) -> DeskStudy:
        """Keep the start of a study that this participant approved; the first one stands.

        Raises:
            OutOfOrder: It was not approved.
        """
        if study.start is not None:
            return study
        if study.state != "approved":
            raise OutOfOrder(f"the study {study.name!r} was started, and not approved here")
        make_folder(self.folder_of(study) / "approvals")
        for approval in approvals:
            place = self.folder_of(study) / "approvals" / approval.body.participant
            write_file(place, approval.encode() + b"\n")
        write_file(self.folder_of(study) / "start.json", start.encode() + b"\n")
        return replace(study, start=start)

    def command(self, study: DeskStudy, document: Document[Command]) -> DeskStudy:
        """Keep a command that is carried out from now on."""
        last = 0 if study.command is None else study.command.body.counter
        if document.body.counter <= last or study.state == "stopped":
            return study
        write_file(self.folder_of(study) / "command.json", document.encode() + b"\n")
        return replace(study, command=document)

    def finish(self, study: DeskStudy) -> None:
        """Note that a study is over here, and the model of the rounds that are applied is kept."""
        write_file(self.folder_of(study) / "finished", b"")

    # -- inside ------------------------------------------------------------------------------------------

    @contextmanager
    def _answering(self, study: DeskStudy) -> Iterator[DeskStudy]:
        """Keep other processes from answering, agent or command, and give the study as it is now."""
        place = self.folder_of(study)
        with holding(place / "lock"):
            yield self._read(place / "proposal.json")

    def _verify_in_time(self, study: DeskStudy) -> None:
        if not self.is_in_time(study):
            ended = utc_text(study.proposal.body.expires)
            raise DocumentRejected(
                f"the time for answers to {study.name!r} was over at {ended}",
                hint="ask the author for a new proposal",
            )

    def _read(self, path: Path) -> DeskStudy:
        place = path.parent
        proposal = reread_document(read_file(path, Proposal.BYTES_MOST), Proposal)
        study = DeskStudy(proposal=proposal, is_finished=(place / "finished").exists())
        if (place / "answer.json").exists():
            study = replace(study, answer=_answer(read_file(place / "answer.json")))
            if study.state != "denied":
                study = replace(study, data_set=read_file(place / "data-set").decode())
        if (place / "start.json").exists():
            start = reread_document(read_file(place / "start.json", Start.BYTES_MOST), Start)
            study = replace(study, start=start)
        if (place / "command.json").exists():
            study = replace(study, command=reread_document(read_file(place / "command.json"), Command))
        return study


def _answer(raw: bytes) -> Document[Approval] | Document[Denial]:
    try:
        return reread_document(raw, Approval)
    except DocumentMalformed:
        return reread_document(raw, Denial)
