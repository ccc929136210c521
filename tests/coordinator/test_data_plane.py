"""Uploads and downloads over gRPC on loopback: the same bytes as without a network, and only the rest after a cut."""

import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hansa.errors import (
    AggregateHashMismatch,
    ConfigurationError,
    CoordinatorUnreachable,
    DuplicateMessage,
    PackageLeavesMissing,
    ResultExpired,
    SpoolQuotaExceeded,
    StaleRound,
    StoreNotWritable,
    WrongSession,
)
from hansa.federation.tls_files import TlsSource, channel_credentials, read_tls
from hansa.federation.transfer import UPLOAD_CHUNK, WINDOW_BYTES
from hansa.participant.aggregator_client import GrpcAggregatorClient
from hansa.secure_agg.ciphertext_format import EXPANDED_BYTES, SEEDED_BYTES

AT = (1, 0)


def test_all_that_was_uploaded_comes_back_as_the_sum_as_without_a_network(site, adding, uploads, long_upload):
    count = 3 * UPLOAD_CHUNK + 5
    sent = [long_upload(uploads, number, count) for number in range(5)]
    service = site.service(count)
    port = site.plane(service).server.bound.port
    service.keep_leaves(*AT, {"bank-000": b"leaves"})
    headers = [
        site.members.header(name, upload) for name, upload in zip(site.members.names, sent, strict=True)
    ]
    clients = [site.client(name, port) for name in site.members.names]
    threads = [
        threading.Thread(target=client.upload, args=(*AT, header, upload))
        for client, header, upload in zip(clients, headers, sent, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    service.close()
    expected = (headers, adding.sums_of(sent))
    assert service.download(*AT) == expected
    for client in clients:
        assert client.download(*AT) == expected
        assert client.package_leaves(*AT, "bank-000") == b"leaves"
    assert service.uplink_bytes == sum(map(len, headers)) + 5 * count * SEEDED_BYTES
    assert site.reported == []


def test_an_upload_that_is_cut_at_nine_tenths_goes_on_and_only_the_rest_is_sent(
    site, adding, uploads, long_upload
):
    count = 14 * UPLOAD_CHUNK
    upload, total = long_upload(uploads, 0, count), count * SEEDED_BYTES
    service = site.service(count)
    proxy = site.proxy(site.plane(service).server.bound.port, cut_up_after=int(0.9 * total))
    name = site.members.names[0]
    site.client(name, proxy.port).upload(*AT, site.members.header(name, upload), upload)
    assert len(proxy.up) == 2
    first, second = proxy.up
    assert first >= 0.9 * total
    # What was on its way when the connection broke is lost; it is less than a window and the sockets' buffers.
    assert second < 0.1 * total + WINDOW_BYTES + (2 << 20)
    assert second < total / 2
    assert service.has_upload(*AT, name)
    for other in range(1, 4):
        another, sent = site.members.names[other], long_upload(uploads, other, count)
        service.upload(*AT, site.members.header(another, sent), sent)
    service.close()
    assert service.download(*AT)[1] == adding.sums_of([long_upload(uploads, n, count) for n in range(4)])


def test_a_download_that_is_cut_goes_on_and_only_the_rest_is_sent(site, uploads, long_upload):
    count = 10 * UPLOAD_CHUNK
    service = site.service(count)
    for number in range(4):
        name, sent = site.members.names[number], long_upload(uploads, number, count)
        service.upload(*AT, site.members.header(name, sent), sent)
    service.close()
    total = count * EXPANDED_BYTES
    proxy = site.proxy(site.plane(service).server.bound.port, cut_down_after=int(0.7 * total))
    assert site.client(site.members.names[4], proxy.port).download(*AT) == service.download(*AT)
    assert len(proxy.down) == 2
    assert proxy.down[1] < 0.3 * total + WINDOW_BYTES + (2 << 20)


def test_a_receipt_that_is_lost_costs_a_question_and_no_bytes(site, uploads):
    service = site.service(3)
    port, name = site.plane(service).server.bound.port, site.members.names[0]
    header = site.members.header(name, uploads[0])
    site.client(name, port).upload(*AT, header, uploads[0])
    before = service.uplink_bytes
    again = site.client(name, port)  # as after a restart of the participant
    again.upload(*AT, header, uploads[0])
    assert service.uplink_bytes == before
    with pytest.raises(DuplicateMessage):
        again.upload(*AT, site.members.header(name, uploads[1]), uploads[1])


def test_an_upload_goes_on_when_the_network_is_back(site, uploads, long_upload):
    """Nothing passes for a while, then everything that waited."""
    count = 8 * UPLOAD_CHUNK
    upload, name = long_upload(uploads, 0, count), site.members.names[0]
    service = site.service(count)
    proxy = site.proxy(site.plane(service).server.bound.port)
    proxy.goes_on.clear()
    thread = threading.Thread(
        target=site.client(name, proxy.port).upload, args=(*AT, site.members.header(name, upload), upload)
    )
    thread.start()
    time.sleep(0.3)
    assert not service.has_upload(*AT, name)
    proxy.goes_on.set()
    thread.join(20)
    assert service.has_upload(*AT, name)


def test_a_member_waits_for_a_coordinator_that_comes_later(site, uploads):
    service = site.service(3)
    plane = site.plane(service)
    port, name = plane.server.bound.port, site.members.names[0]
    plane.__exit__(None, None, None)
    header = site.members.header(name, uploads[0])
    with pytest.raises(CoordinatorUnreachable) as caught:
        site.client(name, port, deadline_seconds=0.5).upload(*AT, header, uploads[0])
    assert caught.value.exit_status == 69
    thread = threading.Thread(target=site.client(name, port).upload, args=(*AT, header, uploads[0]))
    thread.start()
    time.sleep(0.3)
    site.plane(service, port=port)
    thread.join(20)
    assert service.has_upload(*AT, name)


def test_a_port_that_is_in_use_is_said_so(site):
    plane = site.plane(site.service(3))
    with pytest.raises(ConfigurationError, match="cannot be listened on"):
        site.plane(port=plane.server.bound.port)


def test_errors_of_the_service_come_out_as_the_same_kinds(site, uploads):
    service = site.service(3)
    plane = site.plane(service)
    port, name = plane.server.bound.port, site.members.names[0]
    client = site.client(name, port)
    with pytest.raises(AggregateHashMismatch):
        client.upload(*AT, site.members.header(name, uploads[1]), uploads[0])
    with pytest.raises(StaleRound):
        client.upload(2, 0, site.members.header(name, uploads[0], round=2), uploads[0])
    with pytest.raises(StaleRound):
        client.download(*AT)
    with pytest.raises(PackageLeavesMissing):
        client.package_leaves(*AT, "bank-001")
    for number in range(4):
        service.upload(*AT, site.members.header(site.members.names[number], uploads[number]), uploads[number])
    service.close()
    service._results._expired_round = 1
    service._results._remove(lambda _: True)
    with pytest.raises(ResultExpired):
        client.download(*AT)
    foreign = GrpcAggregatorClient(site.channel(name, port), b"another session!")
    with pytest.raises(WrongSession):
        foreign.download(*AT)
    plane.aggregator.close_session(site.members.roster.session_id)
    with pytest.raises(WrongSession):
        client.download(*AT)


def test_what_was_not_foreseen_is_reported_here_and_tells_the_caller_nothing(site, uploads, monkeypatch):
    service = site.service(3)
    port = site.plane(service).server.bound.port
    monkeypatch.setattr(service, "package_leaves", lambda *_: 1 / 0)
    stub, request = site.stub(site.members.names[0], port), _leaves_of(site)
    with pytest.raises(grpc.RpcError) as caught:
        stub.PackageLeaves(request, timeout=10)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "division" not in caught.value.details()
    assert [type(error) for error in site.reported] == [ZeroDivisionError]


def _leaves_of(site):
    from hansa.federation.aggregator_pb2 import PackageLeavesRequest
    from hansa.federation.transfer import attempt_of

    return PackageLeavesRequest(attempt=attempt_of(site.members.roster.session_id, *AT), dealer="bank-001")


def test_a_full_disk_is_tried_again_until_there_is_room(site, uploads, monkeypatch):
    from hansa.coordinator import spool

    service = site.service(3)
    port, name, real = site.plane(service).server.bound.port, site.members.names[0], spool.os.pwrite
    failures, has_room = [], threading.Event()

    def pwrite(*arguments):
        if not has_room.is_set():
            failures.append(1)
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(spool.os, "pwrite", pwrite)
    header = site.members.header(name, uploads[0])
    with pytest.raises(StoreNotWritable, match="No space left"):
        site.client(name, port, deadline_seconds=2.0).upload(*AT, header, uploads[0])
    assert len(failures) > 1
    thread = threading.Thread(target=site.client(name, port).upload, args=(*AT, header, uploads[0]))
    thread.start()
    has_room.set()
    thread.join(20)
    assert service.has_upload(*AT, name)


def test_an_upload_over_the_quota_is_refused_by_name(site, uploads):
    service = site.service(3)
    port = site.plane(service, member_bytes=2 * SEEDED_BYTES).server.bound.port
    name = site.members.names[0]
    with pytest.raises(SpoolQuotaExceeded) as caught:
        site.client(name, port).upload(*AT, site.members.header(name, uploads[0]), uploads[0])
    assert caught.value.exit_status == 75
    for cause in (caught.value.__cause__,):
        assert cause.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_health_says_whether_calls_are_welcome(site):
    plane = site.plane(site.service(3))
    credentials = channel_credentials(read_tls(site.files[site.members.names[0]]))
    with grpc.secure_channel(f"127.0.0.1:{plane.server.bound.port}", credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "hansa.v1.Aggregator"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        plane.server.set_serving(is_serving=False)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_renewed_certificate_of_the_server_is_shown_without_a_restart(site, uploads):
    service = site.service(3)
    port = site.plane(service, tls=TlsSource(site.server_files)).server.bound.port
    name = site.members.names[0]
    header = site.members.header(name, uploads[0])
    site.client(name, port, host="localhost").upload(*AT, header, uploads[0])
    site.pki.files("coordinator", hosts=["localhost"])  # 127.0.0.1 is not named any more
    with pytest.raises(Exception, match="not who it should be"):
        site.client(name, port, deadline_seconds=2.0).upload(*AT, header, uploads[0])
    site.client(name, port, host="localhost").upload(*AT, header, uploads[0])
