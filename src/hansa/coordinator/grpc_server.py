"""The coordinator's gRPC server: mutual TLS on one port, bounds on whoever calls, health (grpc.health.v1)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from hansa.coordinator.callers import CALLS_PER_CALLER
from hansa.coordinator.first_messages import FIRST_MESSAGE_SECONDS, FirstMessages
from hansa.coordinator.stalls import StallWatch
from hansa.errors import ConfigurationError
from hansa.federation.tls_authority import verify_server_certificate
from hansa.federation.tls_files import TlsSource, server_credentials
from hansa.federation.transfer import server_options
from hansa.secure_agg.certificates import utc_now

MOST_CALLERS = 64
_SPARE_THREADS = 8  # for calls that are refused at once
_CALLS_PER_ADDRESS = 32
_STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Where the server listens.

    Attributes:
        host: Name or address.
        port: Port; the one that the system chose where 0 was asked for.
    """

    host: str
    port: int


class GrpcServer:
    """A server for the services that are added to it before `start`; use as a context manager.

    Args:
        host: Address to listen on.
        port: Port; 0 lets the system choose.
        tls: The server's certificate and key, and the authority of those who call.
        most_callers: Participants that may call at the same time.
        calls_per_caller: Calls of each; as `Callers` has it.
        ask_clients: False for a service of those who have no certificate yet: it must find out itself who calls.

    Raises:
        ConfigurationError: The port is in use or the address is not one of this machine.
        CertificateRejected: The server's own certificate is not a valid one of the authority, so no member would connect.

    Guarantees:
        - Nobody without a certificate of the authority reaches a service, where clients are asked for one.
        - Threads, messages, metadata and streams are bounded, whatever callers do; see `FirstMessages` for calls without a request.
        - A connection that does not finish its handshake in ten seconds, or does not answer, is closed.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        tls: TlsSource,
        most_callers: int = MOST_CALLERS,
        calls_per_caller: int = CALLS_PER_CALLER,
        ask_clients: bool = True,
    ) -> None:
        material = tls.material()
        verify_server_certificate(
            material.certificate_der, authority=material.authority_der, now=utc_now(), revoked=None
        )
        threads = most_callers * calls_per_caller + _SPARE_THREADS
        self._stalls = StallWatch(FIRST_MESSAGE_SECONDS)
        # An address may be that of many participants.
        most_calls = min(2 * calls_per_caller if ask_clients else _CALLS_PER_ADDRESS, max(1, threads // 2))
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            interceptors=(FirstMessages(most_calls, self._stalls),),
            options=server_options(2 * calls_per_caller),
            maximum_concurrent_rpcs=threads,
        )
        try:
            credentials = server_credentials(tls, ask_clients=ask_clients)
            found = self._server.add_secure_port(f"{_in_brackets(host)}:{port}", credentials)
        except RuntimeError as error:
            self._server.stop(None)
            raise ConfigurationError(
                f"{host} port {port} cannot be listened on: in use, or no address of this machine",
                hint="stop what listens there, or choose another port",
            ) from error
        self.bound = Bound(host=host, port=found)
        self._health = health.HealthServicer(
            experimental_non_blocking=True, experimental_thread_pool=ThreadPoolExecutor(1)
        )
        self._services: list[str] = [""]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def add(self, name: str, add_to_server: Callable[[Any, Any], None], servicer: object) -> None:
        """Add a service.

        Args:
            name: Its full name, for health.
            add_to_server: The function that was generated for it.
            servicer: What answers its calls.
        """
        add_to_server(servicer, self._server)
        self._services.append(name)

    def start(self) -> None:
        """Take calls, and say so."""
        self._stalls.start()
        self._server.start()
        self.set_serving(is_serving=True)

    def set_serving(self, *, is_serving: bool) -> None:
        """Let health say whether calls are welcome."""
        status = health_pb2.HealthCheckResponse
        for name in self._services:
            self._health.set(name, status.SERVING if is_serving else status.NOT_SERVING)

    def stop(self, grace_seconds: float = _STOP_SECONDS) -> None:
        """Take no more calls, let those in progress end for a while, and close the port."""
        self.set_serving(is_serving=False)
        self._server.stop(grace_seconds).wait()
        self._stalls.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host else host
