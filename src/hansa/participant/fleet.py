"""The participant's node: one long-lived connection to the coordinator, through which requests come and replies go.

It calls and is never called: no port of the institution is open. It runs what the participant installed, and nothing
that arrives. What it owes the coordinator is on disk before it is sent.
"""

import random
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.proto.message_pb2 import Message as ProtoMessage

from hansa.errors import (
    CodeBundleRefused,
    Error,
    FlowerRefused,
    InternalFailure,
    MalformedMessage,
    MessageTooLarge,
)
from hansa.federation.fleet_messages import EMPTY_BUNDLE_HASH, MOST_MESSAGE_BYTES, from_proto, to_proto
from hansa.participant.fleet_client import HEARTBEAT_SECONDS, FleetClient, client_tls
from hansa.participant.outbox import Outbox
from hansa.participant.session_apps import Handler, aborted

_WAIT_SECONDS = 10.0
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 0.25, 5.0
_FETCH_SECONDS = 0.5  # the coordinator's grid fetches a reply within it
_MOST_RUNS = 64
_LEAVE_SECONDS = 5.0  # for a coordinator that may be away


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetState:
    """What the connection does; for status and metrics.

    Attributes:
        connected: Whether the SuperLink has taken the node in and was there at the last call.
        connections: How often it was taken in.
        answered: Requests that were answered.
        error: What was wrong last, None when connected.
    """

    connected: bool
    connections: int
    answered: int
    error: Error | None


