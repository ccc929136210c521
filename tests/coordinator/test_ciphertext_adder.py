"""The process that parses and adds ciphertexts: its death costs one upload, and the sums are always exact."""

import errno
import os
import signal
import sys
import threading

import numpy as np
import pytest

from hansa.coordinator.ciphertext_checker import CiphertextChecker
from hansa.errors import (
    CiphertextSizeMismatch,
    MalformedCiphertext,
    OutOfOrder,
    StoreNotWritable,
    WorkerFailed,
)
from hansa.secure_agg.bfv import CiphertextSum, HeKey
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES
from hansa.secure_agg.parameters import PLAIN_MODULUS, SLOTS

MARK = b"FATAL"

# A worker whose library misbehaves on a marked ciphertext: in parsing, or when half of an upload is added.
SABOTAGED = """
import ctypes, os, signal, sys, time
from hansa.coordinator import ciphertext_checker as module

def segfault(): ctypes.string_at(0)
def killed(): os.kill(os.getpid(), signal.SIGKILL)
def ends(): os._exit(0)
def hangs(): time.sleep(60)
def spins():
    while True: pass
def eats(): return bytearray(8 << 30)
def stops(): os.kill(os.getpid(), signal.SIGSTOP)
def raises(): raise RuntimeError("not one of ours")
def babbles():
    worker._connection.send_bytes(b"\\xff" * 100)
    time.sleep(60)
def floods():
    worker._connection.send_bytes(bytes(50_000_000))
def lies():
    worker._connection.send_bytes(module.cbor2.dumps([1, 2, 3]))
    time.sleep(60)

act = globals()[sys.argv[1]]
real, marked = module.parse_seeded, set()

def parse(data):
    parsed = real(data)
    if data.startswith(b"FATAL"):
        if sys.argv[2] == "parse":
            act()
        marked.add(id(parsed))
    return parsed

class Sum(module.CiphertextSum):
    def add_parsed(self, ciphertext):
        super().add_parsed(ciphertext)
        if id(ciphertext) in marked:
            act()

module.parse_seeded, module.CiphertextSum = parse, Sum
worker = module._Worker(module.Connection(int(sys.argv[3])), int(sys.argv[4]))
worker.serve()
"""


@pytest.fixture(scope="module")
def key():
    return HeKey.generate()


@pytest.fixture(scope="module")
def uploads(key):
    """Six uploads of three ciphertexts."""
    generator = np.random.default_rng(3)
    return [
        [key.encrypt(generator.integers(0, PLAIN_MODULUS, SLOTS, dtype=np.uint64)) for _ in range(3)]
        for _ in range(6)
    ]


@pytest.fixture
def checkers(tmp_path):
    made = []

    def make(**arguments):
        made.append(CiphertextChecker(spool_folder=tmp_path, **arguments))
        return made[-1]

    yield make
    for checker in made:
        checker.close()


def expected(uploads):
    sums = [CiphertextSum() for _ in uploads[0]]
    for upload in uploads:
        for running, ciphertext in zip(sums, upload, strict=True):
            running.add(ciphertext)
    return [running.serialise() for running in sums]


def marked(upload, place=1):
    """The upload with a seed that the sabotaged worker knows; still a ciphertext of the right form."""
    return [MARK + data[len(MARK) :] if index == place else data for index, data in enumerate(upload)]


def too_large(data):
    return data[:64] + b"\xff" * 15 + data[79:]


# -- sums ------------------------------------------------------------------------------------------------


def test_the_sums_are_those_of_the_uploads_byte_for_byte(checkers, uploads):
    checker = checkers()
    with pytest.raises(OutOfOrder):
        checker.sums()
    for upload in uploads:
        checker.add(upload)
    assert checker.sums() == expected(uploads)
    assert checker.sums() == expected(uploads)
    assert (checker.terms, checker.starts) == (6, 1)


