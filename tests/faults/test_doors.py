"""The doors of a coordinator that runs as a process, and who may not come in: members and strangers call from this process."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import time
from dataclasses import replace
from datetime import timedelta

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from hansa.demo.cluster import environment, hansa_command
from hansa.errors import (
    CertificateRejected,
    ClockSkew,
    CoordinatorUnreachable,
    Error,
    ForeignNode,
    NodeNotAccepted,
    NotAMember,
)
from hansa.federation import flower_api
from hansa.federation.aggregator_pb2 import UploadBegin, UploadPart
from hansa.federation.aggregator_pb2_grpc import AggregatorStub
from hansa.federation.consortium_pb2 import AnswerRequest, VersionsRequest
from hansa.federation.consortium_pb2_grpc import ConsortiumStub
from hansa.federation.enrolment_pb2 import SignedDocument
from hansa.federation.enrolment_pb2_grpc import EnrolmentStub
from hansa.federation.tls_files import TlsSource
from hansa.participant import fleet_client as fleet_client_module
from hansa.participant.consortium_client import ConsortiumClient
from hansa.participant.coordinator_channel import CoordinatorChannel, Patience
from hansa.participant.fleet_client import FleetClient, client_tls
from hansa.secure_agg.certificates import utc_now

pytestmark = pytest.mark.enable_socket

OVERSIZE = bytes(80 << 20)
HANDSHAKES = 12
DAY = timedelta(days=1)
MINUTES = timedelta(minutes=10)
WINDOWS = {"expired": (-9 * DAY, -DAY), "not-yet-valid": (DAY, 9 * DAY), "foreign": (-DAY, DAY)}


@pytest.fixture(scope="module")
def consortium(make_consortium):
    found = make_consortium(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("GRPC_VERBOSITY", raising=False)  # Flower sets it in this process
        found.run_coordinator()
    return found


@pytest.fixture
def bank(consortium):
    return consortium.places["bank-1"]


@pytest.fixture
def shown(consortium, bank, network, tmp_path):
    """Give TLS files of bank-1 that are wrong in a way, issued by the consortium's authority or another one."""

    def make(way):
        pki = network.Pki(tmp_path / way)
        if way != "foreign":
            pki.authority = consortium.home.authority()
        begin, end = WINDOWS[way]
        return replace(pki.files("bank-1", begin=begin, end=end), authority=bank.tls_files.authority)

    return make


def consortium_call(consortium, place, tls=None, now=utc_now, seconds=5.0):
    """Ask for the revocation list at the consortium's door, as an agent does."""
    channel = CoordinatorChannel(
        f"127.0.0.1:{consortium.ports['consortium']}",
        tls=TlsSource(tls or place.tls_files),
        participant=place.name,
        patience=Patience(deadline_seconds=seconds),
        clock=now,
    )
    with contextlib.closing(channel):
        return ConsortiumClient(place, channel, now).revocations()


def fleet_client(consortium, place, tls=None, key=None):
    files = tls or place.tls_files
    context = client_tls(certificate=files.certificate, key=files.key, authority=place.consortium.authority)
    node_key = load_ssh_private_key((key or place.flower_key_file).read_bytes(), None)
    return FleetClient(f"https://127.0.0.1:{consortium.ports['fleet']}", tls=context, node_key=node_key)


def raw_call(consortium, door, stub, place, call, tls=None):
    """Make a gRPC call with nothing between it and the door; give status, or None where it was answered."""
    files = tls or place.tls_files
    parts = (place.folder / "authority.crt", files.key, files.certificate)
    credentials = grpc.ssl_channel_credentials(*(part.read_bytes() for part in parts))
    options = [("grpc.max_send_message_length", -1)]
    with grpc.secure_channel(f"127.0.0.1:{consortium.ports[door]}", credentials, options) as channel:
        try:
            call(stub(channel))
        except grpc.RpcError as failed:
            return failed.code()
    return None


