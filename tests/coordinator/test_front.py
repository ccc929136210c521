"""The TLS front: who gets in, what it passes on, and what a client that misbehaves costs."""

import contextlib
import http.client
import http.server
import json
import socket
import ssl
import threading
import time
from base64 import b64encode
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node

from hansa.coordinator.doorbell import Doorbell
from hansa.coordinator.front import serve_front
from hansa.coordinator.front_connection import Limits
from hansa.errors import CertificateRejected, CoordinatorUnreachable, PortInUse, TransportError
from hansa.federation.fleet_messages import WAIT_HEADER, node_number
from hansa.participant.fleet_client import FleetClient, client_tls
from hansa.secure_agg.certificates import RevocationList

pytestmark = pytest.mark.enable_socket

PULL = "/v1/fleet/pull-messages"
QUICK = Limits(
    body_bytes=4096,
    connections=4,
    connections_per_client=2,
    handshakes_per_address=3,
    handshake_seconds=0.4,
    header_seconds=0.4,
    body_seconds=0.4,
    body_bytes_per_second=1 << 20,
    idle_seconds=0.6,
)


class Upstream(http.server.ThreadingHTTPServer):
    """Stands in for the SuperLink: keeps what reaches it, and answers with `body`."""

    def __init__(self):
        self.seen, self.headers, self.body = [], [], b""
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                server.seen.append(self.path)
                server.headers.append({k.lower() for k in self.headers})
                self.send_response(200)
                self.send_header("content-length", str(len(server.body)))
                self.end_headers()
                self.wfile.write(server.body)

            do_GET = do_POST

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def upstream():
    server = Upstream()
    yield server
    server.shutdown()
    server.server_close()


class House:
    """A front before the stand-in, and members."""

    def __init__(self, fleet, folder, upstream, **arguments):
        self.fleet, self.upstream, self.doorbell = fleet, upstream, Doorbell()
        self.authority = fleet.Authority(folder)
        self.authority.issue("coordinator", server=True)
        self.certificates = {name: self.authority.issue(name) for name in ("bank-1", "bank-2")}
        self.keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in self.certificates}
        self.public = {name: pem(key) for name, key in self.keys.items()}
        usual = {
            "superlink": "{}:{}".format(*upstream.server_address),
            "certificate": self.authority.pem("coordinator"),
            "key": self.authority.key("coordinator"),
            "authority": self.authority.der,
            "members": self.public,
            "revoked": RevocationList(self.authority.der, self.authority.revoke()),
        }
        self.opened = contextlib.ExitStack()
        self.front = serve_front(**(usual | arguments))
        self.port = self.front.address[1]

    def tls(self, name, authority=None):
        shown = authority or self.authority
        return client_tls(certificate=shown.pem(name), key=shown.key(name), authority=self.authority.der)

    def client(self, name, node=None, authority=None):
        return FleetClient(
            f"https://127.0.0.1:{self.port}",
            tls=self.tls(name, authority),
            node_key=self.keys[node or name],
            outbox_node_id=7,
        )

    def plain(self):
        """A connection without TLS."""
        return self.opened.enter_context(socket.create_connection(("127.0.0.1", self.port), 5))

    def raw(self, name="bank-1"):
        """A TLS connection to write bytes into."""
        made = self.tls(name).wrap_socket(self.plain(), server_hostname="127.0.0.1")
        return self.opened.enter_context(made)

    def idle(self, name):
        """A connection that the front knows: it has answered one request, and is asked nothing more."""
        made = self.raw(name)
        made.sendall(b"GET /nothing HTTP/1.1\r\nHost: front\r\n\r\n")
        assert made.recv(1) == b"H"
        return made

    def send(self, path, method="POST", node="bank-1", body=b"", headers=None):
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=self.tls("bank-1"), timeout=5
        )
        shown = {"flwr-public-key": b64encode(self.public[node]).decode()} | (headers or {})
        connection.request(method, path, body, shown)
        answer = connection.getresponse()
        told = answer.read()
        connection.close()
        return answer.status, json.loads(told)["error"] if answer.status != 200 else told


def pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def houses(fleet, tmp_path, upstream):
    made = []

    def make(**arguments):
        made.append(House(fleet, tmp_path / f"authority-{len(made)}", upstream, **arguments))
        return made[-1]

    yield make
    for house in made:
        house.opened.close()
        house.front.stop()


@pytest.fixture
def house(houses):
    return houses()


def ends_within(connection, seconds):
    """Whether the other side ends a connection, after whatever it still says."""
    connection.settimeout(seconds)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


# -- who gets in -----------------------------------------------------------------------------------------


def test_a_member_is_passed_on_and_the_superlink_sees_no_header_but_floweres_own(house):
    with house.client("bank-1") as client:
        client.heartbeat()
    house.send(PULL, headers={"x-forwarded-for": "10.0.0.1", "cookie": "a", "flwr-timestamp": "now"})
    assert house.upstream.seen == ["/v1/fleet/send-node-heartbeat", PULL]
    assert not house.upstream.headers[1] & {"x-forwarded-for", "cookie", "authorization"}
    assert {"flwr-timestamp", "flwr-public-key"} <= house.upstream.headers[1]


def test_without_a_certificate_nobody_gets_in(house):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=house.authority.der)
    connection = http.client.HTTPSConnection("127.0.0.1", house.port, context=context, timeout=5)
    with contextlib.closing(connection):
        connection.request("POST", PULL)
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            connection.getresponse()
    plain = house.plain()
    plain.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: a\r\n\r\n")
    assert ends_within(plain, 3.0)
    assert house.upstream.seen == []


@pytest.mark.parametrize(
    ("who", "begin", "end", "why"),
    [
        ("bank-1", -10, -1, "is valid from .* until"),
        ("bank-1", 5, 10, "is valid from .* until"),
        ("bank-9", -1, 12, "'bank-9' is not a member"),
    ],
)
def test_a_certificate_that_is_not_valid_now_or_not_a_members_is_refused_by_name(house, who, begin, end, why):
    house.authority.issue(who, begin, end)
    with house.client(who, node="bank-1") as client, pytest.raises(CertificateRejected, match=why):
        client.heartbeat()
    assert house.upstream.seen == []


def test_a_certificate_of_another_authority_of_the_same_name_is_refused(house, fleet, tmp_path):
    foreign = fleet.Authority(tmp_path / "foreign")
    foreign.issue("bank-1")
    with (
        house.client("bank-1", authority=foreign) as client,
        pytest.raises(CertificateRejected, match="the coordinator ends TLS"),
    ):
        client.heartbeat()
    assert house.upstream.seen == []


def test_a_servers_certificate_is_no_members(house):
    house.authority.issue("bank-1", server=True)
    with house.client("bank-1") as client, pytest.raises(CertificateRejected):
        client.heartbeat()
    assert house.upstream.seen == []


def test_a_client_does_not_speak_to_a_server_of_another_authority(house, fleet, tmp_path):
    foreign = fleet.Authority(tmp_path / "foreign")
    tls = client_tls(
        certificate=house.authority.pem("bank-1"),
        key=house.authority.key("bank-1"),
        authority=foreign.der,
    )
    client = FleetClient(
        f"https://127.0.0.1:{house.port}", tls=tls, node_key=house.keys["bank-1"], outbox_node_id=7
    )
    with client, pytest.raises(CertificateRejected, match="the coordinator shows no valid certificate"):
        client.heartbeat()


def test_a_revoked_certificate_is_refused_at_the_next_handshake_and_cut_off_where_it_is_connected(house):
    with house.client("bank-1") as client, house.client("bank-2") as other:
        client.heartbeat()
        other.heartbeat()
        idle = house.idle("bank-1")
        house.front.update_revocations(house.authority.revoke(house.certificates["bank-1"]))
        assert ends_within(idle, 10.0)
        with pytest.raises((CertificateRejected, CoordinatorUnreachable)):  # the connection that was open
            client.heartbeat()
        with pytest.raises(CertificateRejected, match="is revoked"):
            client.heartbeat()
        other.heartbeat()
    assert len(house.upstream.seen) == 3


