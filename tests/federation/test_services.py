"""Both services over TLS on this machine: enrolment for those without a certificate, the consortium's for members."""

import hashlib
from datetime import timedelta

import grpc
import pytest

from hansa.coordinator.callers import Callers
from hansa.coordinator.consortium_server import SERVICE_NAME as CONSORTIUM
from hansa.coordinator.consortium_server import ConsortiumServicer
from hansa.coordinator.enrolment_server import SERVICE_NAME as ENROLMENT
from hansa.coordinator.enrolment_server import AddressLimit, EnrolmentServicer
from hansa.coordinator.founding import FoundingPlan, found_consortium
from hansa.coordinator.grpc_server import GrpcServer
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.model_store import keep_model
from hansa.coordinator.office import open_office
from hansa.coordinator.study_desk import StudyDesk
from hansa.errors import (
    AlreadyAnswered,
    AuthenticationFailed,
    CertificateRejected,
    ChecksumMismatch,
    CoordinatorUnreachable,
    DocumentMalformed,
    DocumentRejected,
    EnrolmentPending,
    InvitationUnknown,
    InvitationUsed,
    NotAMember,
    NotEnoughApprovals,
    TooManyCalls,
    UnknownStudy,
)
from hansa.federation.answers import approve, deny
from hansa.federation.consortium_pb2_grpc import add_ConsortiumServicer_to_server
from hansa.federation.documents import Document
from hansa.federation.enrolment_pb2 import SignedDocument
from hansa.federation.enrolment_pb2_grpc import add_EnrolmentServicer_to_server
from hansa.federation.proposals import Member, Proposal
from hansa.federation.revocation_file import RevocationFile
from hansa.federation.starts import Command, make_start
from hansa.federation.tls_files import TlsSource
from hansa.federation.versions import versions_here
from hansa.participant.agent_work import AgentWork
from hansa.participant.consortium_client import ConsortiumClient
from hansa.participant.coordinator_channel import CoordinatorChannel, Patience
from hansa.participant.enrolling import (
    ask_for_enrolment,
    begin_enrolment,
    finish_enrolment,
    own_fingerprint,
    stored_request,
)
from hansa.participant.enrolment_client import EnrolmentClient
from hansa.participant.home import ParticipantHome
from hansa.participant.renewing import begin_renewal, finish_renewal
from hansa.secure_agg.certificates import utc_now
from hansa.secure_agg.identity import Identity
from hansa.study import load_study

NAMES = ("bank-1", "bank-2", "bank-3")


