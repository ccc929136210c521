"""A consortium in one process: identities, roster, epoch, and rounds with injected randomness."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.bfv import CiphertextSum, HeKey
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.epoch import Epoch, EpochSetup
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.participant import RoundMachine
from hansa.secure_agg.relay import EpochRelay, PackageBoard
from hansa.secure_agg.store import MemoryStore
from hansa.secure_agg.unmasking import Opened

FIRST = bytes(32)
NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
WINDOW = {"not_before": NOW - timedelta(days=30), "not_after": NOW + timedelta(days=30)}


def certify(
    authority: CertificateAuthority, name: str, identity: Identity, window: dict[str, datetime] = WINDOW
) -> bytes:
    return authority.issue(identity.request_certificate(name), participant=name, **window)


class SeededBytes:
    """Deterministic bytes in place of the operating system's, so that statistical tests are repeatable."""

    def __init__(self, seed: str) -> None:
        self.seed, self.calls = seed, 0

    def __call__(self, count: int) -> bytes:
        self.calls += 1
        return hashlib.shake_256(f"{self.seed}/{self.calls}".encode()).digest(count)


@dataclass
class Round:
    """One attempt, with everything that the coordinator has seen of it."""

    number: int
    attempt: int
    packages: list[bytes]
    shares: dict[str, list[bytes]]
    aggregator: RoundAggregator
    leaves: dict[str, bytes] = field(default_factory=dict)
    levels: dict[str, np.ndarray] = field(default_factory=dict)
    uploads: dict[str, tuple[bytes, list[bytes]]] = field(default_factory=dict)

    def expected(self) -> np.ndarray:
        return sum(self.levels[name] for name in self.aggregator.contributors)


