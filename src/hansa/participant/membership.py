"""A participant's way into an epoch, and back into it after a crash."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hansa.errors import OutOfOrder
from hansa.secure_agg.certificates import RevocationList
from hansa.secure_agg.epoch import Epoch, EpochSetup, load_epoch
from hansa.secure_agg.identity import Identity, RandomBytes, Roster
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.participant import RoundMachine
from hansa.secure_agg.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """What a participant shows, and what it checks the others by, at the moment when it joins an epoch.

    Attributes:
        certificate: Own certificate (DER) of the roster's authority; empty where it has none.
        revoked: The latest revocation list that it has seen, where the consortium uses one.
    """

    certificate: bytes = b""
    revoked: RevocationList | None = None


class Membership:
    """The epoch that a participant is in, and the machine of its rounds.

    Args:
        participant: Own id.
        identity: Own signing key.
        roster: The pinned roster.
        terms: Own configuration.
        store: Durable storage of protocol state.
        random_bytes: Source of keys.
        credentials: Gives certificate and revocation list; asked at every join, for both change while a study runs.

    Raises:
        WrongSession: The store belongs to another session or to other terms.

    Guarantees:
        - On a store that holds an epoch, epoch and machine are those of before the restart.
        - The rounds of an epoch go on while the next one is set up.
        - A member whose certificate was revoked before the join enters no epoch with this one, whatever the coordinator says.
    """

    def __init__(
        self,
        *,
        participant: str,
        identity: Identity,
        roster: Roster,
        terms: Terms,
        store: Store,
        random_bytes: RandomBytes,
        credentials: Callable[[], Credentials] = Credentials,
    ) -> None:
        self._participant, self._identity, self._roster, self._terms = participant, identity, roster, terms
        self._store, self._random_bytes, self._credentials = store, random_bytes, credentials
        self._setup: EpochSetup | None = None
        self._epoch = load_epoch(store, participant, roster, terms)
        self._machine = None if self._epoch is None else self._machine_of(self._epoch)

    def join(self, epoch: int) -> bytes:
        """Step 0.1: return the signed Join of an epoch."""
        shown = self._credentials()
        self._setup = EpochSetup(
            participant=self._participant,
            identity=self._identity,
            roster=self._roster,
            terms=self._terms,
            epoch=epoch,
            store=self._store,
            random_bytes=self._random_bytes,
            certificate=shown.certificate,
            revoked=shown.revoked,
        )
        return self._setup.join()

    def deal(self, joins: Sequence[bytes]) -> bytes:
        """Step 0.2, at the dealer: return the signed Deal with the common keys, sealed to every member."""
        return self._joining().deal(joins)

    def vote(self, joins: Sequence[bytes], deal: bytes) -> bytes:
        """Step 0.3: check joins and deal, and return the signed Vote for the manifest."""
        return self._joining().vote(joins, deal)

    def enter(self, votes: Sequence[bytes]) -> RoundMachine:
        """Step 0.4: enter the epoch with everybody's votes."""
        epoch = self._joining().enter(votes)
        machine = self._machine_of(epoch)
        # Together, or not at all: a machine of the old epoch beside the new group key would apply a sum to other entries.
        self._epoch, self._machine, self._setup = epoch, machine, None
        return machine

    @property
    def entered(self) -> tuple[Epoch, RoundMachine]:
        """The epoch and its machine; OutOfOrder before any was entered."""
        if self._epoch is None or self._machine is None:
            raise OutOfOrder(f"{self._participant} has not entered an epoch")
        return self._epoch, self._machine

    @property
    def has_entered(self) -> bool:
        """Whether there is an epoch."""
        return self._epoch is not None

    def _joining(self) -> EpochSetup:
        if self._setup is None:
            raise OutOfOrder(f"{self._participant} has not joined an epoch")
        return self._setup

    def _machine_of(self, epoch: Epoch) -> RoundMachine:
        return RoundMachine(
            epoch=epoch, identity=self._identity, store=self._store, random_bytes=self._random_bytes
        )
