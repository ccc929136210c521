"""The client of Flower's interface against servers that misbehave."""

import http.server
import threading
import time
from email.utils import formatdate

import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse

from hansa.errors import (
    CertificateRejected,
    ClockSkew,
    CoordinatorUnreachable,
    Error,
    FlowerRefused,
    ForeignNode,
    MalformedMessage,
    MessageTooLarge,
    NodeNotAccepted,
)
from hansa.federation.flower_api import FlowerApi

pytestmark = pytest.mark.enable_socket


class Server(http.server.ThreadingHTTPServer):
    """Answers every request as told: status, headers, body."""

    def __init__(self):
        self.status, self.sent, self.body, self.seen = 200, {}, b"", []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                server.seen.append(dict(self.headers))
                self.send_response_only(server.status)
                for name, value in ({"content-length": len(server.body)} | server.sent).items():
                    if value is not None:
                        self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(server.body)
                self.close_connection = True

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def api(server):
    with FlowerApi(
        "http://{}:{}".format(*server.server_address), most_bytes=1000, timeout_seconds=2.0
    ) as made:
        yield made


def call(api):
    return api.call("/v1/fleet/activate-node", ActivateNodeRequest(), ActivateNodeResponse)


def test_an_answer_is_read(server, api):
    server.body = ActivateNodeResponse(node_id=5).SerializeToString()
    assert call(api).node_id == 5
    assert server.seen[0]["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("sent", "body", "kind"),
    [
        ({"content-length": 1001}, b"", MessageTooLarge),
        ({"content-length": 10**15}, b"", MalformedMessage),
        ({"content-length": None}, b"", MalformedMessage),
        ({"content-length": None, "transfer-encoding": "chunked"}, b"0\r\n\r\n", MalformedMessage),
        ({"content-encoding": "gzip"}, b"", MalformedMessage),
        ({"content-length": 500}, b"short", CoordinatorUnreachable),
        ({}, b"\xff" * 9, MalformedMessage),
        ({"content-length": "x"}, b"", (MalformedMessage, CoordinatorUnreachable)),
        ({"date": "no date"}, b"\xff", MalformedMessage),
    ],
)
def test_an_answer_that_is_too_large_unannounced_compressed_cut_or_no_protobuf_is_an_error_of_ours(
    server, api, sent, body, kind
):
    server.sent, server.body = sent, body
    with pytest.raises(kind):
        call(api)


@pytest.mark.parametrize(
    ("status", "body", "kind", "text"),
    [
        (403, b'{"error": "certificate_rejected", "detail": "revoked"}', CertificateRejected, "revoked"),
        (403, b'{"error": "foreign_node", "detail": "x"}', ForeignNode, "x"),
        (413, b'{"error": "message_too_large"}', MessageTooLarge, "no reason"),
        (503, b'{"error": "coordinator_unreachable"}', CoordinatorUnreachable, "no reason"),
        (503, b"<html>", CoordinatorUnreachable, "status 503"),
        (401, b'{"detail": "bad"}', NodeNotAccepted, "bad"),
        (412, b"[]", NodeNotAccepted, "no reason"),
        (500, b'{"detail": "a\\u001b[31mb\\n"}', FlowerRefused, r"a\[31mb$"),
        (404, b"x" * 5000, FlowerRefused, "no reason"),
        (200 + 102, b"", FlowerRefused, "status 302"),
        (403, b'{"error": ["certificate_rejected"]}', FlowerRefused, "no reason"),
        (403, b"[" * 4000, FlowerRefused, "no reason"),
    ],
)
def test_a_refusal_has_its_name_and_says_what_the_other_side_says_on_one_short_line(
    server, api, status, body, kind, text
):
    server.status, server.body = status, body
    server.sent = {"location": "http://127.0.0.1:1/"}
    with pytest.raises(Error, match=text) as found:
        call(api)
    assert type(found.value) is kind
    assert len(found.value.message) < 400
    assert len(server.seen) == 1  # no redirect is followed


@pytest.mark.parametrize(("ahead", "kind"), [(200, NodeNotAccepted), (400, ClockSkew), (-400, ClockSkew)])
def test_a_refusal_for_wrong_clocks_says_so(server, api, ahead, kind):
    server.status, server.sent = 401, {"date": formatdate(time.time() + ahead, usegmt=True)}
    with pytest.raises(kind):
        call(api)
    assert api.clock_offset_seconds == pytest.approx(ahead, abs=2.0)


def test_a_request_above_the_bound_is_not_sent(server, api):
    with pytest.raises(MessageTooLarge, match="the bound is 1000"):
        api.call("/x", ActivateNodeRequest(public_key=b"x" * 1001), ActivateNodeResponse)
    assert server.seen == []


def test_proxies_that_the_environment_names_are_not_used(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with FlowerApi("http://{}:{}".format(*server.server_address), most_bytes=1000) as api:
        call(api)


def test_nobody_there_is_unreachable():
    with FlowerApi("http://127.0.0.1:1", most_bytes=1000) as api:
        assert not api.is_healthy()
        with pytest.raises(CoordinatorUnreachable) as found:
            call(api)
        assert found.value.exit_status == 69
