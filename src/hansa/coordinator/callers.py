"""Who calls: the participant that a client's TLS certificate names, looked at again at every call.

The handshake has checked that the certificate is one of the consortium's authority and that the caller holds its key. A
connection may live longer than a certificate, and a handshake knows no revocation list (RFC 5280 section 5); both are for here.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from hansa.errors import AuthenticationFailed, CertificateRejected, TooManyCalls
from hansa.federation.tls_authority import from_pem, verify_client_certificate
from hansa.secure_agg.certificates import RevocationList, utc_now

CALLS_PER_CALLER = 4


class Caller:
    """The participant behind one call.

    Attributes:
        participant: Its id.
    """

    __slots__ = ("_certificate", "_verify", "participant")

    def __init__(self, certificate: bytes, verify: Callable[[bytes], str]) -> None:
        self._certificate, self._verify = certificate, verify
        self.participant = verify(certificate)

    def verify(self) -> None:
        """Raise CertificateRejected if the certificate has ended or was revoked since the call began."""
        self._verify(self._certificate)


class Callers:
    """Tells who calls, and lets each have a few calls at a time.

    Args:
        authority: DER of the consortium's authority.
        revoked: Gives the authority's revocation list, or None where the consortium uses none.
        calls_per_caller: Calls that one participant may have in progress, whatever the number of its connections.
        clock: The time, with its zone.
        is_member: Whether a participant is a member now, for whoever knows that before the list says so.

    Guarantees:
        - A certificate that has ended or was revoked serves no call, also over a connection that was made before.
        - Who is no member any more is served no call, whatever certificate and list say.
        - A participant that lets all its calls hang takes no others' place.
    """

    def __init__(
        self,
        authority: bytes,
        revoked: Callable[[], RevocationList | None],
        *,
        calls_per_caller: int = CALLS_PER_CALLER,
        clock: Callable[[], datetime] = utc_now,
        is_member: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._authority, self._revoked, self._clock, self._is_member = authority, revoked, clock, is_member
        self._most, self._lock = calls_per_caller, threading.Lock()
        self._calls: Counter[str] = Counter()

    def identify(self, context: Any) -> Caller:
        """Return who calls.

        Raises:
            AuthenticationFailed: The connection shows no certificate.
            CertificateRejected: It is not a valid one, or was revoked.
        """
        shown = context.auth_context().get("x509_pem_cert", ())
        if len(shown) != 1:
            raise AuthenticationFailed("a caller shows no certificate")
        return Caller(from_pem(shown[0]), self._verify)

    @contextmanager
    def admitted(self, context: Any) -> Iterator[Caller]:
        """Let a call in, for as long as the block runs; raises as `identify`, and TooManyCalls."""
        caller = self.identify(context)
        with self._lock:
            if self._calls[caller.participant] >= self._most:
                raise TooManyCalls(f"{caller.participant!r} has {self._most} calls in progress, the bound")
            self._calls[caller.participant] += 1
        try:
            yield caller
        finally:
            with self._lock:
                self._calls[caller.participant] -= 1
                if not self._calls[caller.participant]:
                    del self._calls[caller.participant]

    def _verify(self, certificate: bytes) -> str:
        named = verify_client_certificate(
            certificate, authority=self._authority, now=self._clock(), revoked=self._revoked()
        )
        if not self._is_member(named):
            raise CertificateRejected(f"{named!r} is no member of the consortium now")
        return named
