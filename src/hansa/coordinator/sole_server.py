"""One coordinator for a journal: a second one, from another home or machine, is refused.

The lock on the home keeps two apart that share a folder. Here it is the database that keeps those apart who share only that: in
PostgreSQL by an advisory lock of a session, at a file of SQLite by a lock file beside it.

A session may end while its daemon lives: a server is started again, a network is cut. So the lock alone says who may begin, and a
token in the journal who goes on. Whoever gets the lock puts a token of its own there; each write of a daemon looks, in its own
transaction, whether its token still stands. There is no moment at which two of them write.
"""

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from hansa.coordinator.journal import TOKEN_AT, Journal, token_query
from hansa.coordinator.journal_database import LOCK_CLASS, SERVING
from hansa.errors import JournalUnreachable, StoreInUse
from hansa.federation.files import holding


class SoleServer:
    """Holds a journal for one coordinator; use as a context manager around all that serves.

    Args:
        journal: Its journal. From now on its writes are refused once another coordinator has taken over.

    Raises:
        StoreInUse: Another coordinator serves on this database.
        JournalUnreachable: The server does not answer.
        JournalNotWritable, StoreNotWritable: The token, or the lock file, cannot be written.

    Guarantees:
        - While one coordinator holds a database, no other one begins to serve on it.
        - When the connection that holds the lock is lost, the lock is taken again at the next `verify`, if nobody has it.
        - Once another coordinator has taken over, no write of this one succeeds, and `verify` raises.
        - A lock that an own lost session still holds at the server stops nothing: whoever has the token goes on.
        - It is given back whatever way this process ends.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal, self._stack = journal, ExitStack()
        self._session: sa.Connection | None = None
        self._token = os.urandom(16)
        with ExitStack() as undone:
            undone.callback(self.close)
            if journal.is_server:
                self._begin()
            else:
                self._lock_file()
            undone.pop_all()

    def verify(self) -> None:
        """Look whether this coordinator is still the one; take a lock that was lost again.

        A server that does not answer is no reason to end: nothing is written while it is away.

        Raises:
            StoreInUse: Another one has taken over.
        """
        if not self._journal.is_server:
            return
        found: bytes | None = self._token
        try:
            if self._session is not None:
                found = self._present(self._session)
        except (SQLAlchemyError, OSError):
            self._drop()
        if self._session is None:
            with suppress(SQLAlchemyError, OSError):
                found = self._take_again()
        if found != self._token:
            raise self._in_use()

    def close(self) -> None:
        """Give the lock back."""
        self._drop()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        try:
            session = self._connect()
            if not self._try(session):
                session.close()
                raise self._in_use()
            self._session = session
        except (SQLAlchemyError, OSError) as error:
            raise JournalUnreachable(f"database {self._journal.name} does not answer") from error
        scope, name = TOKEN_AT
        self._journal.put(scope, {name: self._token})  # waits for writes that saw the token before
        self._journal.write_under(self._token)

    def _take_again(self) -> bytes | None:
        """Connect again; give the token that stands. Keeps the session where it has the lock."""
        session = self._connect()
        locked = False
        try:
            locked = self._try(session)
            found = self._present(session)
        except BaseException:
            locked = False
            raise
        finally:
            if locked:
                self._session = session
            else:
                session.close()
        return found

    def _connect(self) -> sa.Connection:
        session = self._journal.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        session.detach()  # the pool never gives it to anybody else
        known = sa.table("pg_settings", sa.column("name"))  # older servers have no idle_session_timeout
        setting = sa.select(sa.func.set_config(known.c.name, "0", False)).select_from(known)
        session.execute(setting.where(known.c.name == "idle_session_timeout"))
        return session

    @staticmethod
    def _try(session: sa.Connection) -> bool:
        return bool(session.execute(sa.select(sa.func.pg_try_advisory_lock(LOCK_CLASS, SERVING))).scalar())

    @staticmethod
    def _present(session: sa.Connection) -> bytes | None:
        found = session.execute(token_query()).scalar()
        return None if found is None else bytes(found)

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(SQLAlchemyError, OSError):
                session.close()

    def _lock_file(self) -> None:
        database = self._journal.engine.url.database
        if database and database != ":memory:":
            path = Path(database).resolve()
            lock = path.with_name(f"{path.name}.lock")
            self._stack.enter_context(holding(lock, in_use=self._in_use()))

    def _in_use(self) -> StoreInUse:
        return StoreInUse(
            f"another coordinator serves on the journal in {self._journal.name}",
            hint="stop it, or give this one a database of its own; two coordinators never share one",
        )
