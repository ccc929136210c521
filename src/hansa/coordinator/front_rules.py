"""What the TLS front lets through, and from whom: plain functions, without a connection around them."""

import hmac
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

from hansa.errors import CertificateRejected, Error, ForeignNode, MalformedMessage
from hansa.federation.fleet_messages import LONGEST_WAIT_SECONDS, node_number
from hansa.secure_agg.certificates import CLOCK_SKEW, RevocationList

ACTIVATE = "/v1/fleet/activate-node"
DEACTIVATE = "/v1/fleet/deactivate-node"
PULL = "/v1/fleet/pull-messages"
PUSH = "/v1/fleet/push-messages"
# What a node needs of the Fleet API. Registering is not among it: the coordinator registers the members' keys.
PASSED: dict[str, type] = {
    ACTIVATE: ActivateNodeRequest,
    DEACTIVATE: DeactivateNodeRequest,
    "/v1/fleet/send-node-heartbeat": SendNodeHeartbeatRequest,
    PULL: PullMessagesRequest,
    PUSH: PushMessagesRequest,
    "/v1/fleet/get-run": GetRunRequest,
    "/v1/fleet/get-fab": GetFabRequest,
    "/v1/fleet/push-object": PushObjectRequest,
    "/v1/fleet/pull-object": PullObjectRequest,
    "/v1/fleet/confirm-message-received": ConfirmMessageReceivedRequest,
}
_PASSED_HEADERS = frozenset({"content-type", "accept"})
_PASSED_PREFIX = "flwr-"
_MOST_KEY_CHARACTERS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who is at the other end of a connection.

    Attributes:
        participant: Name in the certificate.
        serial: Serial number of the certificate.
        begin: Begin of its validity.
        end: End of its validity.
    """

    participant: str
    serial: int
    begin: datetime
    end: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """Who is let in.

    Attributes:
        members: Flower node key, PEM, of each participant.
        authority: DER of the pinned authority.
        revoked: The authority's revocation list, where the consortium uses one.
    """

    members: Mapping[str, bytes]
    authority: bytes
    revoked: RevocationList | None = None


def read_caller(certificate: bytes | None) -> Caller:
    """Read a client's certificate, whose chain TLS has verified.

    Raises:
        CertificateRejected: There is none, it does not name exactly one participant, or it is not for a client.
    """
    if not certificate:
        raise CertificateRejected("a client shows no certificate")
    try:
        found = x509.load_der_x509_certificate(certificate)
        names = [str(name.value) for name in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        uses = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        begin, end = found.not_valid_before_utc, found.not_valid_after_utc
        serial = found.serial_number
    except Exception as error:  # whatever a parser raises on hostile bytes is the same to us
        raise CertificateRejected("a client's certificate is not well-formed") from error
    if len(names) != 1:
        raise CertificateRejected(f"a client's certificate names {str(names)[:100]}")
    if ExtendedKeyUsageOID.CLIENT_AUTH not in uses:
        raise CertificateRejected(f"the certificate of {names[0]!r} is not for a client")
    return Caller(participant=names[0], serial=serial, begin=begin, end=end)


def verify_caller(caller: Caller, admission: Admission, now: datetime) -> None:
    """Check that a caller is a member, now.

    Raises:
        CertificateRejected: It is no member, its certificate or the authority's has ended or not begun, or it is revoked.
    """
    who = caller.participant
    if who not in admission.members:
        raise CertificateRejected(f"{who!r} is not a member")
    _verify_validity(f"the certificate of {who!r}", caller.begin, caller.end, now)
    authority = x509.load_der_x509_certificate(admission.authority)
    _verify_validity("the authority", authority.not_valid_before_utc, authority.not_valid_after_utc, now)
    if admission.revoked is not None:
        admission.revoked.verify_not_revoked(caller.serial, now)


def _verify_validity(what: str, begin: datetime, end: datetime, now: datetime) -> None:
    if not begin - CLOCK_SKEW <= now <= end + CLOCK_SKEW:
        raise CertificateRejected(
            f"{what} is valid from {begin.isoformat()} until {end.isoformat()}, it is {now.isoformat()}"
        )


def verify_request(path: str, headers: Mapping[str, str], body: bytes, node_key: bytes) -> int:
    """Check that a request is one of the Fleet API, in the name of the node whose key is the caller's.

    That its sender has the key the SuperLink checks: it verifies a signature by it, and that the node id in the
    request is its own.

    Args:
        path: A path in `PASSED`.
        headers: The request's headers, names in lower case.
        body: Protobuf, untrusted.
        node_key: Flower node key of the participant in the certificate.

    Returns:
        Number of the node; see `node_number`.

    Raises:
        ForeignNode: The key is another one, or a reply is in the name of another node.
        MalformedMessage: The body is not the protobuf message that belongs to the path.
    """
    try:
        shown = headers.get(FLEET_HTTP_PUBLIC_KEY_HEADER, "")[:_MOST_KEY_CHARACTERS]
        is_own = hmac.compare_digest(b64decode(shown, validate=True), node_key)
    except ValueError:
        is_own = False
    if not is_own:
        raise ForeignNode("the node key of a request is not that of the participant in the certificate")
    try:
        request = PASSED[path].FromString(body)  # type: ignore[attr-defined]
    except Error:
        raise
    except Exception as error:  # whatever a parser raises on hostile bytes is the same to us
        raise MalformedMessage(f"a request to {path} is not protobuf of its kind") from error
    if isinstance(request, PushMessagesRequest):
        _verify_replies(request)
    elif isinstance(request, ActivateNodeRequest) and not hmac.compare_digest(request.public_key, node_key):
        raise ForeignNode("a node asks for another node to be activated")
    return node_number(node_key)


def _verify_replies(request: PushMessagesRequest) -> None:
    """Check that a reply is in its sender's name: the SuperLink compares it with the request's destination alone."""
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise MalformedMessage("a node sends one reply at a time")
    metadata = request.messages_list[0].metadata
    if metadata.src_node_id != request.node.node_id:
        raise ForeignNode("a reply is in the name of another node than its sender")


def passed_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Give the headers that the SuperLink gets: those of the body's form and Flower's own, none that a proxy would believe."""
    return {
        name: value
        for name, value in headers.items()
        if name in _PASSED_HEADERS or name.startswith(_PASSED_PREFIX)
    }


def longest_wait(headers: Mapping[str, str], name: str) -> float:
    """Read how long a node is ready to wait for a message; 0 for a node that does not say."""
    try:
        wanted = float(headers.get(name, "0")[:8])
    except ValueError:
        return 0.0
    return min(wanted, LONGEST_WAIT_SECONDS) if wanted > 0.0 else 0.0