def test_check_adds_nothing(checkers, uploads):
    checker = checkers()
    checker.check(uploads[0])
    checker.check(uploads[0][:1])
    assert checker.terms == 0
    checker.add(uploads[1])
    checker.check(uploads[2])
    with pytest.raises(MalformedCiphertext):
        checker.check([too_large(uploads[0][0])])
    checker.add(uploads[3])
    assert checker.sums() == expected([uploads[1], uploads[3]])


def test_begin_forgets_and_a_round_may_have_another_count(checkers, uploads):
    checker = checkers()
    checker.begin()
    checker.add(uploads[0])
    checker.begin()
    with pytest.raises(OutOfOrder):
        checker.sums()
    for upload in uploads[1:3]:
        checker.add(upload[:2])
    assert checker.sums() == expected([upload[:2] for upload in uploads[1:3]])
    assert checker.starts == 1


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda upload: upload[:2], CiphertextSizeMismatch),
        (lambda upload: [*upload, upload[0]], CiphertextSizeMismatch),
        (lambda upload: [], CiphertextSizeMismatch),
        (lambda upload: [upload[0], upload[1], upload[2][:-1]], CiphertextSizeMismatch),
        (lambda upload: [upload[0], upload[1], upload[2] + b"\x00"], CiphertextSizeMismatch),
        (lambda upload: [upload[0], upload[1], too_large(upload[2])], MalformedCiphertext),
    ],
)
def test_a_refused_upload_leaves_the_sums_as_they_were(checkers, uploads, spoil, error):
    checker = checkers()
    checker.add(uploads[0])
    with pytest.raises(error):
        checker.add(spoil(uploads[1]))
    assert checker.sums() == expected(uploads[:1])
    checker.add(uploads[2])
    assert checker.sums() == expected([uploads[0], uploads[2]])
    assert checker.starts == 1


