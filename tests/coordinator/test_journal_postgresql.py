"""The journal at a server of PostgreSQL: one that is killed while it is written to, away, or does not let us in."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from hansa.coordinator.journal import Journal
from hansa.coordinator.journal_database import LOCK_CLASS, MIGRATING
from hansa.coordinator.journal_probe import journal_state, verify_journal_writable
from hansa.errors import DatabaseNewer, DatabaseUnusable, Error, JournalNotWritable, JournalUnreachable


def changed(url: str, **parts: Any) -> str:
    return sa.make_url(url).set(**parts).render_as_string(hide_password=False)


def eventually(call: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Call until it succeeds; an error of the project's own may come before that."""
    until = time.monotonic() + seconds
    while True:
        try:
            return call()
        except (JournalNotWritable, JournalUnreachable):
            assert time.monotonic() < until
            time.sleep(0.05)


def test_of_a_server_that_is_killed_while_it_is_written_to_nothing_is_lost(
    postgresql: Any, database: str
) -> None:
    written, failed, stop = [0] * 3, [], threading.Event()
    with Journal(database) as journal:

        def write(of: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    journal.put(f"s{of}", {"a": b"%d" % number, "b": b"%d" % number})
                    written[of] = number
                except JournalNotWritable:
                    time.sleep(0.01)
                except BaseException as error:
                    failed.append(error)
                    raise

        threads = [threading.Thread(target=write, args=(of,)) for of in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            before = list(written)
            while any(now < then + 5 for now, then in zip(written, before, strict=True)):
                assert not failed
                time.sleep(0.01)
            postgresql.kill()
            with pytest.raises(JournalUnreachable):
                journal.items("s0")
            with pytest.raises(JournalNotWritable):
                journal.event("e")
            postgresql.start()
        eventually(lambda: journal.put("other", {"a": b"1"}))
        stop.set()
        for thread in threads:
            thread.join()
        assert not failed
        for of in range(3):
            kept = journal.items(f"s{of}")
            assert kept["a"] == kept["b"]
            assert int(kept["a"]) >= written[of]
        assert journal.get("other", "a") == b"1"


def test_whoever_cannot_know_whether_a_write_was_committed_is_told_so(postgresql: Any, database: str) -> None:
    with Journal(database) as journal:

        def write_while_the_server_dies() -> None:
            with journal._writing() as connection:
                connection.exec_driver_sql("INSERT INTO record VALUES ('s', 'a', '1')")
                postgresql.kill()

        with pytest.raises(JournalNotWritable, match="may not have been written") as caught:
            write_while_the_server_dies()
        assert "look whether it was done" in caught.value.hint
        with pytest.raises(JournalNotWritable, match="was not written"):
            journal.put("s", {"a": b"1"})
        postgresql.start()
        eventually(lambda: journal.put("s", {"a": b"2"}))


def test_what_is_committed_is_on_the_disk_also_where_the_server_would_not_wait_for_it(
    postgresql: Any, database: str
) -> None:
    name = sa.make_url(database).database
    with postgresql.owner(postgresql.url) as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
        connection.exec_driver_sql(
            f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"
        )
    with Journal(database) as journal, journal._writing() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"password": "another secret"}, "password authentication failed"),
        ({"database": "none"}, "does not exist"),
        ({"username": "nobody", "password": "another secret"}, "password authentication failed"),
        ({"query": {"host": "/nowhere", "password": "another secret"}}, "failed"),
    ],
)
def test_a_server_that_does_not_let_us_in_is_told_without_the_password(
    database: str, parts: dict[str, Any], words: str
) -> None:
    url = changed(database, **parts)
    for opens in (Journal, journal_state):
        with pytest.raises(JournalUnreachable, match=words) as caught:
            opens(url)
        assert caught.value.exit_status == 69
        assert "secret" not in str(caught.value) + caught.value.hint
        assert "sign" not in str(caught.value)
        assert "database_password_file" in caught.value.hint


def test_the_password_is_not_in_the_repr(database: str) -> None:
    with Journal(database) as journal:
        assert "sign" not in repr(journal)
        assert "***" in repr(journal)


def test_a_server_that_is_away_is_unreachable_soon(database: str) -> None:
    url = changed(database, host="127.0.0.1", port=1, query={})
    with pytest.raises(JournalUnreachable, match="does not answer"):
        Journal(url)


def test_a_database_of_a_later_version_is_refused(postgresql: Any, database: str) -> None:
    Journal(database).close()
    with postgresql.owner(database) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'journal_99'")
    for opens in (Journal, journal_state):
        with pytest.raises(DatabaseNewer, match="journal_99"):
            opens(database)


def test_a_probe_changes_nothing(database: str) -> None:
    assert journal_state(database).revision is None
    with pytest.raises(JournalNotWritable):
        verify_journal_writable(database)
    with Journal(database) as journal:
        assert journal_state(database).is_newest
        verify_journal_writable(database)
        assert journal.events() == []


def test_a_user_who_may_make_no_tables_is_told(postgresql: Any, database: str) -> None:
    with postgresql.owner(database) as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS poor")
        connection.exec_driver_sql("CREATE ROLE poor LOGIN PASSWORD 'geheim-4711'")
    with pytest.raises(DatabaseUnusable, match="permission denied") as caught:
        Journal(changed(database, username="poor", password="geheim-4711"))
    assert "4711" not in str(caught.value)


def test_a_database_that_somebody_else_brings_to_the_present_form_is_waited_for(
    postgresql: Any, database: str
) -> None:
    opened: list[Journal | Error] = []

    def open_it() -> None:
        opened.append(Journal(database))

    with postgresql.owner(database) as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_CLASS}, {MIGRATING})")
        thread = threading.Thread(target=open_it)
        thread.start()
        thread.join(0.5)
        assert not opened
    thread.join(30)
    assert isinstance(opened[0], Journal)
    opened[0].close()


def test_what_has_no_place_in_a_database_is_refused_by_name(database: str) -> None:
    with Journal(database) as journal:
        for scope, name in (("s", "a\x00b"), ("s\x00", "a"), ("s", "n" * 201)):
            with pytest.raises(JournalNotWritable):
                journal.put(scope, {name: b""})
        with pytest.raises(JournalUnreachable):
            journal.get("s", "a\x00b")
        assert journal.items_below("") == {}
