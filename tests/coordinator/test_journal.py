"""The coordinator's journal."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hansa.coordinator.journal import Journal
from hansa.errors import DatabaseNewer, DatabaseUnusable, JournalNotWritable, JournalUnreachable


def _url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'journal.sqlite'}"


def test_records_come_back_as_they_were_put_also_after_reopening(tmp_path: Path) -> None:
    with Journal(_url(tmp_path)) as journal:
        assert journal.get("member", "anna") is None
        journal.put("member", {"bert": b"\x00\xff", "anna": b"1"})
        journal.put("study", {"anna": b"another scope"})
    with Journal(_url(tmp_path)) as journal:
        assert journal.get("member", "anna") == b"1"
        assert list(journal.items("member").items()) == [("anna", b"1"), ("bert", b"\x00\xff")]
        journal.put("member", {"anna": None, "bert": b"2", "carl": b"3"})
        assert journal.items("member") == {"bert": b"2", "carl": b"3"}


def test_records_of_many_scopes_come_with_one_question(tmp_path: Path) -> None:
    with Journal(_url(tmp_path)) as journal:
        journal.put("study/a", {"start": b"1", "answer": b"2"})
        journal.put("study/b", {"start": b"3"})
        journal.put("studyX", {"start": b"4"})
        journal.put("study_c", {"start": b"5"})
        assert journal.items_below("study/") == {
            "study/a": {"answer": b"2", "start": b"1"},
            "study/b": {"start": b"3"},
        }
        assert set(journal.items_below("study_")) == {"study_c"}


def test_a_put_writes_all_or_nothing(tmp_path: Path) -> None:
    with Journal(_url(tmp_path)) as journal:
        journal.put("s", {"a": b"1"})
        with pytest.raises(JournalNotWritable):
            journal.put("s", {"a": b"2", "b": object()})  # type: ignore[dict-item]
        assert journal.items("s") == {"a": b"1"}


def test_a_record_is_compared_before_it_is_put(tmp_path: Path) -> None:
    with Journal(_url(tmp_path)) as journal:
        assert journal.compare_and_put("s", "a", None, b"1")
        assert not journal.compare_and_put("s", "a", None, b"2")
        assert not journal.compare_and_put("s", "a", b"0", b"2")
        assert journal.compare_and_put("s", "a", b"1", b"2")
        assert not journal.compare_and_put("s", "b", b"1", b"2")
        assert journal.items("s") == {"a": b"2"}


def test_of_many_writers_that_compare_one_succeeds(tmp_path: Path) -> None:
    with Journal(_url(tmp_path)) as journal:
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


def test_events_are_kept_in_order_by_study(tmp_path: Path) -> None:
    with Journal(_url(tmp_path), now=lambda: 12.5) as journal:
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


def test_what_was_put_is_there_after_the_process_was_killed(tmp_path: Path) -> None:
    last = -1
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, _url(tmp_path)], stdout=subprocess.PIPE, env={**os.environ}
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = int(line)
            if last == 20:
                process.send_signal(signal.SIGKILL)
                break
        last = max([last, *(int(line) for line in process.stdout.read().split(b"\n")[:-1])])
    with Journal(_url(tmp_path)) as journal:
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
    with pytest.raises(DatabaseUnusable) as caught:
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