class Site:
    """A coordinator with both services, and what tests do at it."""

    def __init__(self, folder, study_file):
        self.folder, self.study_file, self.failures = folder, study_file, []
        plan = FoundingPlan(
            name="northern-banks",
            folder=folder / "coordinator",
            hosts=("127.0.0.1",),
            port=9443,
            author="admin",
        )
        home = found_consortium(plan, utc_now())
        self.authority, self.with_key = home.authority(), True
        self.office = office = open_office(home)
        tls = TlsSource(home.tls_files)
        give = lambda: self.authority if self.with_key else None  # noqa: E731
        revoked = RevocationFile(home.consortium.authority, home.revocation_list_file)
        self.desk = StudyDesk(office.journal, consortium=home.consortium, revoked=revoked)
        self.enrolment = GrpcServer(host="127.0.0.1", port=0, tls=tls, ask_clients=False)
        self.limit = AddressLimit()
        self.enrolment.add(
            ENROLMENT,
            add_EnrolmentServicer_to_server,
            EnrolmentServicer(
                office.registry,
                office.renewals,
                authority=give,
                report=self.failures.append,
                limit=self.limit,
            ),
        )
        self.consortium = GrpcServer(host="127.0.0.1", port=0, tls=tls)
        self.consortium.add(
            CONSORTIUM,
            add_ConsortiumServicer_to_server,
            ConsortiumServicer(
                Callers(home.consortium.authority, revoked),
                members=office.registry.members,
                renewals=office.renewals,
                revocations=office.revocations,
                desk=self.desk,
                models=home.models,
                authority=give,
                report=self.failures.append,
            ),
        )
        settings = home.folder / "coordinator.toml"
        text = settings.read_text().replace("127.0.0.1:9445", f"127.0.0.1:{self.consortium.bound.port}")
        settings.write_text(text.replace("127.0.0.1:9446", f"127.0.0.1:{self.enrolment.bound.port}"))
        self.home = CoordinatorHome.open(home.folder)
        self.invitations = open_office(self.home)
        self.enrolment.start()
        self.consortium.start()
        self.channels = []

    def close(self):
        for channel in self.channels:
            channel.close()
        for server in (self.enrolment, self.consortium):
            server.stop(0)
        self.office.journal.close()
        self.invitations.journal.close()
        assert self.failures == []

    def begin(self, name):
        invitation = self.invitations.registry.invite(name, self.authority)
        return begin_enrolment(invitation, self.folder / name, utc_now())

    def enrolment_client(self, place):
        return EnrolmentClient(place.settings.addresses.enrolment, place.consortium.authority)

    def enrol(self, name):
        place, request = self.begin(name)
        with self.enrolment_client(place) as client:
            client.submit(request)
            self.approve(place)
            finish_enrolment(place, client.collect(ask_for_enrolment(place, utc_now())), utc_now())
        return place

    def approve(self, place):
        found = self.office.registry.fingerprint(self.office.registry.members.get(place.name))
        self.office.registry.approve(place.name, fingerprint=found, authority=self.authority)

    def client(self, place, patience=5.0):
        channel = CoordinatorChannel(
            place.settings.addresses.consortium,
            tls=TlsSource(place.tls_files),
            participant=place.name,
            patience=Patience(deadline_seconds=patience),
        )
        self.channels.append(channel)
        found = ConsortiumClient(place, channel)
        found.revocations()
        return found

    def proposal(self, places, model=b"a model", **changes):
        study = load_study(self.study_file).with_changes(participants=3)
        author, record = self.home.author("admin"), self.office.authors.get("admin")
        source = self.folder / "model"
        source.write_bytes(model)
        digest, length = keep_model(self.home.models, source)
        now = utc_now()
        usual = {
            "consortium": self.home.consortium.fingerprint,
            "study_id": bytes.fromhex(study.id),
            "study": study.model_dump(by_alias=True, mode="json"),
            "author": "admin",
            "author_key": author.public,
            "author_certificate": record.certificate,
            "base_model": digest,
            "base_model_bytes": length,
            "invited": tuple(Member(name=place.name, identity=place.identity().public) for place in places),
            "approvals_needed": 3,
            "session_id": bytes(15) + b"1",
            "created": now,
            "expires": now + timedelta(days=7),
        }
        return Document.sign(Proposal(**{**usual, **changes}), author.sign)

    def signed_start(self, study):
        certificate = self.office.authors.get("admin").certificate
        body = make_start(study.proposal, study.chosen(), author_certificate=certificate, created=utc_now())
        return Document.sign(body, self.home.author("admin").sign)

    def signed_command(self, proposal, counter, action):
        body = Command(
            consortium=proposal.body.consortium,
            proposal=proposal.digest,
            session_id=proposal.body.session_id,
            counter=counter,
            action=action,
            author_certificate=self.office.authors.get("admin").certificate,
            created=utc_now(),
        )
        return Document.sign(body, self.home.author("admin").sign)


@pytest.fixture
def site(tmp_path, federated):
    found = Site(tmp_path, federated.STUDY)
    yield found
    found.close()


def signed_answer(place, proposal, make=approve, **changes):
    return Document.sign(
        make(proposal, place.name, by="hand", at=utc_now(), **changes), place.identity().sign
    )


# -- enrolment -----------------------------------------------------------------------------------------------


def test_from_invitation_to_membership_over_the_network(site):
    place, request = site.begin("bank-1")
    with site.enrolment_client(place) as client:
        with pytest.raises(InvitationUnknown):
            client.collect(ask_for_enrolment(place, utc_now()))
        assert client.submit(request) == "requested"
        assert client.submit(stored_request(place)) == "requested"
        with pytest.raises(EnrolmentPending):
            client.collect(ask_for_enrolment(place, utc_now()))
        record = site.office.registry.members.get("bank-1")
        assert own_fingerprint(place, record.keys) == site.office.registry.fingerprint(record)
        site.approve(place)
        finish_enrolment(place, client.collect(ask_for_enrolment(place, utc_now())), utc_now())
        assert client.submit(request) == "enrolled"
    assert site.client(place).versions() == versions_here()


