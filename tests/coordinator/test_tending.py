"""What a coordinator looks after while it runs, and how it tells what it cannot."""

import threading
from collections import Counter
from datetime import timedelta
from types import SimpleNamespace

import pytest

from hansa.coordinator.callers import Callers
from hansa.coordinator.daemon import CoordinatorDaemon, node_of
from hansa.coordinator.metrics import CoordinatorMetrics
from hansa.coordinator.office import open_office, renew_services
from hansa.coordinator.tending import Tending, flower_keys
from hansa.errors import CertificateRejected, JournalUnreachable, KeyFileUnsafe
from hansa.federation.revocation_file import RevocationFile
from hansa.federation.tls_authority import to_pem
from hansa.secure_agg.certificates import RevocationList, utc_now

pytestmark = pytest.mark.enable_socket  # to find free ports; nothing is sent


class Door:
    """A fleet door that notes what it is told."""

    def __init__(self):
        self.told, self.starts, self.counts = [], 1, Counter()

    def update_members(self, members):
        self.told.append(("members", sorted(members)))

    def update_revocations(self, encoded):
        self.told.append(("list", encoded))

    def update_certificate(self, certificate, _key):
        self.told.append(("certificate", certificate.read_bytes()))


@pytest.fixture
def place(small):
    """A coordinator's tending; its authority is kept elsewhere."""
    with open_office(small.home) as office:
        door, metrics = Door(), CoordinatorMetrics("1.2.3")
        revoked = RevocationFile(small.home.consortium.authority, small.home.revocation_list_file)
        authority = SimpleNamespace(give=lambda: None)
        tending = Tending(
            home=small.home,
            office=office,
            authority=lambda: authority.give(),  # noqa: PLW0108 - tests put another in its place
            revoked=revoked,
            door=door,
            metrics=metrics,
            members=flower_keys(office.registry.members),
        )
        tending.tend()
        door.told.clear()
        yield SimpleNamespace(
            small=small,
            office=office,
            door=door,
            metrics=metrics,
            revoked=revoked,
            tending=tending,
            authority=authority,
        )


def test_a_certificate_that_an_admin_renewed_is_shown_at_the_fleet_door_without_a_restart(place):
    place.tending.tend()
    assert place.door.told == []
    renew_services(place.office, place.small.home.authority(), utc_now())  # as `hansa consortium renew` does
    place.tending.tend()
    place.tending.tend()
    assert place.door.told == [("certificate", place.small.home.tls_files.certificate.read_bytes())]


def test_who_is_no_member_any_more_is_shut_out_whatever_else_cannot_be_looked_after(place):
    def unsafe():
        raise KeyFileUnsafe("authority.key has mode 0644")

    place.authority.give = unsafe
    place.office.registry.revoke("bank-3", "test")
    with pytest.raises(KeyFileUnsafe):
        place.tending.tend()
    assert place.door.told == [("members", ["bank-1", "bank-2"])]
    assert place.tending.members == {"bank-1", "bank-2"}


def test_requests_that_were_passed_on_are_not_counted_as_refused(place):
    place.door.counts = Counter(status_200=40, foreign_node=2)
    place.tending.tend()
    value = place.metrics.registry.get_sample_value
    assert value("hansa_refused_connections_total", {"door": "fleet", "reason": "foreign_node"}) == 2
    assert value("hansa_refused_connections_total", {"door": "fleet", "reason": "status_200"}) is None


def test_the_doors_of_ciphertexts_know_a_membership_before_the_list_does(place):
    name = "bank-3"
    pem = to_pem(place.small.members[name].enrolment().body.tls_certificate)
    context = SimpleNamespace(auth_context=lambda: {"x509_pem_cert": (pem,)})
    present = {"bank-3"}
    callers = Callers(
        place.small.home.consortium.authority, place.revoked, is_member=lambda name: name in present
    )
    caller = callers.identify(context)
    present.clear()  # revoked, and the authority that makes the list is kept elsewhere
    with pytest.raises(CertificateRejected, match="no member"):
        callers.identify(context)
    with pytest.raises(CertificateRejected, match="no member"):
        caller.verify()


# -- the daemon ----------------------------------------------------------------------------------------------


def test_a_daemon_outlives_what_it_cannot_look_after_and_says_it_once(small, monkeypatch):
    daemon, said = CoordinatorDaemon(small.home), []
    monkeypatch.setattr(daemon, "_log", SimpleNamespace(error=lambda event, **values: said.append(values)))
    failing = [JournalUnreachable("gone"), JournalUnreachable("gone"), OSError(24, "no descriptors"), None]

    class Failing:
        members = frozenset({"bank-1"})

        def tend(self):
            error = failing.pop(0)
            if error is not None:
                raise error

    for _ in range(4):
        daemon._tend(Failing())
    assert [values["error_code"] for values in said] == ["journal_unreachable", "OSError"]
    assert daemon._members == {"bank-1"}


def test_a_second_coordinator_on_a_home_is_refused(small):
    from hansa.errors import StoreInUse
    from hansa.federation.files import holding

    with (
        holding(small.home.folder / "coordinator.lock"),
        pytest.raises(StoreInUse, match="another coordinator"),
    ):
        CoordinatorDaemon(small.home).serve(threading.Event())


# -- the list in its file ------------------------------------------------------------------------------------


def test_a_list_that_could_not_be_taken_at_once_is_taken_later(small):
    authority, path = small.home.authority(), small.home.revocation_list_file
    now = [utc_now()]
    revoked = RevocationFile(small.home.consortium.authority, path, lambda: now[0])
    first = revoked().number
    begin = utc_now() + timedelta(minutes=30)  # made on a machine whose clock is ahead
    later = authority.revocation_list(
        [], number=first + 1, this_update=begin, next_update=begin + timedelta(days=7)
    )
    path.write_bytes(later)
    assert revoked().number == first
    now[0] += timedelta(minutes=40)
    assert revoked().number == first + 1
    assert isinstance(revoked(), RevocationList)


def test_a_member_that_is_invited_anew_has_nobodys_node_until_it_is_enrolled_again(place):
    """Whoever asks all members of a study asks the others."""
    office = place.office
    name = sorted(flower_keys(office.registry.members))[0]
    nodes = {one: node_of(office, one) for one in flower_keys(office.registry.members)}
    office.registry.revoke(name, "test")
    assert node_of(office, name) == nodes[name]
    office.registry.invite(name, place.small.home.authority())
    assert node_of(office, name) not in nodes.values()
