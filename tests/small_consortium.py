"""The homes of a coordinator and three members on disk, made without a network, and a study over tiny tables that is started."""

import secrets
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

from hansa.coordinator.founding import FoundingPlan, found_consortium
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.model_store import keep_model
from hansa.coordinator.office import open_office
from hansa.coordinator.study_desk import StudyDesk
from hansa.federation.documents import Document
from hansa.federation.proposals import Member, Proposal
from hansa.federation.revocation_file import RevocationFile
from hansa.federation.starts import make_start
from hansa.models.base_files import save_base
from hansa.models.features import encoder_of_public_sample
from hansa.models.pretraining import PretrainingConfig, make_base
from hansa.participant.enrolling import begin_enrolment, finish_enrolment
from hansa.participant.home import ParticipantHome
from hansa.participant.study_desk import StudyDesk as OwnDesk
from hansa.secure_agg.certificates import utc_now
from hansa.study import Study

NAMES = ("bank-1", "bank-2", "bank-3")
COLUMNS = ("a", "b", "c", "d", "e", "f", "late")


class SmallConsortium:
    """Homes below `folder`: `coordinator`, and one for each of `NAMES`."""

    def __init__(self, folder: Path, study: Study, tiny: Any, *, epsilon_limit: float = 8.0) -> None:
        self.folder, self.study, self._tiny, self.epsilon_limit = folder, study, tiny, epsilon_limit
        self.port = free_ports(5)
        plan = FoundingPlan(
            name="northern-banks",
            folder=folder / "coordinator",
            hosts=("127.0.0.1",),
            port=self.port,
            author="admin",
        )
        made = found_consortium(plan, utc_now())
        settings = made.folder / "coordinator.toml"
        text = settings.read_text().replace("127.0.0.1:9447", f"127.0.0.1:{self.port + 4}")
        settings.write_text(text.replace("0.0.0.0", "127.0.0.1"))
        self.home = CoordinatorHome.open(made.folder)
        self.base = self._make_base()
        with open_office(self.home) as office:
            self.members = {name: self._enrol(office, name) for name in NAMES}
        for name in NAMES:
            self._write_data(name)

    def _make_base(self) -> Path:
        table = self._tiny.Table("public")
        encoder = encoder_of_public_sample(self.study.data, table.numeric, 1, self.study.model.quantile_bins)
        features = encoder.encode(table.numeric, table.categorical)
        pretraining = PretrainingConfig(steps=2, batch_size=16)
        base = make_base(self.study, features, encoder.used(), seed=0, pretraining=pretraining)
        save_base(base, encoder, self.study, self.folder / "base.safetensors")
        return self.folder / "base.safetensors"

    def _enrol(self, office: Any, name: str) -> ParticipantHome:
        authority, now = self.home.authority(), utc_now()
        place, request = begin_enrolment(
            office.registry.invite(name, authority), self.folder / name, utc_now()
        )
        office.registry.submit(request)
        fingerprint = office.registry.fingerprint(office.registry.members.get(name))
        finish_enrolment(
            place, office.registry.approve(name, fingerprint=fingerprint, authority=authority), now
        )
        place.take_revocations(self.home.revocation_list_file.read_bytes(), utc_now())
        return place

    def _write_data(self, name: str) -> None:
        place, table = self.members[name].folder, self._tiny.Table(name)
        rows = [",".join(COLUMNS)]
        for numbers, (kind,), label in zip(table.numeric, table.categorical, table.labels, strict=True):
            rows.append(
                ",".join([*(repr(float(x)) for x in numbers), str(kind) if kind else "", str(int(label))])
            )
        (place / "table.csv").write_text("\n".join(rows) + "\n")
        (place / "datasets.toml").write_text(
            'schema = "hansa/datasets/v1"\n[[dataset]]\nname = "table"\nkind = "csv"\npath = "table.csv"\n'
            'policy = "policy.toml"\n'
        )
        (place / "policy.toml").write_text(
            f'schema = "hansa/policy/v1"\ndata_set = "table"\nstudies = ["{self.study.id}"]\n'
            f"delta_limit = 1e-5\n[epsilon]\nfor_ever = {self.epsilon_limit}\n"
        )

    def propose(self) -> Document[Proposal]:
        """Make the study's proposal and leave it at the coordinator's desk."""
        digest, length = keep_model(self.home.models, self.base)
        now = utc_now()
        with open_office(self.home) as office:
            author = self.home.author("admin")
            body = Proposal(
                consortium=self.home.consortium.fingerprint,
                study_id=bytes.fromhex(self.study.id),
                study=self.study.model_dump(by_alias=True, mode="json"),
                author="admin",
                author_key=author.public,
                author_certificate=office.authors.get("admin").certificate,
                base_model=digest,
                base_model_bytes=length,
                invited=tuple(Member(name=n, identity=m.identity().public) for n, m in self.members.items()),
                approvals_needed=len(NAMES),
                session_id=secrets.token_bytes(16),
                created=now,
                expires=now + timedelta(days=7),
            )
            document = Document.sign(body, author.sign)
            self._desk(office).propose(document)
        return document

    def approvals(self, proposal: Document[Proposal]) -> int:
        """Count the approvals that have reached the coordinator."""
        with open_office(self.home) as office:
            return len(self._desk(office).get(proposal.digest).approvals)

    def approve(self, proposal: Document[Proposal]) -> None:
        """Let every member approve by hand at its own desk, and bring the answers to the coordinator's."""
        with open_office(self.home) as office:
            for place in self.members.values():
                own = self.own_desk(place)
                own.propose(proposal)
                study = own.find(proposal.body.session_id.hex())
                answer = own.approve(study, "table", by="hand", identity=place.identity())
                self._desk(office).answer(answer)

    def sign_start(self, proposal: Document[Proposal]) -> Any:
        """Start the study at the coordinator's desk, with the approvals that are there; give start and approvals."""
        with open_office(self.home) as office:
            desk = self._desk(office)
            body = make_start(
                proposal,
                desk.get(proposal.digest).chosen(),
                author_certificate=office.authors.get("admin").certificate,
                created=utc_now(),
            )
            start = Document.sign(body, self.home.author("admin").sign)
            return start, desk.start(start).roster_approvals

    def start(self) -> Document[Proposal]:
        """Propose the study, let every member approve it by hand, start it, and bring the start to every member."""
        proposal = self.propose()
        self.approve(proposal)
        start, approvals = self.sign_start(proposal)
        for place in self.members.values():
            own = self.own_desk(place)
            own.begin(own.find(proposal.body.session_id.hex()), start, approvals)
        return proposal

    @staticmethod
    def own_desk(place: ParticipantHome) -> OwnDesk:
        """A member's own desk."""
        return OwnDesk(place.folder, participant=place.name, now=utc_now)

    def _desk(self, office: Any) -> StudyDesk:
        revoked = RevocationFile(self.home.consortium.authority, self.home.revocation_list_file)
        return StudyDesk(office.journal, consortium=self.home.consortium, revoked=revoked)


def free_ports(count: int) -> int:
    """Find the first of so many ports in a row that nobody listens on."""
    for first in range(21_000 + secrets.randbelow(8000), 32_000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")
