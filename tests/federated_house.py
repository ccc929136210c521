"""A consortium with an authority, an author and three members, at a fixed time."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hansa.federation.answers import Approval, approve
from hansa.federation.authors import issue_author_certificate
from hansa.federation.consortium import Consortium
from hansa.federation.documents import Document
from hansa.federation.enrolments import Enrolment, make_enrolment
from hansa.federation.invitations import Addresses, Invitation, new_code
from hansa.federation.proposals import Member, Proposal
from hansa.federation.requests import EnrolmentRequest, MemberKeys, keys_of_request
from hansa.federation.starts import Command, Start, make_start
from hansa.federation.tls_authority import issue_client_certificate, new_tls_key, request_tls_certificate
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.identity import Identity
from hansa.study import load_study

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
DAY = timedelta(days=1)
WINDOW = {"not_before": NOW - DAY, "not_after": NOW + 90 * DAY}
STUDY = Path(__file__).resolve().parents[1] / "examples/bank/study.toml"


def flower_key() -> str:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@dataclass
class House:
    """Everything of one consortium, and documents of each kind that are as they must be."""

    name: str = "northern-banks"

    def __post_init__(self) -> None:
        self.now, self.day = NOW, DAY
        self.authority = CertificateAuthority.create(
            self.name, not_before=NOW - 30 * DAY, not_after=NOW + 3650 * DAY
        )
        self.consortium = Consortium(name=self.name, authority=self.authority.certificate)
        self.fingerprint = self.consortium.fingerprint
        self.author = Identity.generate()
        self.author_certificate = issue_author_certificate(
            self.authority, self.author.request_certificate("admin"), author="admin", **WINDOW
        )
        self.identities = {name: Identity.generate() for name in ("bank-1", "bank-2", "bank-3", "bank-4")}
        self.tls_key = new_tls_key()
        self.flower = flower_key()
        self.code = new_code()

    def invitation(self, **changes: Any) -> Document[Invitation]:
        usual = {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "authority": self.authority.certificate,
            "addresses": Addresses(
                fleet="hansa.example:9443",
                aggregator="hansa.example:9444",
                consortium="hansa.example:9445",
                enrolment="10.0.0.1:9446",
            ),
            "participant": "bank-1",
            "code": self.code,
            "expires": NOW + DAY,
        }
        return Document.sign(Invitation(**{**usual, **changes}), self.authority.sign)

    def request(self, **changes: Any) -> Document[EnrolmentRequest]:
        identity = self.identities["bank-1"]
        usual = {
            "consortium": self.fingerprint,
            "participant": "bank-1",
            "identity_request": identity.request_certificate("bank-1"),
            "tls_request": request_tls_certificate(self.tls_key, "bank-1"),
            "flower_key": self.flower,
            "created": NOW,
            "proof": bytes(64),
        }
        body = EnrolmentRequest(**{**usual, **changes})
        return Document.sign(body.with_proof(self.invitation().body.proof_identity().sign), identity.sign)

    def keys(self) -> MemberKeys:
        return keys_of_request(self.request())

    def certificates(self, participant: str = "bank-1", **window: Any) -> tuple[bytes, bytes]:
        window = {**WINDOW, **window}
        identity = self.identities[participant].request_certificate(participant)
        tls = request_tls_certificate(self.tls_key, participant)
        return (
            self.authority.issue(identity, participant=participant, **window),
            issue_client_certificate(self.authority, tls, participant=participant, **window),
        )

    def enrolment(self, **changes: Any) -> Document[Enrolment]:
        identity, tls = self.certificates()
        body = make_enrolment(
            consortium=self.fingerprint,
            participant="bank-1",
            number=1,
            identity_certificate=identity,
            tls_certificate=tls,
            flower_key=self.flower,
        )
        return Document.sign(body.model_copy(update=changes), self.authority.sign)

    def proposal(self, **changes: Any) -> Document[Proposal]:
        study = load_study(STUDY).with_changes(participants=3)
        usual = {
            "consortium": self.fingerprint,
            "study_id": bytes.fromhex(study.id),
            "study": study.model_dump(by_alias=True, mode="json"),
            "author": "admin",
            "author_key": self.author.public,
            "author_certificate": self.author_certificate,
            "base_model": b"m" * 32,
            "base_model_bytes": 1000,
            "invited": tuple(
                Member(name=name, identity=identity.public) for name, identity in self.identities.items()
            ),
            "approvals_needed": 3,
            "session_id": b"s" * 16,
            "created": NOW - DAY,
            "expires": NOW + 7 * DAY,
        }
        return Document.sign(Proposal(**{**usual, **changes}), self.author.sign)

    def approval(self, proposal: Document[Proposal], participant: str, **changes: Any) -> Document[Approval]:
        body = approve(proposal, participant, by="hand", at=NOW).model_copy(update=changes)
        return Document.sign(body, self.identities[participant].sign)

    def start(
        self, proposal: Document[Proposal], approvals: list[Document[Approval]], **changes: Any
    ) -> Document[Start]:
        body = make_start(proposal, approvals, author_certificate=self.author_certificate, created=NOW)
        return Document.sign(body.model_copy(update=changes), self.author.sign)

    def command(
        self, proposal: Document[Proposal], changes: dict[str, Any] | None = None
    ) -> Document[Command]:
        usual = {
            "consortium": self.fingerprint,
            "proposal": proposal.digest,
            "session_id": proposal.body.session_id,
            "counter": 1,
            "action": "pause",
            "author_certificate": self.author_certificate,
            "created": NOW,
        }
        return Document.sign(Command(**{**usual, **(changes or {})}), self.author.sign)
