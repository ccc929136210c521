"""Founding a consortium: keys of the authority, of the services and of the first author, made where they are used."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.issuing import server_certificate, verify_name
from hansa.coordinator.journal_database import holds_password, is_postgresql, parse_url
from hansa.coordinator.journal_probe import journal_state, verify_journal_makeable
from hansa.coordinator.office import open_office
from hansa.coordinator.settings import FILE_NAME, coordinator_toml, journal_url
from hansa.errors import HomeExists, InvalidValue
from hansa.federation.consortium import Consortium
from hansa.federation.fields import host_and_port
from hansa.federation.files import PRIVATE, make_folder, write_file
from hansa.federation.invitations import Addresses
from hansa.federation.tls_authority import new_tls_key, to_pem
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import utc_now

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
DEFAULT_PORT = 9443
SERVICES = ("fleet", "aggregator", "consortium", "enrolment")  # on ports that follow each other


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundingPlan:
    """What `hansa consortium init` is about to make.

    Attributes:
        name: Short name of the consortium.
        folder: The home.
        hosts: Names and addresses of the coordinator; participants use the first.
        port: First of the ports of the services.
        author: Name of the first author.
        database: URL of the journal, without a password; None for a file in the home.
        database_password_file: Where its password is; see `journal_url`.
    """

    name: str
    folder: Path
    hosts: tuple[str, ...]
    port: int
    author: str
    database: str | None = None
    database_password_file: str | None = None

    def addresses(self) -> Addresses:
        """Where participants reach the services; InvalidValue if a host or port is none."""
        try:
            for host in self.hosts:
                host_and_port(_joined(host, 1))
            places = {name: _joined(self.hosts[0], self.port + at) for at, name in enumerate(SERVICES)}
            for place in places.values():
                host_and_port(place)
        except ValueError as error:
            raise InvalidValue(
                f"the address {error}", hint="give host names or IP addresses without a port"
            ) from error
        return Addresses(**places)

    def verify(self) -> None:
        """Check that the plan can be carried out.

        Raises:
            HomeExists: The folder, or the database, holds a consortium, or the beginning of one.
            InvalidValue: A name, host or port is none, or the URL of the database holds a password.
            ConfigurationError, KeyFileUnsafe, JournalUnreachable: The database cannot be used; see `journal_url` and `Journal`.
        """
        if not self.hosts:
            raise InvalidValue("a coordinator needs an address", hint="give one with --address")
        self.addresses()
        verify_name(self.author)
        with_name = CertificateAuthority.create(
            self.name or "-", not_before=utc_now(), not_after=utc_now() + timedelta(days=1)
        )
        Consortium(name=self.name, authority=with_name.certificate)
        for path in (self.folder / FILE_NAME, self.folder / "ca"):
            if path.exists():
                raise HomeExists(f"{str(self.folder)!r} holds a consortium already: there is {path.name!r}")
        if self.database is not None:
            self._verify_database(self.database)

    def _verify_database(self, database: str) -> None:
        url = parse_url(database)
        if holds_password(url):
            raise InvalidValue(
                "the database URL holds a password",
                hint="put it alone into a file of mode 0600 and give that with --database-password-file",
            )
        if not is_postgresql(url):
            raise InvalidValue(
                "the database URL names no server of PostgreSQL",
                hint="leave it out: the journal is a file in the home then",
            )
        journal = journal_url(database, self.database_password_file, self.folder)
        found = journal_state(journal)
        if found.revision is not None:
            raise HomeExists(
                f"database {found.name} holds the journal of a consortium already",
                hint="give each consortium a database of its own",
            )
        verify_journal_makeable(journal)


def found_consortium(plan: FoundingPlan, now: datetime) -> CoordinatorHome:
    """Make a home with all keys and certificates.

    Args:
        plan: What to make.
        now: The time.

    Returns:
        The home.

    Raises:
        HomeExists, InvalidValue: See `FoundingPlan.verify`.
        StoreNotWritable: The folder cannot be written.

    Guarantees:
        - No key is ever readable by others, and none that is there is overwritten.
        - coordinator.toml is written last: without it the home is not used.
    """
    plan.verify()
    make_folder(plan.folder)
    for folder in ("ca", "tls", "authors", "models", "spool"):
        make_folder(plan.folder / folder)
    end = now + timedelta(days=AUTHORITY_DAYS)
    authority = CertificateAuthority.create(plan.name, not_before=now - timedelta(hours=1), not_after=end)
    ca, tls = plan.folder / "ca", plan.folder / "tls"
    write_file(ca / "authority.key", authority.export(), mode=PRIVATE, replace=False)
    write_file(ca / "authority.crt", to_pem(authority.certificate), replace=False)
    key = new_tls_key()
    write_file(tls / "server.key", key, mode=PRIVATE, replace=False)
    certificate = server_certificate(authority, key, hosts=plan.hosts, now=now, days=SERVER_DAYS)
    write_file(tls / "server.crt", to_pem(certificate), replace=False)
    text = coordinator_toml(plan.name, plan.addresses(), plan.database, plan.database_password_file)
    write_file(plan.folder / FILE_NAME, text.encode(), mode=PRIVATE, replace=False)
    home = CoordinatorHome.open(plan.folder)
    with open_office(home) as office:
        office.add_author(plan.author, authority)
        office.revocations.publish(authority)
    return home


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
