"""Two processes race for the last round, and processes are killed between reserve, train and commit: nothing is under-counted."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hansa.errors import StoreNotWritable
from hansa.privacy.accounting import epsilon_of
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.ledger import LedgerOwner, read_ledger

DELTA = 1e-5
ROUND = Spending(study="a" * 64, round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)
PROGRAM = """
import sys
from pathlib import Path
from hansa.errors import Error
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.ledger import LedgerOwner
from hansa.secure_agg.identity import Identity

path, limit, number, *stops = sys.argv[1:]
identity = Identity.load(bytes([1]) * 32)
owner = LedgerOwner(participant="bank-1", public_key=identity.public, data=b"d" * 32, sign=identity.sign)

def reach(point):
    if point in stops:
        print(point, flush=True)
        sys.stdin.readline()

try:
    budget = Budget(Path(path), epsilon_limit=float(limit), delta=1e-5, owner=owner)
    spending = Spending(
        study="a" * 64, round=int(number), attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2
    )
    budget.epsilon(spending)
    reach("open")
    budget.reserve(spending)
    reach("reserved")
    reach("trained")
    budget.commit(spending)
    reach("committed")
    print("done", flush=True)
except Error as error:
    print(error.code, flush=True)
"""


def epsilon(steps: int) -> float:
    return epsilon_of(noise_multiplier=1.0, sample_rate=0.2, steps=steps, delta=DELTA)


def start(path: Path, limit: float, number: int, *stops: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(path), repr(limit), str(number), *stops]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.mark.parametrize("is_new", [True, False], ids=["first round", "last round"])
def test_of_two_processes_racing_for_the_last_round_exactly_one_wins(
    ledger: Path, ledger_owner: Callable[..., LedgerOwner], is_new: bool
) -> None:
    limit = epsilon(2 if is_new else 4)
    if not is_new:
        Budget(ledger, epsilon_limit=limit, delta=DELTA, owner=ledger_owner()).reserve(ROUND)
    racers = [start(ledger, limit, number, "open") for number in (2, 3)]
    for racer in racers:
        assert racer.stdout.readline() == "open\n"  # both have seen a budget that allows one round more
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    found = sorted(racer.communicate(timeout=60)[0].strip() for racer in racers)
    assert found == ["budget_exhausted", "done"]
    again = Budget(ledger, epsilon_limit=limit, delta=DELTA, owner=ledger_owner())
    assert again.epsilon() == limit
    assert len(read_ledger(ledger).history.reservations) == (1 if is_new else 2)


@pytest.mark.parametrize(
    ("stop", "rounds", "committed"),
    [("open", 0, 0), ("reserved", 1, 0), ("trained", 1, 0), ("committed", 1, 1)],
)
def test_a_process_that_is_killed_never_under_counts(
    ledger: Path, ledger_owner: Callable[..., LedgerOwner], stop: str, rounds: int, committed: int
) -> None:
    process = start(ledger, 9.0, 1, stop)
    assert process.stdout.readline() == stop + "\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert ledger.exists() == bool(rounds)
    budget = Budget(ledger, epsilon_limit=9.0, delta=DELTA, owner=ledger_owner())
    assert budget.epsilon() == epsilon(2 * rounds)
    found = budget._ledger.history.reservations
    assert [reservation.committed for reservation in found] == [True] * committed + [False] * (
        rounds - committed
    )
    if rounds:
        budget.commit(ROUND)  # what the process would have done, now or before: it costs nothing
    assert budget.reserve(replace(ROUND, round=2)) == epsilon(2 * rounds + 2)


def test_a_full_disk_at_a_torn_line_keeps_what_is_to_be_noted(
    ledger: Path, ledger_owner: Callable[..., LedgerOwner]
) -> None:
    Budget(ledger, epsilon_limit=9.0, delta=DELTA, owner=ledger_owner()).reserve(ROUND)
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + b"torn")
    budget = Budget(ledger, epsilon_limit=9.0, delta=DELTA, owner=ledger_owner())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, hard))
    try:
        with pytest.raises(StoreNotWritable):
            budget.reserve(replace(ROUND, round=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ledger.read_bytes() == whole
    assert budget.reserve(replace(ROUND, round=2)) == epsilon(4)
    assert read_ledger(ledger).history.torn == [3]
