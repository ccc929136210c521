"""Who may call: certificates that are none, calls in another member's name, and revocation while a call is on."""

import threading
import time
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from hansa.coordinator.callers import Callers
from hansa.errors import AuthenticationFailed, CertificateRejected, TooManyCalls, UnknownSender, WrongSession
from hansa.federation.aggregator_pb2 import (
    DownloadRequest,
    PackageLeavesRequest,
    UploadBegin,
    UploadChunk,
    UploadPart,
    UploadStatusRequest,
)
from hansa.federation.error_status import CODE_KEY
from hansa.federation.tls_files import TlsSource, channel_credentials
from hansa.federation.transfer import attempt_of, channel_options, header_hash
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES

AT = (1, 0)
DAY = timedelta(days=1)


def attempt(site):
    return attempt_of(site.members.roster.session_id, *AT)


def begin_part(site, header, *, count=3, first=0):
    return UploadPart(
        begin=UploadBegin(
            attempt=attempt(site),
            signed_header=header,
            ciphertext_count=count,
            ciphertext_bytes=count * SEEDED_BYTES,
            first_index=first,
        )
    )


def chunk_part(first, data):
    return UploadPart(chunk=UploadChunk(first_index=first, ciphertexts=data))


def every_call(site, stub, header):
    """Each call of the service, as something to be called."""
    at = attempt(site)
    return [
        lambda: stub.Upload(iter([begin_part(site, header)]), timeout=10),
        lambda: stub.UploadStatus(
            UploadStatusRequest(attempt=at, header_hash=header_hash(header)), timeout=10
        ),
        lambda: list(stub.Download(DownloadRequest(attempt=at), timeout=10)),
        lambda: stub.PackageLeaves(PackageLeavesRequest(attempt=at, dealer="bank-001"), timeout=10),
    ]


def refusal(call):
    """The status and our code of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), dict(caught.value.trailing_metadata() or ()).get(CODE_KEY)


def untouched(service):
    return service.uplink_bytes == 0 and not service.has_upload(*AT, "bank-000")


@pytest.fixture
def service(site):
    return site.service(3)


def test_certificates_that_are_none_do_not_get_through_the_handshake(
    site, service, uploads, network, tmp_path
):
    port, name = site.plane(service).server.bound.port, site.members.names[0]
    header = site.members.header(name, uploads[0])
    foreign = network.Pki(tmp_path / "foreign")
    stranger = foreign.files(name)
    (foreign.folder / "authority.pem").write_bytes((site.pki.folder / "authority.pem").read_bytes())
    expired = site.pki.files("bank-000", begin=-2 * DAY, end=-DAY)
    for files in (stranger, expired):
        for call in every_call(site, site.stub(name, port, files), header):
            status, code = refusal(call)
            assert (status, code) == (grpc.StatusCode.UNAVAILABLE, None)
    later = site.pki.files("bank-000", begin=DAY / 2, end=DAY)
    for call in every_call(site, site.stub(name, port, later), header):
        assert refusal(call) == (grpc.StatusCode.UNAVAILABLE, None)
    bare = grpc.secure_channel(
        f"127.0.0.1:{port}", grpc.ssl_channel_credentials((site.pki.folder / "authority.pem").read_bytes())
    )
    plain = grpc.insecure_channel(f"127.0.0.1:{port}")
    from hansa.federation.aggregator_pb2_grpc import AggregatorStub

    with bare, plain:
        for channel in (bare, plain):
            for call in every_call(site, AggregatorStub(channel), header):
                assert refusal(call)[0] is grpc.StatusCode.UNAVAILABLE
    assert untouched(service)


@pytest.mark.parametrize(
    ("window", "words"), [((-2 * DAY, -DAY), "was valid until"), ((DAY / 2, DAY), "is valid from")]
)
def test_a_participant_whose_own_certificate_is_not_valid_is_told_why(site, service, uploads, window, words):
    port, name = site.plane(service).server.bound.port, site.members.names[0]
    files = site.pki.files(name, begin=window[0], end=window[1])
    with pytest.raises(CertificateRejected, match=words) as caught:
        site.client(name, port, files=files).upload(*AT, site.members.header(name, uploads[0]), uploads[0])
    assert caught.value.exit_status == 4


def test_a_participant_does_not_call_under_anothers_certificate(site, service, uploads):
    port, name = site.plane(service).server.bound.port, site.members.names[0]
    with pytest.raises(CertificateRejected, match="is one of 'bank-001'"):
        site.client(name, port, files=site.files["bank-001"]).download(*AT)


def test_a_coordinator_of_another_authority_is_sent_nothing(site, service, uploads, network, tmp_path):
    foreign = network.Pki(tmp_path / "foreign")
    port = site.plane(service, tls=foreign.source("coordinator", hosts=["127.0.0.1"])).server.bound.port
    name = site.members.names[0]
    started = time.monotonic()
    with pytest.raises(AuthenticationFailed) as caught:
        site.client(name, port).upload(*AT, site.members.header(name, uploads[0]), uploads[0])
    assert caught.value.exit_status == 4
    assert time.monotonic() - started < 10  # it is not tried again


def test_a_member_that_poses_as_the_coordinator_is_sent_nothing(site, service):
    """A participant's certificate is none of a server, so a server with it does not even start."""
    with pytest.raises(CertificateRejected, match="not for a server"):
        site.plane(service, tls=TlsSource(site.files["bank-001"]))


