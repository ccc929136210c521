"""What stands before every call of a gRPC server: how many calls a peer has, and how long it lets the server wait for its request.

gRPC gives a call a thread as soon as its headers are here, and waits in it for the request, without an end and before any code of a
service runs. So whoever opens calls and sends nothing would have all threads. Here a call is counted before its request is waited
for, under the name in the peer's certificate or, where it shows none, under its address.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from hansa.coordinator.stalls import StallWatch
from hansa.errors import MalformedMessage, TooManyCalls
from hansa.federation.error_status import abort

FIRST_MESSAGE_SECONDS = 10.0
_UNSERVED = "/grpc.health.v1.Health/Watch"  # a call without an end; a probe asks with Check


class FirstMessages(grpc.ServerInterceptor):  # type: ignore[misc]
    """An interceptor of all calls.

    Args:
        most_calls: Calls that one peer may have in progress.
        stalls: Ends the calls whose request does not come; its owner starts and stops it.

    Guarantees:
        - A peer that opens calls and sends nothing takes no others' place: beyond its bound it is refused at once, and a call
          without a request ends after the time of `stalls`.
    """

    def __init__(self, most_calls: int, stalls: StallWatch) -> None:
        self._most, self._stalls = most_calls, stalls
        self._lock, self._calls = threading.Lock(), Counter[str]()

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Give the method's handler, so that it is called with a stream of requests, and counted before the first is waited for."""
        handler = continuation(details)
        if handler is None or details.method == _UNSERVED:
            return None
        coding = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:
            behavior = handler.stream_stream or self._with_first(handler.unary_stream)
            return grpc.stream_stream_rpc_method_handler(self._streaming(behavior), *coding)
        behavior = handler.stream_unary or self._with_first(handler.unary_unary)
        return grpc.stream_unary_rpc_method_handler(self._single(behavior), *coding)

    # -- inside ------------------------------------------------------------------------------------------

    def _single(self, behavior: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def call(requests: Any, context: Any) -> Any:
            with self._counted(context):
                return behavior(requests, context)

        return call

    def _streaming(self, behavior: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def call(requests: Any, context: Any) -> Iterator[Any]:
            with self._counted(context):
                yield from behavior(requests, context)

        return call

    def _with_first(self, behavior: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def call(requests: Any, context: Any) -> Any:
            with self._stalls.watching(context):
                request = next(requests, None)
            if request is None:
                abort(context, MalformedMessage("a call without a request"))
            return behavior(request, context)

        return call

    @contextmanager
    def _counted(self, context: Any) -> Iterator[None]:
        peer = _peer(context)
        with self._lock:
            is_over = self._calls[peer] >= self._most
            if not is_over:
                self._calls[peer] += 1
        if is_over:
            abort(context, TooManyCalls(f"{self._most} calls of one peer are in progress, the bound"))
        try:
            yield
        finally:
            with self._lock:
                self._calls[peer] -= 1
                if not self._calls[peer]:
                    del self._calls[peer]


def _peer(context: Any) -> str:
    """Name whoever calls: by its certificate, which TLS has verified, or by its address."""
    named = context.auth_context().get("x509_common_name", ())
    if named:
        return f"name {b' '.join(named).decode(errors='replace')[:200]}"
    address: str = context.peer().rpartition(":")[0]
    return f"address {address}"