def is_open(consortium, place):
    """Every door serves a member."""
    consortium_call(consortium, place)
    with fleet_client(consortium, place) as client:
        client.activate()
        client.deactivate()
    ask = lambda stub: stub.Submit(SignedDocument(encoded=b"{}"), timeout=10)  # noqa: E731
    assert raw_call(consortium, "enrolment", EnrolmentStub, place, ask) is grpc.StatusCode.INVALID_ARGUMENT
    begin = [UploadPart(begin=UploadBegin(signed_header=b"x"))]
    upload = lambda stub: stub.Upload(iter(begin), timeout=10)  # noqa: E731
    assert (
        raw_call(consortium, "aggregator", AggregatorStub, place, upload) is grpc.StatusCode.INVALID_ARGUMENT
    )
    return True


# -- who may not come in -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WINDOWS)
def test_a_certificate_that_is_none_opens_no_door_and_its_owner_is_told(consortium, bank, shown, way):
    tls = shown(way)
    with pytest.raises(CertificateRejected):
        consortium_call(consortium, bank, tls)  # found before anything is sent
    for door, stub, call in (
        ("consortium", ConsortiumStub, lambda stub: stub.Versions(VersionsRequest(), timeout=5)),
        ("aggregator", AggregatorStub, lambda stub: stub.Upload(iter([UploadPart()]), timeout=5)),
    ):
        assert raw_call(consortium, door, stub, bank, call, tls) is grpc.StatusCode.UNAVAILABLE
    with (
        fleet_client(consortium, bank, tls) as client,
        pytest.raises((CertificateRejected, CoordinatorUnreachable)),
    ):
        client.activate()
    assert is_open(consortium, bank)


def test_a_member_that_answers_as_another_is_refused_by_name(consortium, bank):
    other = consortium.places["bank-2"]
    with fleet_client(consortium, bank, tls=other.tls_files) as client, pytest.raises(ForeignNode):
        client.activate()  # the certificate of bank-2 with the node key of bank-1
    with pytest.raises(CertificateRejected, match="is one of 'bank-2'"):
        consortium_call(consortium, bank, other.tls_files)


def test_a_revocation_closes_every_door_at_once(consortium):
    place = consortium.places["bank-4"]
    with fleet_client(consortium, place) as client:
        client.activate()
        consortium.revoke("bank-4")
        began = time.monotonic()
        with pytest.raises(CertificateRejected):
            consortium_call(consortium, place)
        refused = None
        while refused is None:
            assert time.monotonic() - began < 5.0  # half a second on a machine with nothing else to do
            try:
                client.heartbeat()
            except Error as error:
                refused = error
    assert isinstance(refused, (CertificateRejected, NotAMember, NodeNotAccepted, CoordinatorUnreachable))
    assert is_open(consortium, consortium.places["bank-1"])


@pytest.mark.parametrize("shift", [-MINUTES, MINUTES, -DAY, 2000 * DAY])
def test_a_clock_that_is_off_does_no_harm_or_is_named_where_it_is(consortium, bank, shift):
    clock = lambda: utc_now() + shift  # noqa: E731
    if abs(shift) < DAY:
        assert consortium_call(consortium, bank, now=clock).number
        return
    with pytest.raises(CertificateRejected, match=r"valid (from|until) "):
        consortium_call(consortium, bank, now=clock)


def test_a_node_whose_clock_is_ten_minutes_off_is_told_so(consortium, bank, monkeypatch):
    real = flower_api.datetime

    class Late(real):
        @classmethod
        def now(cls, zone=None):
            return real.now(zone) - MINUTES

    for module in (fleet_client_module, flower_api):
        monkeypatch.setattr(module, "datetime", Late)
    monkeypatch.setattr(Late, "fromtimestamp", real.fromtimestamp, raising=False)
    with fleet_client(consortium, bank) as client, pytest.raises(ClockSkew):
        client.activate()


