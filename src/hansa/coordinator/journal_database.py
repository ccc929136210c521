"""The database below the journal: its URL, the way to it, its form. SQLite, or PostgreSQL by its URL.

What is set on a connection makes both keep the journal's promises: what is committed is on the disk, and a server that is
away is noticed in seconds, not when TCP gives up.
"""

import os
import threading
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, SQLAlchemyError

from hansa.errors import (
    DatabaseNewer,
    DatabaseUnusable,
    DriverMissing,
    Error,
    JournalUnreachable,
)

LOCK_CLASS = 0x68616E73  # "hans": the first half of every advisory lock that hansa takes in PostgreSQL
MIGRATING, NOTING, SERVING = 1, 2, 3  # and the second half of them
_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_SECONDS = 30
_LIBPQ = {  # https://www.postgresql.org/docs/15/libpq-connect.html
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # milliseconds
}
# What the server is asked for, where it knows it: to end a session in half a minute whose other end is gone, and a transaction in
# which nothing more is heard. Either would keep its locks for hours, and so keep everybody else from writing.
_SESSION = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25s",
    "idle_in_transaction_session_timeout": "30s",
}
_migrating = threading.Lock()  # alembic keeps what it works on in variables of its module


def parse_url(url: str) -> sa.URL:
    """Read the URL of a database.

    Raises:
        DatabaseUnusable: It is none, or one of another database than SQLite and PostgreSQL.
    """
    found: sa.URL | None = None
    try:
        found = sa.make_url(url)
        kind = found.get_backend_name()
    except (ArgumentError, ValueError):
        found = None
    if found is None:  # outside the handler: the message quotes the URL, in which a password may stand
        raise DatabaseUnusable("the database URL is not one: dialect+driver://user@host:port/database")
    if kind not in ("sqlite", "postgresql"):
        raise DatabaseUnusable(
            f"a database of kind {kind!r} cannot hold the journal; sqlite and postgresql can"
        )
    return found.set(drivername="postgresql+psycopg") if found.drivername == "postgresql" else found


def shown(url: sa.URL) -> str:
    """Give a URL without its passwords: the one of the user, and those that stand among the parameters."""
    hidden = {key: "***" for key in url.query if "password" in key.lower()}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def holds_password(url: sa.URL) -> bool:
    """Whether a password stands in it."""
    return bool(url.password) or any("password" in key.lower() for key in url.query)


def is_postgresql(url: sa.URL) -> bool:
    """Whether it is a server that is asked, not a file."""
    return url.get_backend_name() == "postgresql"


def open_engine(
    url: sa.URL, *, busy_seconds: float = _BUSY_SECONDS, as_it_is: bool = False, **options: Any
) -> sa.Engine:
    """Make the way to a database; no connection is opened yet.

    Args:
        url: Of `parse_url`.
        busy_seconds: How long a writer of SQLite waits for another.
        as_it_is: Leave a file of SQLite as it is; for a look that writes nothing.
        options: Further ones of SQLAlchemy's `create_engine`.

    Raises:
        DriverMissing: The package that speaks to the database is not installed.
        DatabaseUnusable: The URL has parameters that there are not.

    Guarantees:
        - What is committed is on the disk: an asynchronous commit is turned off where a server has it on.
        - A server lets the locks of a process go within half a minute after its machine is gone.
    """
    try:
        if is_postgresql(url):
            return _postgresql_engine(url, options)
        engine = sa.create_engine(
            url, connect_args={"timeout": busy_seconds}, hide_parameters=True, **options
        )
    except (ImportError, NoSuchModuleError) as error:
        absent = isinstance(error, ModuleNotFoundError | NoSuchModuleError)
        why = "is not installed" if absent else f"cannot be loaded: {reason(error)}"
        raise DriverMissing(f"the database driver {_driver(url)!r} {why}") from error
    except SQLAlchemyError as error:
        raise DatabaseUnusable(f"database {shown(url)} cannot be used: {reason(error)}") from error
    if not as_it_is:
        _prepare_sqlite(url, engine)
    return engine


def opening_failure(url: sa.URL, error: Exception) -> Error:
    """Name what went wrong when a database was opened: a server that is away, or does not let us in, may do so later."""
    at_connecting = isinstance(error, OperationalError) and (
        error.statement is None or error.connection_invalidated
    )
    if is_postgresql(url) and at_connecting:
        return JournalUnreachable(
            f"database {shown(url)} does not answer: {reason(error)}",
            hint="check that the database runs, and `database` and `database_password_file` of coordinator.toml;"
            " the password is never shown",
        )
    return DatabaseUnusable(f"database {shown(url)} cannot be used: {reason(error)}")


def reason(error: Exception) -> str:
    """Give the driver's first line on what went wrong; neither statements nor values stand in it."""
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def newest_revisions() -> tuple[set[str], str | None]:
    """Give all forms of the database that this version knows, and the present one."""
    script = ScriptDirectory(str(_MIGRATIONS))
    return {revision.revision for revision in script.walk_revisions()}, script.get_current_head()


def bring_to_newest(connection: sa.Connection, name: str) -> None:
    """Bring a database to the present form.

    Raises:
        DatabaseNewer: A later version of hansa has used it.
        SQLAlchemyError: It cannot be written, or another process has been at it for too long.

    Guarantees:
        - Of processes that open it at once, one changes it, and the others wait for that.
        - It is changed all or not at all, whenever a process is killed.
    """
    known, newest = newest_revisions()
    if _is_of(connection, name, known, newest):
        return
    connection.rollback()
    with _migrating:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_BUSY_SECONDS}s'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_CLASS}, {MIGRATING})")
        else:  # Python's sqlite3 begins no transaction before a CREATE TABLE
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        if not _is_of(connection, name, known, newest):
            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        connection.commit()


# -- inside ------------------------------------------------------------------------------------------------------------


def _is_of(connection: sa.Connection, name: str, known: set[str], newest: str | None) -> bool:
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in known:
        raise DatabaseNewer(f"database {name} is of revision {found}, which this version does not know")
    return found == newest


def _driver(url: sa.URL) -> str:
    return url.drivername.partition("+")[2] or url.drivername


def _postgresql_engine(url: sa.URL, options: dict[str, Any]) -> sa.Engine:
    arguments: dict[str, Any] = {}
    if "psycopg" in _driver(url):
        arguments = {key: value for key, value in _LIBPQ.items() if key not in url.query}
    if _driver(url) == "psycopg":
        arguments["prepare_threshold"] = None  # a statement prepared at one server is none at the next one
    engine = sa.create_engine(
        url,
        connect_args=arguments,
        hide_parameters=True,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,  # a server that was away leaves dead connections behind
        **options,
    )

    @sa.event.listens_for(engine, "connect")
    def _settings(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        for key, value in _SESSION.items():  # older servers do not know all of them
            cursor.execute(
                "SELECT set_config(name, %s, false) FROM pg_settings WHERE name = %s", (value, key)
            )
        cursor.close()
        connection.commit()

    return engine


def _prepare_sqlite(url: sa.URL, engine: sa.Engine) -> None:
    if url.database and url.database != ":memory:":
        try:  # who takes part is nobody else's business; SQLite makes files of mode 0644
            os.close(os.open(url.database, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise DatabaseUnusable(f"database {shown(url)} cannot be used: {error.strerror}") from error

    @sa.event.listens_for(engine, "connect")
    def _settings(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a record is on the disk when `put` returns
