"""Membership at the coordinator: invitations serve once, approvals need the fingerprint, renewals keep the identity."""

import threading
from datetime import timedelta

import pytest

from hansa.coordinator.author_register import AuthorRegister
from hansa.coordinator.journal import Journal
from hansa.coordinator.registry import ATTEMPTS_MOST, Registry
from hansa.coordinator.renewals import Renewals
from hansa.coordinator.revocations import Revocations
from hansa.coordinator.settings import CoordinatorSettings
from hansa.errors import (
    AlreadyApproved,
    DocumentRejected,
    EnrolmentPending,
    Error,
    FingerprintMismatch,
    InvalidValue,
    InvitationExhausted,
    InvitationExpired,
    InvitationUnknown,
    InvitationUsed,
    NotAMember,
    NothingRequested,
    ParticipantExists,
    ParticipantRevoked,
    ParticipantUnknown,
    RequestForeign,
)
from hansa.federation.documents import Document
from hansa.federation.enrolments import verify_enrolment
from hansa.federation.invitations import verify_invitation
from hansa.federation.requests import CollectRequest, EnrolmentRequest, RenewalRequest, keys_of_request
from hansa.federation.tls_authority import new_tls_key, request_tls_certificate
from hansa.secure_agg.certificates import RevocationList
from hansa.secure_agg.identity import Identity


class Office:
    """A registry with a clock that the test turns, and a member's side of it."""

    def __init__(self, house, federated, folder):
        self.house, self.federated, self.now = house, federated, house.now
        self.journal = Journal(f"sqlite:///{folder}/journal.sqlite")
        addresses = house.invitation().body.addresses
        settings = {
            "schema": "hansa/coordinator/v1",
            "name": house.name,
            "addresses": addresses.model_dump(),
            "listen": dict.fromkeys(("fleet", "aggregator", "consortium", "enrolment"), "127.0.0.1:1"),
        }
        self.settings = CoordinatorSettings.model_validate(settings)
        self.registry = Registry(
            self.journal, consortium=house.consortium, settings=self.settings, now=lambda: self.now
        )
        self.renewals = Renewals(self.journal, consortium=house.consortium, days=90, now=lambda: self.now)
        self.authors = AuthorRegister(self.journal, days=365, now=lambda: self.now)
        self.file = folder / "authority.crl"
        self.revocations = Revocations(
            self.journal, file=self.file, authors=self.authors, days=7, now=lambda: self.now
        )
        self.identities = {}

    def invite(self, name="bank-1"):
        return self.registry.invite(name, self.house.authority)

    def request(self, invitation, identity=None, **changes):
        name = changes.get("participant", invitation.body.participant)
        identity = identity or self.identities.setdefault(name, Identity.generate())
        usual = {
            "consortium": invitation.body.fingerprint,
            "participant": name,
            "identity_request": identity.request_certificate(name),
            "tls_request": request_tls_certificate(new_tls_key(), name),
            "flower_key": self.federated.flower_key(),
            "created": self.now,
            "proof": bytes(64),
        }
        body = EnrolmentRequest(**{**usual, **changes}).with_proof(invitation.body.proof_identity().sign)
        return Document.sign(body, identity.sign)

    def fingerprint(self, name="bank-1"):
        return self.registry.fingerprint(self.registry.members.get(name))

    def approve(self, name="bank-1"):
        return self.registry.approve(name, fingerprint=self.fingerprint(name), authority=self.house.authority)

    def enrol(self, name="bank-1"):
        request = self.request(self.invite(name))
        self.registry.submit(request)
        return request, self.approve(name)

    def renewal(self, number=1, name="bank-1", **changes):
        identity = self.identities[name]
        usual = {
            "consortium": self.house.fingerprint,
            "participant": name,
            "number": number,
            "identity_request": identity.request_certificate(name),
            "tls_request": request_tls_certificate(new_tls_key(), name),
            "created": self.now,
        }
        return Document.sign(RenewalRequest(**{**usual, **changes}), identity.sign)

    def collect(self, name="bank-1", signer=None, **changes):
        usual = {"consortium": self.house.fingerprint, "participant": name, "created": self.now}
        signer = signer or self.identities[name]
        return self.registry.collect(Document.sign(CollectRequest(**{**usual, **changes}), signer.sign))


@pytest.fixture
def office(house_of_members, federated, tmp_path):
    found = Office(house_of_members, federated, tmp_path)
    yield found
    found.journal.close()