def test_an_invitation_that_somebody_else_used_is_named(site):
    invitation = site.invitations.registry.invite("bank-1", site.authority)
    thief, _ = begin_enrolment(invitation, site.folder / "thief", utc_now())
    owner, _ = begin_enrolment(invitation, site.folder / "owner", utc_now())
    with site.enrolment_client(thief) as client:
        client.submit(stored_request(thief))
    with site.enrolment_client(owner) as client, pytest.raises(InvitationUsed):
        client.submit(stored_request(owner))


def test_nothing_is_sent_to_a_coordinator_of_another_authority(site, federated):
    place, request = site.begin("bank-1")
    other = federated.House().authority.certificate
    with (
        EnrolmentClient(place.settings.addresses.enrolment, other) as client,
        pytest.raises(AuthenticationFailed),
    ):
        client.submit(request)
    assert site.office.registry.members.get("bank-1").state == "invited"


def test_nobody_there_is_unreachable(site):
    place, request = site.begin("bank-1")
    site.enrolment.stop(0)
    with site.enrolment_client(place) as client, pytest.raises(CoordinatorUnreachable):
        client.submit(request)


def test_noise_is_refused_and_an_address_is_bounded(site):
    place, _ = site.begin("bank-1")
    credentials = grpc.ssl_channel_credentials((place.folder / "authority.crt").read_bytes())
    from hansa.federation.enrolment_pb2_grpc import EnrolmentStub
    from hansa.federation.error_status import error_of
    from hansa.federation.service_errors import ENROLMENT_ERRORS

    kinds = []
    with grpc.secure_channel(place.settings.addresses.enrolment, credentials) as channel:
        stub = EnrolmentStub(channel)
        for raw in [b"", b"{}", b"\xff" * 1000, *[b"x"] * 62]:
            with pytest.raises(grpc.RpcError) as caught:
                stub.Submit(SignedDocument(encoded=raw), timeout=10)
            kinds.append(type(error_of(caught.value, ENROLMENT_ERRORS)))
    assert set(kinds) == {DocumentMalformed, TooManyCalls}
    assert kinds[:3] == [DocumentMalformed] * 3
    assert kinds[-1] is TooManyCalls
    assert site.office.registry.members.get("bank-1").attempts == 0


def test_the_bound_of_an_address_ends_with_the_minute():
    now = [0.0]
    limit = AddressLimit(most=2, clock=lambda: now[0])
    for peer in ("ipv4:192.0.2.1:1", "ipv4:192.0.2.1:2", "ipv4:192.0.2.2:1"):
        limit.admit(peer)
    with pytest.raises(TooManyCalls):
        limit.admit("ipv4:192.0.2.1:3")
    now[0] = 61.0
    limit.admit("ipv4:192.0.2.1:3")


# -- members -------------------------------------------------------------------------------------------------


def test_a_study_from_proposal_to_commands(site):
    places = [site.enrol(name) for name in NAMES]
    clients = [site.client(place) for place in places]
    proposal = site.proposal(places)
    study = site.desk.propose(proposal)
    assert site.desk.propose(proposal) == study
    with pytest.raises(NotEnoughApprovals):
        study.chosen()
    for count, (place, client) in enumerate(zip(places, clients, strict=True), 1):
        (offer,) = client.proposals()
        assert (offer.proposal, offer.problem) == (proposal, None)
        mine = signed_answer(place, offer.proposal)
        assert client.answer(mine) == (count, 3)
        assert client.answer(mine) == (count, 3)  # the reply was lost
        with pytest.raises(AlreadyAnswered):
            client.answer(signed_answer(place, proposal, deny))
        assert client.starts([proposal], pytest.fail) == []
    start = site.signed_start(site.desk.get(proposal.digest))
    site.desk.start(start)
    for place, client in zip(places, clients, strict=True):
        (started,) = client.starts([proposal], pytest.fail)
        assert started.start == start
        assert [one.body.participant for one in started.approvals] == list(NAMES)
        assert client.starts([], pytest.fail) == []  # not one that this participant kept as approved
        assert place.name in {member.name for member in started.start.body.roster}
    for counter, action in ((1, "pause"), (2, "resume"), (5, "stop")):
        site.desk.command(site.signed_command(proposal, counter, action))
    found = clients[0].commands(proposal, 0)
    assert [one.body.action for one in found] == ["pause", "resume", "stop"]
    assert [one.body.counter for one in clients[0].commands(proposal, 2)] == [5]
    kinds = [event.kind for event in site.office.journal.events(study="bank-credit-default")]
    assert kinds == [
        "study_proposed",
        *["study_approved"] * 3,
        "study_started",
        "study_pause",
        "study_resume",
        "study_stop",
    ]


