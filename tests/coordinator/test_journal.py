"""The coordinator's journal, in a file of SQLite and at a server of PostgreSQL."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hansa.coordinator.journal import Journal
from hansa.errors import (
    DatabaseNewer,
    DatabaseUnusable,
    DriverMissing,
    JournalNotWritable,
    JournalUnreachable,
)


def _url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'journal.sqlite'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    return _url(tmp_path) if request.param == "sqlite" else str(request.getfixturevalue("database"))


def test_records_come_back_as_they_were_put_also_after_reopening(url: str) -> None:
    with Journal(url) as journal:
        assert journal.get("member", "anna") is None
        journal.put("member", {"bert": b"\x00\xff", "anna": b"1"})
        journal.put("study", {"anna": b"another scope"})
    with Journal(url) as journal:
        assert journal.get("member", "anna") == b"1"
        assert list(journal.items("member").items()) == [("anna", b"1"), ("bert", b"\x00\xff")]
        journal.put("member", {"anna": None, "bert": b"2", "carl": b"3"})
        assert journal.items("member") == {"bert": b"2", "carl": b"3"}


def test_records_of_many_scopes_come_with_one_question(url: str) -> None:
    with Journal(url) as journal:
        journal.put("study/a", {"start": b"1", "answer": b"2"})
        journal.put("study/b", {"start": b"3"})
        journal.put("studyX", {"start": b"4"})
        journal.put("study_c", {"start": b"5"})
        assert journal.items_below("study/") == {
            "study/a": {"answer": b"2", "start": b"1"},
            "study/b": {"start": b"3"},
        }
        assert set(journal.items_below("study_")) == {"study_c"}


def test_names_are_ordered_and_told_apart_by_their_bytes(url: str) -> None:
    names = ["", "A", "B", "Z-1", "_a", "a", "a b", "a%", "ab", "b", "\u00e9", "\uffff", "\U0001f600"]
    assert names == sorted(names, key=str.encode)
    with Journal(url) as journal:
        for name in reversed(names):
            journal.put("s", {name: name.encode()})
            journal.put(f"in/{name}", {"of": b""})
        assert list(journal.items("s")) == names
        assert list(journal.items_below("in/")) == [f"in/{name}" for name in names]
        assert not journal.items("S")


def test_a_prefix_is_taken_as_it_stands(url: str) -> None:
    scopes = ["a%", "a%b", "a_", "a_b", "a\\", "a\\b", "ab", "abc", "A%", "A_", "AB", "a/", "a"]
    with Journal(url) as journal:
        for scope in scopes:
            journal.put(scope, {"n": b""})
        for prefix in ("", *scopes):
            expected = sorted((scope for scope in scopes if scope.startswith(prefix)), key=str.encode)
            assert list(journal.items_below(prefix)) == expected


@pytest.mark.parametrize("value", [b"", b"\x00", b"\x00" * 4096, bytes(range(256)), b"\\x41", b"'\\000"])
def test_a_record_is_any_bytes(url: str, value: bytes) -> None:
    with Journal(url) as journal:
        journal.put("s", {"a": value})
        assert journal.get("s", "a") == value
        assert journal.compare_and_put("s", "a", value, b"new")
        journal.event("e", said="\x00 \u00e9", nothing=None)
        assert journal.events()[0].detail == {"said": "\x00 \u00e9", "nothing": None}


def test_of_many_writers_of_one_record_every_one_succeeds(url: str) -> None:
    with Journal(url) as journal:
        failed: list[Exception] = []

        def write(number: int) -> None:
            names = ["a", "b", "c"]
            try:
                for _ in range(20):
                    journal.put("s", dict.fromkeys(reversed(names) if number % 2 else names, b"%d" % number))
                    journal.put("s", dict.fromkeys(names) if number % 3 == 0 else {"b": b"%d" % number})
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []


def test_whoever_reads_an_event_can_read_all_before_it(url: str) -> None:
    with Journal(url) as journal:
        writing, ids = threading.Event(), list[int]()

        def write() -> None:
            for _ in range(30):
                journal.event("e")

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        while not writing.is_set():
            if not any(thread.is_alive() for thread in threads):
                writing.set()
            ids += [event.id for event in journal.events(after=ids[-1] if ids else 0)]
        assert ids == sorted(event.id for event in journal.events())
        assert len(ids) == 120


_OPENER = """
import sys
from hansa.coordinator.journal import Journal
sys.stdin.read(1)
with Journal(sys.argv[1]) as journal:
    journal.event("opened")
