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
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from hansa.errors import (
    AlreadyAnswered,
    ConfigurationError,
    DocumentRejected,
    EnrolmentPending,
    Error,
    InternalFailure,
    PolicyRefusal,
    TransportError,
)
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
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 300.0  # before a seat that was not taken is tried again
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
        - A study that was stopped has no seat; the model of the rounds that were applied is written.
        - Nobody waits for a request that is being answered: who gets up leaves when it is.
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
        # sessions without a seat: why; when to try again; pause
        self._failed: dict[str, tuple[str, float, float]] = {}
        self._leaving: dict[str, tuple[Seat, DeskStudy | None]] = {}  # and the study, if it was stopped
        self.is_asked_for = threading.Event()

    @property
    def seats(self) -> Mapping[str, Seat]:
        """Seats by session."""
        return self._seats

    def resume(self) -> None:
        """Sit down where this participant sat before its process ended; what needs the coordinator is left to `look`."""
        for study in self._studies():
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
        self._try("renewal", self._renew)
        self._leave()
        # Seats first: to fetch the base of another study may take longer than a call does, and then this look ends.
        for study in sorted(self._studies(), key=lambda study: study.session not in self._seats):
            self._try("study", lambda study=study: self._advance(study))  # type: ignore[misc]
        return any(
            study.state in ("undecided", "approved") and self.desk.is_in_time(study)
            for study in self._studies()
        )

    def finish(self) -> None:
        """Write the models of studies whose rounds are all applied, and get up from them; asks nobody."""
        for study in self._studies():
            if study.session in self._seats:
                self._try("study", lambda study=study: self._sit_down(study))  # type: ignore[misc]

    def reload(self) -> None:
        """Read the policies again; a seat whose policy cannot be read any more gets up, one that was not taken is tried anew."""
        self._failed.clear()
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
        self._leave(wait=True)

    # -- inside ------------------------------------------------------------------------------------------

    def _is_expected(self, session: str) -> bool:
        """Whether a session is one that this participant approved, and nothing keeps it from its seat."""
        if session in self._failed:
            return False
        states = {study.session: study.state for study in self._studies()}
        return states.get(session) in ("approved", "started", "paused")

    def _try(self, what: str, step: Callable[[], object]) -> None:
        try:
            step()
        except TransportError:
            raise
        except Error as error:
            self._report(what, error)
        except Exception as error:  # one study's must not end the agent of all others
            self._report(what, InternalFailure("".join(traceback.format_exception(error))))

    def _studies(self) -> list[DeskStudy]:
        return self.desk.all(lambda error: self._report("study", error))

    def _take_proposals(self) -> None:
        known = {study.proposal.encode() for study in self._studies()}
        for offer in self._client.proposals(known):
            if offer.proposal is None:
                if offer.problem is not None:
                    self._report("proposal", offer.problem)
            elif self.desk.propose(offer.proposal):
                body = offer.proposal.body
                self._note("study_proposed", study=str(body.study["name"]), author=body.author)

    def _advance(self, study: DeskStudy) -> None:
        """Bring one study to where its documents say it is."""
        if study.state == "undecided" and self.desk.is_in_time(study):
            study = self._decide(study)
        if study.state in ("approved", "denied"):
            self._send(study)
        if study.state == "approved":
            study = self._look_for_start(study)
        if study.state in ("started", "paused"):
            study = self._look_for_commands(study)
        if study.state in ("started", "paused"):
            self._sit_down(study)
        elif study.state == "stopped" and not study.is_finished:
            self._wrap_up(study)
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
        try:
            self._client.answer(study.answer)
        except (AlreadyAnswered, DocumentRejected):  # for good: to send it again changes nothing
            self._sent.add(study.session)
            raise
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
        seat = self._seats.get(study.session) or self._open(study)
        if seat is not None and seat.is_finished:
            place = seat.save_model()
            self.desk.finish(study)
            self._get_up(study.session)
            self._note("study_finished", study=study.name, model=str(place.relative_to(self._home.folder)))

    def _wrap_up(self, study: DeskStudy) -> None:
        """Get up from a study that was stopped, with its model; also where a process before this one did not come to it."""
        if (self._seats.get(study.session) or self._open(study)) is not None:
            self._get_up(study.session, stopped=study)

    def _open(self, study: DeskStudy) -> Seat | None:
        _, due, pause = self._failed.get(study.session, ("", 0.0, 0.0))
        if study.session in self._leaving or time.monotonic() < due:
            return None
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
            if self._failed.get(study.session, ("",))[0] != error.code:  # say it once
                self._report("seat", error)
            # The data set is read at each try, and that may take long.
            again = time.monotonic() + pause
            longer = min(max(_FIRST_PAUSE_SECONDS, 2 * pause), _LONGEST_PAUSE_SECONDS)
            self._failed[study.session] = error.code, again, longer
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

    def _get_up(self, session: str, stopped: DeskStudy | None = None) -> None:
        self._leaving[session] = self._seats.pop(session), stopped
        self._leave()

    def _leave(self, *, wait: bool = False) -> None:
        """Close the seats that nobody is at work on any more."""
        for session in list(self._leaving):
            self._try("study", lambda session=session: self._let_go(session, wait=wait))  # type: ignore[misc]

    def _let_go(self, session: str, *, wait: bool) -> None:
        seat, stopped = self._leaving[session]
        if seat.close(wait=wait, keep_model=stopped is not None):
            del self._leaving[session]
            if stopped is not None:
                self.desk.finish(stopped)
                self._note("study_stopped", study=stopped.name, rounds_done=seat.rounds_done)

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
