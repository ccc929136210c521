"""The TLS front: the only way from outside to the SuperLink.

It ends TLS with client certificates of the pinned authority, lets the Fleet API through and nothing else, and checks
that who speaks in the name of a Flower node is the participant that the node belongs to. A node that asks for
messages may be kept waiting until there is one.
"""

import asyncio
import logging
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from hansa.coordinator.doorbell import Doorbell
from hansa.coordinator.front_connection import (
    Answer,
    Crowding,
    GoneAway,
    HttpConnection,
    Limits,
    Request,
    refusal,
    unavailable,
)
from hansa.coordinator.front_rules import (
    ACTIVATE,
    DEACTIVATE,
    PASSED,
    PULL,
    PUSH,
    Admission,
    Caller,
    longest_wait,
    passed_headers,
    read_caller,
    verify_caller,
    verify_request,
)
from hansa.coordinator.front_tls import TlsStream, server_tls
from hansa.errors import (
    CertificateRejected,
    Error,
    PathRefused,
    PortInUse,
    TooManyConnections,
    TransportError,
)
from hansa.federation.fleet_messages import WAIT_HEADER, canonical_node_key
from hansa.federation.logs import FewLines
from hansa.secure_agg.certificates import RevocationList, utc_now

_START_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Front:
    """A TLS server in a thread of its own.

    Args:
        superlink: Host and port of the SuperLink.
        tls: See `server_tls`.
        admission: Who may connect.
        host: Where to listen.
        port: Where to listen; 0 for any free port.
        doorbell: Where the coordinator's grid announces messages. Without it no node is kept waiting.
        limits: Bounds on sizes, times and connections.
        now: The time.

    Attributes:
        counts: How many requests and connections ended how, by error code or `status_` and status; for metrics.

    Guarantees:
        - Without a certificate of the authority, which is valid now, of a member and not revoked, nothing is passed on.
        - A certificate that ends, or is revoked while it is connected, is cut off; revocation before
          `update_revocations` returns.
        - No request is passed on but those of the Fleet API in the name of the node of the certificate's participant.
        - A client that is slow, silent or greedy costs the bounds in `Limits` and no more, and few lines in the log.
    """

    def __init__(
        self,
        *,
        superlink: str,
        tls: ssl.SSLContext,
        admission: Admission,
        host: str = "127.0.0.1",
        port: int = 0,
        doorbell: Doorbell | None = None,
        limits: Limits | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._superlink, self._tls = superlink, tls
        self._admission = _with_members(admission, admission.members)
        self._host, self._port, self._doorbell = host, port, doorbell
        self._limits, self._now, self._lines = limits or Limits(), now, FewLines()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)
        self._started: Future[int] = Future()
        self._stop = asyncio.Event()  # this and all below belong to the loop's thread
        self._connections: dict[TlsStream, tuple[Caller, asyncio.Task[None] | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        return self._host, self._started.result(0) if self._started.done() else self._port

    def start(self) -> None:
        """Listen.

        Raises:
            PortInUse: Another program listens there, or the address is not one of this machine.
        """
        self._thread.start()
        self._started.result(_START_SECONDS)

    def stop(self) -> None:
        """Cut all connections and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def update_revocations(self, encoded: bytes) -> None:
        """Take another revocation list, and cut off at once whom it names.

        Args:
            encoded: DER, of any origin.

        Raises:
            CertificateRejected: It is not a later list of the authority; the earlier one stands.
            TransportError: This front was made without a list.
        """
        revoked = self._admission.revoked
        if revoked is None:
            raise TransportError("the front was started without a revocation list")
        self._in_loop(lambda: revoked.update(encoded, self._now()))

    def update_members(self, members: Mapping[str, bytes]) -> None:
        """Let exactly these participants in, with these Flower node keys, from now on."""
        wanted = _with_members(self._admission, members)

        def change() -> None:
            self._admission = wanted

        self._in_loop(change)

    def update_certificate(self, certificate: Path, key: Path) -> None:
        """Show another certificate to whoever connects from now on."""
        try:
            self._tls.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise CertificateRejected(f"certificate or key cannot be used: {certificate}") from error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- the loop ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            reason = f"{self._host} port {self._port} cannot be listened on: {error.strerror}"
            self._started.set_exception(PortInUse(reason))
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with socket.create_server((self._host, self._port), family=family, backlog=128) as listener:
            listener.setblocking(False)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=3.0)
            upstream = httpx.AsyncClient(
                base_url=f"http://{self._superlink}",
                trust_env=False,
                limits=limits,
                timeout=self._limits.upstream_seconds,
            )
            async with upstream:
                self._upstream = upstream
                accepting = asyncio.create_task(self._accept(listener))
                self._started.set_result(listener.getsockname()[1])
                await self._stop.wait()
                for task in (accepting, *self._tasks):
                    task.cancel()
                await asyncio.gather(accepting, *self._tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, peer = await self._loop.sock_accept(listener)
            except OSError as error:  # no descriptors left: those in use come back
                logger.error("accept_failed: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            address = str(peer[0])
            if (
                len(self._tasks) >= self._limits.connections
                or self._handshakes[address] >= self._limits.handshakes_per_address
            ):
                self.counts[TooManyConnections.code] += 1
                connection.close()
                continue
            self._handshakes[address] += 1
            task = self._loop.create_task(self._client(connection, address))
            self._tasks.add(task)
            task.add_done_callback(partial(self._over, connection))

    def _over(self, connection: socket.socket, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        connection.close()  # also of a task that was cancelled before it began

    async def _client(self, connection: socket.socket, address: str) -> None:
        stream = TlsStream(connection, self._tls)
        try:
            certificate = await self._shake_hands(stream, address)
            await self._talk(stream, certificate, address)
        except Crowding:
            stream.abort()
        except GoneAway:
            pass
        except OSError as error:
            self._note("tls_refused", address, str(getattr(error, "reason", None) or type(error).__name__))
        except asyncio.CancelledError:
            stream.abort()
            raise
        finally:
            self._connections.pop(stream, None)
            await stream.close()

    async def _shake_hands(self, stream: TlsStream, address: str) -> bytes | None:
        try:
            async with asyncio.timeout(self._limits.handshake_seconds):
                return await stream.shake_hands()
        finally:
            self._handshakes[address] -= 1
            if not self._handshakes[address]:
                del self._handshakes[address]

    async def _talk(self, stream: TlsStream, certificate: bytes | None, address: str) -> None:
        http = HttpConnection(stream, self._limits)
        who, caller, refused = address, None, None
        try:
            caller = read_caller(certificate)
            who = f"{caller.participant!r} at {address}"
            self._connections[stream] = (caller, asyncio.current_task())  # also one that is refused
            own = sum(known.participant == caller.participant for known, _ in self._connections.values())
            self._limits.verify_room(who, own)
            verify_caller(caller, self._admission, self._now())
        except Error as error:
            refused = error
        while True:
            try:
                request = await http.next_request()
                if refused is not None or caller is None:
                    raise refused or CertificateRejected("a client shows no certificate")
                answer = await self._handle(stream, caller, request)
            except Error as error:
                self._note(error.code, who, error.message)
                # A refused certificate ends the connection; so does a body that was not read, by itself.
                last = refused is not None or isinstance(error, CertificateRejected)
                if not await http.answer(refusal(error), last=last):
                    return
                continue
            self.counts[f"status_{answer.status}"] += 1
            if not await http.answer(answer):
                return

    # -- requests ----------------------------------------------------------------------------------------

    async def _handle(self, stream: TlsStream, caller: Caller, request: Request) -> Answer:
        verify_caller(caller, self._admission, self._now())
        if request.method != "POST" or request.path not in PASSED:
            raise PathRefused(f"{request.method[:16]} {request.path[:100]!r} is not passed on")
        node_key = self._admission.members[caller.participant]
        number = verify_request(request.path, request.headers, request.body, node_key)
        if request.path == PULL:
            return await self._pull(stream, request, number)
        answer = await self._forward(request)
        if self._doorbell is not None:
            if request.path == PUSH:
                self._doorbell.reply_came()
            elif request.path in {ACTIVATE, DEACTIVATE}:
                self._doorbell.release(number)  # what waits in its name does so in vain
        return answer

    async def _pull(self, stream: TlsStream, request: Request, node: int) -> Answer:
        """Ask the SuperLink for a message once one is announced, or when the node's wait is over."""
        bell = self._doorbell
        if bell is None:
            return await self._forward(request)
        over_at = self._loop.time() + longest_wait(request.headers, WAIT_HEADER)
        rung, released = asyncio.Event(), bell.releases(node)

        def wake() -> None:
            with suppress(RuntimeError):  # the front stops
                self._loop.call_soon_threadsafe(rung.set)

        bell.listen(node, wake)
        try:
            while True:
                rung.clear()
                is_over = self._loop.time() >= over_at or bell.releases(node) != released
                if is_over or bell.expects(node):
                    if stream.is_gone():
                        raise GoneAway
                    announced = bell.announced(node)
                    answer = await self._forward(request)
                    bell.fetched(node, announced, message=answer.status == 200 and len(answer.body) > 0)
                    if is_over or answer.status != 200 or answer.body:
                        return answer
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(over_at):
                        await rung.wait()
        finally:
            bell.stop_listening(node, wake)

    async def _forward(self, request: Request) -> Answer:
        headers = passed_headers(request.headers)
        try:
            response = await self._upstream.post(request.path, content=request.body, headers=headers)
        except httpx.TransportError as error:
            self._note("superlink_unreachable", self._superlink, type(error).__name__)
            return unavailable()
        kind = response.headers.get("content-type", "application/octet-stream")
        return Answer(status=response.status_code, body=response.content, content_type=kind)

    def _note(self, code: str, who: str, what: str) -> None:
        self.counts[code] += 1
        if (end := self._lines.next(code)) is not None:
            logger.warning("%s: %s: %s%s", code, who, what, end)

    def _in_loop(self, change: Callable[[], None]) -> None:
        """Change what the front goes by, and cut off whoever may not be connected any more."""

        async def apply() -> None:
            change()
            for stream, (caller, task) in list(self._connections.items()):
                try:
                    verify_caller(caller, self._admission, self._now())
                except Error as error:
                    self._note(error.code, repr(caller.participant), error.message)
                    stream.abort()
                    if task is not None:
                        task.cancel()

        asyncio.run_coroutine_threadsafe(apply(), self._loop).result(_START_SECONDS)


def _with_members(admission: Admission, members: Mapping[str, bytes]) -> Admission:
    return replace(admission, members={name: canonical_node_key(key) for name, key in members.items()})


def serve_front(
    *,
    superlink: str,
    certificate: Path,
    key: Path,
    authority: bytes,
    members: Mapping[str, bytes],
    revoked: RevocationList | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    doorbell: Doorbell | None = None,
    limits: Limits | None = None,
) -> Front:
    """Start a front; see `Front` and `server_tls`. `stop` ends it."""
    front = Front(
        superlink=superlink,
        tls=server_tls(certificate=certificate, key=key, authority=authority),
        admission=Admission(members=members, authority=authority, revoked=revoked),
        host=host,
        port=port,
        doorbell=doorbell,
        limits=limits,
    )
    front.start()
    return front
