"""The fleet door of a coordinator: Flower's SuperLink on loopback, the TLS front before it, and the grid over it."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from flwr.serverapp import Grid

from hansa.coordinator.doorbell import Doorbell
from hansa.coordinator.front import serve_front
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.superlink import SuperLink
from hansa.coordinator.superlink_grid import SuperLinkGrid
from hansa.federation.fields import host_and_port
from hansa.secure_agg.certificates import RevocationList


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """A coordinator's way to the nodes of its members.

    Attributes:
        grid: Flower's.
        node_of: Gives the grid's number of a member's node.
        door: The fleet door that has to be looked after; None where nodes come another way.
    """

    grid: Grid
    node_of: Callable[[str], int]
    door: "FleetDoor | None"


class FleetDoor:
    """Opens SuperLink, front and grid; `stack` closes them in the other order.

    Args:
        stack: What closes them.
        home: The coordinator's.
        members: Flower keys of the members that may connect.
        revoked: The revocation list in force.

    Attributes:
        grid: The grid.

    Raises:
        PortInUse, ConfigurationError: The door cannot be opened.
        SuperLinkFailed: Flower's SuperLink does not start.
        CertificateRejected: The services' own certificate cannot be used.
    """

    def __init__(
        self, stack: ExitStack, home: CoordinatorHome, members: Mapping[str, bytes], revoked: RevocationList
    ) -> None:
        self._superlink = superlink = SuperLink(home.folder / "superlink")
        superlink.set_members(members)
        stack.enter_context(superlink)
        doorbell = Doorbell()
        self.grid = grid = SuperLinkGrid(superlink, doorbell=doorbell)
        stack.callback(grid.close)
        host, port = host_and_port(home.settings.listen.fleet)
        self._front = front = serve_front(
            superlink=superlink.address,
            certificate=home.tls_files.certificate,
            key=home.tls_files.key,
            authority=home.consortium.authority,
            members=members,
            revoked=revoked,
            host=host,
            port=port,
            doorbell=doorbell,
        )
        stack.callback(front.stop)

    @property
    def starts(self) -> int:
        """SuperLinks that were started."""
        return self._superlink.starts

    @property
    def counts(self) -> Counter[str]:
        """How many requests and connections at the front ended how."""
        return Counter(self._front.counts)

    def update_members(self, members: Mapping[str, bytes]) -> None:
        """Let exactly these members in from now on."""
        self._front.update_members(members)
        self._superlink.set_members(members)

    def update_revocations(self, encoded: bytes) -> None:
        """Go by another revocation list; whoever it names is cut off before this returns."""
        self._front.update_revocations(encoded)

    def update_certificate(self, certificate: Path, key: Path) -> None:
        """Show another certificate from now on."""
        self._front.update_certificate(certificate, key)
