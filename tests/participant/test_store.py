"""The participant's store: nothing readable on disk, nothing lost, nothing wrong returned."""

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa.errors import Error, KeyFileUnsafe, StateRollback, StoreDamaged, StoreInUse, StoreNotWritable
from hansa.participant.store import SealedStore, open_or_make_key

KEY = bytes(range(32))
NAMES = st.text(st.characters(codec="utf-8"), max_size=8)


@pytest.fixture
def opened(tmp_path):
    """Open the store of this test; every one is closed at the end."""
    made = []

    def make(key=KEY, name="store"):
        made.append(SealedStore(tmp_path / name, key))
        return made[-1]

    yield make
    for store in made:
        store.close()


def child(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


# -- round trip ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "delete", "reopen"]), NAMES, st.binary(max_size=64)), max_size=12
    )
)
def test_it_holds_what_a_dictionary_would_hold_and_generation_grows_by_one(tmp_path_factory, steps):
    path, expected, changes = tmp_path_factory.mktemp("store") / "store", {}, 0
    store = SealedStore(path, KEY)
    for action, name, value in steps:
        if action == "put":
            store.put(name, value)
            expected[name], changes = value, changes + 1
        elif action == "delete":
            changes += name in expected
            store.delete(name)
            expected.pop(name, None)
        else:
            store.close()
            store = SealedStore(path, KEY)
        assert store.generation == changes
        assert store.get(name) == expected.get(name)
    assert store.keys() == sorted(expected)
    assert {name: store.get(name) for name in store.keys()} == expected  # noqa: SIM118
    store.close()
    shutil.rmtree(path.parent)


def test_keys_by_prefix_a_missing_name_and_a_large_value(opened):
    store = opened()
    large = os.urandom(3_000_000)
    for name, value in (("package/2", b"b"), ("package/1", b""), ("release/1", large)):
        store.put(name, value)
    assert store.keys("package/") == ["package/1", "package/2"]
    assert store.keys("nothing") == []
    assert store.get("package/3") is None
    assert (store.get("package/1"), store.get("release/1")) == (b"", large)
    store.delete("package/3")
    assert store.generation == 3


