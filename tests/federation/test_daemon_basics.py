"""What both daemons share: the service manager, logs, the status page."""

import io
import json
import logging
import socket
import urllib.error
import urllib.request

import pytest
import structlog
from prometheus_client import CollectorRegistry, Gauge

from hansa.errors import InvalidValue, PortInUse
from hansa.federation.logs import FewLines, log, set_up_logs
from hansa.federation.service_manager import ServiceManager
from hansa.federation.status_page import StatusPage


@pytest.fixture
def manager(tmp_path):
    """A service manager that listens, and what it has heard."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(5)
        yield ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000000"}), listener


def test_the_service_manager_hears_every_state(manager):
    daemon, listener = manager
    daemon.ready("round 1/50\nEVIL=1")
    daemon.status("round 2/50")
    daemon.alive()
    daemon.reloading()
    daemon.stopping()
    heard = [listener.recv(4096).decode() for _ in range(5)]
    assert heard[:3] == ["READY=1\nSTATUS=round 1/50 EVIL=1", "STATUS=round 2/50", "WATCHDOG=1"]
    assert heard[3].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert heard[4] == "STOPPING=1"


def test_the_watchdog_is_fed_twice_in_its_interval(manager):
    assert manager[0].watchdog_seconds == 10.0
    assert ServiceManager({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}).watchdog_seconds is None
    assert ServiceManager({"WATCHDOG_USEC": "x"}).watchdog_seconds is None


def test_without_a_service_manager_nothing_happens(tmp_path):
    ServiceManager({}).ready("x")
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")
    ServiceManager({"NOTIFY_SOCKET": "@hansa-test-no-such-abstract-socket"}).alive()


@pytest.fixture
def lines():
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    level = root.level
    stream = io.StringIO()
    set_up_logs(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_a_line_is_one_json_object_with_a_constant_event(lines):
    log("coordinator").info("round_ended", round=3, study="risk")
    (line,) = lines()
    assert line["event"] == "round_ended"
    assert (line["round"], line["study"], line["level"]) == (3, "risk", "info")
    assert line["timestamp"].endswith("Z")


def test_no_secret_and_no_bytes_are_logged(lines):
    log("participant").warning(
        "enrolment_failed",
        invitation_code="HUNTER2",
        header=b"\x00\x01",
        nested={"password": "HUNTER2", "count": 1},
        error_code="invitation_unknown",
        long="x" * 10_000,
    )
    (line,) = lines()
    assert "HUNTER2" not in json.dumps(line)
    assert line["header"] == "2 bytes"
    assert line["nested"] == {"password": "...", "count": 1}
    assert line["error_code"] == "invitation_unknown"
    assert len(line["long"]) < 3000


def test_lines_of_libraries_pass_through_the_same_way(lines):
    logging.getLogger("flwr").warning("something %s", "odd")
    logging.getLogger("flwr").info("chatter")
    (line,) = lines()
    assert line["event"] == "something odd"


def fetch(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.enable_socket
def test_the_status_page_answers_on_three_paths_only():
    registry, why = CollectorRegistry(), ["no enrolment"]
    Gauge("hansa_test", "A test", registry=registry).set(4)
    with StatusPage(registry, ready=lambda: why[0]) as page:
        assert fetch(page.port, "/livez") == (200, "alive\n")
        assert fetch(page.port, "/readyz") == (503, "no enrolment\n")
        why[0] = ""
        assert fetch(page.port, "/readyz") == (200, "ready\n")
        assert "hansa_test 4.0" in fetch(page.port, "/metrics")[1]
        assert fetch(page.port, "/metrics/../etc/passwd")[0] == 404
        assert fetch(page.port, "/")[0] == 404
        with pytest.raises(PortInUse):
            StatusPage(registry, ready=lambda: "", port=page.port)


def test_the_status_page_listens_on_loopback_only():
    with pytest.raises(InvalidValue, match="loopback"):
        StatusPage(CollectorRegistry(), ready=lambda: "", host="0.0.0.0")


def test_no_character_comes_through_that_a_terminal_would_act_on(lines):
    log("participant").warning("proposal_failed", message="a\x1b[2Kb\x9bc\u202ed\nTraceback", nested=["\x07"])
    (line,) = lines()
    assert line["message"] == "a?[2Kb?c?d\nTraceback"
    assert line["nested"] == ["?"]


def test_a_few_lines_of_a_kind_are_written_in_a_minute_and_the_rest_is_counted():
    now = [59.0]
    lines = FewLines(3, clock=lambda: now[0])
    assert [lines.next("refused") for _ in range(10)] == ["", "", "", *[None] * 7]
    assert lines.next("other") == ""
    now[0] = 60.0
    assert [lines.next("refused") for _ in range(4)] == ["; 7 more before that", "", "", None]
    assert lines.next("other") == ""
    now[0] = 1000.0
    assert lines.next("refused") == "; 1 more before that"
    now[0] = 1060.0
    assert lines.next("refused") == ""
