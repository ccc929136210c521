"""The process that parses and adds: its death costs one upload, and the sums are exact whatever died."""

import os
import signal
import sys

import pytest

from hansa.errors import MalformedCiphertext, WorkerFailed

MARK = b"FATAL"

# A worker whose library misbehaves on a marked ciphertext: in parsing, or when half of an upload is added.
SABOTAGED = """
import ctypes, os, signal, sys, time
from hansa.coordinator import adding_worker as module
from hansa.secure_agg import bfv

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
parse_seeded, add_parsed, marked = bfv.parse_seeded, bfv.CiphertextSum.add_parsed, set()

def parse(data):
    parsed = parse_seeded(data)
    if data.startswith(b"FATAL"):
        if sys.argv[2] == "parse":
            act()
        marked.add(id(parsed))
    return parsed

def add(self, ciphertext):
    add_parsed(self, ciphertext)
    if id(ciphertext) in marked:
        act()

bfv.parse_seeded, bfv.CiphertextSum.add_parsed = parse, add
worker = module.AddingWorker(module.Connection(int(sys.argv[3])), int(sys.argv[4]))
worker.serve()
"""


def sabotaged(way, where):
    return (sys.executable, "-c", SABOTAGED, way, where)


def marked(upload, place=1):
    """The upload with a seed that the sabotaged worker knows; still a ciphertext of the right form."""
    return [MARK + data[len(MARK) :] if index == place else data for index, data in enumerate(upload)]


@pytest.mark.parametrize(
    ("way", "where"),
    [(way, "parse") for way in ("segfault", "killed", "ends", "eats", "raises", "floods")]
    + [("segfault", "add"), ("raises", "add")],
)
def test_a_worker_that_dies_of_an_upload_costs_that_upload_and_nothing_else(
    adders, adding, uploads, way, where
):
    adder = adders(command=sabotaged(way, where))
    sums = adder.begin(4)
    for upload in uploads[:2]:
        adding.send(sums, upload)
    before = adder.process_id
    with pytest.raises(MalformedCiphertext, match="died of them, or met its limits"):
        adding.send(sums, marked(uploads[2]))
    assert adder.process_id is None
    adding.send(sums, uploads[3])
    assert adder.process_id != before
    assert list(sums.totals()) == adding.sums_of([*uploads[:2], uploads[3]])
    assert (adder.terms, adder.starts) == (3, 2)


@pytest.mark.parametrize("way", ["hangs", "stops", "babbles", "lies"])
def test_a_worker_that_takes_too_long_or_says_nonsense_is_ended(adders, adding, uploads, way):
    adder = adders(command=sabotaged(way, "parse"), upload_seconds=0.7)
    sums = adder.begin(3)
    adding.send(sums, uploads[0])
    with pytest.raises(MalformedCiphertext):
        adding.send(sums, marked(uploads[1], place=2))
    adding.send(sums, uploads[2])
    assert list(sums.totals()) == adding.sums_of([uploads[0], uploads[2]])


def test_the_kernel_ends_a_worker_that_takes_too_much_processor_time(adders, adding, uploads):
    adder = adders(command=sabotaged("spins", "parse"), upload_seconds=1.0)
    sums = adder.begin(3)
    adding.send(sums, uploads[0])
    adder._process.kill = lambda: None  # as if this process were too busy to look after it
    with pytest.raises(MalformedCiphertext):
        adding.send(sums, marked(uploads[1]))
    assert adder.starts == 1
    adding.send(sums, uploads[2])
    assert list(sums.totals()) == adding.sums_of([uploads[0], uploads[2]])


def test_the_first_upload_may_be_the_fatal_one(adders, adding, uploads):
    sums = adders(command=sabotaged("segfault", "parse")).begin(2)
    with pytest.raises(MalformedCiphertext):
        adding.send(sums, marked(uploads[0], place=0))
    adding.send(sums, uploads[1][:2])
    assert list(sums.totals()) == adding.sums_of([uploads[1][:2]])


@pytest.mark.parametrize("then", ["add", "totals", "begin"])
def test_a_worker_that_is_killed_between_uploads_costs_nothing(adders, adding, uploads, then):
    adder = adders()
    sums = adder.begin(4)
    for upload in uploads[:3]:
        adding.send(sums, upload)
    os.kill(adder.process_id, signal.SIGKILL)
    adder._process.wait()
    added = uploads[:3]
    if then == "add":
        adding.send(sums, uploads[3])
        added = uploads[:4]
    elif then == "begin":
        sums = adder.begin(4)
        adding.send(sums, uploads[4])
        added = [uploads[4]]
    assert list(sums.totals()) == adding.sums_of(added)
    assert adder.starts == 2


