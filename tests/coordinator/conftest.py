"""Uploads without the protocol around them: real ciphertexts, and members that sign whatever header a test wants."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hansa.coordinator.ciphertext_adder import CiphertextAdder
from hansa.secure_agg.bfv import CiphertextSum, HeKey
from hansa.secure_agg.cohort import ciphertext_list_hash
from hansa.secure_agg.expected import ExpectedHeader
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.messages import UploadHeader, sign_message
from hansa.secure_agg.parameters import PLAIN_MODULUS, SLOTS, Terms

EPOCH = 1


def _sums_of(uploads: Iterable[list[bytes]]) -> list[bytes]:
    found = list(uploads)
    sums = [CiphertextSum() for _ in found[0]]
    for upload in found:
        for running, ciphertext in zip(sums, upload, strict=True):
            running.add(ciphertext)
    return [running.serialise() for running in sums]


def _send(sums: Any, upload: list[bytes], count: int | None = None) -> None:
    incoming = sums.open(len(upload) if count is None else count)
    try:
        for ciphertext in upload:
            incoming.write(ciphertext)
        incoming.commit()
    finally:
        incoming.discard()


class Senders:
    """Members that sign headers; they hold no key of an epoch."""

    def __init__(self, participants: int) -> None:
        self.names = tuple(f"bank-{index:03d}" for index in range(participants))
        self.identities = {name: Identity.generate() for name in self.names}
        self.roster = Roster(
            session_id=b"S" * 16,
            study_id=b"T" * 32,
            members=tuple((name, self.identities[name].public) for name in self.names),
        )
        self.terms = Terms(participants=participants)

    def expected(self, count: int) -> ExpectedHeader:
        hashes = dict.fromkeys(("cohort_hash", "he_key_id", "state_tag", "previous_transcript"), b"x" * 32)
        return ExpectedHeader(**hashes, ciphertext_count=count)

    def header(self, name: str, ciphertexts: list[bytes], **changes: Any) -> bytes:
        known = self.expected(max(len(ciphertexts), 1))
        fields = {
            "session": self.roster.session_id,
            "study": self.roster.study_id,
            "epoch": EPOCH,
            "sender": name,
            "round": 1,
            "attempt": 0,
            "ciphertext_list_hash": ciphertext_list_hash(ciphertexts),
            "ledger_head": bytes(40),
            **{field: getattr(known, field) for field in known.__slots__},
        }
        return sign_message(self.identities[name], UploadHeader(**(fields | changes)))


@pytest.fixture(scope="session")
def senders() -> type[Senders]:
    return Senders


@pytest.fixture(scope="session")
def adding() -> SimpleNamespace:
    """What a test of sums needs: `sums_of` uploads as they must be, and `send` for one upload."""
    return SimpleNamespace(sums_of=_sums_of, send=_send)


@pytest.fixture(scope="session")
def uploads() -> list[list[bytes]]:
    """Six uploads of three ciphertexts."""
    generator, key = np.random.default_rng(3), HeKey.generate()
    return [
        [key.encrypt(generator.integers(0, PLAIN_MODULUS, SLOTS, dtype=np.uint64)) for _ in range(3)]
        for _ in range(6)
    ]


@pytest.fixture
def adders(tmp_path: Any) -> Any:
    """Make adders, and end them after the test."""
    made: list[CiphertextAdder] = []

    def make(**arguments: Any) -> CiphertextAdder:
        made.append(CiphertextAdder(spool_folder=tmp_path, **arguments))
        return made[-1]

    yield make
    for adder in made:
        adder.close()
