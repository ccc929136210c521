"""Checks of what a coordinator runs: its daemon, its ports, Flower's SuperLink, the process that adds ciphertexts."""

import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

from hansa.coordinator.ciphertext_adder import CiphertextAdder
from hansa.coordinator.examination import Examination
from hansa.errors import Error
from hansa.federation.checks import Check, Finding, fail, failure, ok, warn
from hansa.federation.fields import host_and_port
from hansa.federation.machine_checks import look_at_packages, look_at_shadows, look_at_telemetry

_IMPORT_SECONDS = 60.0
_CONNECT_SECONDS = 2.0
_SPOOL_BYTES = 1 << 20


def look_at_daemon(place: Examination) -> Iterator[Finding]:
    """Ask the daemon whether it is ready, where one runs."""
    address = place.home.settings.listen.metrics
    if not place.is_running:
        yield warn("the daemon does not run", place.command("coordinator run"), code="daemon_stopped")
        return
    host, port = host_and_port(address)
    show = f"curl -s http://{address}/readyz"
    connection = http.client.HTTPConnection(host, port, timeout=_CONNECT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        words = answer.read(200).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        told = f"the daemon runs, and its status page at {address} does not answer: {type(error).__name__}"
        yield fail(told, place.command("coordinator run"), code="coordinator_unreachable")
        return
    finally:
        connection.close()
    if answer.status == http.HTTPStatus.OK:
        yield ok("runs, and is ready")
    else:
        yield fail(f"the daemon runs, and is not ready: {words}", show, code="daemon_not_ready")


def look_at_ports(place: Examination) -> Iterator[Finding]:
    """See that every port is free, or served where the daemon runs."""
    running = place.is_running
    for name, address in place.home.settings.listen.model_dump().items():
        host, port = host_and_port(address)
        show = f"ss -ltnp 'sport = :{port}'"
        problem = _cannot_bind(host, port)
        if running and problem:
            yield ok(f"{address} is served by the daemon", subject=name)
        elif running:
            told = f"the daemon runs, and nobody listens on {address}"
            yield fail(told, place.command("coordinator run"), code="coordinator_unreachable", subject=name)
        elif problem:
            yield fail(f"{address} cannot be listened on: {problem}", show, code="port_in_use", subject=name)
        else:
            yield ok(f"{address} is free", subject=name)


def _cannot_bind(host: str, port: int) -> str:
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def look_at_superlink(_place: Examination) -> Iterator[Finding]:
    """Import Flower's SuperLink in a process of its own, as the daemon would start it."""
    command = [sys.executable, "-P", "-c", "import flwr.superlink.cli"]
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    done = subprocess.run(  # noqa: S603 - our own command line
        command,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **quiet},
        timeout=_IMPORT_SECONDS,
        check=False,
    )
    if done.returncode == 0:
        yield ok("can be started")
        return
    words = (done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"])[-1]
    told = f"Flower's SuperLink cannot be started: {words[:200]}"
    yield fail(told, f"{sys.executable} -P -m pip install --force-reinstall flwr", code="superlink_failed")


def look_at_adding_worker(place: Examination) -> Iterator[Finding]:
    """Start the process that parses and adds ciphertexts, and end it."""
    try:
        with CiphertextAdder(spool_bytes=_SPOOL_BYTES) as adder:
            adder.verify_starts()
    except Error as error:
        yield failure(error, f"{sys.executable} -c 'import hansa.coordinator.adding_worker'")
        return
    yield ok("starts")


SERVICE_CHECKS: tuple[Check[Examination], ...] = (
    Check(name="daemon", look=look_at_daemon, needs=("settings",)),
    Check(name="ports", look=look_at_ports, needs=("settings",)),
    Check(name="superlink", look=look_at_superlink, limit_seconds=_IMPORT_SECONDS + 5),
    Check(name="adding_worker", look=look_at_adding_worker, limit_seconds=70.0),
    Check(name="packages", look=lambda _: look_at_packages()),
    Check(name="shadowing", look=lambda _: [look_at_shadows()]),
    Check(name="telemetry", look=lambda _: [look_at_telemetry()]),
)
