"""A daemon's status on loopback: `/livez`, `/readyz` and `/metrics`, for probes and Prometheus on the same machine.

It answers GET on these three paths and nothing else, and never listens on another address than loopback: who scrapes from
elsewhere puts a proxy of his own before it.
"""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from hansa.errors import InvalidValue, PortInUse

_READ_SECONDS = 5.0
Ready = Callable[[], str]  # why the daemon is not ready; empty if it is


class StatusPage:
    """Serves the status of a daemon; use as a context manager.

    Args:
        registry: Metrics that are shown.
        ready: Says why the daemon is not ready.
        port: Port; 0 for any free one.
        host: Loopback address.

    Raises:
        InvalidValue: The address is not one of loopback.
        PortInUse: Somebody else listens there.

    Attributes:
        port: Port that it listens on.
    """

    def __init__(
        self, registry: CollectorRegistry, *, ready: Ready, port: int = 0, host: str = "127.0.0.1"
    ) -> None:
        if not ip_address(host).is_loopback:
            raise InvalidValue(f"the status page listens on loopback only, not on {host}")
        try:
            self._server = ThreadingHTTPServer((host, port), _handler_of(registry, ready))
        except OSError as error:
            raise PortInUse(f"port {port} on {host} cannot be used: {error.strerror}") from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="status page", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler_of(registry: CollectorRegistry, ready: Ready) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _READ_SECONDS
        server_version, sys_version = "hansa", ""

        def do_GET(self) -> None:
            if self.path == "/livez":
                self._answer(200, b"alive\n")
            elif self.path == "/readyz":
                why = ready()
                self._answer(503 if why else 200, f"{why or 'ready'}\n".encode())
            elif self.path == "/metrics":
                self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
            else:
                self._answer(404, b"not found\n")

        def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: Any) -> None:
            """Keep requests of probes out of the log."""

    return Handler
