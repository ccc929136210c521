"""A coordinator with its four doors on loopback and a stand-in for Flower's SuperLink, and members that a doctor examines."""

import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hansa.coordinator.consortium_server import SERVICE_NAME as CONSORTIUM
from hansa.coordinator.consortium_server import ConsortiumServicer
from hansa.coordinator.data_plane import DataPlane
from hansa.coordinator.enrolment_server import SERVICE_NAME as ENROLMENT
from hansa.coordinator.enrolment_server import EnrolmentServicer
from hansa.coordinator.founding import FoundingPlan, found_consortium
from hansa.coordinator.front import serve_front
from hansa.coordinator.grpc_server import GrpcServer
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.model_store import keep_model
from hansa.coordinator.office import open_office
from hansa.coordinator.study_desk import StudyDesk
from hansa.coordinator.tending import flower_keys
from hansa.federation.consortium_pb2_grpc import add_ConsortiumServicer_to_server
from hansa.federation.documents import Document
from hansa.federation.enrolment_pb2_grpc import add_EnrolmentServicer_to_server
from hansa.federation.proposals import Member, Proposal
from hansa.federation.revocation_file import RevocationFile
from hansa.federation.tls_files import TlsSource
from hansa.participant.enrolling import ask_for_enrolment, begin_enrolment, finish_enrolment
from hansa.participant.home import ParticipantHome
from hansa.participant.study_desk import StudyDesk as OwnDesk
from hansa.secure_agg.certificates import utc_now
from hansa.study import Study

POLICY = """schema = "hansa/policy/v1"
data_set = "cards"
studies = []
delta_limit = 1e-5
most_rounds = 100
[epsilon]
for_ever = 10.0
per_study = 9.0
per_month = 9.5
[allow]
models = ["{model}"]
submitters = ["admin"]
"""


