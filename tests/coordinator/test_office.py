"""A coordinator's home: what founding makes, and what is kept current without an admin."""

from datetime import timedelta

import pytest
from cryptography import x509

from hansa.coordinator.founding import FoundingPlan, found_consortium
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.issuing import hosts_of
from hansa.coordinator.members import Members
from hansa.coordinator.office import authority_at_hand, maintain, open_office
from hansa.errors import CertificateRejected, HomeExists, HomeMissing, InvalidValue, ParticipantUnknown
from hansa.federation.authors import verify_author_certificate
from hansa.federation.tls_authority import from_pem, verify_server_certificate
from hansa.federation.tls_files import read_tls
from hansa.secure_agg.certificates import RevocationList, utc_now

DAY = timedelta(days=1)


def plan_of(folder, **changes):
    usual = {
        "name": "northern-banks",
        "folder": folder / "home",
        "hosts": ("coord.example", "10.0.0.1", "::1"),
        "port": 9443,
        "author": "admin",
    }
    return FoundingPlan(**{**usual, **changes})


@pytest.fixture
def home(tmp_path):
    return found_consortium(plan_of(tmp_path), utc_now())


def test_a_new_home_is_ready(home):
    now, authority = utc_now(), home.consortium.authority
    material = read_tls(home.tls_files)
    verify_server_certificate(material.certificate_der, authority=authority, now=now, revoked=None)
    assert hosts_of(material.certificate_der) == ("coord.example", "10.0.0.1", "::1")
    assert home.settings.addresses.enrolment == "coord.example:9446"
    assert home.settings.listen.fleet == "0.0.0.0:9443"
    with open_office(home) as office:
        (author,) = office.authors.all()
        listed = RevocationList(authority)
        listed.update(home.revocation_list_file.read_bytes(), now)
        seen = {"author": "admin", "key": author.key, "now": now, "revoked": listed}
        verify_author_certificate(author.certificate, authority=authority, **seen)
        assert home.author("admin").public == author.key
        assert authority_at_hand(home).certificate == authority


def test_every_key_that_the_file_leaves_out_stands_there_as_a_comment_with_its_default(home):
    file = home.folder / "coordinator.toml"
    text = file.read_text()
    commented = [line for line in text.splitlines() if line.startswith("# ") and " = " in line]
    for line in commented:
        if "database" not in line:
            file.write_text(file.read_text().replace(line, line.removeprefix("# ")))
    assert file.read_text() != text
    assert CoordinatorHome.open(home.folder).settings == home.settings


@pytest.mark.parametrize(
    "changes",
    [
        {"hosts": ()},
        {"hosts": ("a b",)},
        {"hosts": ("a.example:9443",)},
        {"name": ""},
        {"name": "N"},
        {"name": "n" * 64},
        {"port": 0},
        {"port": 65533},
        {"author": ""},
    ],
)
def test_a_plan_that_is_wrong_makes_nothing(tmp_path, changes):
    with pytest.raises(InvalidValue):
        found_consortium(plan_of(tmp_path, **changes), utc_now())
    assert list(tmp_path.iterdir()) == []


def test_a_home_is_founded_once_and_read_whole(home, tmp_path):
    with pytest.raises(HomeExists):
        found_consortium(plan_of(tmp_path), utc_now())
    (home.folder / "coordinator.toml").unlink()
    with pytest.raises(HomeExists):  # the beginning of one: its keys are not overwritten
        found_consortium(plan_of(tmp_path), utc_now())
    with pytest.raises(HomeMissing):
        CoordinatorHome.open(tmp_path)


def test_a_key_that_is_not_the_authoritys_is_none(home):
    (home.folder / "ca" / "authority.key").write_bytes(b"k" * 32)
    with pytest.raises(CertificateRejected):
        home.authority()
    (home.folder / "ca" / "authority.key").write_bytes(b"k")
    with pytest.raises(CertificateRejected):
        home.authority()


def server_ends(home):
    found = from_pem(home.tls_files.certificate.read_bytes())
    return x509.load_der_x509_certificate(found).not_valid_after_utc


def test_what_is_due_is_done_and_nothing_else(home):
    with open_office(home) as office:
        key, ends = home.tls_files.key.read_bytes(), server_ends(home)
        maintain(office, utc_now())
        assert (office.revocations.number(), server_ends(home)) == (1, ends)
        maintain(office, utc_now() + 300 * DAY)
        assert server_ends(home) > ends + 299 * DAY
        assert home.tls_files.key.read_bytes() == key
        assert hosts_of(read_tls(home.tls_files).certificate_der) == ("coord.example", "10.0.0.1", "::1")


def test_without_the_key_the_latest_list_still_reaches_its_file(home):
    with open_office(home) as office:
        (home.folder / "ca" / "authority.key").unlink()
        home.revocation_list_file.unlink()
        maintain(office, utc_now() + 300 * DAY)
        assert authority_at_hand(home) is None
        assert home.revocation_list_file.read_bytes() == office.revocations.current()


def test_a_change_of_a_record_sees_what_others_made_of_it(home):
    with open_office(home) as office:
        office.registry.invite("bank-1", home.authority())
        members, calls = Members(office.journal), []

        def decide(found):
            calls.append(found.attempts)
            if len(calls) == 1:  # somebody is faster
                members.change("bank-1", lambda other: other.changed(attempts=5))
            return found.changed(attempts=found.attempts + 1)

        assert members.change("bank-1", decide).attempts == 6
        assert calls == [0, 5]
        with pytest.raises(ParticipantUnknown):
            members.get("bank-2")
        assert members.enrolled() == {}