# -- who is slow or greedy -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_silent_connections_keep_nobody_out_and_are_closed(consortium, bank):
    silent = []
    for door in ("fleet", "aggregator", "consortium", "enrolment"):
        for number in range(HANDSHAKES):
            connection = socket.create_connection(("127.0.0.1", consortium.ports[door]), timeout=30)
            if number % 2:  # the begin of a TLS handshake, and no more of it
                connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
            silent.append(connection)
    assert is_open(consortium, bank)
    for connection in silent:
        with contextlib.suppress(ConnectionError):
            while connection.recv(4096):  # a server may say a word before it goes
                pass
        connection.close()
    assert is_open(consortium, bank)


@pytest.mark.slow
def test_a_request_that_comes_in_drops_is_cut_off(consortium, bank):
    files = bank.tls_files
    context = client_tls(certificate=files.certificate, key=files.key, authority=bank.consortium.authority)
    plain = socket.create_connection(("127.0.0.1", consortium.ports["fleet"]), timeout=60)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        connection.settimeout(60)
        began = time.monotonic()
        with contextlib.suppress(OSError, ssl.SSLError):
            for byte in b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 10_000:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - began < 60
    assert is_open(consortium, bank)


def test_rubbish_at_the_doors_writes_no_lines_into_the_log(consortium, bank):
    """Whoever knocks would fill the disk otherwise."""

    def foreign_lines():
        lines = consortium.daemons.log_file("coordinator").read_text(errors="replace").splitlines()
        return [line for line in lines if not line.startswith("{")]

    before = foreign_lines()
    for door in ("aggregator", "consortium", "enrolment"):
        for word in (b"GET / HTTP/1.1\r\n\r\n", bytes(300), b"\x16\x03\x01\x00\x05" + bytes(5)):
            with socket.create_connection(("127.0.0.1", consortium.ports[door]), timeout=30) as connection:
                connection.sendall(word)
                connection.settimeout(30)
                with contextlib.suppress(ConnectionError):
                    while connection.recv(4096):
                        pass
    assert is_open(consortium, bank)
    assert foreign_lines() == before


def test_a_message_above_the_bound_is_read_at_no_door(consortium, bank):
    begin = UploadBegin(signed_header=OVERSIZE)
    calls = {
        "enrolment": (EnrolmentStub, lambda stub: stub.Submit(SignedDocument(encoded=OVERSIZE), timeout=30)),
        "consortium": (
            ConsortiumStub,
            lambda stub: stub.Answer(AnswerRequest(approval=OVERSIZE), timeout=30),
        ),
        "aggregator": (AggregatorStub, lambda stub: stub.Upload(iter([UploadPart(begin=begin)]), timeout=30)),
    }
    for door, (stub, call) in calls.items():
        assert raw_call(consortium, door, stub, bank, call) is grpc.StatusCode.RESOURCE_EXHAUSTED, door
    files = bank.tls_files
    context = client_tls(certificate=files.certificate, key=files.key, authority=bank.consortium.authority)
    plain = socket.create_connection(("127.0.0.1", consortium.ports["fleet"]), timeout=30)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        connection.sendall(
            b"POST /v1/fleet/push-messages HTTP/1.1\r\nhost: a\r\ncontent-length: 9999999999\r\n\r\n"
        )
        assert b" 413 " in connection.recv(200)
    assert is_open(consortium, bank)


# -- two coordinators ----------------------------------------------------------------------------------------


def run_to_its_end(home):
    command = [*hansa_command(), "coordinator", "run", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment(), check=False)
    return done.returncode, done.stderr.decode()


def test_a_second_coordinator_on_one_home_ends_and_says_why(consortium, bank):
    status, said = run_to_its_end(consortium.coordinator)
    assert status == 1
    assert "another coordinator runs on" in said
    assert "[store_in_use]" in said
    assert "hansa: hint: stop it, or give another --home" in said
    assert is_open(consortium, bank)


def test_a_copy_of_the_home_does_not_take_the_ports(consortium, bank, tmp_path):
    copy = shutil.copytree(consortium.coordinator, tmp_path / "copy")
    status, said = run_to_its_end(copy)
    assert status == 69
    assert "[port_in_use]" in said
    assert "hansa: hint:" in said
    assert is_open(consortium, bank)
