"""Where proposals, answers, starts and commands lie at the coordinator, in the journal. It checks what it keeps, and signs nothing.

    studies        DIGEST -> the proposal
    study/DIGEST   answer/NAME, start, command/COUNTER

The checks are there to name an error early. Participants make all of them again, against what they pin.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from hansa.coordinator.journal import Journal
from hansa.coordinator.members import Members
from hansa.errors import AlreadyAnswered, CommandStale, DocumentRejected, NotEnoughApprovals, UnknownStudy
from hansa.federation.answers import Approval, Denial, verify_answer
from hansa.federation.consortium import Consortium
from hansa.federation.documents import Document, reread_document
from hansa.federation.proposals import Proposal, verify_proposal
from hansa.federation.starts import Command, Start, verify_command, verify_start
from hansa.secure_agg.certificates import CLOCK_SKEW, RevocationList, utc_now

SCOPE, _PREFIX = "studies", "study/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedStudy:
    """What lies at the desk for one proposal.

    Attributes:
        proposal: The proposal.
        approvals: By participant.
        denials: By participant.
        start: The start, once there is one.
        commands: In order of their counters.
    """

    proposal: Document[Proposal]
    approvals: dict[str, Document[Approval]]
    denials: dict[str, Document[Denial]]
    start: Document[Start] | None
    commands: tuple[Document[Command], ...]

    @property
    def digest(self) -> bytes:
        """Digest of the proposal, 32 bytes; by it everything else names the study."""
        return self.proposal.digest

    @property
    def roster_approvals(self) -> list[Document[Approval]]:
        """The approvals that the start names, in its order; empty before the start."""
        roster = self.start.body.roster if self.start else ()
        return [self.approvals[member.name] for member in roster]

    def chosen(self) -> list[Document[Approval]]:
        """Choose whose approvals a start will name: the first ones that came, as many as the study needs.

        Raises:
            NotEnoughApprovals: Fewer have approved.
        """
        needed = self.proposal.body.approvals_needed
        found = sorted(self.approvals.values(), key=lambda one: (one.body.at, one.body.participant))
        if len(found) < needed:
            raise NotEnoughApprovals(f"{len(found)} participants have approved the study, it needs {needed}")
        return found[:needed]


class StudyDesk:
    """Takes and gives the documents of studies.

    Args:
        journal: Where they lie.
        consortium: The consortium.
        revoked: Gives the latest revocation list.
        now: Clock.

    Guarantees:
        - A participant has one answer to a proposal, and a study one start; what came first stands.
        - A document is taken only if everybody who checks it would accept it.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        consortium: Consortium,
        revoked: Callable[[], RevocationList | None],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._journal, self._consortium, self._now = journal, consortium, now
        self._revoked, self._members = revoked, Members(journal)

    # -- authors ---------------------------------------------------------------------------------------------

    def propose(self, document: Document[Proposal]) -> ProposedStudy:
        """Take a proposal; the same one may come again.

        Raises:
            DocumentRejected, CertificateRejected: See `verify_proposal`; or somebody is invited who is no member under this key.
        """
        verify_proposal(document, consortium=self._consortium, now=self._now(), revoked=self._revoked())
        for invited in document.body.invited:
            record = self._members.find(invited.name)
            keys = record.keys if record and record.state == "enrolled" else None
            if keys is None or keys.identity != invited.identity:
                raise DocumentRejected(
                    f"{invited.name!r} is no member now, or has another identity key",
                    hint="`hansa participant list` shows the members",
                )
        name = document.digest.hex()
        if self._journal.compare_and_put(SCOPE, name, None, document.encode()):
            study = str(document.body.study.get("name", ""))
            self._journal.event("study_proposed", study=study, proposal=name, author=document.body.author)
        return self.get(document.digest)

    def start(self, document: Document[Start]) -> ProposedStudy:
        """Take the author's start; the same one may come again.

        Raises:
            UnknownStudy: There is no such proposal.
            NotEnoughApprovals: Somebody in the roster has not approved.
            AlreadyAnswered: The study has another start.
            DocumentRejected, CertificateRejected: See `verify_start`.
        """
        study = self.get(document.body.proposal)
        missing = [member.name for member in document.body.roster if member.name not in study.approvals]
        if missing:
            raise NotEnoughApprovals(f"{', '.join(missing)[:200]} have not approved the study")
        approvals = [study.approvals[member.name] for member in document.body.roster]
        verify_start(
            document,
            proposal=study.proposal,
            approvals=approvals,
            consortium=self._consortium,
            now=self._now(),
            revoked=self._revoked(),
        )
        self._once(study, "start", document.encode(), "study_started")
        return self.get(study.digest)

    def command(self, document: Document[Command]) -> ProposedStudy:
        """Take the author's command to a study that was started; the same one may come again.

        Raises:
            UnknownStudy: There is no such study, or it was not started.
            CommandStale: A later command is here, or the study was stopped.
            DocumentRejected, CertificateRejected: See `verify_command`.
        """
        study = self.get(document.body.proposal)
        if study.start is None:
            raise UnknownStudy(
                "the study was not started", hint="only a study that was started takes commands"
            )
        if document in study.commands:
            return study
        if study.commands and study.commands[-1].body.action == "stop":
            raise CommandStale(f"the study {_short_name(study)!r} was stopped, for good")
        last = study.commands[-1].body.counter if study.commands else 0
        verify_command(
            document,
            proposal=study.proposal,
            last_counter=last,
            consortium=self._consortium,
            now=self._now(),
            revoked=self._revoked(),
        )
        name = f"command/{document.body.counter:010d}"
        if not self._journal.compare_and_put(_scope(study.digest), name, None, document.encode()):
            raise CommandStale(f"another command has the counter {document.body.counter}")
        self._journal.event(
            f"study_{document.body.action}", study=_short_name(study), proposal=study.digest.hex()
        )
        return self.get(study.digest)

    # -- participants ----------------------------------------------------------------------------------------

    def answer(self, document: Document[Approval] | Document[Denial]) -> ProposedStudy:
        """Take a participant's answer; the same one may come again.

        Raises:
            UnknownStudy: There is no such proposal.
            AlreadyAnswered: The participant has given another answer.
            DocumentRejected: The time for answers is over, or see `verify_answer`.
        """
        study, body = self.get(document.body.proposal), document.body
        verify_answer(document, study.proposal)
        if self._now() > study.proposal.body.expires + CLOCK_SKEW:
            raise DocumentRejected("the time for answers to this proposal is over")
        kind = "study_approved" if isinstance(body, Approval) else "study_denied"
        self._once(study, f"answer/{body.participant}", document.encode(), kind, participant=body.participant)
        return self.get(study.digest)

    def invited(self, participant: str) -> list[ProposedStudy]:
        """Give the studies that invite a participant, except those that have ended without a start."""
        now = self._now()
        return [
            study
            for study in self.all()
            if participant in {member.name for member in study.proposal.body.invited}
            and (study.start is not None or now <= study.proposal.body.expires + CLOCK_SKEW)
        ]

    def started(self, participant: str) -> list[ProposedStudy]:
        """Give the studies that were started with a participant in the roster."""
        return [
            study
            for study in self.all()
            if study.start and participant in {member.name for member in study.start.body.roster}
        ]

    # -- both ------------------------------------------------------------------------------------------------

    def get(self, digest: bytes) -> ProposedStudy:
        """Return what lies here for a proposal, or raise UnknownStudy."""
        name = digest.hex()
        raw = self._journal.get(SCOPE, name)
        if raw is None:
            raise UnknownStudy(
                f"there is no proposal {name[:16]}", hint="`hansa study list` shows the proposals"
            )
        return _study(raw, self._journal.items(_scope(digest)))

    def all(self) -> list[ProposedStudy]:
        """Return everything, oldest proposal first."""
        items, beside = self._journal.items(SCOPE), self._journal.items_below(_PREFIX)
        found = [_study(raw, beside.get(f"{_PREFIX}{name}", {})) for name, raw in items.items()]
        return sorted(found, key=lambda study: (study.proposal.body.created, study.digest))

    def _once(self, study: ProposedStudy, place: str, encoded: bytes, kind: str, **detail: str) -> None:
        scope = _scope(study.digest)
        if self._journal.compare_and_put(scope, place, None, encoded):
            self._journal.event(kind, study=_short_name(study), proposal=study.digest.hex(), **detail)
        elif self._journal.get(scope, place) != encoded:
            what = "start" if place == "start" else f"answer of {place.removeprefix('answer/')!r}"
            raise AlreadyAnswered(f"there is another {what} already")


def _scope(digest: bytes) -> str:
    return f"{_PREFIX}{digest.hex()}"


def _short_name(study: ProposedStudy) -> str:
    return str(study.proposal.body.study.get("name", ""))


def _study(raw: bytes, items: dict[str, bytes]) -> ProposedStudy:
    approvals, denials, commands, start = {}, {}, [], None
    for place, value in items.items():
        kind, _, name = place.partition("/")
        if kind == "start":
            start = reread_document(value, Start)
        elif kind == "command":
            commands.append(reread_document(value, Command))
        elif b'"schema":"hansa/approval/v1"' in value:
            approvals[name] = reread_document(value, Approval)
        else:
            denials[name] = reread_document(value, Denial)
    return ProposedStudy(
        proposal=reread_document(raw, Proposal),
        approvals=approvals,
        denials=denials,
        start=start,
        commands=tuple(sorted(commands, key=lambda command: command.body.counter)),
    )
