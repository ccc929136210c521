"""Callers that do not keep to the rules, or stand still, and a coordinator that dies: each has its end, and costs nobody else."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest

from hansa.coordinator.stalls import StallWatch
from hansa.errors import (
    CiphertextSizeMismatch,
    DuplicateMessage,
    MalformedMessage,
    MessageTooLarge,
    OutOfOrder,
    TooManyCalls,
)
from hansa.federation.aggregator_pb2 import (
    Attempt,
    DownloadRequest,
    PackageLeavesRequest,
    UploadBegin,
    UploadChunk,
    UploadPart,
    UploadStatusRequest,
)
from hansa.federation.error_status import CODE_KEY
from hansa.federation.tls_files import TlsSource
from hansa.federation.transfer import HANDSHAKE_MILLISECONDS, MESSAGE_BYTES, attempt_of, header_hash
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES

AT = (1, 0)
NAME = "bank-000"


@pytest.fixture
def service(site):
    return site.service(3)


@pytest.fixture
def header(site, uploads):
    return site.members.header(NAME, uploads[0])


def begin_part(site, header, *, count=3, first=0):
    return UploadPart(
        begin=UploadBegin(
            attempt=attempt_of(site.members.roster.session_id, *AT),
            signed_header=header,
            ciphertext_count=count,
            ciphertext_bytes=count * SEEDED_BYTES,
            first_index=first,
        )
    )


def chunk_part(first, data):
    return UploadPart(chunk=UploadChunk(first_index=first, ciphertexts=data))


def refusal(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), dict(caught.value.trailing_metadata() or ()).get(CODE_KEY)


def held(site, stub, header):
    at = attempt_of(site.members.roster.session_id, *AT)
    question = UploadStatusRequest(attempt=at, header_hash=header_hash(header))
    return stub.UploadStatus(question, timeout=10).ciphertexts_held


def wait_for(condition, seconds=10):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


INVALID, FAILED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


WRONG = [
    (lambda b, u: [], INVALID, MalformedMessage),
    (lambda b, u: [UploadPart()], INVALID, MalformedMessage),
    (lambda b, u: [chunk_part(0, u[0])], INVALID, MalformedMessage),
    (lambda b, u: [b, chunk_part(0, u[0]), b], INVALID, MalformedMessage),
    (lambda b, u: [b, chunk_part(0, u[0]), UploadPart()], INVALID, MalformedMessage),
    (lambda b, u: [b, chunk_part(0, u[0])], FAILED, OutOfOrder),
    (lambda b, u: [b, chunk_part(0, u[0]), chunk_part(0, u[0])], FAILED, OutOfOrder),
    (lambda b, u: [b, chunk_part(0, u[0]), chunk_part(2, u[2])], FAILED, OutOfOrder),
    (lambda b, u: [b, chunk_part(2**32 - 1, u[0])], FAILED, OutOfOrder),
    (lambda b, u: [b, chunk_part(0, b"")], INVALID, CiphertextSizeMismatch),
    (lambda b, u: [b, chunk_part(0, u[0][:-1])], INVALID, CiphertextSizeMismatch),
    (lambda b, u: [b, chunk_part(0, u[0] * 33)], INVALID, MessageTooLarge),
    (lambda b, u: [b, chunk_part(0, b"".join(u) + u[0])], INVALID, CiphertextSizeMismatch),
]


def test_parts_that_are_wrong_or_out_of_order_are_refused_by_name(site, service, uploads):
    port = site.plane(service).server.bound.port
    for number, (parts, status, error) in enumerate(WRONG):
        name, upload = site.members.names[number % 4], uploads[number % 4]
        service.begin(1, 1, number, site.members.names, site.members.expected(3))
        header = site.members.header(name, upload, attempt=number)
        begin = begin_part(site, header)
        begin.begin.attempt.attempt = number
        stub, wrong = site.stub(name, port), parts(begin, upload)
        assert refusal(lambda stub=stub, wrong=wrong: stub.Upload(iter(wrong), timeout=10)) == (
            status,
            error.code,
        ), number
        site.client(name, port).upload(1, number, header, upload)  # it does not stand in the member's own way
        assert service.has_upload(1, number, name)
    assert site.reported == []


def test_a_message_that_is_too_large_is_refused_before_it_is_there(site, service, uploads, header):
    port = site.plane(service).server.bound.port
    parts = iter([begin_part(site, header), chunk_part(0, bytes(MESSAGE_BYTES + 1))])
    status, _ = refusal(lambda: site.stub(NAME, port).Upload(parts, timeout=10))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    huge = UploadPart(begin=UploadBegin(signed_header=bytes(1 << 20)))
    status, _ = refusal(lambda: site.stub(NAME, port).Upload(iter([huge]), timeout=10))
    assert status in (INVALID, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert held(site, site.stub(NAME, port), header) == 0


def test_a_session_id_of_another_length_is_malformed(site, service):
    stub = site.stub(NAME, site.plane(service).server.bound.port)
    for length in (0, 15, 17, 5000):
        at = Attempt(session_id=b"x" * length, round=1)
        for call, request in (
            (stub.UploadStatus, UploadStatusRequest(attempt=at)),
            (
                lambda request, timeout: list(stub.Download(request, timeout=timeout)),
                DownloadRequest(attempt=at),
            ),
            (stub.PackageLeaves, PackageLeavesRequest(attempt=at, dealer="bank-001")),
        ):
            found = refusal(lambda call=call, request=request: call(request, timeout=10))
            assert found == (INVALID, MalformedMessage.code)


def test_bytes_that_are_no_message_end_in_an_error_and_the_server_goes_on(site, service, uploads, header):
    port = site.plane(service).server.bound.port
    site.stub(NAME, port)
    from hansa.federation.tls_files import channel_credentials, read_tls

    credentials = channel_credentials(read_tls(site.files[NAME]))
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        raw = channel.stream_unary("/hansa.v1.Aggregator/Upload")
        for data in (b"\xff", b"\x0a\xff\xff\xff\xff\x7f", os.urandom(100)):
            assert refusal(lambda data=data: raw(iter([data]), timeout=10))[0] in (
                grpc.StatusCode.INTERNAL,
                INVALID,
            )
        assert refusal(lambda: channel.unary_unary("/hansa.v1.Aggregator/Other")(b"", timeout=10))[0] is (
            grpc.StatusCode.UNIMPLEMENTED
        )
    site.client(NAME, port).upload(*AT, header, uploads[0])


def test_a_stream_that_stands_still_is_cut_and_its_upload_goes_on(site, service, uploads, header):
    port = site.plane(service, stall_seconds=0.4).server.bound.port
    never = threading.Event()

    def parts():
        yield begin_part(site, header)
        yield chunk_part(0, uploads[0][0])
        never.wait(20)

    stub = site.stub(NAME, port)
    try:
        assert refusal(lambda: stub.Upload(parts(), timeout=20)) == (grpc.StatusCode.CANCELLED, None)
    finally:
        never.set()
    assert held(site, stub, header) == 1
    site.client(NAME, port).upload(*AT, header, uploads[0])
    assert service.has_upload(*AT, NAME)


def test_who_connects_and_says_nothing_is_let_go(site, service, uploads, header, monkeypatch):
    """A handshake that is not finished holds no thread; others upload meanwhile, and it is closed in ten seconds."""
    assert HANDSHAKE_MILLISECONDS == 10_000
    from hansa.federation import transfer

    monkeypatch.setattr(transfer, "HANDSHAKE_MILLISECONDS", 800)
    port = site.plane(service, most_callers=5).server.bound.port
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    try:
        for end in silent[:25]:
            end.sendall(b"\x16\x03\x01\x02\x00")  # the begin of a handshake
        site.client(NAME, port).upload(*AT, header, uploads[0])
        assert service.has_upload(*AT, NAME)
        for end in silent:
            end.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert end.recv(1 << 12) == b""
    finally:
        for end in silent:
            end.close()


_SERVER = """
import pathlib, sys
from concurrent.futures import ThreadPoolExecutor
import grpc
from hansa.federation.tls_files import TlsFiles, TlsSource, server_credentials
from hansa.federation.transfer import server_options
authority, certificate, key = map(pathlib.Path, sys.argv[1:])
source = TlsSource(TlsFiles(authority=authority, certificate=certificate, key=key))
server = grpc.server(ThreadPoolExecutor(4), options=server_options(4))
print(server.add_secure_port("127.0.0.1:0", server_credentials(source)), flush=True)
server.start()
sys.stdin.read()
"""


def test_however_many_connect_one_tls_context_serves_them_until_the_certificate_is_renewed(
    site, service, uploads, monkeypatch
):
    """gRPC frees the context that it replaces, also one that a handshake beside it has just begun to use."""
    made, make = [], grpc.ssl_server_certificate_configuration
    monkeypatch.setattr(
        grpc, "ssl_server_certificate_configuration", lambda *given: made.append(given) or make(*given)
    )
    port = site.plane(service, tls=TlsSource(site.server_files)).server.bound.port
    for name, upload in zip(site.members.names, uploads, strict=False):
        site.client(name, port).upload(*AT, site.members.header(name, upload), upload)
    assert len(made) == 1
    site.pki.files("coordinator", hosts=["127.0.0.1", "localhost"])
    for name in site.members.names:
        held(site, site.stub(name, port), site.members.header(name, uploads[0]))
    assert len(made) == 2


@pytest.mark.slow
def test_fifty_thousand_connections_that_say_nothing_do_not_end_the_process(site):
    files = [site.server_files.authority, site.server_files.certificate, site.server_files.key]
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, *map(str, files)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        port = int(server.stdout.readline())

        def connect():
            for _ in range(625):
                with contextlib.ExitStack() as open_now:
                    for _ in range(20):
                        open_now.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))

        threads = [threading.Thread(target=connect) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.poll() is None
        with socket.create_connection(("127.0.0.1", port), timeout=20):
            server.stdin.close()
            assert server.wait(20) == 0


def test_a_member_that_lets_its_calls_hang_takes_no_others_place(site, service, uploads, header):
    plane = site.plane(service, calls_per_caller=2, most_callers=5)
    port = plane.server.bound.port
    never, stub = threading.Event(), site.stub(NAME, port)

    def parts():
        yield begin_part(site, header)
        never.wait(60)

    hanging = []
    try:
        for count in (1, 2):  # one after the other: of two that begin at the same time, one may be refused
            hanging.append(stub.Upload.future(parts(), timeout=60))
            wait_for(lambda count=count: plane.callers._calls[NAME] == count, 20)
            wait_for(lambda: NAME in service._running._arriving, 20)
        assert refusal_of(site, stub, header) == TooManyCalls.code
        for name, upload in zip(site.members.names[1:], uploads[1:5], strict=True):
            site.client(name, port).upload(*AT, site.members.header(name, upload), upload)
        assert all(service.has_upload(*AT, name) for name in site.members.names[1:])
    finally:
        for call in hanging:
            call.cancel()
        never.set()
    # A client of ours waits until a call has ended.
    site.client(NAME, port).upload(*AT, header, uploads[0])


def refusal_of(site, stub, header):
    try:
        held(site, stub, header)
    except grpc.RpcError as failed:
        return dict(failed.trailing_metadata() or ()).get(CODE_KEY)
    return None


def test_a_second_upload_of_a_member_is_refused_while_the_first_one_is_on_its_way(
    site, service, uploads, header
):
    port = site.plane(service).server.bound.port
    go_on = threading.Event()

    def parts():
        yield begin_part(site, header)
        yield chunk_part(0, uploads[0][0])
        assert go_on.wait(20)
        yield chunk_part(1, b"".join(uploads[0][1:]))

    first = site.stub(NAME, port).Upload.future(parts(), timeout=20)
    wait_for(lambda: NAME in service._running._arriving)
    other = site.members.header(NAME, uploads[1])
    with pytest.raises(DuplicateMessage):
        site.client(NAME, port).upload(*AT, other, uploads[1])
    go_on.set()
    assert first.result().ciphertext_count == 3


def test_a_reader_that_stands_still_is_let_go(site, service, uploads, long_upload):
    service = site.service(400)
    for number in range(4):
        upload = long_upload(uploads, number, 400)
        service.upload(*AT, site.members.header(site.members.names[number], upload), upload)
    service.close()
    plane = site.plane(service, stall_seconds=0.4)
    request = DownloadRequest(attempt=attempt_of(site.members.roster.session_id, *AT))
    parts = site.stub(NAME, plane.server.bound.port).Download(request, timeout=20)
    assert next(parts).begin.ciphertext_count == 400
    wait_for(lambda: not plane.callers._calls)
    parts.cancel()


def test_a_watch_cancels_what_stands_still_and_nothing_else():
    class Context:
        cancelled = False

        def cancel(self):
            self.cancelled = True

    now = [0.0]
    watch = StallWatch(0.2, clock=lambda: now[0])
    still, ours, moving, gone = Context(), Context(), Context(), Context()
    with watch.watching(still), watch.watching(ours) as waits, watch.watching(moving) as moves:
        with watch.watching(gone):
            pass
        waits.waits_for_us()
        now[0] = 1.0
        moves.moved()
        watch.start()
        wait_for(lambda: still.cancelled)
    watch.stop()
    assert [context.cancelled for context in (ours, moving, gone)] == [False] * 3


SERVER = """
import json, sys
from pathlib import Path
from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.ciphertext_adder import CiphertextAdder
from hansa.coordinator.data_plane import DataPlane
from hansa.federation.tls_files import TlsFiles, TlsSource
from hansa.secure_agg.expected import ExpectedHeader
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.parameters import Terms