def test_calls_from_several_threads_are_served_one_after_another(checkers, uploads):
    checker = checkers()
    threads = [threading.Thread(target=checker.add, args=(upload,)) for upload in uploads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert checker.sums() == expected(uploads)


# -- death -----------------------------------------------------------------------------------------------


def sabotaged(way, where):
    return (sys.executable, "-c", SABOTAGED, way, where)


@pytest.mark.parametrize(
    ("way", "where"),
    [(way, "parse") for way in ("segfault", "killed", "ends", "eats", "raises", "floods")]
    + [("segfault", "add"), ("raises", "add")],
)
def test_a_worker_that_dies_of_an_upload_costs_that_upload_and_nothing_else(checkers, uploads, way, where):
    checker = checkers(command=sabotaged(way, where))
    for upload in uploads[:2]:
        checker.add(upload)
    before = checker.process_id
    with pytest.raises(MalformedCiphertext, match="died of them, or met its limits"):
        checker.add(marked(uploads[2]))
    assert checker.process_id is None
    checker.add(uploads[3])
    assert checker.process_id != before
    assert checker.sums() == expected([*uploads[:2], uploads[3]])
    assert (checker.terms, checker.starts) == (3, 2)


@pytest.mark.parametrize("way", ["hangs", "stops", "babbles", "lies"])
def test_a_worker_that_takes_too_long_or_says_nonsense_is_ended(checkers, uploads, way):
    checker = checkers(command=sabotaged(way, "parse"), upload_seconds=0.7)
    checker.add(uploads[0])
    with pytest.raises(MalformedCiphertext):
        checker.add(marked(uploads[1], place=2))
    checker.add(uploads[2])
    assert checker.sums() == expected([uploads[0], uploads[2]])


def test_the_kernel_ends_a_worker_that_takes_too_much_processor_time(checkers, uploads):
    checker = checkers(command=sabotaged("spins", "parse"), upload_seconds=1.0)
    checker.check(uploads[0])
    checker._process.kill = lambda: None  # as if this process were too busy to look after it
    with pytest.raises(MalformedCiphertext):
        checker.add(marked(uploads[1]))
    assert checker.starts == 1
    checker.add(uploads[2])
    assert checker.sums() == expected([uploads[2]])


def test_the_first_upload_may_be_the_fatal_one(checkers, uploads):
    checker = checkers(command=sabotaged("segfault", "parse"))
    with pytest.raises(MalformedCiphertext):
        checker.add(marked(uploads[0], place=0))
    with pytest.raises(MalformedCiphertext):
        checker.check(marked(uploads[0], place=0))
    checker.add(uploads[1][:2])
    assert checker.sums() == expected([uploads[1][:2]])


@pytest.mark.parametrize("then", ["add", "sums", "begin", "check"])
def test_a_worker_that_is_killed_between_uploads_costs_nothing(checkers, uploads, then):
    checker = checkers()
    for upload in uploads[:3]:
        checker.add(upload)
    os.kill(checker.process_id, signal.SIGKILL)
    checker._process.wait()
    added = uploads[:3]
    if then == "add":
        checker.add(uploads[3])
        added = uploads[:4]
    elif then == "begin":
        checker.begin()
        checker.add(uploads[4])
        added = [uploads[4]]
    elif then == "check":
        checker.check(uploads[3])
    assert checker.sums() == expected(added)
    assert checker.starts == 2


def test_a_worker_that_is_killed_while_it_is_asked_for_the_sums_is_replaced(checkers, uploads, monkeypatch):
    checker = checkers()
    checker.add(uploads[0])
    ready = checker._ready

    def ready_and_killed():
        ready()
        if checker.starts == 1:
            os.kill(checker.process_id, signal.SIGKILL)

    monkeypatch.setattr(checker, "_ready", ready_and_killed)
    assert checker.sums() == expected(uploads[:1])
    assert checker.starts == 2


@pytest.mark.parametrize("command", [("/bin/false",), ("/bin/sh", "-c", "exit 0")])
def test_a_worker_that_does_not_start_is_a_named_error(checkers, uploads, command):
    with pytest.raises(WorkerFailed, match="does not start"):
        checkers(command=command).add(uploads[0])


def test_a_worker_that_fails_on_uploads_of_before_is_a_named_error(checkers, uploads):
    checker = checkers()
    checker.add(uploads[0])
    checker.add(uploads[1])
    os.pwrite(checker._spool.fileno(), b"\xff" * 100, 64)
    os.kill(checker.process_id, signal.SIGKILL)
    checker._process.wait()
    with pytest.raises(WorkerFailed, match="had accepted"):
        checker.sums()
    assert checker.process_id is None


@pytest.mark.parametrize("sums", ["None", "[b'']*3", "[bytes(61440)]*2", "['x'*61440]*3"])
def test_sums_of_another_form_are_a_named_error(checkers, uploads, sums):
    code = (
        "import sys\nfrom hansa.coordinator import ciphertext_checker as module\n"
        "class Worker(module._Worker):\n"
        "    def _answer(self, question):\n"
        "        real = super()._answer(question)\n"
        f"        return {{'sums': {sums}, 'terms': 1}} if question['name'] == 'sums' else real\n"
        "Worker(module.Connection(int(sys.argv[1])), int(sys.argv[2])).serve()\n"
    )
    checker = checkers(command=(sys.executable, "-c", code))
    checker.add(uploads[0])
    with pytest.raises(WorkerFailed, match="does not give the sums"):
        checker.sums()


# -- mutations -------------------------------------------------------------------------------------------


def mutated(data, other, generator):
    """Change a ciphertext in one of eight ways."""
    at, length = int(generator.integers(len(data))), int(generator.integers(1, 400))
    flipped, noise = bytes([data[at] ^ 1 << int(generator.integers(8))]), generator.bytes(length)
    ways = (
        data[:at] + flipped + data[at + 1 :],
        data[:at],
        data + noise,
        (data[:at] + bytes(length) + data[at + length :])[: len(data)],
        (data[:at] + b"\xff" * length + data[at + length :])[: len(data)],
        data[:at] + other[at:],
        generator.bytes(len(data)),
        (data[:at] + noise + data[at + length :])[: len(data)],
    )
    return ways[int(generator.integers(len(ways)))]


def test_2000_mutated_ciphertexts_never_crash_it_and_never_change_a_sum_silently(checkers, uploads):
    checker, generator = checkers(), np.random.default_rng(11)
    originals = [data for upload in uploads for data in upload]
    accepted, errors = CiphertextSum(), {MalformedCiphertext: 0, CiphertextSizeMismatch: 0}
    for index in range(2000):
        data, other = (originals[int(place)] for place in generator.integers(len(originals), size=2))
        upload = [mutated(data, other, generator)]
        try:
            checker.add(upload)
        except (MalformedCiphertext, CiphertextSizeMismatch) as error:
            errors[type(error)] += 1
        else:
            # It is a ciphertext, of another value: what was signed for it is not its hash. It counts as it is.
            accepted.add(upload[0])
        assert checker.terms == accepted.terms
        if index % 400 == 399:
            assert checker.sums() == [accepted.serialise()]
    assert checker.starts == 1
    assert min(*errors.values(), accepted.terms) > 200


# -- the process -----------------------------------------------------------------------------------------


def test_the_worker_has_limits_and_holds_its_connection_and_the_spool_and_nothing_else(checkers, uploads):
    secret = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(secret, True)
    checker = checkers(memory_bytes=1 << 30, upload_seconds=7.0)
    checker.add(uploads[0])
    worker = f"/proc/{checker.process_id}"
    links = {int(fd): os.readlink(f"{worker}/fd/{fd}") for fd in os.listdir(f"{worker}/fd")}
    os.close(secret)
    kept = {fd: link for fd, link in links.items() if fd > 2 and "memfd" not in link}
    assert sorted(link.startswith("socket:") for link in kept.values()) == [False, True]
    (spool,) = [fd for fd, link in kept.items() if not link.startswith("socket:")]
    with open(f"{worker}/fdinfo/{spool}") as info:
        flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags"))
    assert flags & os.O_ACCMODE == os.O_RDONLY
    with open(f"{worker}/limits") as limits:
        found = {line[:25].strip(): line[25:].split()[:2] for line in limits}
    assert found["Max core file size"] == ["0", "0"]
    assert found["Max address space"] == [str(1 << 30)] * 2
    assert 7 <= int(found["Max cpu time"][0]) < 30
    assert {links[fd] for fd in (0, 1, 2)} == {"/dev/null"}


def test_the_spool_has_no_name_and_close_ends_the_worker(checkers, uploads, tmp_path):
    checker = checkers()
    checker.add(uploads[0])
    assert list(tmp_path.iterdir()) == []
    worker = checker.process_id
    checker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    with CiphertextChecker(spool_folder=tmp_path) as other:
        other.check(uploads[0])
        worker = other.process_id
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def resident(process_id):
    with open(f"/proc/{process_id}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def test_memory_does_not_grow_with_the_number_of_uploads(checkers, uploads):
    checker = checkers()
    upload = [data for upload in uploads for data in upload]
    for _ in range(3):
        checker.add(upload)
    before = resident(checker.process_id)
    for _ in range(30):
        checker.add(upload)
    grown = resident(checker.process_id) - before
    assert grown < 5 * len(upload) * SEEDED_BYTES


@pytest.mark.parametrize("short", [True, False])
def test_a_full_disk_is_a_clear_error_and_the_next_upload_is_served(checkers, uploads, monkeypatch, short):
    checker = checkers()
    checker.add(uploads[0])

    def full(descriptor, data, place):
        if short:
            return 100
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("hansa.coordinator.ciphertext_checker.os.pwrite", full)
        with pytest.raises(StoreNotWritable, match=r"(?i)no space left"):
            checker.add(uploads[1])
    checker.add(uploads[2])
    os.kill(checker.process_id, signal.SIGKILL)
    assert checker.sums() == expected([uploads[0], uploads[2]])