class _SuperLink(BaseHTTPRequestHandler):
    """Answers as a SuperLink does that knows no such run."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *values: Any) -> None:
        pass


class DoctorSite:
    """A consortium whose members can be examined; `ahead` is how far the coordinator's clock is ahead, in seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ahead, self.failures = folder, 0.0, []
        self.places: dict[str, ParticipantHome] = {}
        plan = FoundingPlan(
            name="northern-banks",
            folder=folder / "coordinator",
            hosts=("127.0.0.1",),
            port=9443,
            author="admin",
        )
        self.home = found_consortium(plan, utc_now())
        self.authority, self.tls = self.home.authority(), TlsSource(self.home.tls_files)
        self.office = open_office(self.home)
        self.revoked = RevocationFile(self.home.consortium.authority, self.home.revocation_list_file)
        self.superlink = ThreadingHTTPServer(("127.0.0.1", 0), _SuperLink)
        threading.Thread(target=self.superlink.serve_forever, daemon=True).start()
        self._open()
        ports = {
            "9443": self.front.address[1],
            "9444": self.plane.server.bound.port,
            "9445": self.consortium.bound.port,
            "9446": self.enrolment.bound.port,
        }
        file = self.home.folder / "coordinator.toml"
        text = file.read_text()
        for old, new in ports.items():
            text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
        file.write_text(text)
        self.invitations = open_office(CoordinatorHome.open(self.home.folder))

    def _open(self) -> None:
        office, home, report = self.office, self.home, self.failures.append
        self.enrolment = GrpcServer(host="127.0.0.1", port=0, tls=self.tls, ask_clients=False)
        enrolments = EnrolmentServicer(
            office.registry, office.renewals, authority=lambda: self.authority, report=report
        )
        self.enrolment.add(ENROLMENT, add_EnrolmentServicer_to_server, enrolments)
        self.plane = DataPlane(host="127.0.0.1", port=0, tls=self.tls, revoked=self.revoked, report=report)
        self.consortium = GrpcServer(host="127.0.0.1", port=0, tls=self.tls)
        documents = ConsortiumServicer(
            self.plane.callers,
            members=office.registry.members,
            renewals=office.renewals,
            revocations=office.revocations,
            desk=StudyDesk(office.journal, consortium=home.consortium, revoked=self.revoked),
            models=home.models,
            authority=lambda: self.authority,
            report=report,
            now=lambda: utc_now() + timedelta(seconds=self.ahead),
        )
        self.consortium.add(CONSORTIUM, add_ConsortiumServicer_to_server, documents)
        self.front = serve_front(
            superlink=f"127.0.0.1:{self.superlink.server_address[1]}",
            certificate=home.tls_files.certificate,
            key=home.tls_files.key,
            authority=home.consortium.authority,
            members={},
            revoked=self.revoked(),
        )
        self.enrolment.start()
        self.consortium.start()
        self.plane.__enter__()

    def close(self) -> None:
        self.front.stop()
        self.plane.__exit__(None, None, None)
        for server in (self.enrolment, self.consortium):
            server.stop(0)
        self.superlink.shutdown()
        self.superlink.server_close()
        for office in (self.office, self.invitations):
            office.journal.close()
        assert self.failures == []

    def ask(self, name: str) -> ParticipantHome:
        """Let a participant ask to be enrolled, and nobody approve it."""
        invitation = self.invitations.registry.invite(name, self.authority)
        place, request = begin_enrolment(invitation, self.folder / name, utc_now())
        self.office.registry.submit(request)
        return place

    def enrol(self, name: str = "bank-1") -> ParticipantHome:
        """Enrol a participant, and let its home know the revocation list."""
        place, registry, now = self.ask(name), self.office.registry, utc_now()
        found = registry.fingerprint(registry.members.get(name))
        registry.approve(name, fingerprint=found, authority=self.authority)
        finish_enrolment(place, registry.collect(ask_for_enrolment(place, now)), now)
        place.take_revocations(self.office.revocations.current(), now)
        self.front.update_members(flower_keys(registry.members))
        self.places[name] = place
        return place

    def revoke(self, name: str) -> None:
        """Revoke a participant, as its admin does."""
        self.office.registry.revoke(name, "test")
        self.front.update_revocations(self.office.revocations.publish(self.authority))

    def propose(self, place: ParticipantHome, study: Study, *, data_set: str = "cards") -> bytes:
        """Have a study proposed to a member and approved by it; give the hash of its base model."""
        source = self.folder / "base"
        source.write_bytes(b"a model")
        digest, length = keep_model(self.home.models, source)
        author, now = self.home.author("admin"), utc_now()
        for name in {"bank-1", "bank-2", "bank-3"} - self.places.keys():
            self.enrol(name)
        invited = [
            Member(name=name, identity=self.places[name].identity().public) for name in sorted(self.places)
        ]
        body = Proposal(
            consortium=self.home.consortium.fingerprint,
            study_id=bytes.fromhex(study.id),
            study=study.model_dump(by_alias=True, mode="json"),
            author="admin",
            author_key=author.public,
            author_certificate=self.office.authors.get("admin").certificate,
            base_model=digest,
            base_model_bytes=length,
            invited=tuple(invited),
            approvals_needed=3,
            session_id=b"session".ljust(16),
            created=now,
            expires=now + timedelta(days=7),
        )
        document = Document.sign(body, author.sign)
        StudyDesk(self.office.journal, consortium=self.home.consortium, revoked=self.revoked).propose(
            document
        )
        desk = OwnDesk(place.folder, participant=place.name, now=utc_now)
        desk.propose(document)
        desk.approve(desk.find(study.name), data_set, by="hand", identity=place.identity())
        return digest

    @staticmethod
    def add_data(place: ParticipantHome, text: str = "a,y\n0.5,1\n0.25,0\n", model: bytes = b"") -> None:
        """Give a member a data set of one column, and a policy for it."""
        (place.folder / "cards.csv").write_text(text)
        (place.folder / "policy.toml").write_text(POLICY.format(model=(model or b"m" * 32).hex()))
        (place.folder / "datasets.toml").write_text(
            'schema = "hansa/datasets/v1"\n\n[[dataset]]\nname = "cards"\nkind = "csv"\npath = "cards.csv"\n'
            'policy = "policy.toml"\n'
        )