def test_a_request_that_waits_is_cut_off_by_a_revocation(houses):
    house = houses(doorbell=Doorbell())
    with house.client("bank-1") as client:
        client.pull(0.0)  # from now on nothing is expected
        waiting = threading.Thread(target=lambda: suppressed(client.pull, 20.0))
        waiting.start()
        time.sleep(0.3)
        house.front.update_revocations(house.authority.revoke(house.certificates["bank-1"]))
        waiting.join(2.0)
        assert not waiting.is_alive()


def suppressed(function, *arguments):
    with contextlib.suppress(TransportError, CertificateRejected):
        function(*arguments)


def test_an_older_list_is_refused_and_the_known_one_stands(house):
    older = house.authority.revoke()
    house.front.update_revocations(house.authority.revoke(house.certificates["bank-1"]))
    with pytest.raises(CertificateRejected, match="not later"):
        house.front.update_revocations(older)
    with house.client("bank-1") as client, pytest.raises(CertificateRejected, match="is revoked"):
        client.heartbeat()


def test_a_front_without_a_list_says_so(houses):
    with pytest.raises(TransportError, match="without a revocation list"):
        houses(revoked=None).front.update_revocations(b"")


def test_a_certificate_that_ends_while_it_is_connected_is_refused_at_the_next_request(houses, fleet):
    moment = [None]
    house = houses()
    house.front._now = lambda: moment[0] or house.authority.now
    with house.client("bank-1") as client:
        client.heartbeat()
        moment[0] = house.authority.now + 13 * fleet.HOUR
        with pytest.raises(CertificateRejected):
            client.heartbeat()


def test_a_member_that_is_removed_is_cut_off_and_one_that_is_added_gets_in(house):
    idle = house.idle("bank-1")
    house.front.update_members({"bank-2": house.public["bank-2"]})
    assert ends_within(idle, 10.0)
    house.front.update_members(house.public)
    with house.client("bank-1") as client:
        client.heartbeat()


def test_a_renewed_certificate_of_the_front_is_shown_from_then_on(house):
    before = house.raw().getpeercert(binary_form=True)
    renewed = house.authority.issue("coordinator", server=True)
    house.front.update_certificate(house.authority.pem("coordinator"), house.authority.key("coordinator"))
    assert before != renewed == house.raw().getpeercert(binary_form=True)


# -- what passes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/control/register-node"),
        ("POST", "/v1/runtime/acquire-task"),
        ("POST", "/v1/fleet/register-node"),
        ("POST", "/v1/fleet/unregister-node"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "//v1/fleet/pull-messages"),
        ("POST", "/v1/fleet/pull-messages/"),
        ("POST", "/v1/fleet/pull-messages?a=1"),
        ("POST", "/V1/fleet/pull-messages"),
        ("POST", "http://127.0.0.1/v1/control/start-run"),
        ("GET", "/v1/fleet/pull-messages"),
        ("DELETE", "/v1/fleet/pull-messages"),
        ("GET", "/health"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
    ],
)
def test_nothing_passes_but_the_functions_that_a_node_needs(house, method, path):
    assert house.send(path, method) == (404, "path_refused")
    assert house.upstream.seen == []
    assert house.front.counts["path_refused"] == 1


def test_no_participant_speaks_as_another_node(house):
    assert house.send(PULL, node="bank-2") == (403, "foreign_node")
    activate = ActivateNodeRequest(public_key=house.public["bank-2"]).SerializeToString()
    assert house.send("/v1/fleet/activate-node", body=activate) == (403, "foreign_node")
    for shown in ("", "!", b64encode(b"x").decode()):
        assert house.send(PULL, headers={"flwr-public-key": shown}) == (403, "foreign_node")
    assert house.upstream.seen == []


