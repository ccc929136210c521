"""The SuperLink process: where it listens, what it knows, and how it comes back."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.control_pb2 import StartRunRequest, StartRunResponse
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse

from hansa.coordinator.superlink import SuperLink
from hansa.coordinator.superlink_run import SuperLinkRun
from hansa.errors import InvalidValue, NodeNotAccepted, PortInUse, StoreNotWritable, SuperLinkFailed
from hansa.federation.fleet_messages import EMPTY_BUNDLE, EMPTY_BUNDLE_HASH, canonical_node_key
from hansa.federation.flower_api import FlowerApi

pytestmark = pytest.mark.enable_socket


def public_key():
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def superlink(tmp_path):
    with SuperLink(tmp_path / "superlink") as made:
        yield made


def listening(process_id):
    """Addresses that a process listens on, as in /proc/net/tcp."""
    inodes = set()
    for descriptor in Path(f"/proc/{process_id}/fd").iterdir():
        target = os.readlink(descriptor)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.append(fields[1].split(":")[0])
    return found


def alive(process_id):
    try:
        return Path(f"/proc/{process_id}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_it_listens_on_the_loopback_interface_alone_reports_nothing_and_is_told_nothing_else(
    superlink, tmp_path, monkeypatch
):
    assert listening(superlink.process_id) == ["0100007F"]
    environment = dict(
        entry.split("=", 1)
        for entry in Path(f"/proc/{superlink.process_id}/environ").read_text().split("\0")
        if entry
    )
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_HOME"].startswith(str(tmp_path))
    assert "PYTEST_CURRENT_TEST" not in environment
    arguments = Path(f"/proc/{superlink.process_id}/cmdline").read_text()
    assert "--disable-runtime-dependency-installation" in arguments
    assert superlink.secret.hex() not in arguments
    folder = tmp_path / "superlink"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("superexec.secret", "superlink.log"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_a_task_is_given_to_whoever_has_the_secret_and_to_nobody_else(superlink):
    with FlowerApi(f"http://{superlink.address}", most_bytes=1 << 20) as api:
        start = StartRunRequest(fab=Fab(hash_str=EMPTY_BUNDLE_HASH, content=EMPTY_BUNDLE))
        api.call("/v1/control/start-run", start, StartRunResponse)
        steal = AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
        with pytest.raises(NodeNotAccepted, match="401"):
            api.call("/v1/runtime/acquire-task", steal, AcquireTaskResponse)
        with pytest.raises(NodeNotAccepted, match="401"):
            SuperLinkRun(api, b"x" * 32, 1)
        run = SuperLinkRun(api, superlink.secret, 1)
        run.keep_alive()
        run.stop()


def test_one_that_is_killed_comes_back_on_its_port_and_knows_its_nodes(superlink):
    keys = {"bank-1": public_key(), "bank-2": public_key()}
    superlink.set_members(keys)
    address, first, secret = superlink.address, superlink.process_id, superlink.secret
    assert set(superlink.nodes()) == {canonical_node_key(key) for key in keys.values()}
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while superlink.starts < 2:  # nobody asks for it: its watch does this
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (superlink.address, superlink.ensure_running()) == (address, 2)
    assert superlink.process_id != first
    assert superlink.secret != secret
    assert set(superlink.nodes()) == {canonical_node_key(key) for key in keys.values()}
    superlink.set_members({"bank-2": keys["bank-2"]})
    assert set(superlink.nodes()) == {canonical_node_key(keys["bank-2"])}


def test_it_ends_with_its_parent_whatever_way_that_ends(tmp_path):
    program = (
        "import sys, time, pathlib; from hansa.coordinator.superlink import SuperLink\n"
        "s = SuperLink(pathlib.Path(sys.argv[1])); s.start(); print(s.process_id, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", program, str(tmp_path / "superlink")], stdout=subprocess.PIPE
    )
    with parent:
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    deadline = time.monotonic() + 5
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_port_that_is_taken_is_named_before_anything_is_started(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        superlink = SuperLink(tmp_path / "superlink", port=port)
        with pytest.raises(PortInUse, match=str(port)) as found:
            superlink.start()
    assert (found.value.code, found.value.exit_status) == ("port_in_use", 69)
    assert superlink.process_id is None


def test_a_port_that_somebody_takes_while_it_starts_is_left_for_another(tmp_path, monkeypatch):
    reserve, taken = SuperLink._reserve_port, []

    def reserve_and_lose(self):
        reserve(self)
        if not taken:
            taken.append(socket.create_server(("127.0.0.1", self._port)))

    monkeypatch.setattr(SuperLink, "_reserve_port", reserve_and_lose)
    superlink = SuperLink(tmp_path / "superlink")
    try:
        superlink.start()
        assert superlink.address != f"127.0.0.1:{taken[0].getsockname()[1]}"
        assert superlink.nodes() == {}
        assert superlink.starts == 1
    finally:
        superlink.close()
        taken[0].close()


def test_one_that_does_not_answer_in_time_is_ended_and_named(tmp_path):
    superlink = SuperLink(tmp_path / "superlink", start_seconds=0.2)
    with pytest.raises(SuperLinkFailed, match=r"within 0\.2 s"):
        superlink.start()
    assert superlink.process_id is None


def test_one_that_dies_at_once_is_named_and_started_again_after_longer_and_longer_pauses(
    tmp_path, monkeypatch
):
    superlink = SuperLink(tmp_path / "superlink")
    monkeypatch.setattr(superlink, "_command", lambda: [sys.executable, "-c", "raise SystemExit(3)"])
    seconds = []
    for _ in range(4):
        began = time.monotonic()
        with pytest.raises(SuperLinkFailed, match="status 3"):
            superlink.ensure_running()
        seconds.append(time.monotonic() - began)
    assert seconds[3] > 0.8  # 0.1 s doubled at each failure
    superlink.close()
    with pytest.raises(SuperLinkFailed, match="closed"):
        superlink.ensure_running()


def test_a_folder_that_cannot_be_made_and_a_key_that_flower_does_not_take_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreNotWritable, match="file"):
        SuperLink(tmp_path / "file" / "superlink").start()
    superlink = SuperLink(tmp_path / "superlink")
    other = Ed25519PrivateKey.generate().public_key()
    for key in (b"", b"key", other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)):
        with pytest.raises(InvalidValue, match="Flower"):
            superlink.set_members({"bank-1": key})


def test_a_log_that_has_grown_large_is_put_aside(tmp_path, monkeypatch):
    from hansa.coordinator import superlink as module

    monkeypatch.setattr(module, "_LOG_BYTES", 10)
    (tmp_path / "superlink.log").write_text("x" * 11)
    with module._open_log(tmp_path / "superlink.log") as log:
        log.write(b"new")
    assert (tmp_path / "superlink.log").read_text() == "new"
    assert (tmp_path / "superlink.log.1").read_text() == "x" * 11