class FleetConnection:
    """Connects a participant's handler to the coordinator.

    Args:
        url: `https://HOST:PORT` of the coordinator's front.
        certificate: PEM file with the participant's TLS certificate; it and the key are read again for every
            connection, so renewal needs no restart.
        key: PEM file with its key.
        authority: DER of the pinned authority.
        node_key: The participant's Flower key, on a NIST curve.
        folder: Private folder for replies that wait; one process at a time.
        report: Receives every error, for the participant's own log.
        most_bytes: Most bytes of a message.
        wait_seconds: How long the coordinator may let the node wait for a message, which is what an idle node costs:
            one call in that time.

    Guarantees:
        - It goes on until it is told to stop, whatever the other side does; retries come after 0.25 to 10 s, with
          jitter.
        - A run that brings code is not fetched and its messages are not answered: `code_bundle_refused`.
        - A message above the bound is not read: `message_too_large`.
        - A reply that could not be sent is sent after reconnecting, also by the next process, as long as its request
          wants it.
        - When it is told to stop, the request that is being answered is answered; then it takes its leave.
        - A process that died is replaced without a wait: the next one takes leave for it.
    """

    def __init__(
        self,
        url: str,
        *,
        certificate: Path,
        key: Path,
        authority: bytes,
        node_key: ec.EllipticCurvePrivateKey,
        folder: Path,
        report: Callable[[Error], None],
        most_bytes: int = MOST_MESSAGE_BYTES,
        wait_seconds: float = _WAIT_SECONDS,
    ) -> None:
        self._url, self._node_key, self._folder = url, node_key, folder
        self._certificate, self._key, self._authority = certificate, key, authority
        self._report, self._most_bytes, self._wait_seconds = report, most_bytes, wait_seconds
        self._connections = self._answered = 0
        self._error: Error | None = None
        self._connected, self._waiting = False, threading.Event()
        self._bundles: dict[int, bool] = {}
        self._sent_at = 0.0
        self._abandoned: Callable[[], bool] = lambda: False

    @property
    def state(self) -> FleetState:
        """What the connection does now."""
        return FleetState(
            connected=self._connected,
            connections=self._connections,
            answered=self._answered,
            error=None if self._connected else self._error,
        )

    def run(
        self, handler: Handler, stop: threading.Event, abandoned: Callable[[], bool] = lambda: False
    ) -> None:
        """Answer requests until `stop` is set.

        Args:
            handler: Answers a request; the same request always with the same reply. See `session_handler`.
            stop: Set by whoever wants the node to end, such as a handler of SIGTERM.
            abandoned: Whether the request that is being answered was broken off: then what the handler gives is no reply, none is
                sent, and the next process is asked the same again.

        Raises:
            StoreInUse: Another process serves this node.
            StoreNotWritable: The folder cannot be used, or is full.
            CertificateRejected: Certificate or key cannot be read at the start.
            InvalidValue: The address or the node key cannot be used.
        """
        client_tls(certificate=self._certificate, key=self._key, authority=self._authority)
        failures, self._abandoned = 0, abandoned
        with Outbox(self._folder) as outbox:
            while not stop.is_set():
                known = self._connections
                try:
                    with self._client(outbox) as client:
                        self._connect(client, outbox)
                        self._serve(client, outbox, handler, stop)
                except Error as error:
                    self._note(error)
                failures = 1 if self._connections != known else failures + 1
                stop.wait(_retry_seconds(failures))

    # -- one connection ----------------------------------------------------------------------------------

    def _client(self, outbox: Outbox) -> FleetClient:
        return FleetClient(
            self._url,
            tls=client_tls(certificate=self._certificate, key=self._key, authority=self._authority),
            node_key=self._node_key,
            outbox_node_id=outbox.node_id,
            most_bytes=self._most_bytes,
        )

    def _connect(self, client: FleetClient, outbox: Outbox) -> None:
        outbox.node_id = client.activate()
        self._bundles.clear()  # another SuperLink may use a number again
        for reply in list(outbox.replies()):
            self._send(client, outbox, reply)
        self._connected, self._error = True, None
        self._connections += 1

    def _serve(self, client: FleetClient, outbox: Outbox, handler: Handler, stop: threading.Event) -> None:
        over = threading.Event()
        beating = threading.Thread(
            target=self._beat, args=(client, stop, over), name="fleet-heartbeat", daemon=True
        )
        beating.start()
        try:
            self._answer_all(client, outbox, handler, stop)
        finally:
            self._connected = False
            over.set()
            self._waiting.clear()
            beating.join()
            if stop.is_set():
                self._leave(client)

    def _answer_all(
        self, client: FleetClient, outbox: Outbox, handler: Handler, stop: threading.Event
    ) -> None:
        pause = _SHORTEST_PAUSE_SECONDS
        while not stop.is_set():
            began = time.monotonic()
            self._waiting.set()
            try:
                request = client.pull(self._wait_seconds)
            except (MessageTooLarge, MalformedMessage) as error:
                self._report(error)  # it was delivered, to be dropped: its sender hears nothing
                continue
            finally:
                self._waiting.clear()
            if request is not None and not stop.is_set():
                self._answer(client, outbox, handler, request)
                pause = _SHORTEST_PAUSE_SECONDS
            elif time.monotonic() - began < min(self._wait_seconds, 1.0) / 2:
                stop.wait(pause)  # there is nobody who lets the node wait
                pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)

    def _answer(self, client: FleetClient, outbox: Outbox, handler: Handler, request: ProtoMessage) -> None:
        try:
            message = from_proto(request, self._most_bytes)
            self._verify_no_code(client, message.metadata.run_id)
        except (MalformedMessage, CodeBundleRefused) as error:
            self._report(error)
            return
        answer = self._handled(handler, message)
        if self._abandoned():
            return
        reply = to_proto(answer, token_hex(32))
        if reply.ByteSize() > self._most_bytes:
            self._report(
                MessageTooLarge(f"a reply has {reply.ByteSize()} bytes, the bound is {self._most_bytes}")
            )
            reply = to_proto(aborted(message), token_hex(32))
        outbox.put(reply)
        self._send(client, outbox, reply)
        self._answered += 1

    def _handled(self, handler: Handler, message: Message) -> Message:
        try:
            return handler(message)
        except Exception as error:  # the text of whatever passes here must not reach the coordinator
            failure = InternalFailure("".join(traceback.format_exception(error)))
            failure.__cause__ = error
            self._report(failure)
            return aborted(message)

    def _verify_no_code(self, client: FleetClient, run_id: int) -> None:
        """Ask once for every run whether it brings code."""
        if run_id not in self._bundles:
            if len(self._bundles) >= _MOST_RUNS:
                self._bundles.clear()
            self._bundles[run_id] = client.bundle_of(run_id) == EMPTY_BUNDLE_HASH
        if not self._bundles[run_id]:
            raise CodeBundleRefused(f"run {run_id} of the coordinator brings code of its own")

    def _send(self, client: FleetClient, outbox: Outbox, reply: ProtoMessage) -> None:
        try:
            client.push(reply)
        except FlowerRefused as error:  # the run is over, nobody wants it
            self._report(error)
        outbox.remove(reply)
        self._sent_at = time.monotonic()

    # -- signs of life -----------------------------------------------------------------------------------

    def _beat(self, client: FleetClient, stop: threading.Event, over: threading.Event) -> None:
        """Send heartbeats, also while a request is being answered; at the end wake the call that waits for one."""
        due = time.monotonic()
        while not over.is_set():
            if stop.wait(0.2 if time.monotonic() < due else 0.0):
                if self._waiting.is_set():
                    with suppress(Error):
                        client.deactivate(_LEAVE_SECONDS)  # the front lets go of the waiting call
                return
            if time.monotonic() >= due:
                due = time.monotonic() + HEARTBEAT_SECONDS * random.uniform(0.7, 0.9)
                with suppress(Error):  # the call that serves the connection finds out
                    client.heartbeat()

    def _leave(self, client: FleetClient) -> None:
        """Take leave; a reply that was just sent is fetched first, for with its node gone the SuperLink drops it."""
        time.sleep(max(0.0, self._sent_at + _FETCH_SECONDS - time.monotonic()))
        with suppress(Error):
            client.deactivate(_LEAVE_SECONDS)

    def _note(self, error: Error) -> None:
        """Report an error of the connection, one that goes on only once."""
        if self._error is None or (error.code, error.message) != (self._error.code, self._error.message):
            self._report(error)
        self._error = error


def _retry_seconds(failures: int) -> float:
    longest = min(_FIRST_RETRY_SECONDS * 2.0 ** min(failures, 16), _LAST_RETRY_SECONDS)
    return longest * random.uniform(0.5, 1.0)
