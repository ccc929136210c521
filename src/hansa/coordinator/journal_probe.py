"""A look at the journal's database that changes nothing: `Journal` itself brings an older one to the present form."""

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import SQLAlchemyError

from hansa.coordinator.journal import EVENTS, METADATA
from hansa.coordinator.journal_database import (
    is_postgresql,
    newest_revisions,
    open_engine,
    opening_failure,
    parse_url,
    reason,
    shown,
)
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
        DriverMissing: The package that speaks to this kind of database is not installed.
        JournalUnreachable: The server does not answer, or does not let this user in.
        DatabaseNewer: A later version of hansa has used it.

    Guarantees:
        - The database is as it was; none is made.
    """
    parsed, engine = _opened(url)
    name = shown(parsed)
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
    except (SQLAlchemyError, OSError) as error:
        raise opening_failure(parsed, error) from error
    finally:
        engine.dispose()
    known, newest = newest_revisions()
    if found is not None and found not in known:
        raise DatabaseNewer(f"database {name} is of revision {found}, which this version does not know")
    return JournalState(name=name, revision=found, is_newest=found == newest)


def verify_journal_writable(url: str) -> None:
    """Write into a transaction that is taken back.

    Raises:
        DatabaseUnusable, DriverMissing: As `journal_state`.
        JournalNotWritable: It cannot be written.
    """
    parsed, engine = _opened(url)
    try:
        with engine.connect() as connection, connection.begin() as transaction:
            connection.execute(sa.insert(EVENTS).values(at=0.0, kind="doctor", study="", detail="{}"))
            transaction.rollback()
    except (SQLAlchemyError, OSError) as error:
        raise JournalNotWritable(f"database {shown(parsed)} cannot be written: {reason(error)}") from error
    finally:
        engine.dispose()


def verify_journal_makeable(url: str) -> None:
    """Make the journal's tables in a transaction of a server that is taken back.

    Raises:
        DatabaseUnusable: This user may make no tables, or others of these names are there.
        DriverMissing, JournalUnreachable: As `journal_state`.
    """
    parsed, engine = _opened(url)
    try:
        with engine.connect() as connection:
            METADATA.create_all(connection, checkfirst=False)
            connection.rollback()
    except (SQLAlchemyError, OSError) as error:
        raise opening_failure(parsed, error) from error
    finally:
        engine.dispose()


def _opened(url: str) -> tuple[sa.URL, sa.Engine]:
    parsed = parse_url(url)
    if not is_postgresql(parsed) and not Path(parsed.database or "").is_file():
        raise DatabaseUnusable(f"database {shown(parsed)} cannot be used: there is no such file")
    return parsed, open_engine(parsed, busy_seconds=_BUSY_SECONDS, as_it_is=True)
