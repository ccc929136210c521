"""A coordinator's home with its journal open: what admin commands and the daemon work with."""

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509

from hansa.coordinator.author_register import AuthorRecord, AuthorRegister
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.issuing import hosts_of, server_certificate, verify_name
from hansa.coordinator.journal import Journal
from hansa.coordinator.registry import Registry
from hansa.coordinator.renewals import Renewals
from hansa.coordinator.revocations import Revocations
from hansa.coordinator.service_certificates import ServiceCertificates, changing, make_ready, take_next
from hansa.errors import AuthorityAbsent, KeyFileUnsafe
from hansa.federation.files import PRIVATE, make_folder, read_file, read_private_file, write_file
from hansa.federation.tls_authority import from_pem, new_tls_key, to_pem
from hansa.secure_agg.certificate_authority import CertificateAuthority


class Office:
    """A coordinator's home with its journal open: what admin commands and the daemon work with.

    Attributes:
        home: The home.
        journal: Its journal.
        registry: Members.
        renewals: New certificates of members.
        authors: Authors.
        services: Certificates of the services that were replaced.
        revocations: The revocation list.
    """

    def __init__(self, home: CoordinatorHome, journal: Journal) -> None:
        lifetimes = home.settings.lifetimes
        self.home, self.journal = home, journal
        self.registry = Registry(journal, consortium=home.consortium, settings=home.settings)
        self.renewals = Renewals(journal, consortium=home.consortium, days=lifetimes.member_days)
        self.services = ServiceCertificates(journal)
        self.authors = AuthorRegister(journal, days=lifetimes.author_days)
        self.revocations = Revocations(
            journal,
            file=home.revocation_list_file,
            authors=self.authors,
            days=lifetimes.revocation_list_days,
        )

    def __enter__(self) -> "Office":
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()

    def add_author(self, name: str, authority: CertificateAuthority) -> AuthorRecord:
        """Make an author who signs at this home, with its key; an author that is here already gets a new certificate."""
        verify_name(name)
        path = self.home.author_key_file(name)
        if not path.exists():
            make_folder(path.parent)
            write_file(path, os.urandom(32), mode=PRIVATE, replace=False)
        request = self.home.author(name).request_certificate(name)
        return self.authors.add(name, request, authority)


def open_office(home: CoordinatorHome) -> Office:
    """Open the journal of a home; raises as `journal_url` and `Journal`."""
    return Office(home, Journal(home.settings.database_url(home.folder)))


def renew_services(
    office: Office,
    authority: CertificateAuthority,
    now: datetime,
    hosts: Sequence[str] = (),
    *,
    new_key: bool = False,
) -> None:
    """Give the coordinator's services another certificate, and make another revocation list if one is due.

    Args:
        office: The coordinator's.
        authority: Issues both.
        now: The time.
        hosts: Names and addresses of the coordinator; those of the present certificate where none are given.
        new_key: Whether it is for another key; what was certified for the old one is revoked then.

    Raises:
        HomeMissing, KeyFileUnsafe: The present key or certificate cannot be read, or their folder is another user's.
        StoreNotWritable, JournalNotWritable: A disk is full.

    Guarantees:
        - Killed at any moment, `settle_services` leaves the old key with its certificate, or the new one with its own.
        - With a new key, no certificate for the old one is in use that is not revoked.
        - A coordinator that runs shows the new certificate to whoever connects, without a restart.
    """
    files, days = office.home.tls_files, office.home.settings.lifetimes.server_days
    _verify_owner(files.key.parent)
    with changing(files):
        take_next(files, office.services)
        present = from_pem(read_file(files.certificate))
        key = new_tls_key() if new_key else read_private_file(files.key)
        certificate = server_certificate(authority, key, hosts=hosts or hosts_of(present), now=now, days=days)
        if new_key:
            make_ready(files, key, certificate)
            take_next(files, office.services)
        else:
            office.services.followed(present)
            write_file(files.certificate, to_pem(certificate))
    office.revocations.publish(authority)
    office.journal.event("server_key_renewed" if new_key else "server_certificate_renewed")


def _verify_owner(folder: Path) -> None:
    """Refuse to leave files in a folder that its owner, as whom the daemon runs, could not read: those of root above all."""
    if folder.exists() and folder.stat().st_uid != os.geteuid():
        raise KeyFileUnsafe(
            f"{str(folder)!r} belongs to another user than the one who runs this",
            hint="run the command as the user of the coordinator's service, which then reads what it makes",
        )


def settle_services(office: Office) -> None:
    """Finish what a command that was to give the services a new key has left when it was killed; a daemon begins with it."""
    files = office.home.tls_files
    with changing(files):
        take_next(files, office.services)


def authority_at_hand(home: CoordinatorHome) -> CertificateAuthority | None:
    """Return the authority where its key lies in the home; None where the admin keeps it elsewhere. Raises KeyFileUnsafe."""
    try:
        return home.authority()
    except AuthorityAbsent:
        return None


def maintain(office: Office, now: datetime) -> None:
    """Do what is due without an admin; a daemon calls this now and then.

    Args:
        office: The coordinator's.
        now: The time.

    Raises:
        KeyFileUnsafe: Others can read a key.

    Guarantees:
        - With the authority's key at hand, a revocation list is made again when half of its time is over, and the certificate
          of the services when a third of its time is left.
        - The latest revocation list stands in its file, whoever made it.
    """
    authority = authority_at_hand(office.home)
    if authority is None:
        office.revocations.put_into_file()
        return
    office.revocations.publish(authority)
    found = x509.load_der_x509_certificate(from_pem(read_file(office.home.tls_files.certificate)))
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    if now > end - (end - begin) / 3:
        renew_services(office, authority, now)