def test_a_worker_that_is_killed_while_it_gives_the_sums_is_replaced(adders, adding, uploads):
    adder = adders()
    sums = adder.begin(2)
    for upload in uploads[:2]:
        adding.send(sums, upload)
    totals = sums.totals()
    found = [next(totals)]
    os.kill(adder.process_id, signal.SIGKILL)
    found += totals
    assert found == adding.sums_of(uploads[:2])
    assert adder.starts == 2


def test_sums_are_made_again_in_their_own_places_after_some_were_refused(adders, adding, uploads):
    """Accepted uploads do not lie one behind the other: a refused one has left a gap that another one fills."""
    adder = adders()
    sums = adder.begin(4)
    first = sums.open(3)
    adding.send(sums, uploads[1])
    first.discard()
    adding.send(sums, uploads[2])
    with pytest.raises(MalformedCiphertext):
        adding.send(sums, [uploads[3][0], uploads[3][1], uploads[3][2][:-15] + b"\xff" * 15])
    adding.send(sums, uploads[4])
    os.kill(adder.process_id, signal.SIGKILL)
    assert list(sums.totals()) == adding.sums_of([uploads[1], uploads[2], uploads[4]])


@pytest.mark.parametrize("command", [("/bin/false",), ("/bin/sh", "-c", "exit 0")])
def test_a_worker_that_does_not_start_is_a_named_error(adders, adding, uploads, command):
    with pytest.raises(WorkerFailed, match="does not start"):
        adding.send(adders(command=command).begin(1), uploads[0])


def test_a_worker_that_fails_on_uploads_of_before_is_a_named_error(adders, adding, uploads):
    adder = adders()
    sums = adder.begin(2)
    adding.send(sums, uploads[0])
    adding.send(sums, uploads[1])
    os.pwrite(adder._spool.fileno(), b"\xff" * 100, 64)
    os.kill(adder.process_id, signal.SIGKILL)
    adder._process.wait()
    with pytest.raises(WorkerFailed, match="had accepted"):
        list(sums.totals())
    assert adder.process_id is None


def lying(answers):
    code = (
        "import sys\nfrom hansa.coordinator import adding_worker as module\n"
        "class Worker(module.AddingWorker):\n"
        "    def answer(self, question):\n"
        "        real = super().answer(question)\n"
        f"        return {answers}\n"
        "Worker(module.Connection(int(sys.argv[1])), int(sys.argv[2])).serve()\n"
    )
    return (sys.executable, "-c", code)


@pytest.mark.parametrize("found", ["None", "b''", "bytes(61439)", "'x'*61440", "[bytes(61440)]"])
def test_a_sum_of_another_form_is_a_named_error(adders, adding, uploads, found):
    answers = f"{{'sum': {found}}} if question['name'] == 'sum' else real"
    sums = adders(command=lying(answers)).begin(1)
    adding.send(sums, uploads[0])
    with pytest.raises(WorkerFailed, match="does not give the sums"):
        list(sums.totals())


def test_a_worker_that_adds_twice_is_found(adders, adding, uploads):
    twice = "super().answer(question) if question['name'] == 'add' else real"
    adder = adders(command=lying(twice))
    with pytest.raises(WorkerFailed, match="lost count"):
        adding.send(adder.begin(1), uploads[0])
    assert (adder.terms, adder.process_id) == (0, None)


def test_the_worker_has_limits_and_holds_its_connection_and_the_spool_and_nothing_else(
    adders, adding, uploads
):
    secret = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(secret, True)
    adder = adders(memory_bytes=1 << 30, upload_seconds=7.0)
    adding.send(adder.begin(1), uploads[0])
    worker = f"/proc/{adder.process_id}"
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


def test_sums_that_have_no_room_in_the_workers_memory_are_exact_after_its_death_too(adders, adding, uploads):
    adder = adders(sums_bytes=100_000)  # room for one of three
    sums = adder.begin(6)
    for upload in uploads[:4]:
        adding.send(sums, upload)
    assert list(sums.totals()) == adding.sums_of(uploads[:4])
    os.kill(adder.process_id, signal.SIGKILL)
    adder._process.wait()
    for upload in uploads[4:]:
        adding.send(sums, upload)
    assert list(sums.totals()) == adding.sums_of(uploads)
    assert adder.starts == 2
