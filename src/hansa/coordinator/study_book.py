"""The studies of a consortium at the coordinator: what was proposed, who answered, what runs, how it ended.

    proposed ──answers──> proposed ──start──> queued ──> running <──> paused
        │                                                 │  │
        └── (its time is over) expired                    │  └──> stopped
                                                          └──> finished, failed

Documents are kept as they were signed; the coordinator checks and relays them and can make none. Where a study stands follows
from them and from one word of the loop that runs it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import cbor2

from hansa.coordinator.journal import Journal
from hansa.errors import (
    AlreadyAnswered,
    CommandStale,
    DocumentMalformed,
    Error,
    NotEnoughApprovals,
    StoreDamaged,
    StudyAlreadyStarted,
    StudyExists,
    StudyUnknown,
    UsageError,
)
from hansa.federation.answers import Answer, Approval, Denial, verify_answer
from hansa.federation.consortium import Consortium
from hansa.federation.documents import Document, read_document
from hansa.federation.proposals import Proposal, verify_proposal
from hansa.federation.starts import Command, Start, verify_command, verify_start
from hansa.secure_agg.certificates import CLOCK_SKEW, RevocationList, utc_now

SCOPE = "studies"
State = Literal["proposed", "expired", "queued", "running", "paused", "stopped", "finished", "failed"]
Outcome = Literal["", "running", "finished", "failed"]
OVER = frozenset({"expired", "stopped", "finished", "failed"})
_TRIES = 20  # of a change that others change under its hands


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRecord:
    """A study, by its session.

    Attributes:
        proposal: The signed proposal.
        answers: The signed answer of each member that has answered, by name.
        start: The signed start, if there is one.
        commands: Signed commands, in order.
        outcome: What the loop says of it.
        error: Code of the error that ended it.
    """

    proposal: bytes
    answers: dict[str, bytes]
    start: bytes = b""
    commands: tuple[bytes, ...] = ()
    outcome: Outcome = ""
    error: str = ""

    @property
    def proposed(self) -> Document[Proposal]:
        """The proposal."""
        return read_document(self.proposal, Proposal)

    @property
    def name(self) -> str:
        """Short name of the study."""
        return str(self.proposed.body.study["name"])

    @property
    def session(self) -> str:
        """Session id, 32 hexadecimal digits."""
        return self.proposed.body.session_id.hex()

    def approvals(self) -> dict[str, Document[Approval]]:
        """Give the approvals by member."""
        return {name: read_document(raw, Approval) for name, raw in self.answers.items() if _approves(raw)}

    def denials(self) -> dict[str, Document[Denial]]:
        """Give the denials by member."""
        return {name: read_document(raw, Denial) for name, raw in self.answers.items() if not _approves(raw)}

    def started(self) -> Document[Start] | None:
        """Give the start."""
        return read_document(self.start, Start) if self.start else None

    def last_command(self) -> Document[Command] | None:
        """Give the command that holds."""
        return read_document(self.commands[-1], Command) if self.commands else None

    def state(self, now: datetime) -> State:
        """Say where the study stands."""
        if self.outcome in ("finished", "failed"):
            return self.outcome
        command = self.last_command()
        if command is not None and command.body.action != "resume":
            return "stopped" if command.body.action == "stop" else "paused"
        if self.start:
            return "running" if self.outcome == "running" else "queued"
        return "expired" if now > self.proposed.body.expires + CLOCK_SKEW else "proposed"

    def encode(self) -> bytes:
        """Return the record as it is stored."""
        return cbor2.dumps(
            {
                "proposal": self.proposal,
                "answers": self.answers,
                "start": self.start,
                "commands": list(self.commands),
                "outcome": self.outcome,
                "error": self.error,
            }
        )

    @classmethod
    def decode(cls, raw: bytes) -> "StudyRecord":
        """Read a stored record; StoreDamaged if it is none."""
        try:
            values = cbor2.loads(raw)
            return cls(**{**values, "commands": tuple(values["commands"])})
        except (cbor2.CBORError, TypeError, KeyError) as error:
            raise StoreDamaged("a record of a study in the journal is damaged") from error


class StudyBook:
    """All studies of a consortium.

    Args:
        journal: Where the records are.
        consortium: The consortium.
        revoked: Gives the latest revocation list.
        now: Clock.

    Guarantees:
        - A document is kept only if it passes the check that a participant makes of it.
        - Of two changes of one study at the same time, the second sees what the first made of it.
        - An answer, a start and an outcome stand: another one is refused, the same one changes nothing.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        consortium: Consortium,
        revoked: Callable[[], RevocationList | None],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._journal, self._consortium, self._revoked, self._now = journal, consortium, revoked, now

    def all(self) -> list[StudyRecord]:
        """Return all studies, in the order in which they were proposed."""
        found = [StudyRecord.decode(raw) for raw in self._journal.items(SCOPE).values()]
        return sorted(found, key=lambda record: (record.proposed.body.created, record.session))

    def get(self, session: str) -> StudyRecord:
        """Return the study of a session, or raise StudyUnknown."""
        raw = self._journal.get(SCOPE, session)
        if raw is None:
            raise StudyUnknown(f"there is no study with the session {session[:32]!r}")
        return StudyRecord.decode(raw)

    def find(self, name: str) -> StudyRecord:
        """Return the study that somebody means by its name, or by the begin of its session.

        Of several with one name it is the only one that is not over, otherwise the latest.

        Raises:
            StudyUnknown: There is none.
            UsageError: Several that are not over have this name.
        """
        records = self.all()
        found = [r for r in records if r.name == name] or [
            r for r in records if len(name) >= 4 and r.session.startswith(name)
        ]
        if not found:
            raise StudyUnknown(f"there is no study {name[:80]!r}")
        standing = [record for record in found if record.state(self._now()) not in OVER]
        if len(standing) > 1:
            sessions = ", ".join(record.session[:8] for record in standing)
            raise UsageError(
                f"{len(standing)} studies of the name {name!r} are not over",
                hint=f"name a session: {sessions}",
            )
        return (standing or found)[-1]

    def invited(self, participant: str) -> list[StudyRecord]:
        """Return the studies that a member is invited to."""
        return [
            record
            for record in self.all()
            if any(member.name == participant for member in record.proposed.body.invited)
        ]

    def propose(self, document: Document[Proposal]) -> StudyRecord:
        """Take a proposal.

        Raises:
            StudyExists: There is another one with its session.
            See `proposals.verify_proposal` for everything else.
        """
        verify_proposal(document, consortium=self._consortium, now=self._now(), revoked=self._revoked())
        record = StudyRecord(proposal=document.encode(), answers={})
        if not self._journal.compare_and_put(SCOPE, record.session, None, record.encode()):
            if self.get(record.session).proposal != record.proposal:
                raise StudyExists(f"there is another study with the session {record.session}")
            return self.get(record.session)
        self._journal.event("study_proposed", study=record.session, name=record.name, by=document.body.author)
        return record

    def answer(self, session: str, document: Document[Answer]) -> StudyRecord:
        """Take a member's answer.

        Raises:
            StudyUnknown: There is no such study.
            AlreadyAnswered: The member has answered otherwise.
            DocumentRejected: See `answers.verify_answer`.
        """
        member, raw = document.body.participant, document.encode()

        def decide(found: StudyRecord) -> StudyRecord:
            verify_answer(document, found.proposed)
            if found.answers.get(member, raw) != raw:
                raise AlreadyAnswered(f"{member!r} has answered the proposal of {found.name!r} already")
            return replace(found, answers={**found.answers, member: raw})

        before, after = self._change(session, decide)
        if before != after:
            kind = "study_approved" if _approves(raw) else "study_denied"
            self._journal.event(kind, study=session, participant=member, by=document.body.by)
        return after

    def begin(self, session: str, document: Document[Start]) -> StudyRecord:
        """Take a start.

        Raises:
            StudyUnknown: There is no such study.
            StudyAlreadyStarted: It was started otherwise.
            NotEnoughApprovals: Somebody of its roster has not approved.
            See `starts.verify_start` for everything else.
        """

        def decide(found: StudyRecord) -> StudyRecord:
            if found.start not in (b"", document.encode()):
                raise StudyAlreadyStarted(f"the study {found.name!r} was started already")
            approvals, names = found.approvals(), [member.name for member in document.body.roster]
            missing = [name for name in names if name not in approvals]
            if missing:
                raise NotEnoughApprovals(
                    f"the study {found.name!r} lacks the approval of {', '.join(missing)}"
                )
            verify_start(
                document,
                proposal=found.proposed,
                approvals=[approvals[name] for name in names],
                consortium=self._consortium,
                now=self._now(),
                revoked=self._revoked(),
            )
            return replace(found, start=document.encode())

        before, after = self._change(session, decide)
        if before != after:
            self._journal.event("study_started", study=session, name=after.name)
        return after

    def command(self, session: str, document: Document[Command]) -> StudyRecord:
        """Take a command.

        Raises:
            StudyUnknown: There is no such study.
            CommandStale: It is not above the last one, or the study is over or was never started.
            See `starts.verify_command` for everything else.
        """

        def decide(found: StudyRecord) -> StudyRecord:
            if found.commands and found.commands[-1] == document.encode():
                return found
            state = found.state(self._now())
            if not found.start or state in OVER:
                raise CommandStale(
                    f"the study {found.name!r} is {state}: there is nothing to {document.body.action}"
                )
            last = found.last_command()
            verify_command(
                document,
                proposal=found.proposed,
                last_counter=0 if last is None else last.body.counter,
                consortium=self._consortium,
                now=self._now(),
                revoked=self._revoked(),
            )
            return replace(found, commands=(*found.commands, document.encode()))

        before, after = self._change(session, decide)
        if before != after:
            self._journal.event("study_commanded", study=session, action=document.body.action)
        return after

    def note(self, session: str, outcome: Outcome, error: Error | None = None) -> None:
        """Note what the loop says of a study; an end stands."""

        def decide(found: StudyRecord) -> StudyRecord:
            if found.outcome in ("finished", "failed"):
                return found
            return replace(found, outcome=outcome, error="" if error is None else error.code)

        before, after = self._change(session, decide)
        if before.outcome != after.outcome:
            detail = {} if error is None else {"error": error.code, "message": error.message}
            self._journal.event(f"study_{outcome}", study=session, **detail)

    def _change(
        self, session: str, decide: Callable[[StudyRecord], StudyRecord]
    ) -> tuple[StudyRecord, StudyRecord]:
        for _ in range(_TRIES):
            before = self.get(session)
            after = decide(before)
            if after == before:
                return before, after
            if self._journal.compare_and_put(SCOPE, session, before.encode(), after.encode()):
                return before, after
        raise StoreDamaged(f"the record of the study {session[:8]} changes faster than it can be changed")


def _approves(raw: bytes) -> bool:
    try:
        read_document(raw, Approval)
    except DocumentMalformed:
        return False
    return True
