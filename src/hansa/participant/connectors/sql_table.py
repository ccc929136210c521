"""A table or one SELECT of a database, through SQLAlchemy: in a transaction that cannot write, a piece of rows at a time.

SQLite is opened with mode=ro and query_only; PostgreSQL by SET TRANSACTION READ ONLY, which is asked back before the query
is sent, and with a server-side cursor. Other databases are refused, for nothing here holds them to reading.
"""

import sqlite3
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy
from sqlalchemy import exc
from sqlalchemy.pool import NullPool

from hansa.errors import DatabaseUnreachable, DataFileMissing, DataUnreadable, DriverMissing, QueryRefused
from hansa.participant.connectors.select_only import verify_select_only
from hansa.participant.connectors.source import PIECE_ROWS, once

_KINDS = ("sqlite", "postgresql")
_CONNECT_SECONDS = 10


class SqlTable:
    """Rows of a database.

    Args:
        url: SQLAlchemy's URL without a password; a relative path of SQLite is one in the home folder.
        password: The password, or None for a database that asks for none.
        query: One SELECT; or
        table: The name of a table or view, with its schema before a dot where it has one.
        home: The participant's home folder.

    Raises:
        QueryRefused: The query is not one SELECT, or the database is of a kind that is not held to reading.
        DriverMissing: Its driver is not installed.
        DatabaseUnreachable: It does not answer, or does not let the user in.
        DataFileMissing: There is no file of this SQLite database.
        DataUnreadable: The query fails.

    Guarantees:
        - The database is as it was: also where the query calls a function that writes.
        - Rows are fetched a piece at a time.
        - Neither a repr nor a message shows the password or a value.
    """

    def __init__(
        self,
        url: str,
        *,
        home: Path,
        password: str | None = None,
        query: str | None = None,
        table: str | None = None,
    ) -> None:
        if query is not None:
            verify_select_only(query)
        self._query, self._table = query, table
        self._engine = _engine(url, password, home)
        with self._result() as result:
            self.names = tuple(result.keys())

    def pieces(self) -> Iterator[pa.RecordBatch]:
        """Read the rows; see `Source`."""
        wanted = [self.names.index(name) for name in once(self.names)]
        with self._result() as result:
            if tuple(result.keys()) != self.names:
                raise DataUnreadable("the columns of the query changed while it was read")
            for rows in result.partitions(PIECE_ROWS):
                columns = [_array([row[place] for row in rows]) for place in wanted]
                yield pa.RecordBatch.from_arrays(columns, names=[self.names[place] for place in wanted])

    @contextmanager
    def _result(self) -> Iterator[sqlalchemy.CursorResult[Any]]:
        """Run the query in a transaction that is rolled back."""
        failure: Exception
        try:
            with self._engine.connect() as opened:
                connection = _reading_only(opened)
                options = {"stream_results": True, "yield_per": PIECE_ROWS, "no_parameters": True}
                with connection.execution_options(**options).exec_driver_sql(self._statement()) as result:
                    yield result
                    return
        except exc.OperationalError as error:
            failure = _failure(error, self._engine)
        except exc.SQLAlchemyError as error:
            failure = DataUnreadable(f"the query fails: {_code(error)}")
        except UnicodeError:
            failure = DataUnreadable("the query gives text of another encoding than the database's own")
        raise failure  # outside the handler: the driver's message quotes values

    def _statement(self) -> str:
        if self._query is not None:
            return self._query.strip().removesuffix(";")
        *schema, name = str(self._table).rsplit(".", 1)
        named = sqlalchemy.table(name, schema=schema[0] if schema else None)
        return str(sqlalchemy.select(sqlalchemy.text("*")).select_from(named).compile(self._engine))

    def __repr__(self) -> str:
        return f"SqlTable({self._engine.url.render_as_string(hide_password=True)!r})"


