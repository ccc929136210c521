"""A look at the journal's database that changes nothing: `Journal` itself brings an older one to the present form."""

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from hansa.coordinator.journal import EVENTS, newest_revisions
from hansa.errors import DatabaseNewer, DatabaseUnusable, JournalNotWritable

_BUSY_SECONDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalState:
    """What a database is.

    Attributes:
        name: Its URL without a password.
        revision: Its form; None where it holds nothing.
        is_newest: Whether that is the present form.
    """

    name: str
    revision: str | None
    is_newest: bool


def journal_state(url: str) -> JournalState:
    """Open a database and read of which form it is.

    Raises:
        DatabaseUnusable: The URL is none, or there is no such database.
        DatabaseNewer: A later version of hansa has used it.

    Guarantees:
        - The database is as it was; none is made.
    """
    engine, name = _opened(url)
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
    except (SQLAlchemyError, OSError) as error:
        raise DatabaseUnusable(f"database {name} cannot be used: {_reason(error)}") from error
    finally:
        engine.dispose()
    known, newest = newest_revisions()
    if found is not None and found not in known:
        raise DatabaseNewer(f"database {name} is of revision {found}, which this version does not know")
    return JournalState(name=name, revision=found, is_newest=found == newest)


def verify_journal_writable(url: str) -> None:
    """Write into a transaction that is taken back.

    Raises:
        DatabaseUnusable: As `journal_state`.
        JournalNotWritable: It cannot be written.
    """
    engine, name = _opened(url)
    try:
        with engine.connect() as connection, connection.begin() as transaction:
            connection.execute(sa.insert(EVENTS).values(at=0.0, kind="doctor", study="", detail="{}"))
            transaction.rollback()
    except (SQLAlchemyError, OSError) as error:
        raise JournalNotWritable(f"database {name} cannot be written: {_reason(error)}") from error
    finally:
        engine.dispose()


def _opened(url: str) -> tuple[sa.Engine, str]:
    try:
        parsed = sa.make_url(url)
    except ArgumentError as error:
        raise DatabaseUnusable("the database URL is not one") from error
    name = parsed.render_as_string(hide_password=True)
    is_file = parsed.get_backend_name() == "sqlite"
    if is_file and not Path(parsed.database or "").is_file():
        raise DatabaseUnusable(f"database {name} cannot be used: there is no such file")
    try:
        arguments = {"timeout": _BUSY_SECONDS} if is_file else {}
        return sa.create_engine(parsed, connect_args=arguments), name
    except (SQLAlchemyError, NoSuchModuleError, ImportError) as error:
        raise DatabaseUnusable(f"database {name} cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0][:200]
