"""What the round loop must know after a crash; each thing is written down before it is acted on.

    epoch          number, and the highest one that was tried: before members are asked to join it
    attempt        its number and the packages that were handed out: before a cohort learns of it
    closed         roster and packages of an attempt whose sum is on the disk: before anybody is asked to release
    certificate/R  what a member that missed round R needs: before anybody is shown it
    members        how far each member is, and the rounds that are over
    heads          the longest ledger head that each member has signed

The records are the coordinator's own, no peer writes them; all of it stands in signed messages that every member may see.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import cbor2

from hansa.errors import StoreDamaged

_CERTIFICATE = "certificate/"
At = tuple[int, int]


class Records(Protocol):
    """Where the state is kept, such as a scope of the journal."""

    def items(self) -> Mapping[str, bytes]:
        """Give all records by name."""

    def put(self, records: Mapping[str, bytes | None]) -> None:
        """Write records, or remove those that are None: all of them or none, durable when it returns."""


class MemoryRecords:
    """Records of a loop that is not meant to outlive its process."""

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}

    def items(self) -> Mapping[str, bytes]:
        """Give all records by name."""
        return dict(self._records)

    def put(self, records: Mapping[str, bytes | None]) -> None:
        """Write records, or remove those that are None."""
        for name, value in records.items():
            if value is None:
                self._records.pop(name, None)
            else:
                self._records[name] = value


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """What a member that missed a round needs beside headers and aggregate; voids alone if it was left behind.

    Attributes:
        attempt: Attempt that ended the round.
        packages: Signed packages of its cohort.
        releases: Signed releases of T members or more.
        voids: Signed voids of T members, if the round is void.
        leaves: Leaves of each package, by dealer.
    """

    attempt: int
    packages: list[bytes]
    releases: list[bytes]
    voids: list[bytes]
    leaves: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Closed:
    """An attempt whose roster is closed and whose sum is on the disk.

    Attributes:
        round: Round number.
        attempt: Attempt number.
        cohort: Ids whose packages serve it.
        packages: Those packages, signed, by sorted id.
        leaves: Leaves of each package, by dealer.
    """

    round: int
    attempt: int
    cohort: tuple[str, ...]
    packages: list[bytes]
    leaves: Mapping[str, bytes]


@dataclass(kw_only=True, slots=True)
class EpochRecord:
    """The running epoch.

    Attributes:
        number: Its number, 0 before the first.
        tried: Highest number that a set-up was begun under.
        deal: Signed deal.
        votes: Signed votes.
        rounds: Rounds that its keys have served.
        failures: Sums that failed under its keys.
        handed_out: Number of each member's last package that was used.
    """

    number: int = 0
    tried: int = 0
    deal: bytes = b""
    votes: list[bytes] = field(default_factory=list)
    rounds: int = 0
    failures: int = 0
    handed_out: dict[str, int] = field(default_factory=dict)


class LoopState:
    """The state of one study's round loop.

    Args:
        participants: Ids of the members.
        records: Where it is kept; in memory if not given.

    Raises:
        StoreDamaged: The records are not those of such a loop.

    Attributes:
        epoch: The running epoch.
        at: Last round that each member has applied and closed.
        done: Rounds that are over.
        begun: Round and attempt that was begun last.
        closed: The attempt that members may have released for, until its round is over.
        opened: Last round that a member has opened in strict mode.
        certificates: By round.
        heads: Longest ledger head of each member.

    Guarantees:
        - On the same records it is what it was when the last call returned.
    """

    def __init__(self, participants: Sequence[str], records: Records | None = None) -> None:
        self._records: Records = MemoryRecords() if records is None else records
        self.epoch = EpochRecord(handed_out=dict.fromkeys(participants, 0))
        self.at = dict.fromkeys(participants, 0)
        self.done = self.opened = 0
        self.begun: At = (0, -1)
        self.closed: Closed | None = None
        self.certificates: dict[int, Certificate] = {}
        self.heads: dict[str, bytes] = {}
        try:
            self._load(self._records.items())
        except (KeyError, TypeError, ValueError, cbor2.CBORError) as error:
            raise StoreDamaged("the records of the round loop are not whole") from error
        if set(self.at) != set(participants):
            raise StoreDamaged("the records of the round loop are those of other members")

    def begin_setup(self, number: int) -> None:
        """Note that an epoch will be set up under a number."""
        self.epoch.tried = number
        self._put("epoch")

    def epoch_entered(self, number: int, deal: bytes, votes: list[bytes]) -> None:
        """Note that all members have entered an epoch."""
        self.epoch = EpochRecord(
            number=number, tried=number, deal=deal, votes=votes, handed_out=dict.fromkeys(self.at, 0)
        )
        self._put("epoch")

    def begin_attempt(self, at: At, handed_out: Mapping[str, int]) -> None:
        """Note that an attempt begins, with packages that are used by it."""
        self.begun, self.closed = at, None
        self.epoch.handed_out = dict(handed_out)
        self._put("epoch", "attempt", "closed")

    def close_attempt(self, closed: Closed, heads: Mapping[str, bytes]) -> None:
        """Note that the roster of an attempt is closed, and the ledger heads in its headers."""
        self.closed, self.heads = closed, dict(heads)
        self._put("closed", "heads")

    def certify(self, round_index: int, certificate: Certificate, *, void: bool = False) -> None:
        """Note how a round ends."""
        self.certificates[round_index] = certificate
        self.epoch.failures += void
        self._records.put(
            {
                f"{_CERTIFICATE}{round_index}": cbor2.dumps(asdict(certificate)),
                "epoch": cbor2.dumps(asdict(self.epoch)),
            }
        )

    def note_failure(self) -> None:
        """Note that a sum failed under the keys of this epoch, in strict mode."""
        self.epoch.failures += 1
        self._put("epoch")

    def note_opened(self, round_index: int) -> None:
        """Note that a member has opened a round in strict mode."""
        self.opened = round_index
        self._put("attempt")

    def reached(self, members: Mapping[str, int]) -> None:
        """Note how far members are."""
        self.at |= members
        self._put("members")

    def end_round(self, round_index: int) -> None:
        """Note that a round is over."""
        self.done, self.closed = round_index, None
        self.epoch.rounds += 1
        self._put("epoch", "members", "closed")

    def forget_before(self, round_index: int) -> None:
        """Drop the certificates of rounds up to this one: nobody needs them any more."""
        outdated = [number for number in self.certificates if number <= round_index]
        for number in outdated:
            del self.certificates[number]
        if outdated:
            self._records.put({f"{_CERTIFICATE}{number}": None for number in outdated})

    # -- inside ------------------------------------------------------------------------------------------

    def _put(self, *names: str) -> None:
        values: dict[str, Any] = {
            "epoch": asdict(self.epoch),
            "attempt": {"begun": list(self.begun), "opened": self.opened},
            "closed": None if self.closed is None else asdict(self.closed),
            "members": {"at": self.at, "done": self.done},
            "heads": self.heads,
        }
        self._records.put(
            {name: None if values[name] is None else cbor2.dumps(values[name]) for name in names}
        )

    def _load(self, found: Mapping[str, bytes]) -> None:
        read: dict[str, Any] = {name: cbor2.loads(value) for name, value in found.items()}
        if "epoch" in read:
            self.epoch = EpochRecord(**read["epoch"])
        if "members" in read:
            self.at, self.done = dict(read["members"]["at"]), int(read["members"]["done"])
        self.heads = dict(read.get("heads", {}))
        if "attempt" in read:
            round_index, attempt = read["attempt"]["begun"]
            self.begun, self.opened = (round_index, attempt), int(read["attempt"]["opened"])
        if "closed" in read:
            closed = Closed(**{**read["closed"], "cohort": tuple(read["closed"]["cohort"])})
            self.closed = closed if closed.round > self.done else None
        for name, value in read.items():
            if name.startswith(_CERTIFICATE):
                self.certificates[int(name.removeprefix(_CERTIFICATE))] = Certificate(**value)