@pytest.mark.parametrize("length", [0, 1, 2**16 - 1, 2**16, 2**16 + 1, 2**16 + 44, 2**16 + 45, 200_000])
def test_values_around_the_length_that_has_a_key_of_its_own_come_back_and_every_part_of_them_is_checked(
    opened, length
):
    store, value = opened(), bytes(range(256)) * 800
    store.put("name", value[:length])
    assert store.get("name") == value[:length]
    one = store._database.execute("SELECT value FROM records").fetchone()[0]
    store.put("name", value[:length])
    (sealed,) = store._database.execute("SELECT value FROM records").fetchone()
    assert one[-16:] != sealed[-16:]
    for at in {0, 20, 50, 61, len(sealed) // 2, len(sealed) - 1} & set(range(len(sealed))):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        for wrong in (changed, sealed[:at], one):  # the last one is of an earlier generation
            store._database.execute("UPDATE records SET value = ?", (wrong,))
            with pytest.raises(StoreDamaged):
                store.get("name")


def test_calls_from_several_threads_are_served_one_after_another(opened):
    store = opened()
    threads = [
        threading.Thread(target=lambda who=who: [store.put(f"{who}/{i}", b"v") for i in range(5)])
        for who in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (store.generation, len(store.keys())) == (20, 20)


# -- secrecy ---------------------------------------------------------------------------------------------


def on_disk(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_neither_a_name_nor_a_value_is_on_disk_not_even_in_the_repr(tmp_path, opened):
    for store in (opened(), opened(name="other")):
        store.put("private-name", b"private-value" * 400)
        store.put("private-name", b"private-value" * 400)
    assert b"private" not in on_disk(tmp_path)
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o600
    assert "private" not in repr(opened(name="third"))


def test_a_slot_is_no_unkeyed_hash_and_the_same_name_has_another_slot_in_another_store(tmp_path, opened):
    slots = set()
    for name in ("one", "two"):
        store = opened(name=name)
        store.put("name", b"value")
        store.close()
        connection = sqlite3.connect(tmp_path / name)
        slots |= {slot for (slot,) in connection.execute("SELECT slot FROM records")}
        connection.close()
    assert len(slots) == 2


def test_after_delete_the_sealed_bytes_are_in_neither_file(tmp_path, opened):
    store = opened()
    store.put("keep", b"k")
    store.put("gone", b"secret" * 10)
    (sealed,) = store._database.execute(
        "SELECT value FROM records WHERE slot = ?", (store._seal.slot("gone"),)
    ).fetchone()
    assert sealed in on_disk(tmp_path)
    store.delete("gone")
    assert sealed not in on_disk(tmp_path)
    assert store.keys() == ["keep"]


# -- damage ----------------------------------------------------------------------------------------------


@pytest.fixture
def closed_store(tmp_path):
    path = tmp_path / "whole"
    store = SealedStore(path, KEY)
    for index in range(3):
        store.put(f"name/{index}", bytes([index]) * 40)
    store.put("name/0", b"new")
    store.close()
    return path


def contents(path, key=KEY):
    store = SealedStore(path, key)
    try:
        return store.generation, {name: store.get(name) for name in store.keys()}  # noqa: SIM118
    finally:
        store.close()


def meaningful_bytes(path):
    """Positions of a database's bytes that are not zero, and some that are: most of a page is empty."""
    data = path.read_bytes()
    return [at for at, byte in enumerate(data) if byte or at % 997 == 0 or at < 110]


@pytest.mark.parametrize("part", range(4))
def test_a_changed_byte_ends_in_store_damaged_and_never_in_wrong_data(closed_store, tmp_path, part):
    whole, expected, refused = closed_store.read_bytes(), contents(closed_store), 0
    for at in meaningful_bytes(closed_store)[part::4]:
        copy = tmp_path / "copy"
        copy.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            # What SQLite does not look at, a counter of the header or an empty place, may be changed: no harm.
            assert contents(copy) == expected
        except StoreDamaged:
            refused += 1
        for path in tmp_path.glob("copy*"):
            path.unlink()
    assert refused > 150


@pytest.mark.parametrize("column", ["store_id", "sealed", "slot", "label", "value"])
def test_a_changed_byte_of_a_column_or_another_type_is_always_refused(closed_store, column):
    table = "header" if column in ("store_id", "sealed") else "records"
    for number, change in enumerate(
        ("x'00'", "''", "7", "2.5", f"substr({column}, 1, length({column}) - 1)")
    ):
        copy = closed_store.with_name(f"copy-{number}")
        shutil.copy(closed_store, copy)
        where = "" if table == "header" else "WHERE slot = (SELECT max(slot) FROM records)"
        connection = sqlite3.connect(copy)
        connection.execute(f"UPDATE {table} SET {column} = {change} {where}")
        connection.commit()
        connection.close()
        with pytest.raises(StoreDamaged):
            contents(copy)


def edited(path, *statements):
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM records WHERE slot = (SELECT max(slot) FROM records)",
        "DELETE FROM records",
        "DELETE FROM header",
        "INSERT INTO header SELECT * FROM header",
        "DROP TABLE records",
        "CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records; END",
        "CREATE VIEW v AS SELECT 1",
        "INSERT INTO records SELECT x'00', label, value FROM records LIMIT 1",
    ],
)
def test_a_record_taken_out_a_row_added_and_a_foreign_table_are_refused(closed_store, statement):
    edited(closed_store, statement)
    with pytest.raises(StoreDamaged):
        contents(closed_store)


def rows(path):
    connection = sqlite3.connect(path)
    found = {slot: (label, value) for slot, label, value in connection.execute("SELECT * FROM records")}
    connection.close()
    return found


def put_back(path, slot, label, value):
    connection = sqlite3.connect(path)
    connection.execute("UPDATE records SET label = ?, value = ? WHERE slot = ?", (label, value, slot))
    connection.commit()
    connection.close()


def test_a_record_put_back_to_its_older_value_or_exchanged_is_refused(tmp_path):
    path = tmp_path / "store"
    store = SealedStore(path, KEY)
    store.put("lock", b"free")
    store.put("other", b"x")
    store.close()
    old = rows(path)
    store = SealedStore(path, KEY)
    slot, other = store._seal.slot("lock"), store._seal.slot("other")
    store.put("lock", b"taken")
    store.close()
    new = rows(path)
    for label, value in (
        old[slot],  # the whole record of before
        (new[slot][0], old[slot][1]),  # its value alone
        (new[slot][0], new[other][1]),  # another record's value
        new[other],
    ):
        put_back(path, slot, label, value)
        with pytest.raises(StoreDamaged):
            contents(path)
    put_back(path, slot, *new[slot])
    assert contents(path)[1] == {"lock": b"taken", "other": b"x"}


def test_a_value_exchanged_under_an_open_store_is_noticed(opened):
    store = opened()
    store.put("a", b"1")
    (old,) = store._database.execute("SELECT value FROM records").fetchone()
    store.put("a", b"2")
    store._database.execute("UPDATE records SET value = ?", (old,))
    with pytest.raises(StoreDamaged):
        store.get("a")
    store._database.execute("DELETE FROM records")
    with pytest.raises(StoreDamaged):
        store.get("a")


@pytest.mark.parametrize("length", [0, 1, 99, 100, 4096, 16384, 16385, 40000])
def test_a_truncated_file_is_refused(closed_store, length):
    whole = closed_store.read_bytes()
    assert len(whole) > length
    closed_store.write_bytes(whole[:length])
    with pytest.raises(StoreDamaged):
        contents(closed_store)


@pytest.mark.parametrize("data", [b"not a database" * 100, b"\x00" * 4096])
def test_another_file_is_refused_and_left_alone(tmp_path, data):
    path = tmp_path / "store"
    path.write_bytes(data)
    with pytest.raises(StoreDamaged):
        SealedStore(path, KEY)
    assert path.read_bytes() == data


@pytest.mark.parametrize("key", [bytes(32), KEY[:-1] + b"\x00", b"", KEY[:31]])
def test_a_wrong_key_is_refused(closed_store, key):
    with pytest.raises(StoreDamaged):
        SealedStore(closed_store, key)
    assert len(contents(closed_store)[1]) == 3


# -- rollback --------------------------------------------------------------------------------------------


def test_a_restored_copy_is_noticed_by_its_generation(tmp_path, closed_store):
    copy = tmp_path / "backup"
    shutil.copy(closed_store, copy)
    store = SealedStore(closed_store, KEY)
    store.put("released", b"yes")
    seen = store.generation
    store.verify_not_older_than(seen)
    store.close()
    shutil.copy(copy, closed_store)
    store = SealedStore(closed_store, KEY)
    with pytest.raises(StateRollback, match=f"generation {seen - 1}, it was at {seen}"):
        store.verify_not_older_than(seen)
    store.verify_not_older_than(seen - 1)
    store.close()


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from hansa.participant.store import SealedStore
store = SealedStore(Path(sys.argv[1]), bytes(range(32)))
count = 0
while True:
    count += 1
    store.put(f"name/{count % 7}", count.to_bytes(4, "big") * 50)
    print(count, flush=True)
"""


def killed_after(path, wanted):
    """Kill -9 a process that writes; return the last count whose put had returned."""
    writer = child(WRITE_FOR_EVER, path)
    last = 0
    while last < wanted:
        last = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.stdout.read().split()  # what it had reported before it died
    writer.stderr.close()
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    return int(rest[-1]) if rest else last


@pytest.mark.parametrize("wanted", [1, 9, 40])
def test_kill_9_between_puts_loses_nothing_that_returned(tmp_path, wanted):
    last = killed_after(tmp_path / "store", wanted)
    store = SealedStore(tmp_path / "store", KEY)
    count = store.generation
    assert last <= count <= last + 1  # the one more had been committed and not yet reported
    for name in store.keys():  # noqa: SIM118
        expected = max(c for c in range(1, count + 1) if c % 7 == int(name[5:]))
        assert store.get(name) == expected.to_bytes(4, "big") * 50
    assert len(store.keys()) == min(count, 7)
    store.put("after", b"works")
    store.close()


def test_a_damaged_log_gives_an_older_whole_state_or_an_error_never_a_mixture(tmp_path):
    path = tmp_path / "store"
    last = killed_after(path, 12)
    log = path.with_name("store-wal").read_bytes()
    main = path.read_bytes()
    for at in range(0, len(log), max(1, len(log) // 60)):
        for cut in (log[:at], log[:at] + bytes([log[at] ^ 1]) + log[at + 1 :]):
            path.write_bytes(main)
            path.with_name("store-wal").write_bytes(cut)
            try:
                store = SealedStore(path, KEY)
            except StoreDamaged:
                continue
            count = store.generation
            assert len(store.keys()) == min(count, 7)
            for name in store.keys():  # noqa: SIM118
                expected = max(c for c in range(1, count + 1) if c % 7 == int(name[5:]))
                assert store.get(name) == expected.to_bytes(4, "big") * 50
            if count < last:
                with pytest.raises(StateRollback):
                    store.verify_not_older_than(last)
            store.close()


# -- one process -----------------------------------------------------------------------------------------


def test_a_second_process_and_a_second_object_are_refused_until_the_first_closes(tmp_path, opened):
    store = opened()
    store.put("a", b"1")
    code = (
        "import sys\nfrom pathlib import Path\nfrom hansa.errors import StoreInUse\n"
        "from hansa.participant.store import SealedStore\n"
        "try:\n    print(SealedStore(Path(sys.argv[1]), bytes(range(32))).get('a'))\n"
        "except StoreInUse as error:\n    print(type(error).__name__)\n"
    )
    assert child(code, tmp_path / "store").communicate() == (b"StoreInUse\n", b"")
    with pytest.raises(StoreInUse):
        opened()
    store.put("a", b"2")
    store.close()
    assert child(code, tmp_path / "store").communicate() == (b"b'2'\n", b"")


def test_two_processes_that_make_the_same_store_get_one(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom hansa.errors import StoreInUse\n"
        "from hansa.participant.store import SealedStore, open_or_make_key\n"
        "key = open_or_make_key(Path(sys.argv[1] + '.key'))\nprint(key.hex())\n"
        "try:\n    SealedStore(Path(sys.argv[1]), key).put(sys.argv[2], b'v')\n"
        "except StoreInUse:\n    pass\n"
    )
    both = [child(code, tmp_path / "store", name) for name in "ab"]
    outputs = [process.communicate() for process in both]
    assert all(errors == b"" for _, errors in outputs)
    assert len({output for output, _ in outputs}) == 1
    store = SealedStore(tmp_path / "store", bytes.fromhex(outputs[0][0].decode().strip()))
    assert len(store.keys()) in (1, 2)
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "store.key"]


# -- the disk --------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_clear_error_and_the_store_is_as_it_was(opened):
    store = opened()
    store.put("a", b"old")
    store._database.execute("PRAGMA max_page_count = 6")
    with pytest.raises(StoreNotWritable, match="full"):
        store.put("a", b"n" * 200_000)
    assert (store.get("a"), store.generation, store.keys()) == (b"old", 1, ["a"])
    store._database.execute("PRAGMA max_page_count = 100000")
    store.put("a", b"n" * 200_000)
    store.close()
    store = opened()
    assert (store.get("a"), store.generation) == (b"n" * 200_000, 2)


def test_a_write_that_the_system_refuses_is_a_clear_error_and_nothing_is_lost(tmp_path):
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom hansa.errors import StoreNotWritable\n"
        "from hansa.participant.store import SealedStore\n"
        "store = SealedStore(Path(sys.argv[1]), bytes(range(32)))\nstore.put('a', b'old')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
        "try:\n    store.put('b', b'n' * 500_000)\n"
        "except StoreNotWritable as error:\n    print(error.code)\n"
        "print(store.keys(), store.get('a'), store.generation)\n"
    )
    output, errors = child(code, tmp_path / "store").communicate()
    assert (output, errors) == (b"store_not_writable\n['a'] b'old' 1\n", b"")
    assert contents(tmp_path / "store") == (1, {"a": b"old"})


def test_a_disk_that_became_read_only_is_a_clear_error_and_the_next_write_works(opened):
    store = opened()
    store._database.execute("PRAGMA query_only = ON")
    for change in (lambda: store.put("a", b"1"), lambda: store.put("a", b"1")):
        with pytest.raises(StoreNotWritable):
            change()
    store._database.execute("PRAGMA query_only = OFF")
    assert (store.keys(), store.generation) == ([], 0)
    store.put("a", b"2")
    assert (store.get("a"), store.generation) == (b"2", 1)


def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(StoreNotWritable):
        SealedStore(tmp_path / "missing" / "store", KEY)
    with pytest.raises(StoreNotWritable):
        open_or_make_key(tmp_path / "missing" / "key")


# -- the key ---------------------------------------------------------------------------------------------


def test_the_key_is_made_once_with_mode_0600_and_stays(tmp_path):
    path = tmp_path / "key"
    previous = os.umask(0)
    try:
        key = open_or_make_key(path)
    finally:
        os.umask(previous)
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert open_or_make_key(path) == key
    assert open_or_make_key(tmp_path / "other") != key
    assert sorted(found.name for found in tmp_path.iterdir()) == ["key", "other"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o666, 0o601])
def test_a_key_file_that_others_may_open_is_refused(tmp_path, mode):
    path = tmp_path / "key"
    open_or_make_key(path)
    path.chmod(mode)
    with pytest.raises(KeyFileUnsafe, match=f"{mode:04o}"):
        open_or_make_key(path)
    path.chmod(0o400)
    assert len(open_or_make_key(path)) == 32


def test_a_key_file_of_another_kind_or_length_is_refused(tmp_path):
    (tmp_path / "real").write_bytes(bytes(32))
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for length in (0, 31, 33):
        (tmp_path / f"length-{length}").write_bytes(bytes(length))
        (tmp_path / f"length-{length}").chmod(0o600)
    for name in ("link", "dangling", "folder", "pipe", "length-0", "length-31", "length-33"):
        with pytest.raises(KeyFileUnsafe):
            open_or_make_key(tmp_path / name)
    assert not (tmp_path / "nothing").exists()


def test_a_key_file_of_another_user_is_refused(tmp_path, monkeypatch):
    open_or_make_key(tmp_path / "key")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(KeyFileUnsafe, match="not a file of this user"):
        open_or_make_key(tmp_path / "key")


def test_every_error_of_the_store_is_hansas_with_a_code_and_a_hint():
    for kind in (StoreDamaged, StateRollback, StoreInUse, StoreNotWritable, KeyFileUnsafe):
        error = kind("what is wrong")
        assert isinstance(error, Error)
        assert error.hint
    assert (
        len({k.code for k in (StoreDamaged, StateRollback, StoreInUse, StoreNotWritable, KeyFileUnsafe)}) == 5
    )