def test_a_server_whose_certificate_has_ended_does_not_start(site, service):
    files = site.pki.files("coordinator", hosts=["127.0.0.1"], begin=-2 * DAY, end=-DAY)
    with pytest.raises(CertificateRejected, match="was valid until"):
        site.plane(service, tls=TlsSource(files))


def test_who_is_no_member_of_a_session_learns_nothing_of_it(site, service, uploads):
    port = site.plane(service).server.bound.port
    stranger = site.pki.files("bank-999")
    header = site.members.header(site.members.names[0], uploads[0])
    stub = site.stub("bank-999", port, stranger)
    for call in every_call(site, stub, header):
        assert refusal(call) == (grpc.StatusCode.FAILED_PRECONDITION, WrongSession.code)
    # The same words as for a session that does not exist.
    with pytest.raises(grpc.RpcError) as none:
        stub.UploadStatus(UploadStatusRequest(attempt=attempt_of(b"x" * 16, *AT)), timeout=10)
    assert none.value.details() == f"'bank-999' has no session {(b'x' * 16).hex()} at this coordinator"
    assert untouched(service)


def test_a_member_that_shows_anothers_header_is_refused(site, service, uploads):
    port, victim = site.plane(service).server.bound.port, site.members.names[0]
    header = site.members.header(victim, uploads[0])
    call = every_call(site, site.stub("bank-001", port), header)[0]
    assert refusal(call) == (grpc.StatusCode.PERMISSION_DENIED, UnknownSender.code)
    assert untouched(service)


def test_a_revoked_certificate_serves_no_call_also_on_an_open_connection(site, service, uploads):
    port, name = site.plane(service).server.bound.port, site.members.names[0]
    site.revoked = site.pki.revoked("bank-004")
    header = site.members.header(name, uploads[0])
    stub = site.stub(name, port)
    held = stub.UploadStatus(UploadStatusRequest(attempt=attempt(site), header_hash=b"x" * 32), timeout=10)
    assert held.ciphertexts_held == 0
    site.revoked = site.pki.revoked("bank-000", "bank-004", number=2)
    for call in every_call(site, stub, header):
        assert refusal(call) == (grpc.StatusCode.UNAUTHENTICATED, CertificateRejected.code)
    with pytest.raises(CertificateRejected) as caught:
        site.client(name, port).upload(*AT, header, uploads[0])
    assert caught.value.exit_status == 4
    site.client("bank-001", port).upload(*AT, site.members.header("bank-001", uploads[1]), uploads[1])
    assert not service.has_upload(*AT, name)


def test_a_certificate_that_is_revoked_while_an_upload_is_on_its_way_stops_it(site, service, uploads):
    port, name = site.plane(service).server.bound.port, site.members.names[0]
    header, go_on = site.members.header(name, uploads[0]), threading.Event()

    def parts():
        yield begin_part(site, header)
        yield chunk_part(0, uploads[0][0])
        assert go_on.wait(10)
        yield chunk_part(1, b"".join(uploads[0][1:]))

    call = site.stub(name, port).Upload.future(parts(), timeout=20)
    until = time.monotonic() + 10
    while service._running._arriving.get(name) is None and time.monotonic() < until:
        time.sleep(0.01)
    site.revoked = site.pki.revoked("bank-000")
    go_on.set()
    assert refusal(call.result) == (grpc.StatusCode.UNAUTHENTICATED, CertificateRejected.code)
    assert not service.has_upload(*AT, name)


def test_a_certificate_that_ends_serves_no_call_over_the_connection_that_it_made(site, service):
    """Connections may outlive certificates; the clock of the gate moves here."""

    class Context:
        def auth_context(self):
            pem = site.files["bank-000"].certificate.read_bytes()
            return {"x509_pem_cert": [pem]}

    class Clock:
        now = datetime.now(UTC)

        def __call__(self):
            return self.now

    clock = Clock()
    callers = Callers(site.pki.authority.certificate, lambda: None, clock=clock)
    with callers.admitted(Context()) as caller:
        assert caller.participant == "bank-000"
        caller.verify()
        clock.now += 2 * DAY
        with pytest.raises(CertificateRejected, match="was valid until"):
            caller.verify()
    with pytest.raises(CertificateRejected):
        callers.identify(Context())


