"""The data plane of a coordinator, put together: server, gate, quota, watch and the service `Aggregator`."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

from hansa.coordinator.callers import CALLS_PER_CALLER, Callers
from hansa.coordinator.grpc_server import MOST_CALLERS, GrpcServer
from hansa.coordinator.spool import SPOOL_BYTES
from hansa.coordinator.spool_quota import SpoolQuota
from hansa.coordinator.stalls import STALL_SECONDS, StallWatch
from hansa.coordinator.upload_server import SERVICE_NAME, AggregatorServicer
from hansa.federation.aggregator_pb2_grpc import add_AggregatorServicer_to_server
from hansa.federation.tls_files import TlsSource
from hansa.secure_agg.certificates import RevocationList, utc_now


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlaneLimits:
    """What callers may take.

    Args:
        member_bytes: Disk for the uploads of one member.
        total_bytes: Disk for all uploads.
        stall_seconds: How long a stream may stand still.
        calls_per_caller: Calls that one participant may have in progress.
        most_callers: Participants that may call at the same time.
    """

    member_bytes: int = 4 << 30
    total_bytes: int = SPOOL_BYTES
    stall_seconds: float = STALL_SECONDS
    calls_per_caller: int = CALLS_PER_CALLER
    most_callers: int = MOST_CALLERS


class DataPlane:
    """Serves sessions while the `with` block runs. Sessions that members ask for are opened before it, or as soon as may be.

    Args:
        host: Address to listen on.
        port: Port; 0 lets the system choose, see `server.bound`.
        tls: The coordinator's TLS material.
        revoked: Gives the authority's revocation list, or None where the consortium uses none.
        report: Receives what was not foreseen.
        limits: Bounds.
        clock: The time, with its zone, for certificates.
        is_member: Whether a participant is a member now.

    Attributes:
        server: To add other services to, before the block.
        aggregator: To open and close sessions of.
        callers: Tells who calls; other services go through the same gate.

    Raises:
        ConfigurationError, CertificateRejected: See `GrpcServer`.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        tls: TlsSource,
        revoked: Callable[[], RevocationList | None],
        report: Callable[[Exception], None],
        limits: DataPlaneLimits | None = None,
        clock: Callable[[], datetime] = utc_now,
        is_member: Callable[[str], bool] = lambda _: True,
    ) -> None:
        limits = DataPlaneLimits() if limits is None else limits
        self.callers = Callers(
            tls.material().authority_der,
            revoked,
            calls_per_caller=limits.calls_per_caller,
            clock=clock,
            is_member=is_member,
        )
        self._stalls = StallWatch(limits.stall_seconds)
        self.aggregator = AggregatorServicer(
            self.callers,
            quota=SpoolQuota(limits.member_bytes, limits.total_bytes),
            stalls=self._stalls,
            report=report,
        )
        self.server = GrpcServer(
            host=host,
            port=port,
            tls=tls,
            most_callers=limits.most_callers,
            calls_per_caller=limits.calls_per_caller,
        )
        self.server.add(SERVICE_NAME, add_AggregatorServicer_to_server, self.aggregator)

    def __enter__(self) -> Self:
        self._stalls.start()
        self.server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.stop()
        self._stalls.stop()
