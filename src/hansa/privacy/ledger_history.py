"""A ledger read line by line: every rule that its lines obey, without a file, a clock or a secret key.

1 form        canonical entry, exact fields (`ledger_format`)
2 order       sequence numbers from 0 without a gap; `open` first and only first; a commit after its reservation, once
  noise       where it is distributed, the noise multiplier is the one that follows from its members; a commit names no fewer of
              them than its reservation, and nothing else differs
3 chain       each entry holds the hash of the one before
4 tree        the stated Merkle root is that of all entries so far
5 signature   of the tree head, under the key that the first line names

Sequence numbers decide what came before what. Times are what a clock said: one that goes backwards is noted, never trusted.
So an entry counts in its own month or in that of any entry before it, whichever is later.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hansa.errors import LedgerDamaged, ProofInvalid
from hansa.privacy.distributed import DistributedNoise
from hansa.privacy.ledger_format import DISTRIBUTED_FORMAT, FIRST_PREVIOUS, Line, decode_line
from hansa.privacy.ledger_head import TreeHead
from hansa.privacy.merkle import GrowingTree
from hansa.privacy.spending import Spending, month_of


@dataclass(kw_only=True, slots=True)
class Reservation:
    """A round that was reserved, or another charge.

    Attributes:
        spending: What it asked for.
        epsilon_limit: ε that the data set was allowed at the time; None for no limit.
        line: Line of the ledger, from 1.
        month: Calendar month that it counts in, YYYY-MM.
        committed: Whether its update is known to have left; it counts either way.
        arrived: What its commit says of it, where its noise is distributed and more of it took part than was counted on.
        committed_line: Line of its commit; 0 before.
        purpose: What else looked at the data; empty for a round's update. Such a charge has round 0 and is committed.
    """

    spending: Spending
    epsilon_limit: float | None
    line: int
    month: str
    committed: bool = False
    arrived: Spending | None = None
    committed_line: int = 0
    purpose: str = ""

    @property
    def counted(self) -> Spending:
        """What it costs: what it asked for, unless it is known that more noise arrived."""
        return self.arrived or self.spending


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """What the first line of a ledger says."""

    participant: str
    public_key: bytes
    data: bytes
    delta: float
    unit: str


@dataclass(kw_only=True, slots=True)
class History:
    """The lines of one ledger, each checked as it is taken. After an error the object is of no use.

    Attributes:
        name: Name of the file, for messages.
        opening: What the first line says; None before it.
        leaves: Leaf hash of every entry.
        roots: Merkle root after every entry.
        encoded: Canonical bytes of every entry.
        reservations: In their order.
        clock_backwards: Lines whose time is before that of the line above.
        torn: Lines that note a last line cut short.
        month: Latest month that an entry names; empty before the first.
        signature: Signature of the last line.

    Guarantees:
        - A line that breaks a rule above is refused with its number; every line before it was right.
    """

    name: str
    opening: Opening | None = None
    leaves: list[bytes] = field(default_factory=list)
    roots: list[bytes] = field(default_factory=list)
    encoded: list[bytes] = field(default_factory=list)
    reservations: list[Reservation] = field(default_factory=list)
    clock_backwards: list[int] = field(default_factory=list)
    torn: list[int] = field(default_factory=list)
    month: str = ""
    signature: bytes = b""
    tree: GrowingTree = field(default_factory=GrowingTree)
    _by_place: dict[tuple[str, int, int], list[Reservation]] = field(default_factory=dict)
    _time: int | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.leaves)

    @property
    def previous(self) -> str:
        """What the next entry names as the hash of the one before it."""
        return self.leaves[-1].hex() if self.leaves else FIRST_PREVIOUS

    def head(self, size: int | None = None) -> TreeHead:
        """Give the tree head after a number of entries, at least one; after all where it is not given."""
        if self.opening is None:
            raise LedgerDamaged(f"{self.name} has no entry")
        size = self.size if size is None else size
        return TreeHead(
            participant=self.opening.participant,
            public_key=self.opening.public_key,
            data=self.opening.data,
            size=size,
            root=self.roots[size - 1],
        )

    def take(self, data: bytes, *, check_signature: bool = True) -> Line:
        """Check the next line and keep what it says.

        Raises:
            LedgerDamaged: It breaks a rule; the message says which line and why.
        """
        number = self.size + 1
        try:
            # 1
            line = decode_line(data)
            # 2, 3
            self._verify_order(line.entry)
            # 4
            self.tree.append(line.leaf)
            if line.root != self.tree.root():
                raise LedgerDamaged("its Merkle root is not that of the entries so far")
            self._keep(line, number)
            # 5
            if check_signature:
                self.verify_last_signature()
        except (LedgerDamaged, ProofInvalid) as error:
            raise LedgerDamaged(f"line {number} of {self.name} does not hold: {error.message}") from error
        return line

    def verify_last_signature(self) -> None:
        """Check the signature of the last line, which covers all lines.

        Raises:
            ProofInvalid: It is not one of the key that the first line names.
        """
        self.head().verify_signature(self.signature)

    def _verify_order(self, entry: Mapping[str, Any]) -> None:
        if entry["sequence"] != self.size:
            raise LedgerDamaged(f"it is entry {entry['sequence']} where entry {self.size} belongs")
        if (entry["kind"] == "open") != (self.size == 0):
            raise LedgerDamaged("a ledger is opened by its first entry and by no other")
        if entry["previous"] != self.previous:
            raise LedgerDamaged("it does not continue the entry before it")
        if entry["kind"] == "commit":
            self._uncommitted(spending_of(entry))

    def _uncommitted(self, spending: Spending) -> Reservation:
        found = self._by_place.get(spending.place, [])
        if any(reservation.committed for reservation in found):
            raise LedgerDamaged("its round was committed before")
        for reservation in reversed(found):
            if reservation.spending.may_end_as(spending):
                return reservation
        raise LedgerDamaged("it commits a round that was not reserved")

    def _keep(self, line: Line, number: int) -> None:
        entry = line.entry
        self.leaves.append(line.leaf)
        self.roots.append(line.root)
        self.encoded.append(line.encoded)
        self.signature = line.signature
        if self._time is not None and entry["time"] < self._time:
            self.clock_backwards.append(number)
        self._time = entry["time"]
        self.month = max(self.month, month_of(entry["time"]))
        if entry["kind"] == "open":
            self.opening = Opening(
                participant=entry["participant"],
                public_key=bytes.fromhex(entry["public_key"]),
                data=bytes.fromhex(entry["data"]),
                delta=float(entry["delta"]),
                unit=entry["unit"],
            )
        elif entry["kind"] == "torn":
            self.torn.append(number)
        elif entry["kind"] == "commit":
            arrived = spending_of(entry)
            reservation = self._uncommitted(arrived)
            reservation.committed, reservation.committed_line = True, number
            if arrived != reservation.spending:
                reservation.arrived = arrived
        else:
            limit, purpose = entry["epsilon_limit"], entry.get("purpose", "")
            reservation = Reservation(
                spending=spending_of(entry),
                purpose=purpose,
                committed=bool(purpose),
                epsilon_limit=None if limit is None else float(limit),
                line=number,
                month=self.month,
            )
            self.reservations.append(reservation)
            if not purpose:
                self._by_place.setdefault(reservation.spending.place, []).append(reservation)

    def verify_reserved(self, spending: Spending) -> None:
        """Raise LedgerDamaged unless a round is reserved with these steps and not committed."""
        try:
            self._uncommitted(spending)
        except LedgerDamaged as error:
            raise LedgerDamaged(
                f"{self.name} cannot commit round {spending.round}: {error.message}"
            ) from error

    def is_committed(self, place: tuple[str, int, int]) -> bool:
        """Tell whether a study's round and attempt is committed."""
        return any(reservation.committed for reservation in self._by_place.get(place, []))


def spending_of(entry: Mapping[str, Any]) -> Spending:
    """Read the steps of a reservation, a commit or a charge; the last is of no round.

    Raises:
        LedgerDamaged: Its noise multiplier is not the one that follows from its distributed noise.
    """
    found = entry.get("distributed")
    noise = found and DistributedNoise(**{name: value for name, value in found.items() if name != "format"})
    spending = Spending(
        study=entry["study"],
        round=entry.get("round", 0),
        attempt=entry.get("attempt", 0),
        noise_multiplier=float(entry["noise_multiplier"]),
        sample_rate=float(entry["sample_rate"]),
        steps=entry["steps"],
        distributed=noise,
    )
    if noise is not None and (spending.steps != 1 or spending.noise_multiplier != noise.noise_multiplier):
        raise LedgerDamaged("its noise multiplier is not that of the noise that it names, in one step")
    return spending


def entry_fields(spending: Spending) -> dict[str, Any]:
    """Give the fields of a reservation or a commit; `spending_of` reads them."""
    fields = spending.fields()
    if "distributed" in fields:
        fields["distributed"]["format"] = DISTRIBUTED_FORMAT
    return fields
