"""coordinator.toml: where the coordinator listens, how participants reach it, and how long things last."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from hansa.coordinator.journal_database import holds_password, is_postgresql, parse_url
from hansa.errors import InvalidValue
from hansa.federation.fields import Address, Slug
from hansa.federation.invitations import Addresses
from hansa.federation.password_file import read_password
from hansa.federation.settings_files import Settings, load_settings

FILE_NAME = "coordinator.toml"
Text = Annotated[str, Field(min_length=1, max_length=1000)]


class Listen(Settings):
    """Where the services listen on this machine."""

    fleet: Address = Field(description="host:port of the TLS front of Flower's fleet API")
    aggregator: Address = Field(description="host:port of the aggregator")
    consortium: Address = Field(description="host:port of the consortium's service")
    enrolment: Address = Field(description="host:port of the enrolment service")
    metrics: Address = Field(default="127.0.0.1:9447", description="host:port of health and metrics")


class Spool(Settings):
    """Where uploads lie while they arrive."""

    folder: Text = Field(default="spool", description="folder, relative to the home")
    quota_bytes: int = Field(
        default=20 << 30, ge=1 << 20, le=1 << 50, description="most bytes of all uploads"
    )


class Deadlines(Settings):
    """How long the coordinator waits, seconds."""

    exchange_seconds: float = Field(
        default=600.0, ge=1, le=604_800, description="for answers of participants"
    )
    upload_seconds: float = Field(default=600.0, ge=1, le=604_800, description="for an upload, begin to end")
    longest_pause_seconds: float = Field(
        default=15.0, ge=1, le=3600, description="longest pause before a study that waits is tried again"
    )
    absent_days: float = Field(
        default=30.0,
        ge=0,
        le=365,
        description="days that a study's last state is kept for members that were away, and what is left of one that failed",
    )


class Lifetimes(Settings):
    """How long certificates, lists and invitations last, days."""

    member_days: int = Field(default=90, ge=1, le=825, description="certificates of members")
    server_days: int = Field(
        default=365, ge=1, le=825, description="certificate of the coordinator's services"
    )
    author_days: int = Field(default=365, ge=1, le=825, description="certificates of authors")
    revocation_list_days: int = Field(default=7, ge=1, le=60, description="revocation lists")
    invitation_days: int = Field(default=14, ge=1, le=90, description="invitations")


class CoordinatorSettings(Settings):
    """The keys of coordinator.toml."""

    schema_version: Literal["hansa/coordinator/v1"] = Field(
        alias="schema", description="version of the format"
    )
    name: Slug = Field(description="short name of the consortium")
    database: Text | None = Field(
        default=None, description="SQLAlchemy URL of the journal; default: journal.sqlite in the home"
    )
    database_password_file: Text | None = Field(
        default=None, description="file of mode 0600 that holds the password of the database alone"
    )
    addresses: Addresses = Field(description="where participants reach the services")
    listen: Listen = Field(description="where the services listen")
    spool: Spool = Field(default_factory=Spool, description="where uploads lie")
    deadlines: Deadlines = Field(default_factory=Deadlines, description="how long the coordinator waits")
    lifetimes: Lifetimes = Field(default_factory=Lifetimes, description="how long certificates last")

    def database_url(self, home: Path) -> str:
        """The URL of the journal; it may hold a password. Raises as `journal_url`."""
        return journal_url(self.database, self.database_password_file, home)


def journal_url(database: str | None, password_file: str | None, home: Path) -> str:
    """Put the URL of the journal together, with the password from its file.

    Args:
        database: As in coordinator.toml.
        password_file: As in coordinator.toml: absolute, or a name among the service manager's credentials or in the home.
        home: The home folder.

    Returns:
        The URL. It may hold a password: it is shown nowhere.

    Raises:
        DatabaseUnusable: The URL is none.
        InvalidValue: There is a password file, and nothing that it is for.
        PasswordFileMissing, KeyFileUnsafe: See `read_password`.
    """
    if password_file is None:
        return database or f"sqlite:///{(home / 'journal.sqlite').absolute()}"
    url = parse_url(database or "sqlite://")
    if not is_postgresql(url) or holds_password(url):
        why = "holds a password itself" if holds_password(url) else "names no server of PostgreSQL"
        raise InvalidValue(
            f"database_password_file is given, and the database URL {why}",
            hint="leave one of them out of coordinator.toml",
        )
    return url.set(password=read_password(Path(password_file), home)).render_as_string(hide_password=False)


def load_coordinator_settings(home: Path) -> CoordinatorSettings:
    """Read coordinator.toml of a home; raises as `load_settings` does."""
    return load_settings(home / FILE_NAME, CoordinatorSettings)


def coordinator_toml(
    name: str, addresses: Addresses, database: str | None = None, password_file: str | None = None
) -> str:
    """Write the file that a new coordinator begins with. Every key that is left out stands there with its default, as a comment."""
    ports = {key: value.rpartition(":")[2] for key, value in addresses.model_dump().items()}
    off = "" if database else "# "
    off_file = "" if password_file else "# "
    url = _quoted(database or "postgresql+psycopg://hansa@db.example/hansa")
    lines = [
        "# Settings of a hansa coordinator; docs/pki.md lists the keys. Keep this file at mode 0600.",
        'schema = "hansa/coordinator/v1"',
        f'name = "{name}"',
        f"{off}database = {url}  # default: journal.sqlite in this folder",
        f"{off_file}database_password_file = {_quoted(password_file or 'database-password')}  # mode 0600",
        "",
        "[addresses]  # where participants reach the services; invitations carry them",
        *(f'{key} = "{value}"' for key, value in addresses.model_dump().items()),
        "",
        "[listen]  # where the services listen on this machine",
        *(f'{key} = "0.0.0.0:{port}"' for key, port in ports.items()),
        f'metrics = "{Listen.model_fields["metrics"].default}"',
    ]
    for title, section in (("spool", Spool), ("deadlines", Deadlines), ("lifetimes", Lifetimes)):
        lines += ["", f"[{title}]"]
        for key, field in section.model_fields.items():
            value = f'"{field.default}"' if isinstance(field.default, str) else field.default
            lines.append(f"# {key} = {value}  # {field.description}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Write a string of TOML."""
    return json.dumps(text, ensure_ascii=False)
