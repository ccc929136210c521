"""The privacy room: accounting of a long study, the ledger, verification, noise, sampling.

    python benchmarks/privacy.py [--quick] [--json FILE]

Processor seconds of one thread, but for the append, which waits for the disk. Every number stands beside a floor that was
measured in the same run: what the work cannot do without, done alone.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH keeps it out

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from peers.ratios import Row, machine, row, seconds_of, show, write

from hansa.privacy import accounting, cross_check, epsilon_curve
from hansa.privacy.accounting import Mechanism, epsilon_of
from hansa.privacy.audit import LedgerAudit, audit_ledger
from hansa.privacy.cross_check import cross_check_all
from hansa.privacy.ledger import Ledger, LedgerOwner, read_ledger
from hansa.privacy.noise import SecretRandom
from hansa.privacy.sampling import poisson_sample
from hansa.reports.curves import Curves
from hansa.secure_agg.identity import Identity

DELTA = 1e-5
ROUND = Mechanism(7.642, 0.4, 1)  # ε = 8 after 1,000 rounds at q = 0.4
PARTICIPANTS, ROUNDS = 15, 1000
MEMORY = Path("/dev/shm")  # fsync is free there: the ledgers of other rows are made, not measured


def write_ledger(path: Path, rounds: int, missed: frozenset[int] = frozenset(), seed: int = 1) -> LedgerOwner:
    """Write a ledger of a participant that missed some rounds."""
    identity = Identity.load(bytes([seed]) * 32)
    owner = LedgerOwner(
        participant=f"bank-{seed}", public_key=identity.public, data=bytes([seed]) * 32, sign=identity.sign
    )
    ledger = Ledger(path, owner=owner, delta=DELTA)
    for number in range(1, rounds + 1):
        if number not in missed:
            steps = entry_of(number)
            ledger.append("reserve", {**steps, "epsilon_limit": 8.5})
            ledger.append("commit", steps)
    return owner


def entry_of(number: int) -> dict[str, object]:
    """Steps of a round, as a ledger holds them."""
    return {"study": "a" * 64, "round": number, "attempt": 0, **ROUND._asdict()}


def forget_accounting() -> None:
    """Drop what earlier calls have computed."""
    for kept in (
        accounting.step_distribution,
        accounting.epsilon_of,
        accounting.composed_distribution,
        epsilon_curve._epsilons,
        cross_check._cross_check,
    ):
        kept.cache_clear()


def rows_of_accounting(folder: Path, runs: int) -> list[Row]:
    """ε after every round of every participant, in all, of the study, and by two accountants more."""
    audits = []
    for seed in range(1, PARTICIPANTS + 1):
        # Up to 28 rounds missed, another number by each, so that no two ledgers are alike.
        missed = frozenset(range(seed, ROUNDS, ROUNDS // (2 * seed - 1))) if seed > 1 else frozenset()
        path = folder / f"ledger-{seed}.jsonl"
        write_ledger(path, ROUNDS, missed, seed)
        audits.append(audit_ledger(path, every_signature=False))

    def accounting_of_all() -> None:
        forget_accounting()
        curves = Curves(audits)
        for audit in audits:
            curve, total = curves.after(audit), account(audit)
            if not abs(curve[-1] - total) <= 1e-6 * total:
                raise SystemExit(f"the curve ends at {curve[-1]}, the accountant says {total}")

    def floor() -> None:
        forget_accounting()
        epsilon_of(**ROUND._replace(steps=ROUNDS)._asdict(), delta=DELTA)

    alone = statistics.median(seconds_of(floor) for _ in range(runs))
    found = [seconds_of(accounting_of_all) for _ in range(runs)]
    note = (
        f"sigma {ROUND.noise_multiplier}, q {ROUND.sample_rate}, delta {DELTA:g}, up to 28 rounds missed, another number by each; "
        "epsilon after each round and by PLD, PRV and RDP; floor: dp-accounting, one participant, after the last round only"
    )
    return [
        row(
            f"accounting, {PARTICIPANTS} participants, {ROUNDS:,} rounds",
            "s",
            found,
            note,
            floor=alone,
            goal=10.0,
        )
    ]


def account(audit: LedgerAudit) -> float:
    """ε of a ledger by three accountants."""
    mechanisms = [(*one.spending.mechanism, one.spending.steps) for one in audit.reservations]
    return cross_check_all(mechanisms, audit.opening.delta).pld


def row_of_append(folder: Path, entries: int) -> Row:
    """One entry: locked, signed, written and on the disk."""
    identity = Identity.generate()
    owner = LedgerOwner(participant="bank-1", public_key=identity.public, data=bytes(32), sign=identity.sign)
    ledger = Ledger(folder / "ledger-append.jsonl", owner=owner, delta=DELTA)
    ledger.append("reserve", {**entry_of(1), "epsilon_limit": 8.5})
    found, alone = [], []
    line = (folder / "ledger-append.jsonl").read_bytes().splitlines()[-1] + b"\n"
    with (folder / "plain").open("ab", buffering=0) as plain:
        for number in range(2, entries + 2):
            start = time.perf_counter()
            ledger.append("reserve", {**entry_of(number), "epsilon_limit": 8.5})
            found.append(1e3 * (time.perf_counter() - start))
            start = time.perf_counter()
            plain.write(line)
            os.fsync(plain.fileno())
            alone.append(1e3 * (time.perf_counter() - start))
    tail = sorted(found)[int(0.95 * entries)]
    note = f"wall time, median of {entries}; 95 of 100 below {tail:.3g} ms; floor: write and fsync of the same bytes"
    return row("ledger append, fsync included", "ms", found, note, floor=statistics.median(alone), goal=5.0)


def rows_of_verification(folder: Path, runs: int) -> list[Row]:
    """Entries of a ledger that are checked in a second."""
    path = folder / "ledger-verify.jsonl"
    owner = write_ledger(path, ROUNDS)
    entries = 2 * ROUNDS + 1

    def rates(call: Callable[[], object], count: int) -> list[float]:
        return [count / seconds_of(call) for _ in range(runs)]

    key = Ed25519PublicKey.from_public_bytes(owner.public_key)
    message = b"\0" * 70
    signature = Identity.load(bytes([1]) * 32)._private.sign(message)

    def signatures() -> None:
        for _ in range(entries):
            key.verify(signature, message)

    floor = statistics.median(rates(signatures, entries))
    whole = rates(lambda: read_ledger(path), entries)
    quick = rates(lambda: read_ledger(path, every_signature=False), entries)
    lines = path.read_bytes().splitlines()

    def parse() -> None:
        import json

        for line in lines:
            json.loads(line)

    parsing = statistics.median(rates(parse, entries))
    common = f"{entries:,} entries; form, order, chain, Merkle root of every line"
    return [
        row(
            "verify a ledger, every signature",
            "1/s",
            whole,
            f"{common}, and its signature; floor: Ed25519 of OpenSSL alone",
            better="higher",
            floor=floor,
            goal=20_000.0,
        ),
        row(
            "verify a ledger, last signature (--quick)",
            "1/s",
            quick,
            f"{common}, and the last signature, which covers all lines; floor: json.loads alone",
            better="higher",
            floor=parsing,
            goal=20_000.0,
        ),
    ]


def rows_of_noise(count: int, runs: int) -> list[Row]:
    """Normals in a second, and what a keystream and other generators, none of them secret, give."""
    torch.set_num_threads(1)
    random, plain = SecretRandom(), torch.Generator().manual_seed(1)
    numpy = np.random.default_rng(1)
    calls: dict[str, Callable[[], object]] = {
        "hansa": lambda: random.normal(count),
        "ChaCha20 alone": lambda: random.bytes(8 * count),
        "torch, float64": lambda: torch.randn(count, generator=plain, dtype=torch.float64),
        "torch, float32": lambda: torch.randn(count, generator=plain),
        "numpy": lambda: numpy.standard_normal(count),
    }
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(runs + 1):
        for name, call in calls.items():
            rate = count / 1e6 / seconds_of(call)
            if turn:
                rates[name].append(rate)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    peers = {name: middle[name] for name in ("torch, float64", "torch, float32", "numpy")}
    ratios, wide = (
        [t / h for t, h in zip(rates[f"torch, float{bits}"], rates["hansa"], strict=True)]
        for bits in (64, 32)
    )
    size = f"{count:,} float64 from ChaCha20 by Box-Muller"
    return [
        row(
            "noise", "1e6/s", rates["hansa"], f"{size}; floor: the keystream alone", better="higher",
            peers=peers, floor=middle["ChaCha20 alone"], goal=30.0,
        ),
        row(
            "noise, time over torch's generator", "ratio", ratios, f"{size}; torch.randn of the same type, not secret",
            peers={"torch, float32": statistics.median(wide)}, floor=1.0, goal=4.0,
        ),
    ]  # fmt: skip


def row_of_sampling(count: int, runs: int) -> Row:
    """One Poisson sample; the rest of a private step is in dp_step.py."""
    random, numpy = SecretRandom(), np.random.default_rng(1)
    alone = statistics.median(
        1e3 * seconds_of(lambda: np.flatnonzero(numpy.random(count) < ROUND.sample_rate)) for _ in range(runs)
    )
    found = [
        1e3 * seconds_of(lambda: poisson_sample(count, ROUND.sample_rate, random.bytes)) for _ in range(runs)
    ]
    note = f"q {ROUND.sample_rate}; floor: numpy's generator, not secret"
    return row(f"Poisson sample of {count:,} units", "ms", found, note, floor=alone)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, under 50 seconds")
    parser.add_argument("--json", type=Path, help="file for the rows")
    given = parser.parse_args()
    runs = 1 if given.quick else 5
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as made,
        tempfile.TemporaryDirectory(dir=Path.cwd()) as disk,
    ):
        table = rows_of_accounting(Path(made), runs)
        table.append(row_of_append(Path(disk), 200 if given.quick else 2000))
        table += rows_of_verification(Path(made), max(runs, 2))
        table += rows_of_noise(2_000_000 if given.quick else 10_000_000, max(runs, 3))
        table.append(row_of_sampling(1_000_000, max(runs, 3)))
    show(table)
    write(table, machine("numpy", "dp-accounting", "opacus", "cryptography"), given.json)


if __name__ == "__main__":
    main()
