"""A participant's way to the service `Enrolment`, over TLS that is pinned to the consortium's authority."""

from collections.abc import Callable
from typing import Any

import grpc

from hansa.federation.documents import Document, read_document
from hansa.federation.enrolment_pb2 import SignedDocument
from hansa.federation.enrolment_pb2_grpc import EnrolmentStub
from hansa.federation.enrolments import Enrolment
from hansa.federation.error_status import error_of
from hansa.federation.requests import CollectRequest, EnrolmentRequest, RenewalRequest
from hansa.federation.service_errors import ENROLMENT_ERRORS
from hansa.federation.tls_authority import to_pem
from hansa.federation.transfer import channel_options

CALL_SECONDS = 20.0


class EnrolmentClient:
    """Calls the service `Enrolment`; use as a context manager.

    Args:
        address: Host and port, `host:port`; the server's certificate must name the host.
        authority: Certificate of the pinned authority, DER.
        call_seconds: Longest time of a call.

    Guarantees:
        - Nothing is sent to a peer that does not show a certificate of the pinned authority for the address.
        - Whatever a peer answers, it ends in a document that was read strictly or in a named error. The document is not verified
          yet: see `finish_enrolment` and `finish_renewal`.
    """

    def __init__(self, address: str, authority: bytes, *, call_seconds: float = CALL_SECONDS) -> None:
        self._seconds = call_seconds
        credentials = grpc.ssl_channel_credentials(to_pem(authority))
        self._channel = grpc.secure_channel(address, credentials, options=channel_options())
        make_stub: Any = EnrolmentStub  # generated, without types
        self._stub = make_stub(self._channel)

    def submit(self, document: Document[EnrolmentRequest]) -> str:
        """Send a request for enrolment, and return its state.

        Raises:
            CoordinatorUnreachable, AuthenticationFailed: There is no way to the coordinator, or it is another one.
            See `ENROLMENT_ERRORS` for what it can answer.
        """
        state = self._call(self._stub.Submit, document.encode()).state
        return "enrolled" if state == "enrolled" else "requested"

    def collect(self, document: Document[CollectRequest]) -> Document[Enrolment]:
        """Ask for the enrolment; raises as `submit`, and EnrolmentPending before the admin has decided."""
        return read_document(self._call(self._stub.Collect, document.encode()).encoded, Enrolment)

    def renew(self, document: Document[RenewalRequest]) -> Document[Enrolment]:
        """Ask for new certificates; raises as `submit`, and EnrolmentPending where the admin has to make them."""
        return read_document(self._call(self._stub.Renew, document.encode()).encoded, Enrolment)

    def _call(self, method: Callable[..., Any], encoded: bytes) -> Any:
        try:
            return method(SignedDocument(encoded=encoded), timeout=self._seconds, wait_for_ready=False)
        except grpc.RpcError as failed:
            raise error_of(failed, ENROLMENT_ERRORS) from failed

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> "EnrolmentClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
