"""What an author does at the coordinator: propose a study, start it, command it. Each is a document under the author's own key."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from hansa.coordinator.author_register import AuthorRecord
from hansa.coordinator.model_store import keep_model
from hansa.coordinator.office import Office
from hansa.coordinator.study_desk import ProposedStudy, StudyDesk
from hansa.coordinator.study_states import OVER, Outcomes, find_study, name_of, state_of
from hansa.errors import CommandStale, DocumentRejected, NotEnoughApprovals, StudyAlreadyStarted
from hansa.federation.documents import Document
from hansa.federation.fields import whole_seconds
from hansa.federation.proposals import Member, Proposal
from hansa.federation.revocation_file import RevocationFile
from hansa.federation.starts import Action, Command, make_start
from hansa.secure_agg.certificates import utc_now
from hansa.secure_agg.identity import Identity
from hansa.study import Study

SESSION_BYTES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalPlan:
    """What is to be proposed.

    Attributes:
        study: The agreement.
        base: File of the base model.
        invited: Members that may take part; none for all that are enrolled.
        days: How long answers are waited for.
    """

    study: Study
    base: Path
    invited: Sequence[str]
    days: int


class Authoring:
    """An author at a coordinator's home.

    Args:
        office: The coordinator's journal and registers.
        author: Name of the author, whose key is in this home.
        now: Clock.

    Raises:
        UsageError: There is no such author.
        DocumentRejected: It is revoked.
        HomeMissing, KeyFileUnsafe: Its key is not here, or others can read it.
    """

    def __init__(self, office: Office, author: str, *, now: Callable[[], datetime] = utc_now) -> None:
        self._office, self._now = office, now
        self._record: AuthorRecord = office.authors.get(author)
        if self._record.revoked is not None:
            raise DocumentRejected(f"the author {author!r} is revoked")  # also before a list says so
        self._key: Identity = office.home.author(author)
        self.desk = desk_of(office, now)
        self._outcomes = Outcomes(office.journal)

    def propose(self, plan: ProposalPlan) -> ProposedStudy:
        """Sign a proposal and put it where members fetch it.

        Raises:
            NotEnoughApprovals: Fewer members are invited than the study has participants.
            ParticipantUnknown: Somebody is invited who is no member.
            CheckpointFileMissing, StoreNotWritable: The base cannot be read, or not kept.
            See `StudyDesk.propose` for everything else.
        """
        members, study = self._invited(plan.invited), plan.study
        needed = study.aggregation.participants
        if len(members) < needed:
            raise NotEnoughApprovals(
                f"the study has {needed} participants, and {len(members)} members are invited",
                hint="invite more members, or lower aggregation.participants",
            )
        digest, length = keep_model(self._office.home.models, plan.base)
        now = whole_seconds(self._now())
        body = Proposal(
            consortium=self._office.home.consortium.fingerprint,
            study_id=bytes.fromhex(study.id),
            study=study.model_dump(by_alias=True, mode="json"),
            author=self._record.name,
            author_key=self._record.key,
            author_certificate=self._record.certificate,
            base_model=digest,
            base_model_bytes=length,
            invited=tuple(members),
            approvals_needed=needed,
            session_id=os.urandom(SESSION_BYTES),
            created=now,
            expires=now + timedelta(days=plan.days),
        )
        return self.desk.propose(Document.sign(body, self._key.sign))

    def start(self, name: str) -> ProposedStudy:
        """Sign the start of a study with those that approved first, as many as it needs.

        Raises:
            StudyUnknown, UsageError: See `find_study`.
            StudyAlreadyStarted: It was started, or is over.
            NotEnoughApprovals: Too few have approved; the message names those that have not.
        """
        study = find_study(self.desk, self._outcomes, name, self._now())
        state = state_of(study, self._outcomes.get(study), self._now())
        if state != "proposed":
            raise StudyAlreadyStarted(f"the study {name_of(study)!r} is {state}")
        try:
            chosen = study.chosen()
        except NotEnoughApprovals as few:
            missing = [m.name for m in study.proposal.body.invited if m.name not in study.approvals]
            raise NotEnoughApprovals(f"{few.message}; not approved by {', '.join(missing)}") from few
        body = make_start(
            study.proposal,
            chosen,
            author_certificate=self._record.certificate,
            created=whole_seconds(self._now()),
        )
        return self.desk.start(Document.sign(body, self._key.sign))

    def command(self, name: str, action: Action) -> ProposedStudy:
        """Sign a command to a study that was started.

        Raises:
            StudyUnknown, UsageError: See `find_study`.
            CommandStale: It was not started, is over, or is paused or running as it is.
        """
        study = find_study(self.desk, self._outcomes, name, self._now())
        state = state_of(study, self._outcomes.get(study), self._now())
        is_idle = (action == "pause") == (state == "paused") and action != "stop"
        if study.start is None or state in OVER or is_idle:
            raise CommandStale(
                f"the study {name_of(study)!r} is {state}: there is nothing to {action}",
                hint="`hansa study show NAME` tells where it is",
            )
        last = study.commands[-1].body.counter if study.commands else 0
        body = Command(
            consortium=self._office.home.consortium.fingerprint,
            proposal=study.digest,
            session_id=study.proposal.body.session_id,
            counter=last + 1,
            action=action,
            author_certificate=self._record.certificate,
            created=whole_seconds(self._now()),
        )
        return self.desk.command(Document.sign(body, self._key.sign))

    def _invited(self, names: Sequence[str]) -> list[Member]:
        members = self._office.registry.members
        records = [members.get(name) for name in names] if names else members.all()
        found = [
            Member(name=record.name, identity=record.keys.identity)
            for record in records
            if record.keys is not None and (names or record.state == "enrolled")
        ]
        return sorted(found, key=lambda member: member.name)


def desk_of(office: Office, now: Callable[[], datetime] = utc_now) -> StudyDesk:
    """Open the desk of a coordinator's home."""
    home = office.home
    revoked = RevocationFile(home.consortium.authority, home.revocation_list_file, now)
    return StudyDesk(office.journal, consortium=home.consortium, revoked=revoked, now=now)
