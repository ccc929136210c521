"""A participant's side of enrolment and renewal, without a network: what is made, where it lies, and what is put into use."""

import json
import os
import stat
from datetime import timedelta

import pytest
from cryptography import x509

from hansa.errors import (
    CertificateRejected,
    DocumentRejected,
    EnrolmentPending,
    FingerprintMismatch,
    HomeExists,
    HomeMissing,
    InvalidValue,
    InvitationExpired,
    KeyFileUnsafe,
    NotAMember,
    SettingsSyntaxError,
    StoreInUse,
    UnknownKey,
)
from hansa.federation.consortium import verify_fingerprint
from hansa.federation.documents import Document
from hansa.federation.enrolments import make_enrolment
from hansa.federation.requests import keys_of_request, verify_enrolment_request, verify_renewal_request
from hansa.federation.tls_authority import issue_client_certificate
from hansa.federation.tls_files import TlsSource, read_tls
from hansa.participant import home as home_module
from hansa.participant.enrolling import (
    ask_for_enrolment,
    begin_enrolment,
    finish_enrolment,
    own_fingerprint,
    stored_request,
)
from hansa.participant.home import ParticipantHome, make_identity, open_identity
from hansa.participant.renewing import (
    begin_renewal,
    finish_renewal,
    renew_if_due,
    renewal_is_due,
    renewal_time,
)
from hansa.participant.store import SealedStore, open_or_make_key


def answer(house, request, number=1, flower=None, days=90, now=None):
    """What the authority makes of a request for enrolment or renewal."""
    body, now = request.body, now or house.now
    window = {"not_before": now, "not_after": now + timedelta(days=days)}
    name = body.participant
    enrolment = make_enrolment(
        consortium=body.consortium,
        participant=name,
        number=number,
        identity_certificate=house.authority.issue(body.identity_request, participant=name, **window),
        tls_certificate=issue_client_certificate(
            house.authority, body.tls_request, participant=name, **window
        ),
        flower_key=flower or body.flower_key,
    )
    return Document.sign(enrolment, house.authority.sign)


@pytest.fixture
def house(house_of_members):
    return house_of_members


@pytest.fixture
def joined(house, tmp_path):
    return begin_enrolment(house.invitation(), tmp_path / "home", house.now)


@pytest.fixture
def member(house, joined):
    place, request = joined
    finish_enrolment(place, answer(house, request), house.now)
    return place


def test_a_request_proves_what_it_must_and_everything_secret_is_private(house, joined):
    place, request = joined
    proof = house.invitation().body.proof_identity().public
    verify_enrolment_request(request, consortium=house.consortium, participant="bank-1", proof_key=proof)
    assert stored_request(place) == request
    assert request.body.identity_request != house.request().body.identity_request
    keys = place.key_files()
    assert {path.name for path in keys} == {"identity.key", "identity.store", "flower.key", "tls.key"}
    for path in keys:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700
    everything = b"".join(path.read_bytes() for path in place.folder.rglob("*") if path.is_file())
    assert house.code.encode() not in everything
    assert open_identity(place.folder).export() not in everything
    own = own_fingerprint(place, keys_of_request(request))
    verify_fingerprint(own, keys_of_request(request).fingerprint(house.fingerprint, "bank-1"), what="bank-1")


def test_an_enrolment_is_put_into_use(house, joined):
    place, request = joined
    assert not place.is_enrolled
    with pytest.raises(NotAMember):
        place.enrolment()
    document = answer(house, request)
    finish_enrolment(place, document, house.now)
    again = ParticipantHome.open(place.folder)
    assert again.enrolment() == document
    material = read_tls(again.tls_files)
    assert material.certificate_der == document.body.tls_certificate
    assert not (place.request_folder / "tls.key").exists()
    assert (place.folder / "current").readlink().as_posix() == "enrolments/0001"
    collected = ask_for_enrolment(place, house.now)
    collected.verify_signed_by(place.identity().public, "bank-1")


def test_an_answer_for_something_else_changes_nothing(house, federated, joined, tmp_path):
    place, request = joined
    other = federated.House(name="southern-banks")
    stranger = begin_enrolment(house.invitation(), tmp_path / "other", house.now)[1]
    for wrong in (
        answer(other, request),
        answer(house, stranger),
        answer(house, request, number=2),
        answer(house, request, days=1, now=house.now - timedelta(days=9)),
        Document.sign(answer(house, request).body, other.authority.sign),
    ):
        with pytest.raises((DocumentRejected, CertificateRejected)):
            finish_enrolment(place, wrong, house.now)
        assert not place.is_enrolled
    finish_enrolment(place, answer(house, request), house.now)