"""


def test_an_empty_database_may_be_opened_by_many_processes_at_once(url: str) -> None:
    command = [sys.executable, "-c", _OPENER, url]
    openers = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write(b"x")
        opener.stdin.flush()
    words = [opener.communicate(timeout=120)[1] for opener in openers]
    assert [opener.returncode for opener in openers] == [0, 0, 0, 0], words
    with Journal(url) as journal:
        assert len(journal.events()) == 4


def test_a_database_is_made_all_or_not_at_all(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.create_index", dies)  # the last thing that is made
        with pytest.raises(KeyboardInterrupt):
            Journal(url)
    with Journal(url) as journal:
        assert journal.items("s") == {}


def test_a_put_writes_all_or_nothing(url: str) -> None:
    with Journal(url) as journal:
        journal.put("s", {"a": b"1"})
        with pytest.raises((JournalNotWritable, TypeError)):
            journal.put("s", {"a": b"2", "b": object()})  # type: ignore[dict-item]
        assert journal.items("s") == {"a": b"1"}


def test_a_record_is_compared_before_it_is_put(url: str) -> None:
    with Journal(url) as journal:
        assert journal.compare_and_put("s", "a", None, b"1")
        assert not journal.compare_and_put("s", "a", None, b"2")
        assert not journal.compare_and_put("s", "a", b"0", b"2")
        assert journal.compare_and_put("s", "a", b"1", b"2")
        assert not journal.compare_and_put("s", "b", b"1", b"2")
        assert journal.items("s") == {"a": b"2"}


def test_of_many_writers_that_compare_one_succeeds(url: str) -> None:
    with Journal(url) as journal:
        won: list[int] = []

        def write(number: int) -> None:
            if journal.compare_and_put("s", "a", None, b"%d" % number):
                won.append(number)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert journal.get("s", "a") == b"%d" % won[0]


def test_events_are_kept_in_order_by_study(url: str) -> None:
    with Journal(url, now=lambda: 12.5) as journal:
        journal.event("study_proposed", study="risk", by="Ada")
        journal.event("member_revoked", name="bert")
        journal.event("study_started", study="risk")
        everything = journal.events()
        assert [event.kind for event in everything] == ["study_proposed", "member_revoked", "study_started"]
        assert everything[0].detail == {"by": "Ada"}
        assert everything[0].at == 12.5
        assert [event.kind for event in journal.events(study="risk")] == ["study_proposed", "study_started"]
        assert [event.kind for event in journal.events(after=everything[1].id)] == ["study_started"]


_WRITER = """
import sys
from hansa.coordinator.journal import Journal
journal = Journal(sys.argv[1])
for number in range(1_000_000):
    journal.put("s", {"n": b"%d" % number})
    print(number, flush=True)
"""


def test_what_was_put_is_there_after_the_process_was_killed(url: str) -> None:
    last = -1
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, url], stdout=subprocess.PIPE, env={**os.environ}
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = int(line)
            if last == 20:
                process.send_signal(signal.SIGKILL)
                break
        last = max([last, *(int(line) for line in process.stdout.read().split(b"\n")[:-1])])
    with Journal(url) as journal:
        kept = journal.get("s", "n")
    assert kept is not None
    assert int(kept) >= last


def test_a_url_that_is_none_is_refused(tmp_path: Path) -> None:
    for url in ("", "nonsense", "oracle-of-delphi://somewhere", f"sqlite:///{tmp_path}/no/folder/x.sqlite"):
        with pytest.raises(DatabaseUnusable):
            Journal(url)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"rubbish" * 1000)
    with pytest.raises(DatabaseUnusable, match="not a database"):
        Journal(_url(tmp_path))


def test_a_database_of_a_later_version_is_refused(tmp_path: Path) -> None:
    Journal(_url(tmp_path)).close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'journal_99'")
    connection.close()
    with pytest.raises(DatabaseNewer, match="journal_99"):
        Journal(_url(tmp_path))


def test_no_message_shows_a_password() -> None:
    with pytest.raises(DriverMissing) as caught:
        Journal("postgresql+nodriver://admin:hunter2@127.0.0.1:1/hansa")
    assert "hunter2" not in caught.value.message


def test_the_password_of_a_url_is_not_in_the_repr(tmp_path: Path) -> None:
    with Journal(_url(tmp_path)) as journal:
        assert repr(journal) == f"Journal(sqlite:///{tmp_path / 'journal.sqlite'})"


def test_a_database_that_does_not_answer_has_one_name_for_whoever_reads(tmp_path: Path) -> None:
    with Journal(_url(tmp_path)) as journal:
        with sqlite3.connect(tmp_path / "journal.sqlite") as other:
            other.execute("DROP TABLE record")
            other.execute("DROP TABLE event")
        for read in (
            lambda: journal.get("s", "a"),
            lambda: journal.items("s"),
            journal.events,
            journal.latest_time,
        ):
            with pytest.raises(JournalUnreachable, match="does not answer"):
                read()


def test_a_new_file_and_its_log_are_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with Journal(_url(tmp_path)) as journal:
            journal.put("s", {"a": b"1"})
            modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert {"journal.sqlite", "journal.sqlite-wal"} <= set(modes)
    assert set(modes.values()) == {0o600}