def test_from_invitation_to_enrolment(office):
    invitation = office.invite()
    verify_invitation(invitation, office.now)
    request = office.request(invitation)
    assert office.registry.submit(request).state == "requested"
    assert office.registry.submit(request).state == "requested"  # the answer was lost; the same request again
    with pytest.raises(EnrolmentPending):
        office.collect()
    issued = office.approve()
    keys = keys_of_request(request)
    own = {"participant": "bank-1", "keys": keys, "number": 1, "now": office.now}
    verify_enrolment(issued, consortium=office.house.consortium, **own)
    assert office.collect() == issued
    kinds = [event.kind for event in office.journal.events()]
    assert kinds == ["participant_invited", "enrolment_requested", "participant_approved"]


def test_the_journal_holds_no_code_and_nothing_that_proves_one(office):
    invitation = office.invite()
    raw = b"".join(office.journal.items("members").values())
    assert invitation.body.code.encode() not in raw
    assert invitation.body.proof_identity().export().hex().encode() not in raw
    assert invitation.body.proof_identity().public.hex().encode() in raw


def test_an_invitation_serves_one_set_of_keys(office):
    invitation = office.invite()
    office.registry.submit(office.request(invitation))
    for again in (office.request(invitation), office.request(invitation, Identity.generate())):
        with pytest.raises(InvitationUsed):
            office.registry.submit(again)
    office.approve()
    with pytest.raises(InvitationUsed):
        office.registry.submit(office.request(invitation, Identity.generate()))


def test_an_invitation_ends(office):
    invitation = office.invite()
    office.now += timedelta(days=office.settings.lifetimes.invitation_days, minutes=6)
    with pytest.raises(InvitationExpired):
        office.registry.submit(office.request(invitation))


def test_a_later_invitation_ends_the_earlier_one(office):
    first, second = office.invite(), office.invite()
    with pytest.raises(InvitationUnknown):
        office.registry.submit(office.request(first))
    office.registry.submit(office.request(second))
    with pytest.raises(ParticipantExists):
        office.invite()


def test_wrong_requests_are_counted_and_end_an_invitation(office, federated):
    invitation = office.invite()
    stranger = federated.House().invitation(participant="bank-1", fingerprint=office.house.fingerprint)
    for _ in range(ATTEMPTS_MOST):
        with pytest.raises(InvitationUnknown):
            office.registry.submit(office.request(stranger))
    with pytest.raises(InvitationExhausted):
        office.registry.submit(office.request(invitation))
    office.registry.submit(office.request(office.invite()))


def test_a_foreign_request_is_refused(office, federated):
    invitation, other = office.invite(), federated.House(name="southern-banks")
    with pytest.raises(RequestForeign):
        office.registry.submit(office.request(invitation, consortium=other.fingerprint))
    with pytest.raises(InvitationUnknown):
        office.registry.submit(office.request(invitation, participant="bank-9"))
    with pytest.raises(RequestForeign):
        office.registry.submit(office.request(other.invitation(code=invitation.body.code)))


def test_who_holds_nothing_learns_no_name_and_no_state(office, federated):
    office.invite("bank-invited")
    office.registry.submit(office.request(office.invite("bank-asked")))
    office.enrol("bank-member")
    office.enrol("bank-revoked")
    office.registry.revoke("bank-revoked", "left")
    stranger = Identity.generate()
    house = federated.House()
    said = {"submit": set(), "collect": set(), "renew": set()}
    for name in ("bank-invited", "bank-asked", "bank-member", "bank-revoked", "bank-nobody"):
        office.identities[name] = stranger
        forged = house.invitation(participant=name, fingerprint=office.house.fingerprint)
        for what, call in (
            ("submit", lambda forged=forged: office.registry.submit(office.request(forged, stranger))),
            ("collect", lambda name=name: office.collect(name)),
            ("renew", lambda name=name: office.renewals.ask(office.renewal(name=name), None)),
        ):
            with pytest.raises(Error) as caught:
                call()
            said[what].add((caught.value.code, caught.value.message.replace(name, "NAME")))
    assert {what: len(answers) for what, answers in said.items()} == {"submit": 1, "collect": 1, "renew": 1}


def test_two_participants_do_not_share_a_key(office):
    office.enrol("bank-1")
    with pytest.raises(DocumentRejected, match="another participant"):
        office.registry.submit(office.request(office.invite("bank-2"), office.identities["bank-1"]))


