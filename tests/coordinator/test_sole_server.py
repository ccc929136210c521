"""Two coordinators on one journal: the second is refused, and who has lost the lock writes nothing once another one took over."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hansa.coordinator import journal_database
from hansa.coordinator.daemon import CoordinatorDaemon
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.journal import Journal
from hansa.coordinator.journal_database import LOCK_CLASS, SERVING
from hansa.coordinator.sole_server import SoleServer
from hansa.errors import JournalNotWritable, JournalUnreachable, StoreInUse

HELD = f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = {LOCK_CLASS} AND objid = {SERVING} AND granted"


def holders(postgresql: Any, url: str) -> list[int]:
    name = sa.make_url(url).database
    with postgresql.owner(url) as connection:
        query = f"{HELD} AND database = (SELECT oid FROM pg_database WHERE datname = '{name}')"
        return [int(pid) for pid in connection.exec_driver_sql(query).scalars()]


def cut(postgresql: Any, url: str) -> None:
    """End the session that holds the lock, and no other connection."""
    (pid,) = holders(postgresql, url)
    with postgresql.owner(url) as connection:
        connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")


def eventually(is_so: Callable[[], Any], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_second_one_is_refused_until_the_first_has_ended(postgresql: Any, database: str) -> None:
    with Journal(database) as first, Journal(database) as second:
        with SoleServer(first) as sole:
            with pytest.raises(StoreInUse, match="another coordinator serves") as caught:
                SoleServer(second)
            assert "two coordinators never share one" in caught.value.hint
            assert "sign" not in str(caught.value)  # of the password
            sole.verify()
            first.put("s", {"a": b"1"})
            second.put("s", {"b": b"2"})  # the admin's commands still write
        assert holders(postgresql, database) == []
        with SoleServer(second) as sole:
            sole.verify()
            second.put("s", {"c": b"3"})
        with Journal(database) as again, SoleServer(again):
            assert set(again.items("s")) == {"a", "b", "c"}


def test_the_session_that_holds_the_lock_is_never_ended_for_being_idle(
    postgresql: Any, database: str
) -> None:
    name = sa.make_url(database).database
    with postgresql.owner(postgresql.url) as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET idle_session_timeout = '1s'")
    with Journal(database) as journal, SoleServer(journal):
        (before,) = holders(postgresql, database)
        time.sleep(2)
        assert holders(postgresql, database) == [before]


def test_two_databases_of_one_server_are_two(postgresql: Any, database: str) -> None:
    name = sa.make_url(postgresql.new_database()).database
    second = sa.make_url(database).set(database=name).render_as_string(hide_password=False)
    with (
        Journal(database) as one,
        Journal(second) as other,
        SoleServer(one),
        SoleServer(other),
    ):
        pass


def test_a_lock_that_was_lost_is_taken_again(postgresql: Any, database: str) -> None:
    with Journal(database) as journal, Journal(database) as other, SoleServer(journal) as sole:
        cut(postgresql, database)
        assert holders(postgresql, database) == []
        journal.put("s", {"a": b"1"})  # nobody else has taken over
        sole.verify()
        assert len(holders(postgresql, database)) == 1
        with pytest.raises(StoreInUse):
            SoleServer(other)
        journal.put("s", {"a": b"2"})


def test_who_was_taken_over_writes_nothing_and_is_told(postgresql: Any, database: str) -> None:
    with Journal(database) as journal, Journal(database) as other, SoleServer(journal) as sole:
        journal.put("s", {"a": b"1"})
        cut(postgresql, database)
        with SoleServer(other) as second:
            for write in (
                lambda: journal.put("s", {"a": b"2"}),
                lambda: journal.put("s", {"a": None}),
                lambda: journal.compare_and_put("s", "a", b"1", b"2"),
                lambda: journal.event("e"),
            ):
                with pytest.raises(StoreInUse, match="nothing was written"):
                    write()
            for _ in range(2):
                with pytest.raises(StoreInUse, match="another coordinator serves"):
                    sole.verify()
            assert other.get("s", "a") == b"1"
            assert other.events() == []
            second.verify()
            other.put("s", {"a": b"3"})
        with pytest.raises(StoreInUse):  # also after that one has ended
            journal.put("s", {"a": b"4"})
        with pytest.raises(StoreInUse):
            sole.verify()


def test_a_write_that_is_under_way_is_over_before_another_one_takes_over(
    postgresql: Any, database: str
) -> None:
    with Journal(database) as journal, Journal(database) as other, SoleServer(journal):
        cut(postgresql, database)
        taken: list[SoleServer] = []
        thread = threading.Thread(target=lambda: taken.append(SoleServer(other)))
        with journal._writing() as connection:
            thread.start()
            thread.join(0.5)
            assert not taken
            connection.exec_driver_sql("INSERT INTO record VALUES ('s', 'a', '1')")
        thread.join(30)
        assert taken
        assert other.get("s", "a") == b"1"
        taken[0].close()


def test_a_write_that_is_never_heard_of_again_keeps_nobody_out(
    postgresql: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(journal_database._SESSION, "idle_in_transaction_session_timeout", "1s")
    with Journal(database) as journal, Journal(database) as other, SoleServer(journal):
        cut(postgresql, database)
        taken: list[SoleServer] = []
        thread = threading.Thread(target=lambda: taken.append(SoleServer(other)))

        def write() -> None:
            with journal._writing() as connection:
                thread.start()  # and of this machine nothing more is heard
                thread.join(10)
                assert taken
                connection.exec_driver_sql("INSERT INTO record VALUES ('s', 'a', '1')")

        with pytest.raises(JournalNotWritable, match="was not written"):
            write()
        assert other.get("s", "a") is None
        taken[0].close()


def test_the_server_soon_ends_the_sessions_of_a_machine_that_is_gone(database: str) -> None:
    settings = ["tcp_keepalives_idle", "tcp_user_timeout", "idle_in_transaction_session_timeout"]
    with Journal(database) as journal, SoleServer(journal) as sole, journal._writing() as connection:
        for session in (connection, sole._session):
            assert session is not None
            for name in settings:  # a setting of TCP is 0 on a socket that is none of TCP
                query = f"SELECT source FROM pg_settings WHERE name = '{name}'"
                assert session.exec_driver_sql(query).scalar() == "session"
            shown = session.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar()
            assert shown == "30s"


def test_an_own_session_that_the_server_still_keeps_stops_nothing(postgresql: Any, database: str) -> None:
    with Journal(database) as journal, Journal(database) as other, SoleServer(journal) as sole:
        zombie = sole._session  # as after a cut that the server has not noticed
        assert zombie is not None
        sole._session = None
        sole.verify()
        assert sole._session is None
        journal.put("s", {"a": b"1"})
        with pytest.raises(StoreInUse):
            SoleServer(other)
        zombie.close()
        eventually(lambda: not holders(postgresql, database))  # the server hears of it a moment later
        sole.verify()
        assert len(holders(postgresql, database)) == 1


def test_a_server_that_is_started_again_finds_the_same_coordinator(postgresql: Any, database: str) -> None:
    with Journal(database) as journal, SoleServer(journal) as sole:
        postgresql.kill()
        sole.verify()  # nothing can be written now
        with pytest.raises(JournalNotWritable):
            journal.put("s", {"a": b"1"})
        with pytest.raises(JournalUnreachable):
            SoleServer(journal)
        postgresql.start()
        sole.verify()
        assert len(holders(postgresql, database)) == 1
        journal.put("s", {"a": b"1"})


def test_a_process_that_is_killed_gives_it_back(postgresql: Any, database: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom hansa.coordinator.journal import Journal\nfrom hansa.coordinator.sole_server import SoleServer\n"
        "sole = SoleServer(Journal(sys.stdin.readline().strip()))\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(database + "\n")
    child.stdin.flush()
    assert child.stdout.readline() == "held\n"
    with Journal(database) as journal:
        with pytest.raises(StoreInUse):
            SoleServer(journal)
        child.kill()
        child.communicate()
        eventually(lambda: not holders(postgresql, database))
        SoleServer(journal).close()


def test_a_file_of_sqlite_is_held_by_a_lock_beside_it(tmp_path: Path) -> None:
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "journal.sqlite")
    first, second = (
        Journal(f"sqlite:///{tmp_path}/journal.sqlite"),
        Journal(f"sqlite:///{tmp_path}/link.sqlite"),
    )
    with first, second:
        with SoleServer(first) as sole:
            with pytest.raises(StoreInUse, match="another coordinator serves"):
                SoleServer(second)
            sole.verify()
            first.put("s", {"a": b"1"})
        SoleServer(second).close()
    assert (tmp_path / "journal.sqlite.lock").stat().st_mode & 0o077 == 0


# -- the daemon ----------------------------------------------------------------------------------------------


def on(home: CoordinatorHome, url: str) -> CoordinatorHome:
    file = home.folder / "coordinator.toml"
    text = file.read_text().splitlines()
    file.write_text("\n".join(f'database = "{url}"' if "database =" in line else line for line in text))
    return CoordinatorHome.open(home.folder)


@pytest.mark.enable_socket
def test_a_daemon_on_a_database_that_another_one_serves_is_refused(small: Any, database: str) -> None:
    home = on(small.home, database)
    with (
        Journal(database) as journal,
        SoleServer(journal),
        pytest.raises(StoreInUse, match="another coordinator serves"),
    ):
        CoordinatorDaemon(home).serve(threading.Event())


@pytest.mark.enable_socket
def test_a_daemon_that_was_taken_over_ends(
    small: Any, postgresql: Any, database: str, monkeypatch: Any
) -> None:
    home, began, ended = on(small.home, database), threading.Event(), []
    daemon = CoordinatorDaemon(home)
    monkeypatch.setattr(daemon, "_open", lambda _stack, _office: began.set())
    monkeypatch.setattr(daemon, "_tend", lambda _tending: None)

    def serve() -> None:
        try:
            daemon.serve(threading.Event())
        except StoreInUse as error:
            ended.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert began.wait(30)
    with Journal(database) as other:

        def take_over() -> SoleServer | None:
            try:
                cut(postgresql, database)
                return SoleServer(other)
            except (StoreInUse, ValueError):  # the daemon was faster, or is just at it
                return None

        found: list[SoleServer | None] = []
        eventually(lambda: found.append(take_over()) or found[-1])
        thread.join(30)
        assert ended
        assert "another coordinator" in str(ended[0])
        found[-1].close()  # type: ignore[union-attr]