def test_an_invitation_that_is_not_right_makes_no_home(house, federated, tmp_path):
    folder = tmp_path / "home"
    other = federated.House(name="southern-banks")
    with pytest.raises(InvitationExpired):
        begin_enrolment(house.invitation(), folder, house.now + timedelta(days=9))
    with pytest.raises(DocumentRejected):
        begin_enrolment(house.invitation(fingerprint=other.fingerprint), folder, house.now)
    with pytest.raises(DocumentRejected):
        begin_enrolment(Document.sign(house.invitation().body, other.authority.sign), folder, house.now)
    assert not folder.exists()


def test_a_home_serves_one_participant_of_one_consortium(house, federated, joined):
    place, _ = joined
    with pytest.raises(HomeExists, match="asked to join"):
        begin_enrolment(house.invitation(), place.folder, house.now)
    for other in (house.invitation(participant="bank-2"), federated.House(name="south").invitation()):
        with pytest.raises(HomeExists, match="is the home of 'bank-1'"):
            begin_enrolment(other, place.folder, house.now)


def test_a_crash_before_the_request_was_written_loses_no_key(house, joined):
    place, request = joined
    (place.request_folder / "request.json").unlink()
    _, again = begin_enrolment(house.invitation(), place.folder, house.now)
    assert keys_of_request(again) == keys_of_request(request)


def test_a_crash_after_the_enrolment_was_put_into_use_is_no_harm(house, joined):
    place, request = joined
    document, key = answer(house, request), (place.request_folder / "tls.key").read_bytes()
    finish_enrolment(place, document, house.now)
    (place.request_folder / "tls.key").write_bytes(key)
    os.chmod(place.request_folder / "tls.key", 0o600)
    before = (place.folder / "current" / "tls.key").stat().st_ino
    finish_enrolment(place, document, house.now)
    assert (place.folder / "current" / "tls.key").stat().st_ino == before


@pytest.mark.parametrize("name", ["identity.key", "identity.store", "flower.key", "current/tls.key"])
def test_a_secret_that_others_can_read_is_refused_by_name(member, name):
    member.verify_key_files()
    os.chmod(member.folder / name, 0o640)
    with pytest.raises(KeyFileUnsafe, match=f"{name.rpartition('/')[2]} has mode 0640"):
        member.verify_key_files()


def test_the_pinned_fingerprint_and_the_authority_belong_together(federated, member):
    other = federated.House(name=member.consortium.name)
    from hansa.federation.tls_authority import to_pem

    (member.folder / "authority.crt").write_bytes(to_pem(other.authority.certificate))
    with pytest.raises(DocumentRejected, match="does not fit the fingerprint"):
        ParticipantHome.open(member.folder)


def test_an_enrolment_that_was_altered_on_disk_is_noticed(member):
    file = member.folder / "current" / "enrolment.json"
    body = json.loads(file.read_text())["body"]
    file.write_text(file.read_text().replace(body["not_after"], "2099-01-01T00:00:00Z"))
    with pytest.raises(DocumentRejected):
        member.enrolment()


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("[addresses]", "[adresses]", UnknownKey),
        ('name = "bank-1"', "name = 1", InvalidValue),
        ('name = "bank-1"', 'name = "../x"', InvalidValue),
        ("hansa/participant/v1", "hansa/participant/v2", InvalidValue),
        (":9443", ":0", InvalidValue),
        ("[addresses]", "[addresses", SettingsSyntaxError),
        ('name = "bank-1"', 'name = "bank-1"\nname = "bank-2"', SettingsSyntaxError),
    ],
)
def test_settings_are_read_strictly(member, old, new, error):
    file = member.folder / "participant.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(error):
        ParticipantHome.open(member.folder)


def test_a_folder_that_is_no_home_is_named(tmp_path):
    with pytest.raises(HomeMissing):
        ParticipantHome.open(tmp_path)
    with pytest.raises(HomeMissing):
        open_identity(tmp_path)


def test_the_identity_is_the_same_and_two_can_read_it_one_after_another(tmp_path, monkeypatch):
    made = make_identity(tmp_path)
    assert make_identity(tmp_path).public == open_identity(tmp_path).public == made.public
    monkeypatch.setattr(home_module, "_STORE_SECONDS", 0.3)
    held = SealedStore(tmp_path / "identity.store", open_or_make_key(tmp_path / "identity.key"))
    waits = []

    def let_go(seconds):
        waits.append(seconds)
        held.close()

    assert open_identity(tmp_path, sleep=let_go).public == made.public
    assert len(waits) == 1
    held = SealedStore(tmp_path / "identity.store", open_or_make_key(tmp_path / "identity.key"))
    with pytest.raises(StoreInUse):
        open_identity(tmp_path)
    held.close()