@pytest.mark.parametrize(
    ("source", "messages", "answer"),
    [(7, 1, 200), (8, 1, (403, "foreign_node")), (7, 2, (400, "malformed_message"))],
)
def test_a_reply_is_in_its_senders_name_and_alone(house, source, messages, answer):
    reply = Message(metadata=Metadata(src_node_id=source))
    body = PushMessagesRequest(
        node=Node(node_id=7),
        messages_list=[reply] * messages,
        message_object_trees=[ObjectTree(object_id="a")] * messages,
    ).SerializeToString()
    got = house.send("/v1/fleet/push-messages", body=body)
    assert got == answer if isinstance(answer, tuple) else got[0] == answer
    assert len(house.upstream.seen) == (answer == 200)


def test_what_is_not_protobuf_is_refused(house):
    assert house.send(PULL, body=b"\xff" * 20) == (400, "malformed_message")
    assert house.upstream.seen == []


def test_a_superlink_that_is_away_is_named(house):
    house.upstream.shutdown()
    house.upstream.server_close()
    with house.client("bank-1") as client, pytest.raises(CoordinatorUnreachable, match="being restarted"):
        client.heartbeat()


# -- waiting for messages --------------------------------------------------------------------------------


def pull(house, wait):
    """Ask for a message; give the seconds it took."""
    began = time.monotonic()
    body = PullMessagesRequest(node=Node(node_id=7)).SerializeToString()
    status, _ = house.send(PULL, body=body, headers={WAIT_HEADER: str(wait)})
    assert status == 200
    return time.monotonic() - began


def test_a_node_waits_until_a_message_is_announced_and_costs_no_call_until_then(houses):
    bell = Doorbell()
    house = houses(doorbell=bell)
    number = node_number(house.public["bank-1"])
    assert pull(house, 0.6) >= 0.6  # nothing is there: asked at the beginning and at the end
    assert len(house.upstream.seen) == 2
    ringing = threading.Timer(0.3, lambda: (setattr(house.upstream, "body", b"\n\x00"), bell.ring(number)))
    ringing.start()
    assert 0.2 < pull(house, 10) < 3.0
    assert len(house.upstream.seen) == 3
    for wait in ("nan", "-1", "x" * 40, "0"):
        assert pull(house, wait) < 3.0


def test_a_message_is_not_fetched_for_a_client_that_is_gone(houses):
    bell = Doorbell()
    house = houses(doorbell=bell)
    number = node_number(house.public["bank-1"])
    pull(house, 0)
    body = PullMessagesRequest(node=Node(node_id=7)).SerializeToString()
    head = (
        f"POST {PULL} HTTP/1.1\r\nhost: a\r\nflwr-public-key: {b64encode(house.public['bank-1']).decode()}\r\n"
        f"{WAIT_HEADER}: 5\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    connection = house.raw()
    connection.sendall(head.encode() + body)
    time.sleep(0.3)
    connection.close()
    time.sleep(0.3)
    seen = len(house.upstream.seen)
    bell.ring(number)
    time.sleep(0.3)
    assert len(house.upstream.seen) == seen
    assert bell.expects(number)


# -- clients that misbehave ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/fleet/pull",
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: a\r\nx: ",
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nabc",
        b"nonsense\r\n\r\n",
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 70000,
    ],
    ids=["silent", "half a line", "half a header", "half a body", "no HTTP", "endless header"],
)
def test_a_client_that_is_slow_silent_or_talks_nonsense_is_gone_soon(houses, sent):
    house = houses(limits=QUICK)
    connection = house.raw()
    with contextlib.suppress(OSError):
        connection.sendall(sent)
    assert ends_within(connection, 3.0)
    assert house.upstream.seen == []


