"""Worker processes: calls both ways, errors with their class, and no process left behind."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hansa import errors
from hansa.local_host import Host, peak_memory_bytes


def alive(process_id):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def gone(process_id, seconds=20.0):
    until = time.monotonic() + seconds
    while alive(process_id) and time.monotonic() < until:
        time.sleep(0.005)
    return not alive(process_id)


@pytest.fixture
def hosts():
    made = []

    def make(build, services=None):
        made.append(Host(build, services or {}))
        return made[-1]

    yield make
    for host in made:
        host.stop()


def worker(parent):
    """What the tests' workers can do."""

    def fail(name, message, hint):
        raise getattr(errors, name)(message, hint=hint)

    def fail_otherwise():
        raise ZeroDivisionError("something of the worker's own")

    def sleep(seconds):
        parent.call("started")
        time.sleep(seconds)

    return {
        "echo": lambda *values: list(values),
        "pid": os.getpid,
        "twice": lambda value: parent.call("double", parent.call("double", value)),
        "ask": parent.call,
        "fail": fail,
        "fail_otherwise": fail_otherwise,
        "unserialisable": object,
        "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "sleep": sleep,
    }


def test_values_cross_unchanged_and_in_another_process(hosts):
    host = hosts(worker)
    values = [1, -(2**40), 0.1, "text", b"\x00\xff" * 50_000, True, None, [1, [2]], {"a": b"b"}]
    assert host.call("echo", *values) == values
    assert host.call("pid") == host.process_id != os.getpid()
    assert host.call("peak_memory_bytes") > 1 << 20 < peak_memory_bytes()


def test_a_worker_can_call_services_of_the_parent_while_it_works(hosts):
    asked = []

    def double(value):
        asked.append((os.getpid(), value))
        return 2 * value

    host = hosts(worker, {"double": double})
    assert host.call("twice", 5) == 20
    assert asked == [(os.getpid(), 5), (os.getpid(), 10)]


@pytest.mark.parametrize(
    "name", ["BudgetExhausted", "ModelDivergence", "MalformedMessage", "Interrupted", "Error"]
)
def test_an_error_of_the_worker_arrives_with_class_message_and_hint(hosts, name):
    host = hosts(worker)
    for hint in ("do this", None):
        with pytest.raises(errors.Error) as caught:
            host.call("fail", name, "what is wrong", hint)
        kind = getattr(errors, name)
        assert type(caught.value) is kind
        assert (caught.value.message, caught.value.hint) == ("what is wrong", hint or kind.default_hint)
    assert host.call("echo", 1) == [1]


def test_an_error_of_a_service_goes_through_the_worker_and_back(hosts):
    def refuse():
        raise errors.StaleRound("round 1 is over")

    def fail():
        raise KeyError("something of the parent's own")

    host = hosts(worker, {"refuse": refuse, "fail": fail})
    with pytest.raises(errors.StaleRound, match="round 1 is over"):
        host.call("ask", "refuse")
    with pytest.raises(errors.WorkerFailed, match="something of the parent's own"):
        host.call("ask", "fail")
    assert host.call("echo", 1) == [1]


def test_any_other_exception_is_a_failed_worker_that_goes_on(hosts):
    host = hosts(worker)
    with pytest.raises(errors.WorkerFailed, match="ZeroDivisionError: something of the worker's own"):
        host.call("fail_otherwise")
    with pytest.raises(errors.WorkerFailed, match="KeyError: 'no such operation'"):
        host.call("no such operation")
    with pytest.raises(errors.WorkerFailed, match="object"):
        host.call("unserialisable")
    with pytest.raises(errors.WorkerFailed, match="KeyError: 'no such service'"):
        host.call("ask", "no such service")
    assert host.call("echo", 1) == [1]


def test_a_worker_that_dies_is_a_failed_worker_at_this_call_and_the_next(hosts):
    host = hosts(worker)
    with pytest.raises(errors.WorkerFailed, match="a worker process has died"):
        host.call("die")
    with pytest.raises(errors.WorkerFailed, match="a worker process has died"):
        host.call("echo", 1)
    assert gone(host.process_id)


