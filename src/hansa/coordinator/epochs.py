"""The coordinator's part in epochs: set one up with every member, and keep the board of their packages filled.

An epoch needs every member of the roster. A set-up that somebody breaks off is begun anew under the next number, with
fresh keys; members that had entered leave that one epoch behind like any other.
"""

from collections.abc import Callable, Collection, Mapping

from hansa.coordinator.exchange import Exchange, Reply, one, several
from hansa.errors import Error, MalformedMessage, ParticipantLost, ParticipantRefused, ProtocolError
from hansa.secure_agg.certificates import RevocationList
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.relay import EpochRelay, PackageBoard

MOST_SETUPS = 3


class Epochs:
    """The epochs of one study, one after another.

    Args:
        exchange: Way to the members.
        roster: Members.
        terms: Mode and threshold.
        on_entered: Called with number, deal and votes of each epoch that was entered.
        on_setup: Called with the number of an epoch before members are asked to join it.
        revoked: Gives the authority's revocation list, where the consortium uses one.

    Attributes:
        number: Number of the running epoch, 0 before the first.
        tried: Highest number that a set-up was begun under.
        board: Unused packages of its members.
    """

    def __init__(
        self,
        exchange: Exchange,
        roster: Roster,
        terms: Terms,
        *,
        on_entered: Callable[[int, bytes, list[bytes]], None] = lambda *_: None,
        on_setup: Callable[[int], None] = lambda _: None,
        revoked: Callable[[], RevocationList | None] = lambda: None,
    ) -> None:
        self._exchange, self._roster, self._terms = exchange, roster, terms
        self._on_entered, self._on_setup, self._revoked = on_entered, on_setup, revoked
        self.number = self.tried = 0
        self.board = PackageBoard(roster, terms, 0)

    def enter(self, before: Callable[[], object] = lambda: None) -> None:
        """Set up the next epoch and leave the running one.

        Args:
            before: Called before each set-up that is tried: what has to be done under the old keys.

        Raises:
            ParticipantLost: A member did not answer, in any of the set-ups that were tried; the first one's reason.
            ProtocolError: The members' answers do not fit together.
        """
        first: ParticipantLost | None = None
        for _ in range(MOST_SETUPS):
            before()
            self.tried += 1  # some may enter it, whatever comes of it: its number is spent
            self._on_setup(self.tried)
            try:
                self._set_up(self.tried)
            except ParticipantLost as lost:
                first = first or lost
                if isinstance(lost, ParticipantRefused):
                    break
            else:
                return
        raise first or ParticipantLost("no epoch was set up")

    def _set_up(self, number: int) -> None:
        relay = EpochRelay(self._roster, number, revoked=self._revoked())
        everybody = self._roster.participants
        for reply in self._all("query.join", everybody, ("join",), number).values():
            relay.accept_join(one(reply, "join"))
        dealt = self._all("query.deal", (relay.dealer,), ("deal",), number, joins=relay.joins())
        relay.accept_deal(one(dealt[relay.dealer], "deal"))
        setup = {"joins": relay.joins(), "deal": [relay.deal()]}
        for reply in self._all("query.vote", everybody, ("vote",), number, **setup).values():
            relay.accept_vote(one(reply, "vote"))
        entered = self._all("query.enter", everybody, ("packages", "shares"), number, votes=relay.votes())
        board = PackageBoard(self._roster, self._terms, number)
        for reply in entered.values():
            post(board, reply, len(everybody))
        self.number, self.board = number, board
        self._on_entered(number, relay.deal(), relay.votes())

    def resume(self, number: int, tried: int, handed_out: Mapping[str, int]) -> None:
        """Stand in an epoch again after a restart; its packages are asked for anew."""
        self.number, self.tried = number, tried
        self.board = PackageBoard(self._roster, self._terms, number, handed_out=handed_out)

    def refill(self, members: Collection[str]) -> dict[str, Error]:
        """Ask the members that have no unused package on the board for new ones; say who did not answer and why."""
        available = set(self.board.available())
        lacking: dict[str, Reply] = {
            name: {"round": self.board.handed_out(name), "attempt": 0}
            for name in members
            if name not in available
        }
        replies, lost = self._exchange.ask("query.packages", lacking, ("packages", "shares"))
        for name, reply in replies.items():
            try:
                self.post(reply)
            except ProtocolError as error:
                lost[name] = error
        return lost

    def post(self, reply: Reply) -> None:
        """Put a member's unused packages on the board; raises as `post` does."""
        post(self.board, reply, len(self._roster.members))

    def _all(
        self,
        kind: str,
        members: Collection[str],
        expected: tuple[str, ...],
        number: int,
        **signed: list[bytes],
    ) -> dict[str, Reply]:
        """Ask members that must all answer."""
        requests: dict[str, Reply] = {name: {"round": number, "attempt": 0, **signed} for name in members}
        replies, lost = self._exchange.ask(kind, requests, expected)
        for error in lost.values():
            raise error
        return replies


def post(board: PackageBoard, reply: Reply, members: int) -> None:
    """Put the packages of a reply on a board.

    Raises:
        MalformedMessage: They did not come with one sealed share a member.
        See `relay.PackageBoard.accept` for everything else.
    """
    packages, shares = several(reply, "packages"), several(reply, "shares")
    if len(shares) != members * len(packages):
        raise MalformedMessage(f"{len(packages)} packages came with {len(shares)} sealed shares")
    for place, package in enumerate(packages):
        board.accept(package, shares[members * place : members * (place + 1)])
