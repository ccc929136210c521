"""What the fleet door is told of members, revocation list and certificate while a coordinator runs, and what is counted at it."""

from collections import Counter
from datetime import timedelta
from types import SimpleNamespace

import pytest
from cryptography import x509
from prometheus_client import generate_latest

from hansa.coordinator.metrics import CoordinatorMetrics
from hansa.coordinator.office import open_office
from hansa.coordinator.tending import Tending, flower_keys
from hansa.federation.revocation_file import RevocationFile
from hansa.federation.tls_authority import from_pem
from hansa.secure_agg.certificates import utc_now

pytestmark = pytest.mark.enable_socket  # of the ports that the coordinator's settings name


class Door:
    """A fleet door that remembers what it was told."""

    def __init__(self):
        self.told, self.ended, self.starts = [], Counter(), 1

    @property
    def counts(self):
        return Counter(self.ended)

    def update_members(self, members):
        self.told.append(("members", sorted(members)))

    def update_revocations(self, encoded):
        self.told.append(("revocations", len(encoded) > 0))

    def update_certificate(self, certificate, key):
        self.told.append(("certificate", certificate.name))


@pytest.fixture
def place(make_consortium):
    site = make_consortium(1)
    office, door, metrics = open_office(site.home), Door(), CoordinatorMetrics("0")
    revoked = RevocationFile(site.home.consortium.authority, site.home.revocation_list_file)
    office.revocations.put_into_file()
    now, has_key = [utc_now()], [True]
    tending = Tending(
        home=site.home, office=office, authority=lambda: site.home.authority() if has_key[0] else None,
        revoked=revoked, door=door, metrics=metrics,
        members=flower_keys(office.registry.members), now=lambda: now[0],
    )  # fmt: skip
    yield SimpleNamespace(
        site=site,
        office=office,
        door=door,
        metrics=metrics,
        now=now,
        has_key=has_key,
        tending=tending,
        revoked=revoked,
    )
    office.journal.close()


def certificate_ends(place):
    found = from_pem(place.site.home.tls_files.certificate.read_bytes())
    return x509.load_der_x509_certificate(found).not_valid_after_utc


def test_where_nothing_has_changed_nobody_is_told(place):
    for _ in range(3):
        place.tending.tend()
    assert place.door.told == [("certificate", "server.crt")]  # the one that is in place


def test_a_revocation_reaches_every_door_once(place):
    place.site.revoke("bank-4")
    for _ in range(3):
        place.tending.tend()
    left = ["bank-1", "bank-2", "bank-3"]
    assert place.door.told == [("members", left), ("revocations", True), ("certificate", "server.crt")]
    assert sorted(flower_keys(place.office.registry.members)) == left


def test_a_list_that_a_command_published_is_put_into_its_file(place):
    number = place.revoked().number
    place.office.registry.revoke("bank-4", "left")
    place.office.revocations.publish(place.site.home.authority())
    place.tending.tend()
    assert place.revoked().number > number
    assert ("revocations", True) in place.door.told


def test_the_own_certificate_is_renewed_in_time_where_the_authority_is_at_hand(place):
    before = certificate_ends(place)
    place.tending.tend()
    assert certificate_ends(place) == before
    place.now[0] += timedelta(days=300)  # of 365
    place.has_key[0] = False
    place.tending.tend()
    assert certificate_ends(place) == before
    place.has_key[0] = True
    place.tending.tend()
    assert certificate_ends(place) > before
    place.tending.tend()
    assert place.door.told == [("certificate", "server.crt")] * 2


def test_what_happened_is_counted_once(place):
    place.tending.tend()
    place.door.ended.update({"certificate_rejected": 2, "status_200": 7})
    place.door.starts += 2
    for _ in range(3):
        place.tending.tend()
    shown = generate_latest(place.metrics.registry).decode()
    lines = [line for line in shown.splitlines() if not line.startswith("#")]
    assert any('certificate_rejected"' in line and line.endswith(" 2.0") for line in lines)
    assert any("superlink_restarts_total" in line and line.endswith(" 2.0") for line in lines)
    assert any('"enrolled"' in line and line.endswith(" 4.0") for line in lines)
    assert not any('status_200"' in line for line in lines)