def test_a_worker_that_cannot_be_built_is_a_failed_worker(hosts, capfd):
    def build(_):
        raise OSError(errno.ENOSPC, "no space for the worker")

    host = hosts(build)
    with pytest.raises(errors.WorkerFailed):
        host.call("echo", 1)
    assert "no space for the worker" in capfd.readouterr().err


def test_calls_from_several_threads_take_turns(hosts):
    host, results = hosts(worker, {"double": lambda value: 2 * value}), {}

    def call(number):
        results[number] = [host.call("twice", number * 1000 + i) for i in range(20)]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {n: [4 * (n * 1000 + i) for i in range(20)] for n in range(4)}


# -- the end of a worker ---------------------------------------------------------------------------------------


def test_stop_leaves_no_process_and_needs_no_force(hosts):
    made = [hosts(worker) for _ in range(3)]
    ids = [host.call("pid") for host in made]
    started = time.monotonic()
    for host in made:  # the oldest first: the younger ones have not inherited its pipe
        host.stop()
        assert host._process.exitcode == 0
    assert time.monotonic() - started < 2.0
    assert not any(alive(process_id) for process_id in ids)
    for host in made:
        host.stop()  # again, harmless
        with pytest.raises(errors.WorkerFailed):
            host.call("echo", 1)


def test_stop_ends_a_worker_that_is_busy_and_whoever_waits_for_it(hosts):
    working, caught = threading.Event(), []
    host = hosts(worker, {"started": working.set})

    def wait():
        try:
            host.call("sleep", 600)
        except errors.WorkerFailed as error:
            caught.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert working.wait(20)
    host.stop()
    waiting.join(20)
    assert len(caught) == 1
    assert not alive(host.process_id)


def test_a_worker_ignores_ctrl_c(hosts):
    def blocked(_):
        return {"blocked": lambda: [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, set())]}

    for _ in range(5):
        host = hosts(worker)
        os.kill(host.process_id, signal.SIGINT)  # from its first moment on
        assert host.call("echo", 1) == [1]
        os.kill(host.process_id, signal.SIGINT)
        time.sleep(0.01)
        assert host.call("echo", 1) == [1]
    # It ignores the signal, and leaves no mask behind here or there.
    assert hosts(blocked).call("blocked") == []
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_a_worker_ends_when_the_parent_closes_the_pipe(hosts):
    hosts_made = [hosts(worker) for _ in range(2)]
    for host in hosts_made:
        assert host.call("echo", 1) == [1]
        host._connection.close()
        host._process.join(20)
        assert host._process.exitcode == 0


def test_a_worker_holds_no_end_of_another_workers_pipe(hosts):
    def sockets(_):
        def count():
            links = [
                os.readlink(f"/proc/self/fd/{fd}")
                for fd in os.listdir("/proc/self/fd")
                if fd.isdigit() and os.path.lexists(f"/proc/self/fd/{fd}")
            ]
            return sorted(link for link in links if link.startswith("socket:"))

        return {"sockets": count}

    made = [hosts(sockets) for _ in range(3)]
    found = [set(host.call("sockets")) for host in made]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        # What all share (a test runner's own sockets, say) was open before the first worker.
        own = found[one] ^ found[other]
        assert len(own) == 2
    common = set.intersection(*found)
    parents = {os.readlink(f"/proc/self/fd/{host._connection.fileno()}") for host in made}
    assert not parents & set.union(*found) - common
    assert not parents & common


def test_workers_end_with_a_parent_that_is_killed():
    program = """
import time
from hansa.local_host import Host
made = [Host(lambda parent: {"pid": __import__("os").getpid}, {}) for _ in range(3)]
print(*[host.call("pid") for host in made], flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with parent:
        ids = [int(word) for word in parent.stdout.readline().split()]
        assert len(ids) == 3
        assert all(alive(process_id) for process_id in ids)
        parent.kill()
    assert all(gone(process_id) for process_id in ids)


def test_the_peak_memory_of_another_process_is_its_own_and_zero_once_it_is_gone():
    from hansa.local_host import peak_memory_of

    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        time.sleep(0.5)
        peak = peak_memory_of(process.pid)
    finally:
        process.communicate(b"\n")
    assert 2**20 < peak < 200 * 2**20
    assert peak_memory_of(process.pid) == 0
    assert peak_memory_of(None) == 0
