"""hansa's own rounds in quorum mode: the real machines, stores and aggregator, with a coordinator that is a function call.

Every member takes part in full. The first few keep their state in the encrypted store on disk and open the sum; they
are the ones that are measured. The others keep theirs in memory, without the ciphertexts that only a restart would
ask for, and stop after their release.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from hansa.coordinator.ciphertext_adder import CiphertextAdder
from hansa.participant.store import SealedStore
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.attempt import UPLOAD_CIPHERTEXTS
from hansa.secure_agg.bfv import HeKey
from hansa.secure_agg.cohort import ciphertext_list_hash
from hansa.secure_agg.epoch import EpochSetup
from hansa.secure_agg.expected import ExpectedHeader
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.ledger_heads import NO_LEDGER
from hansa.secure_agg.messages import UploadHeader, sign_message
from hansa.secure_agg.parameters import PLAIN_MODULUS, SLOTS, Terms
from hansa.secure_agg.participant import RoundMachine
from hansa.secure_agg.relay import EpochRelay, PackageBoard
from hansa.secure_agg.store import MemoryStore
from peers.measured import Measured, Stopwatch, levels_of, processor_seconds_of

NAME = "hansa"
MEASURED_MEMBERS = 3
_MODEL, _TRANSCRIPT = b"m" * 32, bytes(32)
_HASHES = dict.fromkeys(("cohort_hash", "he_key_id", "state_tag", "previous_transcript"), b"x" * 32)


class _TimedStore:
    """A store that counts its time apart, inside of the step that uses it."""

    def __init__(self, store: SealedStore, watch: Stopwatch, name: str) -> None:
        self._store, self._watch, self._name = store, watch, name

    def __getattr__(self, operation: str) -> Any:
        call = getattr(self._store, operation)

        def timed(*values: Any) -> Any:
            with self._watch(f"store of {self._name}", "store"):
                return call(*values)

        return timed


class _LeanStore(MemoryStore):
    """A member's store without the ciphertexts of its upload: those of all members together are gigabytes."""

    def put(self, key: str, value: bytes) -> None:
        if key != UPLOAD_CIPHERTEXTS:
            super().put(key, value)


class Members:
    """The members of one epoch, set up through the real messages."""

    def __init__(self, participants: int, folder: Path, stack: ExitStack, watch: Stopwatch) -> None:
        self.names = [f"member-{index:03d}" for index in range(participants)]
        self.identities = {name: Identity.generate() for name in self.names}
        keys = tuple((name, self.identities[name].public) for name in self.names)
        self.roster = Roster(session_id=b"S" * 16, study_id=b"T" * 32, members=keys)
        self.terms = Terms(participants=participants)
        self.stores: dict[str, Any] = {name: _LeanStore() for name in self.names}
        for name in self.names[:MEASURED_MEMBERS]:
            store = SealedStore(folder / name, bytes(32))
            stack.callback(store.close)
            self.stores[name] = _TimedStore(store, watch, name)
        self.machines, self.board = self._enter()

    def _enter(self) -> tuple[dict[str, RoundMachine], PackageBoard]:
        setups = {
            name: EpochSetup(
                participant=name,
                identity=self.identities[name],
                roster=self.roster,
                terms=self.terms,
                epoch=0,
                store=self.stores[name],
            )
            for name in self.names
        }
        relay = EpochRelay(self.roster, 0)
        for setup in setups.values():
            relay.accept_join(setup.join())
        relay.accept_deal(setups[relay.dealer].deal(relay.joins()))
        for setup in setups.values():
            relay.accept_vote(setup.vote(relay.joins(), relay.deal()))
        machines, board = {}, PackageBoard(self.roster, self.terms, 0)
        for name, setup in setups.items():
            epoch, identity = setup.enter(relay.votes()), self.identities[name]
            machines[name] = RoundMachine(epoch=epoch, identity=identity, store=self.stores[name])
            for package in machines[name].packages():
                board.accept(*package)
        return machines, board


