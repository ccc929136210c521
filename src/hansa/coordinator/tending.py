"""What a coordinator looks after while it runs: members, revocation list, own certificate, counts."""

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime

from cryptography import x509

from hansa.coordinator.fleet_door import FleetDoor
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.members import Members
from hansa.coordinator.metrics import CoordinatorMetrics
from hansa.coordinator.office import Office, renew_services
from hansa.federation.files import read_file
from hansa.federation.logs import log
from hansa.federation.revocation_file import RevocationFile
from hansa.federation.tls_authority import from_pem
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import utc_now


def flower_keys(members: Members) -> dict[str, bytes]:
    """Give the Flower node key, PEM, of every member that is enrolled."""
    return {
        record.name: record.enrolment_document.body.flower_key.encode()
        for record in members.all()
        if record.state == "enrolled"
    }


class Tending:
    """One look after another; see `tend`.

    Guarantees:
        - What cannot be looked after keeps nothing else from it: who is no member any more is shut out, whatever else fails.
        - A certificate that an admin has put in place is shown at the fleet door from the next look on, without a restart.

    Args:
        home: The coordinator's.
        office: Its journal and registers.
        authority: Gives the authority where its key is at hand.
        revoked: The revocation list in its file.
        door: The fleet door, where this coordinator has one.
        metrics: What is counted.
        members: Flower keys of the members that the door knows.
        now: Clock.
    """

    def __init__(
        self,
        *,
        home: CoordinatorHome,
        office: Office,
        authority: Callable[[], CertificateAuthority | None],
        revoked: RevocationFile,
        door: FleetDoor | None,
        metrics: CoordinatorMetrics,
        members: Mapping[str, bytes],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._home, self._office, self._authority, self._revoked = home, office, authority, revoked
        self._door, self._metrics, self._now = door, metrics, now
        self._members, self._list, self._certificate = dict(members), revoked().encoded, b""
        self._starts, self._counts = door.starts if door else 0, Counter[str]()

    @property
    def members(self) -> frozenset[str]:
        """Who was a member at the last look."""
        return frozenset(self._members)

    def tend(self) -> None:
        """Bring every door to what the journal says, and whatever ends soon to a new end, where the authority is at hand.

        Raises:
            Exception: The first thing that went wrong, after everything else was looked after.
        """
        first: Exception | None = None
        for step in (self._tend_members, self._tend_list, self._tend_certificate, self._count):
            try:
                step()
            except Exception as error:
                first = first or error
        if first is not None:
            raise first

    def _tend_list(self) -> None:
        if self._office.revocations.is_due():
            authority = self._authority()
            if authority is not None:
                self._office.revocations.publish(authority)
        self._office.revocations.put_into_file()
        encoded = self._revoked().encoded
        if encoded != self._list:
            if self._door is not None:
                self._door.update_revocations(encoded)
            self._list = encoded
            log("coordinator").info("revocation_list_in_force", number=self._revoked().number)

    def _tend_members(self) -> None:
        found = flower_keys(self._office.registry.members)
        if found != self._members:
            if self._door is not None:
                self._door.update_members(found)
            log("coordinator").info("members_changed", members=sorted(found))
            self._members = found

    def _tend_certificate(self) -> None:
        files = self._home.tls_files
        encoded = read_file(files.certificate)
        if self._door is not None and encoded != self._certificate:
            self._door.update_certificate(files.certificate, files.key)
        self._certificate = encoded
        certificate = x509.load_der_x509_certificate(from_pem(encoded))
        ends = certificate.not_valid_after_utc
        self._metrics.certificate_ends("server", ends.timestamp())
        if ends - self._now() > (ends - certificate.not_valid_before_utc) / 3:
            return
        authority = self._authority()
        if authority is not None:
            renew_services(self._office, authority, self._now())  # the next look shows it

    def _count(self) -> None:
        states = Counter(str(record.state) for record in self._office.registry.members.all())
        self._metrics.members(dict(states))
        if self._door is None:
            return
        for _ in range(self._door.starts - self._starts):
            self._metrics.superlink_restarted()
        self._starts = self._door.starts
        counts = self._door.counts
        for reason, count in (counts - self._counts).items():
            if not reason.startswith("status_"):
                self._metrics.refused("fleet", reason, count)
        self._counts = counts