def test_an_approval_needs_the_fingerprint_and_happens_once(office):
    with pytest.raises(ParticipantUnknown):
        office.registry.approve("bank-1", fingerprint=bytes(32), authority=office.house.authority)
    invitation = office.invite()
    with pytest.raises(NothingRequested):
        office.registry.approve("bank-1", fingerprint=bytes(32), authority=office.house.authority)
    office.registry.submit(office.request(invitation))
    with pytest.raises(FingerprintMismatch):
        office.registry.approve("bank-1", fingerprint=bytes(32), authority=office.house.authority)
    assert office.registry.members.get("bank-1").state == "requested"
    office.approve()
    with pytest.raises(AlreadyApproved):
        office.approve()


def test_of_two_approvals_at_once_one_issues(office):
    office.registry.submit(office.request(office.invite()))
    fingerprint, outcomes, gate = office.fingerprint(), [], threading.Barrier(2)

    def approve():
        gate.wait()
        try:
            office.registry.approve("bank-1", fingerprint=fingerprint, authority=office.house.authority)
            outcomes.append("issued")
        except AlreadyApproved:
            outcomes.append("refused")

    threads = [threading.Thread(target=approve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["issued", "refused"]
    assert len(office.registry.members.get("bank-1").certificates) == 2


def test_only_who_asked_collects(office):
    office.enrol()
    with pytest.raises(InvitationUnknown):
        office.collect(signer=Identity.generate())
    with pytest.raises(DocumentRejected):
        office.collect(created=office.now - timedelta(minutes=6))
    with pytest.raises(DocumentRejected):
        office.collect(consortium=b"c" * 32)
    with pytest.raises(InvitationUnknown):
        office.collect("bank-7", signer=Identity.generate())


def test_a_renewal_keeps_the_identity_and_counts_on(office):
    request, first = office.enrol()
    office.now += timedelta(days=61)
    asked = office.renewal()
    second = office.renewals.ask(asked, office.house.authority)
    assert second.body.number == 2
    assert second.body.not_after > first.body.not_after
    assert second.body.flower_key == first.body.flower_key
    assert second.body.tls_serial != first.body.tls_serial
    assert office.renewals.ask(asked, office.house.authority) == second  # the answer was lost
    with pytest.raises(DocumentRejected, match="continues enrolment 1, not 2"):
        office.renewals.ask(office.renewal(), office.house.authority)
    assert office.collect() == second
    assert keys_of_request(request).identity == office.identities["bank-1"].public


def test_without_the_key_of_the_authority_a_renewal_waits_for_the_admin(office):
    office.enrol()
    with pytest.raises(NothingRequested):
        office.renewals.renew("bank-1", office.house.authority)
    with pytest.raises(EnrolmentPending):
        office.renewals.ask(office.renewal(), None)
    asked = office.renewal()  # the participant lost its new key and asks with another one
    with pytest.raises(EnrolmentPending):
        office.renewals.ask(asked, None)
    assert office.registry.members.get("bank-1").renewal_is_pending
    issued = office.renewals.renew("bank-1", office.house.authority)
    assert issued.body.number == 2
    assert office.renewals.ask(asked, None) == issued
    assert not office.registry.members.get("bank-1").renewal_is_pending


def test_a_renewal_of_another_identity_or_of_nobody_is_refused(office):
    office.enrol()
    other = Identity.generate()
    forged = Document.sign(office.renewal().body, other.sign)
    with pytest.raises(NotAMember):
        office.renewals.ask(forged, office.house.authority)
    office.invite("bank-2")
    office.identities["bank-2"] = other
    for name in ("bank-2", "bank-3"):
        office.identities[name] = other
        with pytest.raises(NotAMember):
            office.renewals.ask(office.renewal(name=name), office.house.authority)


def test_a_revoked_participant_is_out_until_it_is_invited_with_new_keys(office):
    _, issued = office.enrol()
    office.registry.revoke("bank-1", "key stolen")
    for forbidden in (
        lambda: office.renewals.ask(office.renewal(), office.house.authority),
        lambda: office.renewals.renew("bank-1", office.house.authority),
    ):
        with pytest.raises(NotAMember):
            forbidden()
    for refused in (office.collect, office.approve, lambda: office.registry.revoke("bank-1", "again")):
        with pytest.raises(ParticipantRevoked):
            refused()
    with pytest.raises(ParticipantUnknown):
        office.registry.revoke("bank-7", "")
    again = office.invite()
    with pytest.raises(DocumentRejected, match="revoked"):
        office.registry.submit(office.request(again))
    office.registry.submit(office.request(again, Identity.generate()))
    fresh = office.approve()
    assert fresh.body.number == 1
    listed = RevocationList(office.house.authority.certificate)
    listed.update(office.revocations.publish(office.house.authority), office.now)
    with pytest.raises(Exception, match="revoked"):
        listed.verify_not_revoked(int(issued.body.identity_serial, 16), office.now)
    listed.verify_not_revoked(int(fresh.body.identity_serial, 16), office.now)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-a", "x" * 65, "a b", "a\n"])
def test_a_name_is_one(office, name):
    with pytest.raises(InvalidValue):
        office.invite(name)


# -- revocation lists ----------------------------------------------------------------------------------------


def serials(office):
    found = RevocationList(office.house.authority.certificate)
    found.update(office.file.read_bytes(), office.now)
    return found


def test_a_revocation_is_on_the_next_list_with_all_certificates_of_the_member(office):
    _, first = office.enrol()
    second = office.renewals.ask(office.renewal(), office.house.authority)
    office.revocations.publish(office.house.authority)
    before = serials(office)
    bodies = (first.body, second.body)
    all_serials = [int(serial, 16) for body in bodies for serial in (body.identity_serial, body.tls_serial)]
    for serial in all_serials:
        before.verify_not_revoked(serial, office.now)
    office.registry.revoke("bank-1", "left")
    assert office.revocations.is_due()
    office.revocations.publish(office.house.authority)
    after = serials(office)
    assert after.number == before.number + 1
    for serial in all_serials:
        with pytest.raises(Exception, match="is revoked"):
            after.verify_not_revoked(serial, office.now)


def test_a_list_is_made_again_before_it_ends_and_not_earlier(office):
    office.revocations.publish(office.house.authority)
    first = office.file.read_bytes()
    office.revocations.publish(office.house.authority)
    assert office.file.read_bytes() == first
    office.now += timedelta(days=4)
    assert office.revocations.is_due()
    office.revocations.publish(office.house.authority)
    assert (office.revocations.number(), office.file.read_bytes() != first) == (2, True)
    assert office.revocations.ends() == office.now + timedelta(days=7)


def test_a_coordinator_that_ended_between_record_and_list_makes_it_up(office):
    office.enrol()
    office.revocations.publish(office.house.authority)
    office.registry.revoke("bank-1", "left")
    restarted = Revocations(
        office.journal, file=office.file, authors=office.authors, days=7, now=lambda: office.now
    )
    assert restarted.is_due()
    restarted.publish(office.house.authority)
    assert not restarted.is_due()
    office.file.unlink()
    restarted.put_into_file()
    assert office.file.read_bytes() == restarted.current()


def test_a_certificate_that_has_ended_leaves_the_list(office):
    office.enrol()
    office.registry.revoke("bank-1", "left")
    office.revocations.publish(office.house.authority)
    many = len(office.file.read_bytes())
    office.now += timedelta(days=91)
    office.revocations.publish(office.house.authority)
    assert len(office.file.read_bytes()) < many


def test_numbers_go_up_whoever_makes_the_list(office):
    def publisher():
        return Revocations(
            office.journal, file=office.file, authors=office.authors, days=7, now=lambda: office.now
        )

    threads = []
    for name in ("bank-1", "bank-2", "bank-3"):
        office.enrol(name)
        office.registry.revoke(name, "left")
        threads.append(threading.Thread(target=publisher().publish, args=(office.house.authority,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = serials(office)
    assert found.number == office.revocations.number()
    assert not office.revocations.is_due()


# -- authors -------------------------------------------------------------------------------------------------


def test_an_author_has_one_key_and_is_revoked_with_all_its_certificates(office):
    author, other = Identity.generate(), Identity.generate()
    first = office.authors.add("admin", author.request_certificate("admin"), office.house.authority)
    again = office.authors.add("admin", author.request_certificate("admin"), office.house.authority)
    assert again.certificates == (*first.certificates, again.certificate)
    with pytest.raises(DocumentRejected):
        office.authors.add("admin", other.request_certificate("admin"), office.house.authority)
    with pytest.raises(Exception, match="names"):
        office.authors.add("eve", other.request_certificate("admin"), office.house.authority)
    office.authors.revoke("admin", "left")
    with pytest.raises(DocumentRejected):
        office.authors.revoke("admin", "left")
    with pytest.raises(DocumentRejected):
        office.authors.add("admin", author.request_certificate("admin"), office.house.authority)
    office.revocations.publish(office.house.authority)
    from cryptography import x509

    found = serials(office)
    for certificate in again.certificates:
        with pytest.raises(Exception, match="is revoked"):
            found.verify_not_revoked(x509.load_der_x509_certificate(certificate).serial_number, office.now)