def test_a_connection_without_a_certificate_is_nobody():
    class Context:
        def auth_context(self):
            return {}

    with pytest.raises(AuthenticationFailed):
        Callers(b"", lambda: None).identify(Context())


def test_a_list_that_is_out_of_date_lets_nobody_call(site, service):
    """Withholding the list must not be a way to keep a stolen key in use."""
    from hansa.secure_agg.certificates import RevocationList

    port = site.plane(service).server.bound.port
    site.revoked = RevocationList(site.pki.authority.certificate)
    with pytest.raises(CertificateRejected, match="no revocation list"):
        site.client("bank-000", port).download(*AT)


def test_a_renewed_certificate_of_a_participant_is_used_from_the_next_call_on(site, service, uploads):
    port, name = site.plane(service).server.bound.port, site.members.names[0]
    client = site.client(name, port)
    client.upload(*AT, site.members.header(name, uploads[0]), uploads[0])
    site.revoked = site.pki.revoked(name)
    with pytest.raises(CertificateRejected):
        client.package_leaves(*AT, "bank-001")
    site.pki.files(name)
    service.keep_leaves(*AT, {"bank-001": b"leaves"})
    assert client.package_leaves(*AT, "bank-001") == b"leaves"


# -- calls that never send their request ---------------------------------------------------------------------


class Hanging:
    """Calls of one member over many connections; each has sent its headers, and sends nothing else."""

    def __init__(self, site, port, name, method, connections=10, calls=4):
        self._over, self.channels, self.calls = threading.Event(), [], []
        material = TlsSource(site.files[name]).material()
        options = [*channel_options(), ("grpc.use_local_subchannel_pool", 1)]
        for _ in range(connections):
            channel = grpc.secure_channel(f"127.0.0.1:{port}", channel_credentials(material), options=options)
            self.channels.append(channel)
            call = channel.stream_unary(method, lambda data: data, lambda data: data)
            self.calls += [call.future(self._nothing()) for _ in range(calls)]

    def _nothing(self):
        self._over.wait(60)
        yield from ()

    def ended(self):
        """How many calls the server has ended, and with which of our codes."""
        ended = [call for call in self.calls if call.done()]
        return len(ended), {dict(call.trailing_metadata() or ()).get(CODE_KEY) for call in ended}

    def close(self):
        self._over.set()
        for channel in self.channels:
            channel.close()


@pytest.mark.parametrize("method", ["/hansa.v1.Aggregator/UploadStatus", "/grpc.health.v1.Health/Check"])
def test_a_member_that_opens_calls_and_sends_nothing_takes_no_others_place(
    site, service, monkeypatch, method
):
    monkeypatch.setattr("hansa.coordinator.grpc_server.FIRST_MESSAGE_SECONDS", 2.0)
    port = site.plane(service, most_callers=2, calls_per_caller=2).server.bound.port
    hanging = Hanging(site, port, "bank-000", method)
    try:
        until = time.monotonic() + 20
        while hanging.ended()[0] < 36 and time.monotonic() < until:
            time.sleep(0.05)
        assert TooManyCalls.code in hanging.ended()[1]  # or refused by gRPC, where too many came at once
        question = UploadStatusRequest(attempt=attempt(site), header_hash=b"x" * 32)
        assert site.stub("bank-001", port).UploadStatus(question, timeout=10).ciphertexts_held == 0
        while hanging.ended()[0] < 40 and time.monotonic() < until:
            time.sleep(0.05)
        assert hanging.ended()[0] == 40
    finally:
        hanging.close()


def test_a_call_that_ends_without_a_request_is_malformed(site, service):
    port = site.plane(service).server.bound.port
    material = TlsSource(site.files["bank-000"]).material()
    with grpc.secure_channel(f"127.0.0.1:{port}", channel_credentials(material)) as channel:
        call = channel.stream_unary("/hansa.v1.Aggregator/UploadStatus", lambda x: x, lambda x: x)
        assert refusal(lambda: call(iter(()), timeout=10))[1] == "malformed_message"


def test_nobody_is_told_of_health_without_an_end(site, service):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    port = site.plane(service).server.bound.port
    material = TlsSource(site.files["bank-000"]).material()
    with grpc.secure_channel(f"127.0.0.1:{port}", channel_credentials(material)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
        watching = lambda: next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=10))  # noqa: E731
        assert refusal(watching)[0] is grpc.StatusCode.UNIMPLEMENTED
