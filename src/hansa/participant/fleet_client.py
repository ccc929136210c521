"""A node's calls to the Fleet API: TLS with its certificate, and Flower's node authentication."""

import ssl
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from hansa.errors import CertificateRejected, Error, InvalidValue, NodeNotAccepted
from hansa.federation.fleet_messages import MOST_MESSAGE_BYTES, WAIT_HEADER, canonical_node_key
from hansa.federation.flower_api import MOST_SKEW_SECONDS, FlowerApi, Protobuf, R

HEARTBEAT_SECONDS = 10.0  # the shortest that Flower takes; a node counts as away after two without one
_CALL_SECONDS = 30.0
_KEEPALIVE_SECONDS = 30.0


def client_tls(*, certificate: Path, key: Path, authority: bytes) -> ssl.SSLContext:
    """Make TLS settings for a client that trusts one authority and nobody else.

    Args:
        certificate: PEM file with the participant's TLS certificate.
        key: PEM file with its key.
        authority: DER of the pinned authority.

    Raises:
        CertificateRejected: A file cannot be read, or certificate and key do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata=authority)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise CertificateRejected(f"certificate or key for TLS cannot be used: {certificate}") from error
    return context


class FleetClient:
    """Calls the Fleet API in the name of one node; any thread may use it.

    Args:
        url: `https://HOST:PORT` of the coordinator's front.
        tls: See `client_tls`.
        node_key: The node's Flower key, on a NIST curve.
        outbox_node_id: Number under which the SuperLink knew the node last, if it did.
        most_bytes: Most bytes of a message.

    Attributes:
        node_id: Number under which the SuperLink knows the node now.

    Guarantees:
        - No function is called that would bring code: neither bundles nor objects are fetched.
        - Clocks that are up to five minutes apart do not matter; beyond that the error says so.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: ssl.SSLContext,
        node_key: ec.EllipticCurvePrivateKey,
        outbox_node_id: int | None = None,
        most_bytes: int = MOST_MESSAGE_BYTES,
    ) -> None:
        if not url.startswith("https://"):
            raise InvalidValue(f"the coordinator's address is an https URL, not {url[:100]!r}")
        public = node_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self._node_key, self._public = node_key, canonical_node_key(public)
        self._version = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())
        self.node_id = outbox_node_id
        self._ahead_seconds = 0.0
        self._api = FlowerApi(
            url,
            tls=tls,
            headers=self._headers,
            most_bytes=most_bytes + 4096,
            timeout_seconds=_CALL_SECONDS,
            keepalive_seconds=_KEEPALIVE_SECONDS,
        )

    def activate(self) -> int:
        """Tell the SuperLink that the node is there; give the number under which it knows it.

        A SuperLink does not take in a node that it believes to be there still, for up to 20 s after the process
        before this one died. So the node takes its leave first, under the number that it had. Whatever that process
        had fetched and not answered is then sent again.
        """
        if self.node_id is not None:
            with suppress(Error):
                self.deactivate()
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_SECONDS)
        self.node_id = self._call("activate-node", request, ActivateNodeResponse).node_id
        return self.node_id

    def deactivate(self, timeout_seconds: float | None = None) -> None:
        """Take leave, so that the node can come back at any time."""
        request = DeactivateNodeRequest(node_id=self._node().node_id)
        self._call("deactivate-node", request, DeactivateNodeResponse, timeout_seconds=timeout_seconds)

    def heartbeat(self) -> bool:
        """Say that the node is there; tell whether the SuperLink knows it."""
        request = SendNodeHeartbeatRequest(node=self._node(), heartbeat_interval=HEARTBEAT_SECONDS)
        return bool(self._call("send-node-heartbeat", request, SendNodeHeartbeatResponse).success)

    def pull(self, wait_seconds: float) -> ProtoMessage | None:
        """Fetch a message, or None if none comes while the coordinator lets the node wait."""
        answer = self._call(
            "pull-messages",
            PullMessagesRequest(node=self._node()),
            PullMessagesResponse,
            headers={WAIT_HEADER: f"{wait_seconds:.1f}"},
            timeout_seconds=_CALL_SECONDS + wait_seconds,
        )
        return answer.messages_list[0] if answer.messages_list else None

    def push(self, reply: ProtoMessage) -> None:
        """Send a reply, its content inside."""
        reply.metadata.src_node_id = self._node().node_id
        tree = ObjectTree(object_id=reply.metadata.message_id)
        request = PushMessagesRequest(
            node=self._node(),
            messages_list=[reply],
            message_object_trees=[tree],
            clientapp_runtime_list=[0.0],
        )
        self._call("push-messages", request, PushMessagesResponse)

    def bundle_of(self, run_id: int) -> str:
        """Give the hash of the bundle of code that a run has; the bundle itself is never fetched."""
        request = GetRunRequest(node=self._node(), run_id=run_id)
        return str(self._call("get-run", request, GetRunResponse).run.fab_hash)

    def close(self) -> None:
        """Close all connections."""
        self._api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------------------

    def _node(self) -> Node:
        if self.node_id is None:
            raise NodeNotAccepted("the SuperLink has not taken this node in yet")
        return Node(node_id=self.node_id)

    def _call(
        self,
        function: str,
        request: Protobuf,
        response_type: type[R],
        *,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> R:
        path = f"/v1/fleet/{function}"
        try:
            return self._api.call(
                path, request, response_type, headers=headers, timeout_seconds=timeout_seconds
            )
        except NodeNotAccepted:
            # Flower takes signatures from up to five minutes ago, but none from five seconds ahead.
            off_by = self._api.clock_offset_seconds - self._ahead_seconds
            if abs(off_by) < 2.0 or abs(self._api.clock_offset_seconds) > MOST_SKEW_SECONDS:
                raise
            self._ahead_seconds = self._api.clock_offset_seconds
            return self._api.call(
                path, request, response_type, headers=headers, timeout_seconds=timeout_seconds
            )

    def _headers(self) -> dict[str, str]:
        moment = (datetime.now(UTC) + timedelta(seconds=self._ahead_seconds)).isoformat()
        signature = self._node_key.sign(moment.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self._public).decode("ascii"),
            TIMESTAMP_HEADER: moment,
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode("ascii"),
            **self._version,
        }