def _engine(url: str, password: str | None, home: Path) -> sqlalchemy.Engine:
    found: sqlalchemy.URL | None = None
    with suppress(exc.ArgumentError, ValueError):
        found = sqlalchemy.make_url(url)
    if found is None:  # outside the handler: the message quotes the URL, in which a password may stand
        raise QueryRefused("the database URL is not one: dialect+driver://user@host:port/database")
    kind = found.get_backend_name()
    if kind not in _KINDS:
        raise QueryRefused(
            f"a database of kind {kind!r} cannot be held to reading only; {' and '.join(_KINDS)} can",
            hint="export the table to Parquet or CSV",
        )
    if kind == "sqlite":
        return _sqlite_engine(found, home)
    if password is not None:
        found = found.set(password=password)
    try:
        return sqlalchemy.create_engine(
            found, poolclass=NullPool, hide_parameters=True, connect_args=_postgresql_arguments(found)
        )
    except (ImportError, exc.NoSuchModuleError):
        driver = found.get_driver_name() if "+" in found.drivername else "psycopg"
    raise DriverMissing(f"the database driver {driver!r} is not installed")


def _postgresql_arguments(url: sqlalchemy.URL) -> dict[str, Any]:
    return {"connect_timeout": _CONNECT_SECONDS} if "psycopg" in url.get_driver_name() else {}


def _sqlite_engine(url: sqlalchemy.URL, home: Path) -> sqlalchemy.Engine:
    if not url.database or url.database == ":memory:" or url.query:
        raise QueryRefused("a URL of SQLite names a file and nothing else: sqlite:///FILE")
    path = home / url.database
    if not path.is_file():
        raise DataFileMissing(f"database {str(path)!r} cannot be read: no such file")
    address = f"file:{urllib.parse.quote(str(path.absolute()))}?mode=ro"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(address, uri=True, timeout=_CONNECT_SECONDS)
        connection.execute("PRAGMA query_only = ON")
        connection.execute(
            "PRAGMA trusted_schema = OFF"
        )  # a view of the file must not call functions with side effects
        return connection

    return sqlalchemy.create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)


def _reading_only(connection: sqlalchemy.Connection) -> sqlalchemy.Connection:
    """Hold the connection to reading, and ask it whether it is held."""
    if connection.dialect.name == "sqlite":
        held = connection.exec_driver_sql("PRAGMA query_only").scalar() == 1
    else:
        connection = connection.execution_options(postgresql_readonly=True)
        held = connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "on"
    if not held:
        raise QueryRefused("the database does not hold its transaction to reading")
    return connection


def _failure(error: exc.OperationalError, engine: sqlalchemy.Engine) -> Exception:
    if engine.dialect.name != "sqlite":
        if error.connection_invalidated or error.statement is None:
            url = engine.url
            return DatabaseUnreachable(
                f"database {url.database!r} at {url.host or 'this machine'} does not answer: {_code(error)}"
            )
        return DataUnreadable(f"the query fails: {_code(error)}")
    return DataUnreadable(f"the query fails, or the file is not a database: {_code(error)}")


def _code(error: exc.SQLAlchemyError) -> str:
    """Name a failure without the driver's words: its class, and the SQLSTATE or SQLite's code where it has one."""
    cause = getattr(error, "orig", None) or error
    code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
    return f"{type(cause).__name__} {code}" if code else type(cause).__name__


def _array(values: Sequence[Any]) -> pa.Array:
    """Give a piece of a column one type: integers, numbers, or texts where one value is neither."""
    present = [value for value in values if value is not None]
    if all(isinstance(value, int) and -(1 << 63) <= value < 1 << 63 for value in present):  # keys stay exact
        return pa.array([None if value is None else int(value) for value in values], pa.int64())
    if all(isinstance(value, float | Decimal) or _is_exact(value) for value in present):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    texts = [value if value is None or isinstance(value, str) else str(value) for value in values]
    return pa.array(texts, pa.string())


def _is_exact(value: object) -> bool:
    return isinstance(value, int) and abs(value) <= 1 << 53
