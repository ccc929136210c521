"""The service `Enrolment`: for those who have no certificate yet, and for members whose certificates have ended.

TLS shows only the server here. Who calls is shown by what each document is signed with; a caller is known by its address, and an
address has a bounded number of calls in a minute.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from hansa.coordinator.registry import Registry
from hansa.coordinator.renewals import Renewals
from hansa.errors import TooManyCalls
from hansa.federation.documents import read_document
from hansa.federation.enrolment_pb2 import SignedDocument, SubmitReply
from hansa.federation.error_status import answering
from hansa.federation.requests import CollectRequest, EnrolmentRequest, RenewalRequest
from hansa.secure_agg.certificate_authority import CertificateAuthority

SERVICE_NAME = "hansa.v1.Enrolment"
CALLS_A_MINUTE = 60


class AddressLimit:
    """Bounds the calls of an address in a minute of the clock.

    Args:
        most: Calls of an address.
        clock: Seconds, never going back.

    Guarantees:
        - Memory is bounded by the addresses that call within a minute.
    """

    def __init__(self, most: int = CALLS_A_MINUTE, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock, self._lock = most, clock, threading.Lock()
        self._minute, self._calls = 0, Counter[str]()

    def admit(self, peer: str) -> None:
        """Count a call of a gRPC peer, such as `ipv4:192.0.2.1:40000`; raise TooManyCalls beyond the bound."""
        address = peer.rpartition(":")[0]
        with self._lock:
            minute = int(self._clock() // 60)
            if minute != self._minute:
                self._minute = minute
                self._calls.clear()
            self._calls[address] += 1
            if self._calls[address] > self._most:
                raise TooManyCalls(f"more than {self._most} calls in a minute from one address")


class EnrolmentServicer:
    """Answers the calls of the service `Enrolment`.

    Args:
        registry: Takes requests and gives enrolments.
        renewals: Takes requests for renewal.
        authority: Gives the authority where its key is at hand, None where it is not.
        report: Receives what was not foreseen.
        limit: Bounds the calls of an address.

    Guarantees:
        - Nothing of a document is used before it was read strictly and its signature was checked.
        - What a caller cannot prove changes nothing but the count of wrong requests under an invitation.
    """

    def __init__(
        self,
        registry: Registry,
        renewals: Renewals,
        *,
        authority: Callable[[], CertificateAuthority | None],
        report: Callable[[Exception], None],
        limit: AddressLimit | None = None,
    ) -> None:
        self._registry, self._renewals, self._authority = registry, renewals, authority
        self._report, self._limit = report, limit or AddressLimit()

    # -- the calls: their names are those of the .proto file -------------------------------------------------

    def Submit(self, request: SignedDocument, context: Any) -> SubmitReply:
        """Take a request for enrolment."""
        with answering(context, self._report):
            self._limit.admit(context.peer())
            record = self._registry.submit(read_document(request.encoded, EnrolmentRequest))
        return SubmitReply(state=record.state)

    def Collect(self, request: SignedDocument, context: Any) -> SignedDocument:
        """Give the enrolment to whoever asked for it."""
        with answering(context, self._report):
            self._limit.admit(context.peer())
            found = self._registry.collect(read_document(request.encoded, CollectRequest))
        return SignedDocument(encoded=found.encode())

    def Renew(self, request: SignedDocument, context: Any) -> SignedDocument:
        """Give new certificates to a member that shows its identity key."""
        with answering(context, self._report):
            self._limit.admit(context.peer())
            found = self._renewals.ask(read_document(request.encoded, RenewalRequest), self._authority())
        return SignedDocument(encoded=found.encode())
