"""What the coordinator keeps between rounds: the messages of an epoch's set-up, and unused packages.

It checks signatures so that one member's broken message does not cost the others a step. What it relays is
checked again by everybody who receives it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime

from hansa.errors import (
    DuplicateMessage,
    NotInCohort,
    OutOfOrder,
    PackageHashMismatch,
    PackageReuse,
    UnknownSender,
)
from hansa.secure_agg.certificates import RevocationList, utc_now
from hansa.secure_agg.epoch import dealer_of
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.leaves import delivered_shares, leaves_of, verify_posted
from hansa.secure_agg.messages import Deal, Join, Package, Vote, open_signed
from hansa.secure_agg.packages import verify_form
from hansa.secure_agg.parameters import Terms


class EpochRelay:
    """Steps E1 to E3 at the coordinator.

    Args:
        roster: The members.
        epoch: Number of the epoch.
        now: Clock, with its zone.
        revoked: The authority's revocation list, where the consortium uses one.

    Guarantees:
        - Only messages that verify under the pinned keys are relayed, one of each kind from a member.
        - With an authority, only joins with a valid certificate.
    """

    def __init__(
        self,
        roster: Roster,
        epoch: int,
        *,
        now: Callable[[], datetime] = utc_now,
        revoked: RevocationList | None = None,
    ) -> None:
        self._roster, self._epoch, self._now, self._revoked = roster, epoch, now, revoked
        self._joins: dict[str, bytes] = {}
        self._votes: dict[str, bytes] = {}
        self._deal: bytes | None = None

    @property
    def dealer(self) -> str:
        """Who deals."""
        return dealer_of(self._roster, self._epoch)

    def accept_join(self, signed: bytes) -> None:
        """Take a Join.

        Raises:
            See `messages.open_signed` and `certificates.verify_certificate`.
            DuplicateMessage: There is a different one of the same member.
        """
        body = open_signed(signed, Join, self._roster, self._epoch)
        self._roster.verify_certificate(body.sender, body.certificate, self._now(), self._revoked)
        _keep(self._joins, body.sender, signed)

    def joins(self) -> list[bytes]:
        """Return all joins; OutOfOrder until every member has joined."""
        return self._all(self._joins, "joined")

    def accept_deal(self, signed: bytes) -> None:
        """Take the Deal; UnknownSender unless the dealer signed it."""
        body = open_signed(signed, Deal, self._roster, self._epoch)
        if body.sender != self.dealer:
            raise UnknownSender(f"{body.sender!r} is not the dealer of epoch {self._epoch}")
        if self._deal not in (None, signed):
            raise DuplicateMessage(f"{body.sender!r} dealt twice in epoch {self._epoch}")
        self._deal = signed

    def deal(self) -> bytes:
        """Return the Deal; OutOfOrder until it came."""
        if self._deal is None:
            raise OutOfOrder(f"{self.dealer!r} has not dealt")
        return self._deal

    def accept_vote(self, signed: bytes) -> None:
        """Take a Vote; as `accept_join`."""
        body = open_signed(signed, Vote, self._roster, self._epoch)
        _keep(self._votes, body.sender, signed)

    def votes(self) -> list[bytes]:
        """Return all votes; OutOfOrder until every member has voted."""
        return self._all(self._votes, "voted")

    def _all(self, found: dict[str, bytes], what: str) -> list[bytes]:
        if len(found) < len(self._roster.members):
            raise OutOfOrder(f"{len(found)} of {len(self._roster.members)} members have {what}")
        return [found[name] for name in self._roster.participants]


def _keep(found: dict[str, bytes], sender: str, signed: bytes) -> None:
    if found.setdefault(sender, signed) != signed:
        raise DuplicateMessage(f"{sender!r} sent two different messages of one kind")


class PackageBoard:
    """Unused packages of the members of one epoch (E4), and the cohorts made of them (R0).

    Args:
        roster: The members.
        terms: Mode and threshold.
        epoch: Number of the epoch.
        handed_out: Number of each member's last package that was used before; none where it is not given.

    Guarantees:
        - A package is handed out for one cohort.
    """

    def __init__(
        self, roster: Roster, terms: Terms, epoch: int, *, handed_out: Mapping[str, int] | None = None
    ) -> None:
        self._roster, self._terms, self._epoch = roster, terms, epoch
        self._unused: dict[str, dict[int, tuple[Package, bytes, list[bytes]]]] = {
            name: {} for name in roster.participants
        }
        self._leaves: dict[str, bytes] = {}
        self._last = {name: (handed_out or {}).get(name, 0) for name in roster.participants}

    def handed_out(self, member: str) -> int:
        """Return the number of a member's last package that was used, 0 before any: what it is asked to replace."""
        return self._last[member]

    def accept(self, signed: bytes, posted: Sequence[bytes]) -> None:
        """Take a package and its posted shares in roster order. One that was taken before, or handed out, is
        ignored.

        Raises:
            MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch: See `messages.open_signed`.
            PackageReuse: There is another one under the same number.
            PackageHashMismatch: A sealed share or a leaf is not the one that the package names, or one is missing.
        """
        body = open_signed(signed, Package, self._roster, self._epoch)
        verify_form(body, strict=self._terms.strict)
        if len(posted) != len(self._roster.members):
            raise PackageHashMismatch(f"the package of {body.sender!r} came with {len(posted)} posted shares")
        if not self._terms.strict:
            verify_posted(body, self._roster.participants.index(body.sender), posted)
        elif any(posted):
            raise PackageHashMismatch(f"a package of {body.sender!r} came with shares in strict mode")
        if body.number <= self._last[body.sender]:
            return  # handed out, though its owner does not know: it missed the start of that attempt
        known = self._unused[body.sender].get(body.number)
        if known is not None and known[1] != signed:
            raise PackageReuse(f"{body.sender!r} made another package {body.number} before")
        self._unused[body.sender][body.number] = (body, signed, list(posted))

    def available(self) -> tuple[str, ...]:
        """Return the members with an unused package, sorted."""
        return tuple(sorted(name for name, unused in self._unused.items() if unused))

    def take(self, cohort: Collection[str]) -> tuple[list[bytes], dict[str, list[bytes]]]:
        """Use one package of each member of a cohort.

        Returns:
            The signed packages by sorted id, the same for all; and for each member its delivered shares in the same order.

        Raises:
            NotInCohort: A member has no unused package; nothing was used.
        """
        names, members = sorted(cohort), self._roster.participants
        for name in names:
            if not self._unused.get(name):
                raise NotInCohort(f"{name!r} has no unused package")
        signed: list[bytes] = []
        shares: dict[str, list[bytes]] = {name: [] for name in names}
        for name in names:
            number = min(self._unused[name])
            body, data, posted = self._unused[name].pop(number)
            self._last[name], self._leaves[name] = number, leaves_of(posted)
            signed.append(data)
            dealt = posted if self._terms.strict else delivered_shares(body, members.index(name), posted)
            for holder, share in zip(members, dealt, strict=True):
                if holder in shares:
                    shares[holder].append(share)
        return signed, shares

    def leaves(self, cohort: Collection[str]) -> dict[str, bytes]:
        """Return the joined leaves of the package of each member that was handed out last; empty in strict mode."""
        return {name: self._leaves.get(name, b"") for name in cohort}