class House:
    """The members of one epoch and their coordinator."""

    def __init__(
        self,
        participants: int,
        mode: str = "",
        bits: int = 8,
        authority: CertificateAuthority | None = None,
    ) -> None:
        self.random_bytes = SeededBytes(f"house of {participants}")
        self.names = [f"bank-{index:03d}" for index in range(participants)]
        self.identities = {name: Identity.generate(self.random_bytes) for name in self.names}
        self.roster = Roster(
            session_id=b"S" * 16,
            study_id=b"T" * 32,
            members=tuple((name, self.identities[name].public) for name in self.names),
            authority=b"" if authority is None else authority.certificate,
        )
        self.certificates = {}
        if authority is not None:
            self.certificates = {name: certify(authority, name, self.identities[name]) for name in self.names}
        self.terms = Terms(participants=participants, mode=mode, bits=bits)
        self.stores = {name: MemoryStore() for name in self.names}
        self.state = dict.fromkeys(self.names, (b"m" * 32, FIRST))
        self.number = -1
        self.new_epoch()

    # -- epochs ------------------------------------------------------------------------------------------

    def setup(self, name: str, epoch: int | None = None, **changes: object) -> EpochSetup:
        arguments: dict[str, object] = {
            "participant": name,
            "identity": self.identities.get(name),
            "roster": self.roster,
            "terms": self.terms,
            "epoch": self.number + 1 if epoch is None else epoch,
            "store": self.stores.get(name),
            "random_bytes": self.random_bytes,
            "certificate": self.certificates.get(name, b""),
            "now": lambda: NOW,
        }
        return EpochSetup(**(arguments | changes))

    def new_epoch(self) -> None:
        setups = {name: self.setup(name) for name in self.names}
        self.number += 1
        relay = EpochRelay(self.roster, self.number, now=lambda: NOW)
        for setup in setups.values():
            relay.accept_join(setup.join())
        relay.accept_deal(setups[relay.dealer].deal(relay.joins()))
        for setup in setups.values():
            relay.accept_vote(setup.vote(relay.joins(), relay.deal()))
        self.epochs: dict[str, Epoch] = {name: setup.enter(relay.votes()) for name, setup in setups.items()}
        self.machines = {name: self.machine(name) for name in self.names}
        self.board = PackageBoard(self.roster, self.terms, self.number)

    def machine(self, name: str, store: MemoryStore | None = None) -> RoundMachine:
        return RoundMachine(
            epoch=self.epochs[name],
            identity=self.identities[name],
            store=self.stores[name] if store is None else store,
            random_bytes=self.random_bytes,
        )

    def restart(self, name: str) -> RoundMachine:
        self.machines[name] = self.machine(name)
        return self.machines[name]

    # -- rounds ------------------------------------------------------------------------------------------

    def levels(self, count: int, seed: int = 0) -> dict[str, np.ndarray]:
        generator, top = np.random.default_rng(seed), self.terms.layout.maximum_level
        return {name: generator.integers(-top, top + 1, count) for name in self.names}

    def post(self, names: list[str] | None = None) -> None:
        for name in names or self.names:
            for signed, blobs in self.machines[name].packages(self.board.handed_out(name)):
                self.board.accept(signed, blobs)

    def begin(self, number: int = 1, attempt: int = 0, cohort: list[str] | None = None) -> Round:
        cohort = cohort or self.names
        self.post(cohort)
        return self.begin_with_posted(number, attempt, cohort)

    def begin_with_posted(self, number: int, attempt: int, cohort: list[str] | None = None) -> Round:
        """Begin an attempt with the packages that are on the board."""
        cohort = cohort or self.names
        packages, shares = self.board.take(cohort)
        aggregator = RoundAggregator(
            roster=self.roster,
            terms=self.terms,
            epoch=self.number,
            round_index=number,
            attempt=attempt,
            cohort=cohort,
        )
        return Round(number, attempt, packages, shares, aggregator, self.board.leaves(cohort))

    def start(self, name: str, round_: Round, **changes: object) -> None:
        model_hash, transcript = self.state[name]
        arguments = {
            "round_index": round_.number,
            "attempt": round_.attempt,
            "packages": round_.packages,
            "blobs": round_.shares.get(name, []),
            "model_hash": model_hash,
            "transcript": transcript,
        }
        self.machines[name].start(**(arguments | changes))

    def uploaded(
        self, number: int = 1, attempt: int = 0, *, count: int = 50, gone: tuple[str, ...] = (), cohort=None
    ) -> Round:
        """Play R0 and R1; who is gone has started but not uploaded."""
        round_ = self.begin(number, attempt, cohort)
        round_.levels = self.levels(count, seed=number * 100 + attempt)
        for name in round_.aggregator.cohort:
            self.start(name, round_)
        for name in round_.aggregator.cohort:
            if name not in gone:
                round_.uploads[name] = self.machines[name].protect(round_.levels[name])
                round_.aggregator.accept(*round_.uploads[name])
        return round_

    def released(self, round_: Round, gone: tuple[str, ...] = ()) -> list[bytes]:
        """Play R2 to R4; who is gone answers nothing."""
        headers, aggregate = round_.aggregator.close()
        here = [name for name in round_.aggregator.contributors if name not in gone]
        for name in here:
            round_.aggregator.accept_answer(self.machines[name].answer(headers, aggregate))
        if round_.aggregator.needs_consents:
            for name in here:
                consents = round_.aggregator.consents()
                round_.aggregator.accept_answer(self.machines[name].consents(consents))
        return round_.aggregator.releases()

    def catch_up(self, name: str, round_: Round, **changes: object) -> Opened:
        headers, aggregate = round_.aggregator.close()
        model_hash, transcript = self.state[name]
        arguments = {
            "round_index": round_.number,
            "attempt": round_.attempt,
            "packages": round_.packages,
            "headers": headers,
            "aggregate": aggregate,
            "releases": round_.aggregator.releases(),
            "count": next(iter(round_.levels.values())).size,
            "model_hash": model_hash,
            "transcript": transcript,
            "leaves": round_.leaves.__getitem__,
        }
        return self.machines[name].catch_up(**(arguments | changes))

    def void(self, name: str, number: int = 1, attempt: int = 0) -> bytes:
        return self.machines[name].void(number, attempt, transcript=self.state[name][1])

    def sum_of(self, ciphertexts: list[bytes]) -> list[bytes]:
        """An aggregate of the coordinator's own making, of one ciphertext."""
        total = CiphertextSum()
        for ciphertext in ciphertexts:
            total.add(ciphertext)
        return [total.serialise()]

    def finish(self, name: str, round_: Round, opened: Opened) -> None:
        self.state[name] = (
            hashlib.sha256(opened.total.tobytes() + opened.transcript).digest(),
            opened.transcript,
        )
        self.machines[name].finish(round_.number, round_.attempt)

    def play(
        self, number: int = 1, attempt: int = 0, *, gone: tuple[str, ...] = (), count: int = 50
    ) -> Round:
        """Play a whole round; who is gone vanishes before its upload and catches up afterwards."""
        round_ = self.uploaded(number, attempt, gone=gone, count=count)
        if self.terms.strict:
            for name in self.names:
                opened = self.machines[name].open(*round_.aggregator.close())
                np.testing.assert_array_equal(opened.total, round_.expected())
                self.finish(name, round_, opened)
            return round_
        releases = self.released(round_)
        for name in self.names:
            caught = name not in round_.aggregator.contributors
            opened = self.catch_up(name, round_) if caught else self.machines[name].unmask(releases)
            np.testing.assert_array_equal(opened.total, round_.expected())
            self.finish(name, round_, opened)
        assert len(set(self.state.values())) == 1
        return round_


@pytest.fixture(scope="session")
def he_key() -> HeKey:
    return HeKey.generate()


@pytest.fixture
def house() -> Callable[..., House]:
    return House


@pytest.fixture
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("consortium", **WINDOW, random_bytes=SeededBytes("authority"))


@pytest.fixture
def seeded_bytes() -> Callable[[str], SeededBytes]:
    return SeededBytes