def test_the_desk_keeps_nothing_that_participants_would_refuse(site, federated):
    places = [site.enrol(name) for name in NAMES]
    stranger = Identity.generate()
    wrong_key = [Member(name=place.name, identity=place.identity().public) for place in places]
    wrong_key[0] = Member(name="bank-1", identity=stranger.public)
    for changes in (
        {"invited": tuple(wrong_key)},
        {"author_key": stranger.public},
        {"consortium": b"c" * 32},
        {"approvals_needed": 2},
    ):
        with pytest.raises((DocumentRejected, CertificateRejected)):
            site.desk.propose(site.proposal(places, **changes))
    proposal = site.proposal(places)
    with pytest.raises(UnknownStudy):
        site.desk.answer(signed_answer(places[0], proposal))
    site.desk.propose(proposal)
    with pytest.raises(DocumentRejected):
        site.desk.answer(Document.sign(signed_answer(places[0], proposal).body, stranger.sign))
    with pytest.raises(UnknownStudy):
        site.desk.command(site.signed_command(proposal, 1, "stop"))
    for place in places[:2]:
        site.desk.answer(signed_answer(place, proposal))
    approvals = [signed_answer(place, proposal) for place in places]
    certificate = site.office.authors.get("admin").certificate
    body = make_start(proposal, approvals, author_certificate=certificate, created=utc_now())
    with pytest.raises(NotEnoughApprovals):
        site.desk.start(Document.sign(body, site.home.author("admin").sign))
    site.desk.answer(signed_answer(places[2], proposal, deny, reason="budget_exhausted"))
    assert list(site.desk.get(proposal.digest).denials) == ["bank-3"]


def test_a_member_sees_and_says_nothing_for_others(site):
    places = [site.enrol(name) for name in (*NAMES, "bank-4")]
    proposal = site.proposal(places[:3])
    site.desk.propose(proposal)
    outsider = site.client(places[3])
    assert outsider.proposals() == []
    with pytest.raises(UnknownStudy):
        outsider.fetch_model(proposal, site.folder / "stolen")
    with pytest.raises(DocumentRejected, match="in the name of"):
        outsider.answer(signed_answer(places[0], proposal))
    with pytest.raises(UnknownStudy):
        outsider.commands(proposal, 0)
    with pytest.raises(DocumentRejected, match="in the name of"):
        outsider.renew(begin_renewal(places[0], utc_now()))


def test_a_revocation_takes_effect_at_the_next_call(site):
    place = site.enrol("bank-1")
    client = site.client(place)
    site.office.registry.revoke("bank-1", "key stolen")
    with pytest.raises(NotAMember):
        client.proposals()  # before a list says so
    site.office.revocations.publish(site.authority)
    with pytest.raises(CertificateRejected, match="revoked"):
        client.proposals()
    with site.enrolment_client(place) as anonymous, pytest.raises(NotAMember):
        anonymous.renew(begin_renewal(place, utc_now()))


def test_members_hear_of_a_revoked_author(site):
    places = [site.enrol(name) for name in NAMES]
    proposal = site.proposal(places)
    site.desk.propose(proposal)
    client = site.client(places[0])
    assert client.proposals()[0].proposal == proposal
    site.office.authors.revoke("admin", "left")
    site.office.revocations.publish(site.authority)
    client.revocations()
    (offer,) = client.proposals()
    assert offer.proposal is None
    assert isinstance(offer.problem, CertificateRejected)


