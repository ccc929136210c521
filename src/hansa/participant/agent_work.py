"""What the node agent does beside answering requests: look for news of the consortium, decide, sit down, get up.

1 revocation list    fetched and kept
2 proposals          verified and kept; approved where a data set's policy names the study
3 answers            sent until the coordinator has them
4 starts, commands   verified and kept
5 seats              a node for every study that was started here and is not over
6 renewal            new certificates when a third of the time is left

Certificates that have ended open no door but the enrolment service's; so then the renewal comes first, and there.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from hansa.errors import ConfigurationError, EnrolmentPending, Error, PolicyRefusal, TransportError
from hansa.federation.answers import Approval
from hansa.federation.documents import Document
from hansa.federation.enrolments import Enrolment
from hansa.federation.requests import RenewalRequest
from hansa.federation.tls_files import TlsSource
from hansa.participant.consortium_client import ConsortiumClient
from hansa.participant.coordinator_channel import CoordinatorChannel, Patience
from hansa.participant.dataset_file import load_datasets
from hansa.participant.enrolment_client import EnrolmentClient
from hansa.participant.home import ParticipantHome
from hansa.participant.renewing import renew_if_due
from hansa.participant.seat import Seat, data_set_policy
from hansa.participant.study_desk import DeskStudy, StudyDesk, verify_allowed

Report = Callable[[str, Error], None]
_CALL_SECONDS = 20.0
_SEAT_LOOK_SECONDS, _ASK_SECONDS = 0.2, 1.0


class AgentWork:
    """The agent's round of looks; `look` does all of it once.

    Args:
        home: The participant's home.
        client: Way to the consortium's service.
        aggregator: Way to the aggregator.
        now: Clock.
        report: Receives what went wrong and where, for the participant's own log.
        note: Receives what happened, as an event's name and values.

    Attributes:
        seats: By session.
        is_asked_for: Set when somebody waits for a seat, so that the next look should come at once.

    Guarantees:
        - What goes wrong with one study keeps no other from its seat.
        - A seat that was taken before this process began is taken again without the coordinator.
        - A policy approves only a study whose id its owner wrote into it.
        - A study that was stopped has no seat.
        - A member whose certificates have ended gets new ones by itself, as long as it is a member.
    """

    def __init__(
        self,
        home: ParticipantHome,
        client: ConsortiumClient,
        aggregator: CoordinatorChannel,
        *,
        now: Callable[[], datetime],
        report: Report,
        note: Callable[..., None],
    ) -> None:
        self._home, self._client, self._aggregator = home, client, aggregator
        self._now, self._report, self._note = now, report, note
        self.desk = StudyDesk(home.folder, participant=home.name, now=now)
        self._seats: dict[str, Seat] = {}
        self._sent: set[str] = set()
        self._failed: dict[str, str] = {}  # sessions without a seat, and why
        self.is_asked_for = threading.Event()

    @property
    def seats(self) -> Mapping[str, Seat]:
        """Seats by session."""
        return self._seats

    def resume(self) -> None:
        """Sit down where this participant sat before its process ended; what needs the coordinator is left to `look`."""
        for study in self.desk.all():
            if study.state in ("started", "paused") and self._base_file(study).exists():
                self._try("study", lambda study=study: self._open(study))  # type: ignore[misc]

    def seat_for(self, session: str, seconds: float, stop: threading.Event) -> Seat | None:
        """Give the seat of a session; one that is about to be taken is waited for.

        A coordinator asks as soon as a study is started, and members learn of that a moment later, or are made anew just then.

        Args:
            session: Session id, 32 hexadecimal digits.
            seconds: Longest wait.
            stop: Set when nobody waits any more.
        """
        begin = due = time.monotonic()
        while (seat := self._seats.get(session)) is None and self._is_expected(session):
            now = time.monotonic()
            if now >= due:
                self.is_asked_for.set()
                due = now + _ASK_SECONDS
            if now - begin > seconds or stop.wait(_SEAT_LOOK_SECONDS):
                break
        return seat

    def look(self) -> bool:
        """Do everything once; tell whether something is awaited, so that the next look should come soon.

        Raises:
            TransportError: The coordinator cannot be reached; nothing was changed, and it can be tried again.
        """
        if self._have_ended():
            self._try("renewal", self._renew)
        self._try("revocation_list", self._client.revocations)
        self._try("proposals", self._take_proposals)
        studies = self.desk.all()
        for study in studies:
            self._try("study", lambda study=study: self._advance(study))  # type: ignore[misc]
        self._try("renewal", self._renew)
        return any(study.state in ("undecided", "approved") for study in self.desk.all())

    def finish(self) -> None:
        """Write the models of studies whose rounds are all applied, and get up from them; asks nobody."""
        for study in self.desk.all():
            if study.session in self._seats:
                self._try("study", lambda study=study: self._sit_down(study))  # type: ignore[misc]

    def reload(self) -> None:
        """Read the policies again; a seat whose policy cannot be read any more gets up."""
        for session, seat in list(self._seats.items()):
            try:
                seat.use_policy()
            except Error as error:
                self._report("policy", error)
                self._get_up(session)

    def stop_looking(self) -> None:
        """Let a look that is in progress fail at once, and every later one."""
        self._client.give_up()

    def give_up(self) -> None:
        """Let whatever waits for the aggregator fail at once; what was sent is not lost."""
        self._aggregator.give_up()

    def close(self) -> None:
        """Get up from all seats."""
        for session in list(self._seats):
            self._get_up(session)

    # -- inside ------------------------------------------------------------------------------------------

    def _is_expected(self, session: str) -> bool:
        """Whether a session is one that this participant approved, and nothing keeps it from its seat."""
        if session in self._failed:
            return False
        states = {study.session: study.state for study in self.desk.all()}
        return states.get(session) in ("approved", "started", "paused")

    def _try(self, what: str, step: Callable[[], object]) -> None:
        try:
            step()
        except TransportError:
            raise
        except Error as error:
            self._report(what, error)

    def _take_proposals(self) -> None:
        for offer in self._client.proposals():
            if offer.proposal is None:
                if offer.problem is not None:
                    self._report("proposal", offer.problem)
            elif self.desk.propose(offer.proposal):
                body = offer.proposal.body
                self._note("study_proposed", study=str(body.study["name"]), author=body.author)

    def _advance(self, study: DeskStudy) -> None:
        """Bring one study to where its documents say it is."""
        if study.state == "undecided":
            study = self._decide(study)
        if study.state in ("approved", "denied"):
            self._send(study)
        if study.state == "approved":
            study = self._look_for_start(study)
        if study.state in ("started", "paused"):
            study = self._look_for_commands(study)
        if study.state in ("started", "paused"):
            self._sit_down(study)
        elif study.session in self._seats:
            self._get_up(study.session)

    def _decide(self, study: DeskStudy) -> DeskStudy:
        """Approve where the policy of a data set names the study; otherwise a hand has to."""
        wanted = study.proposal.body.study_id.hex()
        for entry in load_datasets(self._home.folder).dataset:
            try:
                policy = data_set_policy(self._home.folder, entry.name)
                if wanted not in policy.studies:
                    continue
                verify_allowed(policy, study)
            except (PolicyRefusal, ConfigurationError) as error:
                self._report("policy", error)
                continue
            self.desk.approve(study, entry.name, by="policy", identity=self._home.identity())
            self._note("study_approved", study=study.name, data_set=entry.name, by="policy")
            return self.desk.find(study.session)
        return study

    def _send(self, study: DeskStudy) -> None:
        if study.answer is None or study.session in self._sent:
            return
        self._client.answer(study.answer)
        self._sent.add(study.session)
        kind = "approval" if isinstance(study.answer.body, Approval) else "denial"
        self._note("answer_sent", study=study.name, answer=kind)

    def _look_for_start(self, study: DeskStudy) -> DeskStudy:
        found = self._client.starts([study.proposal], lambda error: self._report("start", error))
        for started in found:
            study = self.desk.begin(study, started.start, started.approvals)
            self._note("study_started", study=study.name)
        return study

    def _look_for_commands(self, study: DeskStudy) -> DeskStudy:
        last = 0 if study.command is None else study.command.body.counter
        for command in self._client.commands(study.proposal, last):
            study = self.desk.command(study, command)
            self._note("study_commanded", study=study.name, action=command.body.action)
        return study

    def _sit_down(self, study: DeskStudy) -> None:
        seat = self._seats.get(study.session)
        if seat is None:
            seat = self._open(study)
        if seat is not None and seat.is_finished:
            place = seat.save_model()
            self.desk.finish(study)
            self._get_up(study.session)
            self._note("study_finished", study=study.name, model=str(place.relative_to(self._home.folder)))

    def _open(self, study: DeskStudy) -> Seat | None:
        try:
            base = self._base(study)
            seat = Seat(
                self._home,
                study,
                folder=self.desk.folder_of(study),
                base=base,
                channel=self._aggregator,
                report=lambda error: self._report("round", error),
            )
        except TransportError:
            raise
        except Error as error:
            if self._failed.get(study.session) != error.code:  # say it once
                self._failed[study.session] = error.code
                self._report("seat", error)
            return None
        self._failed.pop(study.session, None)
        self._seats[study.session] = seat
        self._note("seat_taken", study=study.name, rounds_done=seat.rounds_done, notes=list(seat.notes))
        return seat

    def _base(self, study: DeskStudy) -> Path:
        """Give the base model's file, fetched where it is not there."""
        place = self._base_file(study)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        self._client.fetch_model(study.proposal, place)
        return place

    def _base_file(self, study: DeskStudy) -> Path:
        return self._home.folder / "models" / f"{study.proposal.body.base_model.hex()}.safetensors"

    def _get_up(self, session: str) -> None:
        self._seats.pop(session).close()

    def _have_ended(self) -> bool:
        return self._now() > self._home.enrolment().body.not_after

    def _renew(self) -> None:
        try:
            if renew_if_due(self._home, self._ask_renewal, self._now()):
                self._note("certificates_renewed", until=str(self._home.enrolment().body.not_after))
        except EnrolmentPending as error:
            self._report("renewal", error)

    def _ask_renewal(self, request: Document[RenewalRequest]) -> Document[Enrolment]:
        """Ask at the consortium's door; with certificates that have ended, at the one for those who have none."""
        if self._now() < self._home.enrolment().body.not_after:
            return self._client.renew(request)
        home = self._home
        with EnrolmentClient(home.settings.addresses.enrolment, home.consortium.authority) as client:
            return client.renew(request)


def open_work(
    stack: ExitStack,
    home: ParticipantHome,
    *,
    now: Callable[[], datetime],
    report: Report,
    note: Callable[..., None],
) -> AgentWork:
    """Open the ways to the coordinator and make the agent's work on them; `stack` closes all of it."""
    tls, addresses = TlsSource(home.tls_files), home.settings.addresses

    def channel(address: str, patience: Patience) -> CoordinatorChannel:
        made = CoordinatorChannel(address, tls=tls, participant=home.name, patience=patience, clock=now)
        stack.callback(made.close)
        return made

    consortium = channel(addresses.consortium, Patience(deadline_seconds=_CALL_SECONDS))
    client = ConsortiumClient(home, consortium, now)
    aggregator = channel(addresses.aggregator, Patience())
    work = AgentWork(home, client, aggregator, now=now, report=report, note=note)
    stack.callback(work.close)
    return work
