"""The coordinator's journal: everything that must be known after a crash, in a database.

Two tables are all it needs: records, the present (who is a member, where a study stands), and events, the past (what happened
when). A record is bytes that its owner encodes; the journal neither reads nor checks them. SQLite is the default, PostgreSQL
works by its URL; alembic brings an older database to the present form when it is opened.

It holds no secret: signed documents, certificates and ciphertext sizes only. Keys are files (`ca/`, `tls/`).
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from hansa.errors import DatabaseNewer, DatabaseUnusable, JournalNotWritable, JournalUnreachable

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_SECONDS = 30
METADATA = sa.MetaData()
RECORDS = sa.Table(
    "record",
    METADATA,
    sa.Column("scope", sa.String(200), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
EVENTS = sa.Table(
    "event",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("kind", sa.String(100), nullable=False),
    sa.Column("study", sa.String(100), nullable=False, index=True),
    sa.Column("detail", sa.Text, nullable=False),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        id: Grows with every event.
        at: Wall clock, seconds since 1970.
        kind: What, in snake_case; one of a few constants.
        study: Short name of the study that it belongs to; empty for none.
        detail: More about it, plain JSON types.
    """

    id: int
    at: float
    kind: str
    study: str
    detail: Mapping[str, Any]


class Journal:
    """Records and events in a database; may be used by any number of threads and processes at once.

    Args:
        url: SQLAlchemy URL, such as `sqlite:////var/lib/hansa/journal.sqlite`; it may hold a password and is not shown.
        now: Wall clock in seconds.

    Raises:
        DatabaseUnusable: The URL is none, its driver is missing, or the database cannot be opened or brought to the present form.
        DatabaseNewer: A later version of hansa has used it.

    Guarantees:
        - What `put` wrote is durable when it returns, all of it or nothing.
        - Of several writers that compare and put one record, one succeeds.
        - Neither a message nor a repr shows a password of the URL.
        - A new SQLite file, and the log beside it, can be read by its owner only.
        - Whatever the database does, a call that reads raises JournalUnreachable, one that writes JournalNotWritable.
    """

    def __init__(self, url: str, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        try:
            parsed = sa.make_url(url)
        except ArgumentError as error:
            raise DatabaseUnusable("the database URL is not one") from error
        self.name = parsed.render_as_string(hide_password=True)
        try:
            self._engine = _engine(parsed)
            with self._engine.connect() as connection:
                _upgrade(connection, self.name)
        except (SQLAlchemyError, NoSuchModuleError, ImportError, OSError) as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise DatabaseUnusable(f"database {self.name} cannot be used: {reason[:200]}") from error

    def get(self, scope: str, name: str) -> bytes | None:
        """Give a record, or None."""
        query = sa.select(RECORDS.c.value).where(RECORDS.c.scope == scope, RECORDS.c.name == name)
        with self._reading() as connection:
            found = connection.execute(query).scalar()
        return None if found is None else bytes(found)

    def items(self, scope: str) -> dict[str, bytes]:
        """Give all records of a scope, by name in order."""
        query = sa.select(RECORDS.c.name, RECORDS.c.value).where(RECORDS.c.scope == scope)
        with self._reading() as connection:
            found = connection.execute(query.order_by(RECORDS.c.name)).all()
        return {str(name): bytes(value) for name, value in found}

    def items_below(self, prefix: str) -> dict[str, dict[str, bytes]]:
        """Give all records of the scopes that begin with a prefix, by scope, then by name in order; with one query."""
        query = sa.select(RECORDS.c.scope, RECORDS.c.name, RECORDS.c.value)
        query = query.where(RECORDS.c.scope.startswith(prefix, autoescape=True))
        found: dict[str, dict[str, bytes]] = {}
        with self._reading() as connection:
            for scope, name, value in connection.execute(query.order_by(RECORDS.c.scope, RECORDS.c.name)):
                found.setdefault(str(scope), {})[str(name)] = bytes(value)
        return found

    def put(self, scope: str, records: Mapping[str, bytes | None]) -> None:
        """Write records of a scope, or remove them where the value is None.

        Raises:
            JournalNotWritable: The disk is full, or the database is locked or gone; nothing was written.
        """
        with self._writing() as connection:
            for name, value in records.items():
                connection.execute(_at(sa.delete(RECORDS), scope, name))
                if value is not None:
                    connection.execute(sa.insert(RECORDS).values(scope=scope, name=name, value=value))

    def compare_and_put(self, scope: str, name: str, expected: bytes | None, value: bytes) -> bool:
        """Write a record if it is as expected (None: absent); tell whether it was. Raises as `put`."""
        if expected is None:
            try:
                with self._writing() as connection:
                    connection.execute(sa.insert(RECORDS).values(scope=scope, name=name, value=value))
            except _Present:
                return False
            return True
        with self._writing() as connection:
            change = _at(sa.update(RECORDS), scope, name).where(RECORDS.c.value == expected)
            return connection.execute(change.values(value=value)).rowcount == 1

    def records(self, scope: str) -> "ScopedRecords":
        """Give the records of one scope, for whoever keeps its state there."""
        return ScopedRecords(self, scope)

    def event(self, kind: str, *, study: str = "", **detail: Any) -> None:
        """Note that something happened. Raises as `put`."""
        values = {
            "at": self._now(),
            "kind": kind,
            "study": study,
            "detail": json.dumps(detail, sort_keys=True),
        }
        with self._writing() as connection:
            connection.execute(sa.insert(EVENTS).values(**values))

    def events(self, *, study: str | None = None, after: int = 0, most: int = 10_000) -> Sequence[Event]:
        """Give events in order: those of a study or all, with an id above `after`, the first `most` of them."""
        query = sa.select(EVENTS).where(EVENTS.c.id > after).order_by(EVENTS.c.id).limit(most)
        if study is not None:
            query = query.where(EVENTS.c.study == study)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [
            Event(id=row.id, at=row.at, kind=row.kind, study=row.study, detail=json.loads(row.detail))
            for row in rows
        ]

    def latest_time(self) -> float:
        """Give the latest wall clock time of an event; 0 where there is none."""
        with self._reading() as connection:
            found = connection.execute(sa.select(sa.func.max(EVENTS.c.at))).scalar()
        return float(found or 0.0)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Journal({self.name})"

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise JournalUnreachable(f"database {self.name} does not answer: {reason[:200]}") from error

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError as error:
            raise _Present from error
        except (SQLAlchemyError, OSError) as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise JournalNotWritable(f"database {self.name} was not written: {reason[:200]}") from error


class ScopedRecords:
    """The records of one scope of a journal."""

    def __init__(self, journal: Journal, scope: str) -> None:
        self._journal, self._scope = journal, scope

    def items(self) -> Mapping[str, bytes]:
        """Give all records by name."""
        return self._journal.items(self._scope)

    def put(self, records: Mapping[str, bytes | None]) -> None:
        """Write records, or remove those that are None; as `Journal.put`."""
        self._journal.put(self._scope, records)


class _Present(Exception):
    """A record that was to be new is there."""


def _at(statement: Any, scope: str, name: str) -> Any:
    return statement.where(RECORDS.c.scope == scope, RECORDS.c.name == name)


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    if (
        url.database and url.database != ":memory:"
    ):  # who takes part is nobody else's business; SQLite makes files of mode 0644
        os.close(os.open(url.database, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_SECONDS})

    @sa.event.listens_for(engine, "connect")
    def _settings(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a record is on the disk when `put` returns

    return engine


def newest_revisions() -> tuple[set[str], str | None]:
    """Give all forms of the database that this version knows, and the present one."""
    script = ScriptDirectory(str(_MIGRATIONS))
    return {revision.revision for revision in script.walk_revisions()}, script.get_current_head()


def _upgrade(connection: sa.Connection, name: str) -> None:
    """Bring the database to the newest form; two processes that open it at once may both try."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    known, newest = newest_revisions()
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in known:
        raise DatabaseNewer(f"database {name} is of revision {found}, which this version does not know")
    if found == newest:
        return
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.commit()
