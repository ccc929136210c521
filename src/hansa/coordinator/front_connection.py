"""One connection to the TLS front: HTTP/1.1 with bounds on every size and every time."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate

import h11

from hansa.coordinator.front_tls import TlsStream
from hansa.errors import (
    CoordinatorUnreachable,
    Error,
    MalformedMessage,
    MessageTooLarge,
    TooManyConnections,
)

_MOST_HEADER_BYTES = 16384
_STATUS: dict[str, int] = {
    "certificate_rejected": 403,
    "foreign_node": 403,
    "malformed_message": 400,
    "message_too_large": 413,
    "too_many_connections": 429,
    "coordinator_unreachable": 503,
    "path_refused": 404,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds of the front.

    Attributes:
        body_bytes: Most bytes of a request's body, and of the SuperLink's answer.
        connections: Connections of all clients together, those included whose handshake is not over.
        connections_per_client: Connections of one participant; as many again are told that they are too many, and no more.
        handshakes_per_address: Handshakes of one address at a time.
        handshake_seconds: Longest TLS handshake.
        header_seconds: Longest time from a request's first byte to the end of its headers.
        body_seconds: Time for a body, beside what `body_bytes_per_second` gives.
        body_bytes_per_second: Slowest body that is read to its end.
        idle_seconds: How long a connection may be silent between requests.
        write_seconds: Longest time for a client to take an answer.
        upstream_seconds: Longest time for the SuperLink to answer.
    """

    body_bytes: int = 16 << 20
    connections: int = 1024
    connections_per_client: int = 8
    handshakes_per_address: int = 32
    handshake_seconds: float = 10.0
    header_seconds: float = 10.0
    body_seconds: float = 15.0
    body_bytes_per_second: int = 64 << 10
    idle_seconds: float = 60.0
    write_seconds: float = 60.0
    upstream_seconds: float = 30.0

    def verify_room(self, who: str, own: int) -> None:
        """Check how many connections a participant has, whether its certificate is refused or not.

        Raises:
            TooManyConnections: More than it may have.
            Crowding: Many more; those are not even told so, for each would be waited for until it asks.
        """
        if own > 2 * self.connections_per_client:
            raise Crowding
        if own > self.connections_per_client:
            raise TooManyConnections(f"{who} has {own} connections open, too many")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request that came whole; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What goes back."""

    status: int
    body: bytes
    content_type: str = "application/protobuf"


class GoneAway(Exception):
    """The client ended the connection, was too slow, or does not speak HTTP."""


class Crowding(GoneAway):
    """The client has many more connections than it may have; this one is cut without a word."""


class HttpConnection:
    """Reads requests and writes answers.

    Guarantees:
        - A client that sends slowly, or nothing, is gone after the bounds of `Limits`, and holds no more than one body.
        - A body above the bound is refused by its announced length; one without a length is not read.
    """

    def __init__(self, stream: TlsStream, limits: Limits) -> None:
        self._stream, self._limits = stream, limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST_HEADER_BYTES)

    async def next_request(self) -> Request:
        """Read the next request.

        Raises:
            GoneAway: There is none.
            MessageTooLarge: Its body is above the bound.
            MalformedMessage: Its body has no length.
        """
        try:
            await self._first_byte()
            async with asyncio.timeout(self._limits.header_seconds):
                head = await self._event()
            if not isinstance(head, h11.Request):
                raise GoneAway
            headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
            length = self._body_length(headers)
            seconds = self._limits.body_seconds + length / self._limits.body_bytes_per_second
            async with asyncio.timeout(seconds):
                body = await self._body()
            return Request(
                method=head.method.decode("ascii"),
                path=head.target.decode("ascii"),
                headers=headers,
                body=body,
            )
        except (TimeoutError, OSError, h11.RemoteProtocolError, UnicodeDecodeError) as error:
            raise GoneAway from error

    async def answer(self, answer: Answer, *, last: bool = False) -> bool:
        """Write an answer; tell whether another request may come on this connection."""
        headers = [
            ("content-type", answer.content_type),
            ("content-length", str(len(answer.body))),
            ("date", formatdate(time.time(), usegmt=True)),
        ]
        if last or self._http.their_state is not h11.DONE:
            last = True
            headers.append(("connection", "close"))
        reason = b""
        head = self._http.send(h11.Response(status_code=answer.status, headers=headers, reason=reason))
        data = self._http.send(h11.Data(data=answer.body))
        end = self._http.send(h11.EndOfMessage())
        try:
            async with asyncio.timeout(self._limits.write_seconds):
                await self._stream.write(b"".join(piece or b"" for piece in (head, data, end)))
        except (TimeoutError, OSError) as error:
            raise GoneAway from error
        if last or self._http.our_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    # -- inside ------------------------------------------------------------------------------------------

    async def _first_byte(self) -> None:
        if self._http.trailing_data[0]:
            return
        async with asyncio.timeout(self._limits.idle_seconds):
            await self._feed()

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            await self._feed()
        return event

    async def _feed(self) -> None:
        self._http.receive_data(await self._stream.read())

    def _body_length(self, headers: Mapping[str, str]) -> int:
        announced = headers.get("content-length", "" if "transfer-encoding" in headers else "0")
        if not announced.isdigit():
            raise MalformedMessage("a request does not announce its length")
        if len(announced) > 12 or int(announced) > self._limits.body_bytes:
            raise MessageTooLarge(
                f"a request has {announced[:20]} bytes, the bound is {self._limits.body_bytes}"
            )
        return int(announced)

    async def _body(self) -> bytes:
        pieces = []
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise GoneAway
            pieces.append(bytes(event.data))
        return b"".join(pieces)


def refusal(error: Error) -> Answer:
    """Put an error into the form that `flower_api.py` reads at the other side."""
    told = {"error": error.code, "detail": error.message}
    return Answer(
        status=_STATUS.get(error.code, 500), body=json.dumps(told).encode(), content_type="application/json"
    )


def unavailable() -> Answer:
    """Say that the SuperLink behind the front does not answer now."""
    return refusal(CoordinatorUnreachable("Flower's SuperLink is being restarted"))
