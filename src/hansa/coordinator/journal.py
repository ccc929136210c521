"""The coordinator's journal: everything that must be known after a crash, in a database.

Two tables are all it needs: records, the present (who is a member, where a study stands), and events, the past (what happened
when). A record is bytes that its owner encodes; the journal neither reads nor checks them. SQLite is the default, PostgreSQL
works by its URL; alembic brings an older database to the present form when it is opened.

It holds no secret: signed documents, certificates and ciphertext sizes only. Keys are files (`ca/`, `tls/`).
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from hansa.coordinator.journal_database import (
    LOCK_CLASS,
    NOTING,
    bring_to_newest,
    is_postgresql,
    open_engine,
    opening_failure,
    parse_url,
    reason,
    shown,
)
from hansa.errors import JournalNotWritable, JournalUnreachable, StoreInUse

TOKEN_AT = (
    "coordinator",
    "serves",
)  # scope and name of the token of the coordinator that serves; see `sole_server.py`
_LAST = "\U0010ffff"  # sorts after every other character
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
        DatabaseUnusable: The URL is none, or the database cannot be opened or brought to the present form.
        DriverMissing: The package that speaks to this kind of database is not installed.
        JournalUnreachable: The server does not answer, or does not let this user in.
        DatabaseNewer: A later version of hansa has used it.

    Guarantees:
        - What `put` wrote is durable when it returns, all of it or nothing.
        - Of several writers that compare and put one record, one succeeds.
        - Names and scopes are told apart and ordered by their bytes in UTF-8, whatever the database's language.
        - Whoever reads an event can read all events of lower ids.
        - A server that was away is reached again by the next call.
        - Neither a message nor a repr shows a password of the URL.
        - A new SQLite file, and the log beside it, can be read by its owner only.
        - Whatever the database does, a call that reads raises JournalUnreachable, one that writes JournalNotWritable.
        - Under a token nothing is written once another one stands in the database; see `write_under`.
    """

    def __init__(self, url: str, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        parsed = parse_url(url)
        self.name, self._is_server = shown(parsed), is_postgresql(parsed)
        self._engine, self._token = open_engine(parsed), b""
        try:
            with self._engine.connect() as connection:
                bring_to_newest(connection, self.name)
        except (SQLAlchemyError, OSError) as error:
            self._engine.dispose()
            raise opening_failure(parsed, error) from error
        except BaseException:
            self._engine.dispose()
            raise

    @property
    def engine(self) -> sa.Engine:
        """The way to the database, for whoever needs a connection of its own."""
        return self._engine

    @property
    def is_server(self) -> bool:
        """Whether it is a server that is asked, not a file."""
        return self._is_server

    def write_under(self, token: bytes) -> None:
        """Write from now on only while this token stands in the database; every write raises StoreInUse after that."""
        self._token = token

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
            found = connection.execute(query.order_by(self._bytes_of(RECORDS.c.name))).all()
        return {str(name): bytes(value) for name, value in found}

    def items_below(self, prefix: str) -> dict[str, dict[str, bytes]]:
        """Give all records of the scopes that begin with a prefix, by scope, then by name in order; with one query."""
        query = sa.select(RECORDS.c.scope, RECORDS.c.name, RECORDS.c.value)
        by_scope, by_name = self._bytes_of(RECORDS.c.scope), self._bytes_of(RECORDS.c.name)
        # Not LIKE, which SQLite does not tell a from A by.
        query = query.where(by_scope >= prefix, by_scope < prefix + _LAST).order_by(by_scope, by_name)
        found: dict[str, dict[str, bytes]] = {}
        with self._reading() as connection:
            for scope, name, value in connection.execute(query):
                found.setdefault(str(scope), {})[str(name)] = bytes(value)
        return found

    def put(self, scope: str, records: Mapping[str, bytes | None]) -> None:
        """Write records of a scope, or remove them where the value is None.

        Raises:
            JournalNotWritable: The disk is full, or the database is locked or gone; nothing was written. Only where a server
                went away in the middle of the last step, everything may have been.
            StoreInUse: Another coordinator has taken over; see `write_under`.
        """
        with self._writing() as connection:
            for name in sorted(records):  # two writers never wait for each other crosswise
                value = records[name]
                if value is None:
                    connection.execute(_at(sa.delete(RECORDS), scope, name))
                else:
                    new = self._insert().values(scope=scope, name=name, value=value)
                    keys, values = [RECORDS.c.scope, RECORDS.c.name], {"value": new.excluded.value}
                    connection.execute(new.on_conflict_do_update(index_elements=keys, set_=values))

    def compare_and_put(self, scope: str, name: str, expected: bytes | None, value: bytes) -> bool:
        """Write a record if it is as expected (None: absent); tell whether it was. Raises as `put`."""
        change: Any
        if expected is None:
            change = self._insert().values(scope=scope, name=name, value=value).on_conflict_do_nothing()
        else:
            change = (
                _at(sa.update(RECORDS), scope, name).where(RECORDS.c.value == expected).values(value=value)
            )
        with self._writing() as connection:
            return connection.execute(change, execution_options={"preserve_rowcount": True}).rowcount == 1

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
            if (
                self._is_server
            ):  # which numbers events when they are written, but shows them when they are committed
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK_CLASS, NOTING)))
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
            raise JournalUnreachable(f"database {self.name} does not answer: {reason(error)}") from error

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        at_commit = False
        try:
            with self._engine.begin() as connection:
                if self._token:
                    self._verify_token(connection)
                yield connection
                at_commit = self._is_server
        except (SQLAlchemyError, OSError) as error:
            if at_commit:
                raise JournalNotWritable(
                    f"database {self.name} may not have been written: {reason(error)}",
                    hint="bring the database back, and look whether it was done before you try again",
                ) from error
            raise JournalNotWritable(f"database {self.name} was not written: {reason(error)}") from error

    def _verify_token(self, connection: sa.Connection) -> None:
        """Check the token, and keep it from being replaced before this transaction is over."""
        if connection.execute(token_query().with_for_update(read=True)).scalar() != self._token:
            raise StoreInUse(
                f"another coordinator has taken over the journal in {self.name}; nothing was written",
                hint="stop this one, or the other; two coordinators never share a database",
            )

    def _bytes_of(self, column: sa.Column[str]) -> sa.ColumnElement[str]:
        """Give a column that is compared by its bytes, as SQLite always does."""
        return column.collate("C") if self._is_server else column

    def _insert(self) -> "postgresql.Insert | sqlite.Insert":
        return postgresql.insert(RECORDS) if self._is_server else sqlite.insert(RECORDS)


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


def token_query() -> "sa.Select[Any]":
    """Ask for the token of the coordinator that serves."""
    scope, name = TOKEN_AT
    return sa.select(RECORDS.c.value).where(RECORDS.c.scope == scope, RECORDS.c.name == name)


def _at(statement: Any, scope: str, name: str) -> Any:
    return statement.where(RECORDS.c.scope == scope, RECORDS.c.name == name)
