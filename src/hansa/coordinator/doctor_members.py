"""Checks of what ends or waits at a coordinator: certificates, the revocation list, members and authors, and its clock."""

from collections.abc import Iterator

from cryptography import x509

from hansa.coordinator.examination import Examination
from hansa.coordinator.issuing import hosts_of
from hansa.errors import Error
from hansa.federation.checks import Check, Finding, fail, failure, ok, warn
from hansa.federation.fields import host_and_port, utc_text
from hansa.federation.files import read_file
from hansa.federation.machine_checks import look_at_window
from hansa.federation.mending import SET_CLOCK, restore
from hansa.federation.tls_authority import verify_server_certificate
from hansa.federation.tls_files import read_tls
from hansa.secure_agg.certificates import CLOCK_SKEW, MAXIMUM_REVOCATION_LIST_BYTES, RevocationList


def look_at_authority(place: Examination) -> Iterator[Finding]:
    """Look at the time that the authority has left; a clock before its begin is wrong."""
    found = x509.load_der_x509_certificate(place.home.consortium.authority)
    yield look_at_window(
        "the authority", found.not_valid_before_utc, found.not_valid_after_utc, place.now(),
        mend="hansa consortium init NAME --address HOST --home NEW_HOME",
    )  # fmt: skip


def look_at_server_certificate(place: Examination) -> Iterator[Finding]:
    """Look at the certificate of the services: chain, key, time, and the names under which participants call."""
    home, now = place.home, place.now()
    try:
        material = read_tls(home.tls_files)
        found = x509.load_der_x509_certificate(material.certificate_der)
        begin, end = found.not_valid_before_utc, found.not_valid_after_utc
        verify_server_certificate(
            material.certificate_der,
            authority=home.consortium.authority,
            now=min(max(now, begin), end),
            revoked=None,
        )
    except Error as error:
        yield failure(error, restore(home.tls_files.certificate))
        return
    renew = place.command("consortium renew")
    yield look_at_window("the certificate of the services", begin, end, now, mend=renew)
    addresses = home.settings.addresses.model_dump().values()
    wanted = sorted({host_and_port(address)[0] for address in addresses})
    missing = [host for host in wanted if host not in hosts_of(material.certificate_der)]
    if missing:
        hosts = " ".join(f"--address {host}" for host in wanted)
        told = f"it does not name {', '.join(missing)}, under which participants call"
        yield fail(told, f"{renew} {hosts}", code="authentication_failed", subject="hosts")
    else:
        yield ok(f"it names {', '.join(wanted)}", subject="hosts")


def look_at_revocation_list(place: Examination) -> Iterator[Finding]:
    """Look at the list that is in force: its signature, its time, and whether everybody who must be is on it."""
    now, renew, file = place.now(), place.command("consortium renew"), place.home.revocation_list_file
    try:
        known = RevocationList(
            place.home.consortium.authority, read_file(file, MAXIMUM_REVOCATION_LIST_BYTES)
        )
    except Error as error:
        yield failure(error, renew)
        return
    end = x509.load_der_x509_crl(known.encoded).next_update_utc
    if end is None or now >= end + CLOCK_SKEW:
        told = f"list {known.number} ended at {utc_text(end) if end else 'no time'}: no certificate passes"
        yield fail(told, renew, code="certificate_rejected")
    elif known.encoded != place.office.revocations.current():
        told = f"list {known.number} in {file.name} is not the latest one in the journal"
        yield fail(told, renew, code="revocation_list_old")
    elif place.office.revocations.is_due():
        told = f"list {known.number} has to be made again: half of its time is over, or somebody is missing on it"
        yield warn(told, renew, code="revocation_list_due")
    else:
        yield ok(f"list {known.number} ends at {utc_text(end)}")


def look_at_members(place: Examination) -> Iterator[Finding]:
    """Look at requests that wait for the admin, and at certificates of members that end."""
    records = place.office.registry.members.all()
    for record in records:
        approve = place.command(f"participant approve {record.name} --fingerprint FINGERPRINT")
        if record.state == "requested":
            told = "asks to be enrolled, and waits for the admin"
            yield warn(told, approve, code="request_waits", subject=record.name)
        if record.state != "enrolled":
            continue
        renew = place.command(f"participant renew {record.name}")
        if record.renewal_is_pending:
            told = "asks for new certificates, and waits for the admin"
            yield warn(told, renew, code="renewal_waits", subject=record.name)
        body = record.enrolment_document.body
        found = look_at_window(
            "its certificate", body.not_before, body.not_after, place.now(),
            mend=f"ask {record.name} to run: hansa participant run", subject=record.name,
        )  # fmt: skip
        if found.level != "ok":  # its member is late, and the coordinator works
            yield warn(found.cause, found.mend, code="ends_soon", subject=record.name)
    count = sum(record.state == "enrolled" for record in records)
    yield ok(f"{count} enrolled of {len(records)} known")


def look_at_authors(place: Examination) -> Iterator[Finding]:
    """Look at the time that certificates of authors have left."""
    authors = [record for record in place.office.authors.all() if record.revoked is None]
    for record in authors:
        found = x509.load_der_x509_certificate(record.certificate)
        yield look_at_window(
            "its certificate", found.not_valid_before_utc, found.not_valid_after_utc, place.now(),
            mend=place.command(f"consortium author add {record.name}"), subject=record.name,
        )  # fmt: skip
    if not authors:
        add = place.command("consortium author add NAME")
        yield warn("nobody may propose studies", add, code="no_author")


def look_at_clock(place: Examination) -> Iterator[Finding]:
    """See that no event of the journal is of the future: then this clock was set back, or was ahead once."""
    ahead = place.office.journal.latest_time() - place.now().timestamp()
    if ahead > CLOCK_SKEW.total_seconds():
        told = f"the journal has an event from {ahead:.0f} s ahead of this clock"
        yield fail(told, SET_CLOCK, code="clock_skew")
    else:
        yield ok("no event of the journal is of the future")


MEMBER_CHECKS: tuple[Check[Examination], ...] = (
    Check(name="authority", look=look_at_authority, needs=("settings",)),
    Check(name="clock", look=look_at_clock, needs=("journal",)),
    Check(name="server_certificate", look=look_at_server_certificate, needs=("settings",)),
    Check(name="revocation_list", look=look_at_revocation_list, needs=("journal",)),
    Check(name="members", look=look_at_members, needs=("journal",)),
    Check(name="authors", look=look_at_authors, needs=("journal",)),
)
