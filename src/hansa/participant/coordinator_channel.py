"""A participant's way to the coordinator's gRPC services: one channel, made anew with its certificate, and calls tried again."""

import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import grpc

from hansa.errors import CertificateRejected, CoordinatorUnreachable, Error
from hansa.federation.error_status import AGGREGATOR_ERRORS, error_of, has_code, is_transient
from hansa.federation.tls_authority import verify_client_certificate
from hansa.federation.tls_files import TlsMaterial, TlsSource, channel_credentials
from hansa.federation.transfer import channel_options
from hansa.secure_agg.certificates import utc_now

Result = TypeVar("Result")
_SHORTEST_CALL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long, and how often, a call is tried.

    Args:
        deadline_seconds: From the first try to the end of the last one.
        first_pause_seconds: Pause after the first failure; each further one is twice as long, half of it random.
        longest_pause_seconds: Longest pause.
    """

    deadline_seconds: float = 900.0
    first_pause_seconds: float = 0.2
    longest_pause_seconds: float = 10.0


class CoordinatorChannel:
    """A channel that is kept for all calls.

    Args:
        address: Host and port of the coordinator, `host:port`; its certificate must name the host.
        tls: The participant's TLS material.
        participant: Id that its certificate must name.
        patience: How long calls are tried.
        clock: The time, with its zone, for certificates.
        sleep: Waits so many seconds; until `give_up` where it is not given.

    Guarantees:
        - After `give_up` no call lasts, neither one that is made then nor one that is in progress.
        - Nothing is sent to a peer that does not show a certificate of the authority for the address.
        - A renewed certificate is used from the next call on.
        - A call that fails for want of a connection, room or a worker is made again until its deadline; any other failure is
          raised at once.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: TlsSource,
        participant: str,
        patience: Patience | None = None,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._address, self._tls, self._participant = address, tls, participant
        self._given_up = threading.Event()
        self._patience, self._clock, self._sleep = patience or Patience(), clock, sleep or self._given_up.wait
        self._lock = threading.Lock()
        self._made_of: TlsMaterial | None = None
        self._channel: Any = None

    def call(
        self, step: Callable[[Any, float], Result], *, kinds: Collection[type[Error]] = AGGREGATOR_ERRORS
    ) -> Result:
        """Make a call until it succeeds, fails for good, or its time is over.

        Args:
            step: Called with the channel and the seconds that are left; what it does must allow for having been done before.
            kinds: Errors that the service can mean.

        Raises:
            CoordinatorUnreachable: It did not answer in time.
            AuthenticationFailed: It shows no valid certificate for its address.
            CertificateRejected: The own certificate is not valid, so that the coordinator would not answer.
            See `kinds` for everything else.
        """
        end = time.monotonic() + self._patience.deadline_seconds
        pause, before = self._patience.first_pause_seconds, None
        while True:
            if self._given_up.is_set():
                raise CoordinatorUnreachable("this process is about to end")
            channel = self._ready_channel()
            try:
                return step(channel, max(end - time.monotonic(), _SHORTEST_CALL_SECONDS))
            except ValueError:  # grpc's word for a channel that was closed before the call
                if not self._given_up.is_set():
                    raise
                continue  # to the error above
            except grpc.RpcError as failed:
                if self._given_up.is_set():
                    continue
                left = end - time.monotonic()
                if not is_transient(failed):
                    raise error_of(failed, kinds) from failed
                if left <= 0:
                    # Our own deadline may have broken the last try off; then the one before it knows more.
                    said = failed if before is None or has_code(failed) or not has_code(before) else before
                    raise error_of(said, kinds) from failed
                before = failed
            # Half of the pause is random: members that lost the same server do not come back in one moment.
            self._sleep(min(pause / 2 + random.uniform(0, pause / 2), left))
            pause = min(2 * pause, self._patience.longest_pause_seconds)

    def give_up(self) -> None:
        """End every call, now and from now on: this process is to end, and what it owes is on its disk."""
        self._given_up.set()
        self.close()

    def close(self) -> None:
        """Close the channel; the next call opens another one."""
        with self._lock:
            self._close()

    def _ready_channel(self) -> Any:
        if self._given_up.is_set():
            raise CoordinatorUnreachable("no call is made any more, for this process is to end")
        with self._lock:
            material = self._tls.material()
            self._verify_own(material)
            if material is not self._made_of:
                self._close()
                self._channel = grpc.secure_channel(
                    self._address, channel_credentials(material), options=channel_options()
                )
                self._made_of = material
            return self._channel

    def _verify_own(self, material: TlsMaterial) -> None:
        """Find out here what the coordinator would answer with a closed connection and no word."""
        named = verify_client_certificate(
            material.certificate_der, authority=material.authority_der, now=self._clock(), revoked=None
        )
        if named != self._participant:
            raise CertificateRejected(
                f"the TLS certificate of {self._participant!r} is one of {named!r}",
                hint="put the certificate and key of this participant in place",
            )

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = self._made_of = None
