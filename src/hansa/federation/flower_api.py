"""A client of Flower's protobuf-over-HTTP interface with bounds on everything that the other side sends.

Flower's own client reads answers of any length, follows redirects, shows no client certificate and ends the process
at a version that it does not like. This one does none of that. Both sides use it: a participant through TLS, the
coordinator on its loopback interface.
"""

import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import httpx

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

MEDIA_TYPE = "application/protobuf"
MOST_SKEW_SECONDS = 300.0
_MOST_ERROR_BYTES = 4096
# Refusals of the TLS front, by the code in their body.
_REFUSALS: dict[str, type[Error]] = {
    kind.code: kind for kind in (CertificateRejected, ForeignNode, MessageTooLarge, CoordinatorUnreachable)
}


class Protobuf(Protocol):
    """What every generated message class has."""

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:
        """Give the message's bytes."""

    def ParseFromString(self, serialized: bytes) -> int:
        """Read the message from bytes."""


R = TypeVar("R", bound=Protobuf)


class FlowerApi:
    """Calls one server; any thread may use it.

    Args:
        base_url: `http://127.0.0.1:PORT` or `https://HOST:PORT`.
        tls: TLS settings; None for a server on the loopback interface.
        headers: Gives headers for each call, such as those of a node's authentication.
        most_bytes: Most bytes of a request and of an answer.
        keepalive_seconds: How long an idle connection is kept; below what the server keeps it.

    Attributes:
        clock_offset_seconds: How far the server's clock was ahead of this one at the last answer.

    Guarantees:
        - Whatever the server sends, only errors of hansa are raised, and no more than `most_bytes` of it are read.
        - Proxies that the environment names, redirects and compressed answers are not followed.
    """

    def __init__(
        self,
        base_url: str,
        *,
        tls: ssl.SSLContext | None = None,
        headers: Callable[[], Mapping[str, str]] = dict,
        most_bytes: int,
        timeout_seconds: float = 30.0,
        keepalive_seconds: float = 3.0,
    ) -> None:
        self._headers, self._most_bytes, self._timeout_seconds = headers, most_bytes, timeout_seconds
        self.clock_offset_seconds = 0.0
        self._client = httpx.Client(
            base_url=base_url,
            verify=tls if tls is not None else False,
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(
                max_connections=8, max_keepalive_connections=4, keepalive_expiry=keepalive_seconds
            ),
        )

    def call(
        self,
        path: str,
        request: Protobuf,
        response_type: type[R],
        *,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> R:
        """Call one function of the interface.

        Raises:
            CoordinatorUnreachable: There is no answer in time, or the SuperLink behind the front is restarted.
            CertificateRejected: One side's certificate is not accepted by the other.
            MessageTooLarge: The request or the answer is above the bound; nothing above it was sent or read.
            NodeNotAccepted: The node's authentication does not hold, or it cannot be activated.
            ClockSkew: It does not hold because the clocks are further apart than `MOST_SKEW_SECONDS`.
            FlowerRefused: Any other refusal.
            MalformedMessage: The answer is not one of the kind that was asked for.
        """
        body = request.SerializeToString(deterministic=True)
        if len(body) > self._most_bytes:
            raise MessageTooLarge(f"a request has {len(body)} bytes, the bound is {self._most_bytes}")
        sent = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE, "accept-encoding": "identity"}
        sent |= {**self._headers(), **(headers or {})}
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            with self._client.stream("POST", path, content=body, headers=sent, timeout=seconds) as response:
                self._read_clock(response)
                if response.status_code != httpx.codes.OK:
                    raise self._refusal(path, response)
                answer = self._read(response)
        except (httpx.TransportError, ssl.SSLError) as error:
            raise _failure(error) from error
        result = response_type()
        try:
            result.ParseFromString(answer)
        except Exception as error:  # whatever a parser raises on hostile bytes is the same to us
            raise MalformedMessage(f"the answer to {path} is not protobuf") from error
        return result

    def is_healthy(self) -> bool:
        """Tell whether the server answers at all."""
        try:
            return self._client.get("/health", timeout=2.0).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------------------

    def _read(self, response: httpx.Response) -> bytes:
        """Read an answer whose length was announced; HTTP holds the server to it."""
        announced = response.headers.get("content-length", "")
        if not announced.isascii() or not announced.isdigit() or len(announced) > 12:
            raise MalformedMessage("an answer does not announce its length")
        if int(announced) > self._most_bytes:
            raise MessageTooLarge(f"an answer has {announced} bytes, the bound is {self._most_bytes}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise MalformedMessage("an answer is compressed")
        return b"".join(response.iter_raw())

    def _read_clock(self, response: httpx.Response) -> None:
        try:
            there = parsedate_to_datetime(response.headers["date"])
            self.clock_offset_seconds = (there - datetime.now(UTC)).total_seconds()
        except (KeyError, ValueError, TypeError, OverflowError):
            self.clock_offset_seconds = 0.0

    def _refusal(self, path: str, response: httpx.Response) -> Error:
        status = response.status_code
        told = _told(response)
        kind = _REFUSALS.get(str(told.get("error")))
        if kind is not None:
            return kind(f"the coordinator refuses: {_line(told.get('detail'))}")
        if status in {httpx.codes.UNAUTHORIZED, httpx.codes.PRECONDITION_FAILED}:
            if abs(self.clock_offset_seconds) > MOST_SKEW_SECONDS:
                return ClockSkew(
                    f"the coordinator's clock is {self.clock_offset_seconds:+.0f} s from this one,"
                    f" the bound is {MOST_SKEW_SECONDS:.0f} s"
                )
            return NodeNotAccepted(f"{path} is answered with status {status}: {_line(told.get('detail'))}")
        if status in {httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT}:
            return CoordinatorUnreachable(f"{path} is answered with status {status}")
        return FlowerRefused(f"{path} is answered with status {status}: {_line(told.get('detail'))}")


def _told(response: httpx.Response) -> dict[str, Any]:
    """Read the JSON object in a refusal, as far as there is a short one."""
    body = b""
    for piece in response.iter_raw(_MOST_ERROR_BYTES):
        body += piece
        if len(body) > _MOST_ERROR_BYTES:
            return {}
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _line(detail: object) -> str:
    """Give what the other side said as a short line without control characters."""
    return "".join(c for c in str(detail or "no reason")[:200] if c.isprintable())


def _failure(error: Exception) -> Error:
    """Name a failure of the connection; one of TLS by its reason."""
    for found in _causes(error):
        if isinstance(found, ssl.SSLCertVerificationError):
            return CertificateRejected(
                f"the coordinator shows no valid certificate: {_line(found.verify_message)}"
            )
        if isinstance(found, ssl.SSLError) and "alert" in (found.reason or "").lower():
            return CertificateRejected(f"the coordinator ends TLS: {_line(found.reason)}")
    return CoordinatorUnreachable(f"no answer: {type(error).__name__} {_line(error)}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