given = json.loads(sys.argv[1])
roster = Roster(
    session_id=bytes.fromhex(given["session"]),
    study_id=bytes.fromhex(given["study"]),
    members=tuple((name, bytes.fromhex(key)) for name, key in given["members"]),
)
adder = CiphertextAdder(spool_folder=Path(given["folder"]))
service = AggregationService(roster, Terms(participants=len(roster.members)), new_sums=adder.begin)
service.begin(1, 1, given["attempt"], roster.participants, ExpectedHeader(ciphertext_count=given["count"]))
tls = TlsSource(TlsFiles(**{part: Path(path) for part, path in given["tls"].items()}))
plane = DataPlane(host="127.0.0.1", port=given["port"], tls=tls, revoked=lambda: None, report=print)
plane.aggregator.open_session(service, roster)
with plane:
    print(plane.server.bound.port, flush=True)
    sys.stdin.readline()
    print(json.dumps([service.has_upload(1, given["attempt"], name) for name in roster.participants]), flush=True)
adder.close()
"""


def start_server(site, count, port=0):
    roster, files = site.members.roster, site.server_files
    given = {
        "session": roster.session_id.hex(),
        "study": roster.study_id.hex(),
        "members": [(name, key.hex()) for name, key in roster.members],
        "folder": str(site.folder),
        "attempt": 0,
        "count": count,
        "port": port,
        "tls": {part: str(getattr(files, part)) for part in ("authority", "certificate", "key")},
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", SERVER, json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return process, int(process.stdout.readline())


def test_a_coordinator_that_is_killed_in_the_middle_is_sent_the_upload_again_when_it_is_back(
    site, uploads, long_upload
):
    count = 640
    upload = long_upload(uploads, 0, count)
    server, port = start_server(site, count)
    second = None
    proxy = site.proxy(port, cut_up_after=count * SEEDED_BYTES // 2)
    errors = []

    def send():
        try:
            site.client(NAME, proxy.port, deadline_seconds=60.0).upload(
                *AT, site.members.header(NAME, upload), upload
            )
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=send)
    try:
        thread.start()
        assert proxy.was_cut.wait(20)
        os.killpg(server.pid, signal.SIGKILL)  # aggregator and adder
        server.wait()
        assert not list(Path(site.folder).glob("*spool*"))  # the spool had no name; nothing is left of it
        second, proxy.to = start_server(site, count)
        thread.join(60)
        assert errors == []
        said, _ = second.communicate("\n", timeout=20)
        assert json.loads(said) == [True, False, False, False, False]
        assert sum(proxy.up[1:]) > count * SEEDED_BYTES  # all of it, for nothing was held any more
    finally:
        for process in (server, second):
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                process.stdin.close()
                process.stdout.close()
        thread.join(1)
