"""A consortium in one process: identities, roster, one HE key, and rounds with injected randomness."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest

from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.bfv import HeKey
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.parameters import layout_for
from hansa.secure_agg.participant import ParticipantRound, UsedKeys

STATE_TAG = b"s" * 32
PREVIOUS = b"p" * 32


class SeededBytes:
    """Deterministic bytes in place of the operating system's, so that statistical tests are repeatable."""

    def __init__(self, seed: str) -> None:
        self.seed, self.calls = seed, 0

    def __call__(self, count: int) -> bytes:
        self.calls += 1
        return hashlib.shake_256(f"{self.seed}/{self.calls}".encode()).digest(count)


class Consortium:
    def __init__(self, participants: int, he_key: HeKey, bits: int = 8) -> None:
        self.random_bytes = SeededBytes(f"consortium of {participants}")
        self.ids = [f"bank-{index:03d}" for index in range(participants)]
        self.identities = {name: Identity.generate(self.random_bytes) for name in self.ids}
        self.roster = Roster(
            session_id=b"S" * 16,
            study_id=b"T" * 32,
            members=tuple((name, self.identities[name].public) for name in self.ids),
        )
        self.he_key = he_key
        self.layout = layout_for(participants, bits)
        self.used = {name: UsedKeys() for name in self.ids}

    def member(
        self, name: str, round_index: int = 1, attempt: int = 0, **changes: object
    ) -> ParticipantRound:
        arguments: dict[str, object] = {
            "participant": name,
            "identity": self.identities.get(name),
            "roster": self.roster,
            "he_key": self.he_key,
            "layout": self.layout,
            "round_index": round_index,
            "attempt": attempt,
            "used_keys": self.used.get(name),
            "random_bytes": self.random_bytes,
        }
        return ParticipantRound(**(arguments | changes))

    def started(self, round_index: int = 1, attempt: int = 0) -> dict[str, ParticipantRound]:
        members = {name: self.member(name, round_index, attempt) for name in self.ids}
        keys = [member.advertise() for member in members.values()]
        for member in members.values():
            member.start(keys)
        return members

    def levels(self, count: int, seed: int = 0) -> dict[str, np.ndarray]:
        generator, top = np.random.default_rng(seed), self.layout.maximum_level
        return {name: generator.integers(-top, top + 1, count) for name in self.ids}

    def protected(
        self, levels: dict[str, np.ndarray], round_index: int = 1, attempt: int = 0
    ) -> tuple[dict[str, ParticipantRound], dict[str, tuple[bytes, list[bytes]]]]:
        members = self.started(round_index, attempt)
        return members, {
            name: member.protect(levels[name], STATE_TAG, PREVIOUS) for name, member in members.items()
        }

    def aggregator(
        self, uploads: dict[str, tuple[bytes, list[bytes]]], round_index: int = 1, attempt: int = 0
    ) -> RoundAggregator:
        aggregator = RoundAggregator(self.roster, round_index, attempt)
        for header, ciphertexts in uploads.values():
            aggregator.accept(header, ciphertexts)
        return aggregator


@pytest.fixture(scope="session")
def he_key() -> HeKey:
    return HeKey.generate()


@pytest.fixture
def consortium(he_key: HeKey) -> Callable[..., Consortium]:
    return lambda participants=3, bits=8: Consortium(participants, he_key, bits)


@pytest.fixture
def seeded_bytes() -> Callable[[str], SeededBytes]:
    return SeededBytes