# -- renewal -------------------------------------------------------------------------------------------------


def test_a_renewal_is_due_with_a_third_left(house, member):
    body = member.enrolment().body
    assert renewal_time(body) == house.now + timedelta(days=60)
    assert not renewal_is_due(body, house.now + timedelta(days=59, hours=23))
    assert renewal_is_due(body, house.now + timedelta(days=60))


def test_what_is_due_is_renewed_and_nothing_else(house, member):
    asked, flower = [], member.enrolment().body.flower_key

    def ask(request):
        asked.append(request)
        if len(asked) == 1:
            raise EnrolmentPending("the admin has to do it")
        return answer(house, request, 2, flower, now=later)

    later = house.now + timedelta(days=60)
    assert not renew_if_due(member, ask, house.now)
    with pytest.raises(EnrolmentPending):
        renew_if_due(member, ask, later)
    assert renew_if_due(member, ask, later + timedelta(days=1))
    assert asked[0] == asked[1]
    assert not renew_if_due(member, ask, later + timedelta(days=1))
    assert (len(asked), member.enrolment().body.number) == (2, 2)


def test_a_renewal_has_a_new_tls_key_and_swaps_at_once(house, member):
    later = house.now + timedelta(days=60)
    source, before = TlsSource(member.tls_files), member.enrolment().body
    request = begin_renewal(member, later)
    identity = member.identity().public
    verify_renewal_request(
        request, consortium=house.consortium, participant="bank-1", identity=identity, number=1
    )
    assert begin_renewal(member, later) == request  # after a crash the same one
    finish_renewal(member, answer(house, request, 2, before.flower_key, now=later), later)
    after = member.enrolment().body
    assert (after.number, after.flower_key) == (2, before.flower_key)
    assert source.material().certificate_der == after.tls_certificate
    keys = [x509.load_der_x509_certificate(one.tls_certificate).public_key() for one in (before, after)]
    assert keys[0] != keys[1]
    assert not (member.renewal_folder / "tls.key").exists()
    for number in (3, 4):
        request = begin_renewal(member, later)
        finish_renewal(member, answer(house, request, number, before.flower_key, now=later), later)
    assert sorted(path.name for path in (member.folder / "enrolments").iterdir()) == ["0003", "0004"]


def test_an_answer_to_another_renewal_leaves_the_old_certificates(house, federated, member):
    before, later = member.enrolment(), house.now + timedelta(days=60)
    with pytest.raises(HomeMissing):
        finish_renewal(member, before, later)
    request = begin_renewal(member, later)
    flower = before.body.flower_key
    for wrong in (
        before,
        answer(house, request, 1, flower, now=later),
        answer(house, request, 3, flower, now=later),
        answer(house, request, 2, federated.flower_key(), now=later),
        answer(federated.House(name="south"), request, 2, flower, now=later),
    ):
        with pytest.raises((DocumentRejected, CertificateRejected)):
            finish_renewal(member, wrong, later)
        assert member.enrolment() == before
    finish_renewal(member, answer(house, request, 2, flower, now=later), later)


def test_a_crash_between_swap_and_cleaning_up_is_no_harm(house, member):
    later, flower = house.now + timedelta(days=60), member.enrolment().body.flower_key
    request = begin_renewal(member, later)
    document = answer(house, request, 2, flower, now=later)
    member.install(document, (member.renewal_folder / "tls.key").read_bytes())  # and then the lights went out
    following = begin_renewal(member, later)
    assert following.body.number == 2
    finish_renewal(member, answer(house, following, 3, flower, now=later), later)
    read_tls(member.tls_files)


def test_a_revocation_list_that_was_seen_is_kept_and_never_goes_back(house, member):
    def made(number, *certificates):
        window = {"this_update": house.now, "next_update": house.now + timedelta(days=7)}
        return house.authority.revocation_list(certificates, number=number, **window)

    own = member.enrolment().body.tls_certificate
    serial = x509.load_der_x509_certificate(own).serial_number
    with pytest.raises(CertificateRejected, match="no revocation list"):
        member.revocations().verify_not_revoked(serial, house.now)
    member.take_revocations(made(1), house.now).verify_not_revoked(serial, house.now)
    member.take_revocations(made(2, own), house.now)
    with pytest.raises(CertificateRejected):
        member.take_revocations(made(1), house.now)
    again = ParticipantHome.open(member.folder)
    with pytest.raises(CertificateRejected, match="is revoked"):
        again.revocations().verify_not_revoked(serial, house.now)


def test_a_mismatch_of_fingerprints_is_an_error_of_authentication():
    assert FingerprintMismatch.exit_status == 4