def test_drops_of_a_header_do_not_buy_time(houses):
    house = houses(limits=QUICK)
    connection, began = house.raw(), time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - began < 5.0:
            connection.sendall(b"x")
            time.sleep(0.05)
    assert time.monotonic() - began < 3.0


def test_a_handshake_that_does_not_come_is_given_up(houses):
    house = houses(limits=QUICK)
    silent = house.plain()
    assert ends_within(silent, 3.0)
    plain = house.plain()
    plain.sendall(b"GET /v1/fleet/pull-messages HTTP/1.1\r\nhost: a\r\n\r\n")
    assert ends_within(plain, 3.0)
    assert house.front.counts["tls_refused"] == 2


def test_handshakes_that_fail_again_and_again_write_a_few_lines(houses, caplog):
    house = houses()
    for number in range(1, 51):
        plain = house.plain()
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert ends_within(plain, 3.0)
        until = time.monotonic() + 10
        while house.front.counts["tls_refused"] < number:
            assert time.monotonic() < until
            time.sleep(0.001)
    written = [record for record in caplog.records if "tls_refused" in record.getMessage()]
    assert 1 <= len(written) <= 40  # 20 a minute, of which another one may have begun


def test_silent_handshakes_of_one_address_are_bounded_and_leave_room_afterwards(houses):
    house = houses(limits=QUICK)
    silent = [house.plain() for _ in range(10)]
    time.sleep(0.2)
    assert house.front.counts["too_many_connections"] == 7
    assert all(ends_within(connection, 3.0) for connection in silent)
    with house.client("bank-1") as client:
        client.heartbeat()


def test_one_participant_has_so_many_connections_and_no_more(houses):
    house = houses(limits=QUICK)
    first, second = house.raw(), house.raw()
    time.sleep(0.2)
    assert house.send(PULL) == (429, "too_many_connections")
    with house.client("bank-2") as client:
        client.heartbeat()
    first.close()
    second.close()
    time.sleep(0.3)
    assert house.send(PULL)[0] == 200


def test_connections_that_are_refused_take_no_others_place_either(houses):
    """Each would be waited for until it asks and hears why: of one participant, member or not, there are a few."""
    limits = replace(
        QUICK, connections=12, handshakes_per_address=12, idle_seconds=20.0, handshake_seconds=5.0
    )
    for revoked in (False, True):
        house = houses(limits=limits)
        if revoked:
            house.front.update_revocations(house.authority.revoke(house.certificates["bank-1"]))
        silent = []
        for _ in range(12):
            with contextlib.suppress(OSError):
                silent.append(house.raw())
        time.sleep(0.5)
        assert len(house.front._connections) == 4
        with house.client("bank-2") as client:
            client.heartbeat()
        for connection in silent:
            connection.close()


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        ("content-length: 4097", b" 413 "),
        ("content-length: 99999999999999999999", b" 413 "),
        ("transfer-encoding: chunked", b" 400 "),
    ],
)
def test_a_body_that_is_too_large_or_of_unknown_length_is_not_read(houses, header, answer):
    house = houses(limits=QUICK)
    connection = house.raw()
    connection.sendall(f"POST {PULL} HTTP/1.1\r\nhost: a\r\n{header}\r\n\r\n".encode())
    assert answer in connection.recv(200)
    assert ends_within(connection, 3.0)
    assert house.upstream.seen == []


def test_a_port_that_is_taken_is_named(house, houses):
    with pytest.raises(PortInUse, match=str(house.port)) as found:
        houses(port=house.port)
    assert found.value.exit_status == 69


def test_a_front_without_its_files_does_not_start(houses, tmp_path):
    with pytest.raises(CertificateRejected, match=r"nothing\.pem"):
        houses(certificate=tmp_path / "nothing.pem")


def test_a_front_that_stops_leaves_no_connection(house):
    idle = house.raw()
    house.front.stop()
    assert ends_within(idle, 2.0)
    with pytest.raises(OSError, match=r".*"):
        socket.create_connection(("127.0.0.1", house.port), 1)