def run_ours(participants: int, entries: int, dropouts: int) -> Measured:
    """Run one round; the last members vanish before their upload. Set-up of the epoch is not counted."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        members = Members(participants, Path(folder), stack, watch)
        kept = {what for what in watch.seconds if what[0].startswith("store of")}
        for what in kept:
            del watch.seconds[what]
        return _round(members, entries, dropouts, watch)


def _round(members: Members, entries: int, dropouts: int, watch: Stopwatch) -> Measured:
    names, machines = members.names, members.machines
    here = names[: len(names) - dropouts]
    measured = here[:MEASURED_MEMBERS]
    down = up = 0
    with watch("coordinator", "start"):
        packages, shares = members.board.take(names)
        aggregator = RoundAggregator(
            roster=members.roster, terms=members.terms, epoch=0, round_index=1, attempt=0, cohort=names
        )
    down += sum(map(len, packages)) + sum(map(len, shares[names[0]]))
    for name in names:
        with watch(name, "start"):
            machines[name].start(1, 0, packages, shares[name], model_hash=_MODEL, transcript=_TRANSCRIPT)
    expected = np.zeros(entries, dtype=np.int64)
    for index, name in enumerate(here):
        levels = levels_of(index, entries)
        expected += levels
        with watch(name, "pack, mask, encrypt"):
            header, ciphertexts = machines[name].protect(levels)
        with watch("coordinator", "check, add"):
            aggregator.accept(header, ciphertexts)
        if index == 0:
            up += len(header) + sum(map(len, ciphertexts))
        del levels, ciphertexts
    with watch("coordinator", "aggregate"):
        headers, aggregate = aggregator.close()
    down += sum(map(len, headers)) + sum(map(len, aggregate))
    answer_up, answer_down = _release(members, here, aggregator, watch)
    up, down = up + answer_up, down + answer_down
    releases = aggregator.releases()
    down += sum(map(len, releases))
    largest_error = 0.0
    for name in measured:
        with watch(name, "unmask, decrypt, unpack"):
            opened = machines[name].unmask(releases)
        with watch(name, "finish"):
            machines[name].finish(1, 0)
        with watch(name, "next package"):
            made = machines[name].packages()[-1]
        largest_error = max(largest_error, float(np.abs(opened.total - expected).max()))
    with watch("coordinator", "next package"):
        members.board.accept(*made)
    up += len(made[0]) + sum(map(len, made[1]))
    steps = watch.steps(measured) | {
        f"of these: {what}": seconds
        for what, seconds in watch.steps([f"store of {name}" for name in measured]).items()
    }
    return Measured(
        participant_seconds=[watch.of(name) for name in measured],
        coordinator_seconds=watch.of("coordinator") / len(here),
        up_bytes=up,
        down_bytes=down,
        largest_error=largest_error,
        steps=steps,
    )


def _release(
    members: Members, here: list[str], aggregator: RoundAggregator, watch: Stopwatch
) -> tuple[int, int]:
    """Steps R2 to R4; returns the bytes that one member sends and receives, without headers and aggregate."""
    headers, aggregate = aggregator.close()
    up = down = 0
    for name in here:
        with watch(name, "roster"):
            answer = members.machines[name].answer(headers, aggregate)
        with watch("coordinator", "answers"):
            aggregator.accept_answer(answer)
    up += len(answer)
    if aggregator.needs_consents:
        consents = aggregator.consents()
        down += sum(map(len, consents))
        for name in here:
            with watch(name, "consents"):
                answer = members.machines[name].consents(consents)
            with watch("coordinator", "answers"):
                aggregator.accept_answer(answer)
        up += len(answer)
    return up, down


def _uploads(
    participants: int, entries: int
) -> tuple[Terms, Roster, Iterator[tuple[bytes, Iterator[bytes]]]]:
    """Uploads that a coordinator accepts, one after another, without the cost of making them."""
    identities = [Identity.generate() for _ in range(participants)]
    keys = tuple((f"member-{index:03d}", made.public) for index, made in enumerate(identities))
    roster = Roster(session_id=b"S" * 16, study_id=b"T" * 32, members=keys)
    terms = Terms(participants=participants)
    slots = np.random.default_rng(5).integers(0, PLAIN_MODULUS, SLOTS, dtype=np.uint64)
    one = HeKey.generate().encrypt(slots)
    count = terms.layout.ciphertexts_for(entries)
    listed = ciphertext_list_hash([one] * count)

    def headers() -> Iterator[tuple[bytes, Iterator[bytes]]]:
        for (name, _), identity in zip(keys, identities, strict=True):
            body = UploadHeader(
                session=roster.session_id,
                study=roster.study_id,
                epoch=0,
                sender=name,
                round=1,
                attempt=0,
                ciphertext_count=count,
                ciphertext_list_hash=listed,
                ledger_head=NO_LEDGER,
                **_HASHES,
            )
            yield sign_message(identity, body), (bytes(bytearray(one)) for _ in range(count))

    return terms, roster, headers()


def _receiving(
    adder: CiphertextAdder, participants: int, entries: int
) -> tuple[RoundAggregator, Iterator[tuple[bytes, Iterator[bytes]]]]:
    """A coordinator as it stands in a study, its sums in a process of their own, and the uploads of a round for it."""
    terms, roster, uploads = _uploads(participants, entries)
    expected = ExpectedHeader(**_HASHES, ciphertext_count=terms.layout.ciphertexts_for(entries))
    aggregator = RoundAggregator(
        roster=roster,
        terms=terms,
        epoch=0,
        round_index=1,
        attempt=0,
        sums=adder.begin(participants),
        expected=expected,
    )
    return aggregator, uploads


def _status(process: int | None, key: str) -> int:
    with open(f"/proc/{process}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def _coordinator_memory(participants: int, entries: int, answer: Any) -> None:
    with CiphertextAdder() as adder:
        # The libraries are loaded by an upload of one ciphertext: what a larger one frees would be used again.
        aggregator, uploads = _receiving(adder, participants, 1)
        aggregator.accept(*next(uploads))
        aggregator, uploads = _receiving(adder, participants, entries)
        processes = (os.getpid(), adder.process_id)
        before = [_status(process, "VmRSS") for process in processes]
        for process in processes:
            with open(f"/proc/{process}/clear_refs", "w") as counters:
                counters.write("5")  # forget the peak so far
        for header, ciphertexts in uploads:
            aggregator.accept(header, ciphertexts)
        aggregator.seal(lambda _: None)
        grown = (_status(process, "VmHWM") for process in processes)
        answer.send(sum(after - least for after, least in zip(grown, before, strict=True)))


def coordinator_memory_bytes(participants: int, entries: int) -> int:
    """Largest growth of the resident memory of a fresh coordinator and its worker while they add all uploads of a round."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_coordinator_memory, args=(participants, entries, theirs))
    process.start()
    theirs.close()
    try:
        return int(ours.recv())
    finally:
        process.join()


def isolated_seconds(participants: int, entries: int) -> float:
    """Processor seconds for one upload of a coordinator that parses and adds in a worker process."""
    watch = Stopwatch()
    with CiphertextAdder() as adder:
        aggregator, uploads = _receiving(adder, participants, entries)
        for index, (header, ciphertexts) in enumerate(uploads):
            upload = list(ciphertexts)
            if index == 0:
                aggregator.accept(header, upload)
                started = processor_seconds_of(adder.process_id or 0)
                continue
            with watch("coordinator", "check, hash, spool"):
                aggregator.accept(header, upload)
        worker = processor_seconds_of(adder.process_id or 0) - started
    return (watch.of("coordinator") + worker) / (participants - 1)