def test_a_member_whose_certificates_have_ended_gets_new_ones_over_the_enrolment_service(site):
    place = site.enrol("bank-1")
    site.office.renewals._issuer._days = 300  # so that the new ones last when the old ones have ended
    later, reports, notes = place.enrolment().body.not_after + timedelta(days=1), [], []

    class ClosedDoor:
        def revocations(self):
            raise AuthenticationFailed("no certificate that is valid")

    work = AgentWork(
        place,
        ClosedDoor(),
        None,
        now=lambda: later,
        report=lambda where, error: reports.append((where, error.code)),
        note=lambda event, **_: notes.append(event),
    )
    with pytest.raises(AuthenticationFailed):  # this look began before; the next one comes through the door
        work.look()
    assert (reports, notes) == ([], ["certificates_renewed"])
    assert place.enrolment().body.number == 2
    assert place.enrolment().body.not_after > later
    site.office.registry.revoke("bank-1", "left")
    later = place.enrolment().body.not_after + timedelta(days=1)
    with pytest.raises(AuthenticationFailed):
        work.look()
    assert reports == [("renewal", "not_a_member")]
    assert place.enrolment().body.number == 2


@pytest.mark.parametrize("way", ["consortium", "enrolment"])
def test_a_renewal_over_the_network(site, way):
    place = site.enrol("bank-1")
    client, request = site.client(place), begin_renewal(place, utc_now())
    site.with_key = False  # the admin keeps the authority's key elsewhere
    with pytest.raises(EnrolmentPending):
        client.renew(request)
    site.office.renewals.renew("bank-1", site.authority)
    if way == "consortium":
        answer = client.renew(request)
    else:  # open to a member whose certificates have ended, by its identity key
        with site.enrolment_client(place) as anonymous:
            answer = anonymous.renew(request)
    finish_renewal(place, answer, utc_now())
    assert ParticipantHome.open(place.folder).enrolment().body.number == 2
    assert client.versions()  # with the new certificate
    site.with_key = True
    following = begin_renewal(place, utc_now())
    finish_renewal(place, client.renew(following), utc_now())
    assert place.enrolment().body.number == 3


def test_a_base_model_arrives_whole_or_not_at_all(site):
    places, model = [site.enrol(name) for name in NAMES], bytes(range(256)) * 4096
    proposal = site.proposal(places, model)
    site.desk.propose(proposal)
    client, target = site.client(places[0]), site.folder / "fetched"
    partial = site.folder / ".fetched.partial"
    partial.write_bytes(model[:300_000])  # of a transfer that broke off
    client.fetch_model(proposal, target)
    assert target.read_bytes() == model
    assert not partial.exists()
    client.fetch_model(proposal, target)
    target.unlink()
    kept = site.home.models / hashlib.sha256(model).hexdigest()
    for other in (model[:-1], b"x" + model, bytes(len(model))):
        kept.write_bytes(other)
        with pytest.raises(ChecksumMismatch):
            client.fetch_model(proposal, target)
        assert not target.exists()
        assert not partial.exists()


def test_without_a_certificate_nobody_reaches_the_consortium(site):
    place, _ = site.begin("bank-1")
    credentials = grpc.ssl_channel_credentials((place.folder / "authority.crt").read_bytes())
    from hansa.federation.consortium_pb2 import ProposalsRequest
    from hansa.federation.consortium_pb2_grpc import ConsortiumStub

    address = place.settings.addresses.consortium
    with grpc.secure_channel(address, credentials) as channel, pytest.raises(grpc.RpcError) as caught:
        list(ConsortiumStub(channel).Proposals(ProposalsRequest(), timeout=5))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_list_in_a_file_counts_at_once_and_never_goes_back(site):
    place = site.enrol("bank-1")
    serial = int(place.enrolment().body.tls_serial, 16)
    source = RevocationFile(site.home.consortium.authority, site.home.revocation_list_file)
    source().verify_not_revoked(serial, utc_now())
    old = site.home.revocation_list_file.read_bytes()
    site.office.registry.revoke("bank-1", "left")
    site.office.revocations.publish(site.authority)
    with pytest.raises(CertificateRejected, match="is revoked"):
        source().verify_not_revoked(serial, utc_now())
    for content in (old, b"nonsense", b""):
        site.home.revocation_list_file.write_bytes(content)
        with pytest.raises(CertificateRejected, match="is revoked"):
            source().verify_not_revoked(serial, utc_now())
    nothing = RevocationFile(site.home.consortium.authority, site.folder / "absent.crl")
    with pytest.raises(CertificateRejected, match="no revocation list"):
        nothing().verify_not_revoked(serial, utc_now())
