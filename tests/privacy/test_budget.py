"""The budget ledger: written before it counts, exact at its limit, and closed to whoever changes it."""

import json
import math
import os
import resource
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hansa.errors import BudgetExhausted, LedgerDamaged, StoreNotWritable
from hansa.privacy import budget as module
from hansa.privacy.accounting import epsilon_of
from hansa.privacy.budget import Budget, Spending

DELTA = 1e-5
ROUND = Spending(study="a" * 64, round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def open_budget(ledger: Path, limit: float = 100.0) -> Budget:
    return Budget(ledger, epsilon_limit=limit, delta=DELTA)


def epsilon(steps: int, sigma: float = 1.0, delta: float = DELTA) -> float:
    return epsilon_of(noise_multiplier=sigma, sample_rate=0.2, steps=steps, delta=delta)


def test_epsilon_counts_every_reservation_committed_or_not(ledger: Path) -> None:
    budget = open_budget(ledger)
    assert budget.epsilon() == 0.0
    assert budget.reserve(ROUND) == budget.epsilon() == epsilon(2)
    budget.commit(ROUND)
    assert budget.epsilon() == epsilon(2)  # a commit costs nothing more
    assert budget.reserve(replace(ROUND, round=2)) == epsilon(4)
    budget.reserve(replace(ROUND, round=2, attempt=1))  # an attempt that failed is spent too
    assert budget.epsilon() == epsilon(6)
    assert budget.epsilon(ROUND) == epsilon(8)
    assert budget.epsilon() == epsilon(6)  # asking costs nothing


def test_a_reservation_survives_reopening(ledger: Path) -> None:
    first = open_budget(ledger)
    first.reserve(ROUND)
    first.reserve(replace(ROUND, round=2))
    first.commit(ROUND)
    again = open_budget(ledger)
    assert again.epsilon() == epsilon(4)
    again.reserve(replace(ROUND, round=3))
    assert open_budget(ledger).epsilon() == epsilon(6)


def test_two_mechanisms_in_one_ledger_add_up(ledger: Path) -> None:
    budget = open_budget(ledger)
    budget.reserve(ROUND)
    budget.reserve(replace(ROUND, study="b" * 64, noise_multiplier=2.0))
    total = epsilon(2, 1.0, DELTA / 2) + epsilon(2, 2.0, DELTA / 2)
    assert budget.epsilon() == pytest.approx(total, rel=1e-12)
    assert budget.epsilon() > epsilon(2, 1.0) + epsilon(2, 2.0) - 1e-9
    assert open_budget(ledger).epsilon() == budget.epsilon()


def test_the_same_mechanism_of_two_studies_composes(ledger: Path) -> None:
    budget = open_budget(ledger)
    budget.reserve(ROUND)
    budget.reserve(replace(ROUND, study="b" * 64))
    assert budget.epsilon() == epsilon(4)


def test_refuses_at_the_limit_exactly(tmp_path: Path) -> None:
    limit = epsilon(4)
    allowed = open_budget(tmp_path / "allowed", limit)
    allowed.reserve(ROUND)
    assert allowed.reserve(replace(ROUND, round=2)) == limit  # equal to the limit is within it
    with pytest.raises(BudgetExhausted, match="round 3 would spend epsilon"):
        allowed.reserve(replace(ROUND, round=3, steps=1))

    below = open_budget(tmp_path / "below", math.nextafter(limit, 0.0))
    below.reserve(ROUND)
    with pytest.raises(BudgetExhausted, match="above the limit"):
        below.reserve(replace(ROUND, round=2))


def test_a_refused_reservation_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    with pytest.raises(BudgetExhausted):
        open_budget(fresh, 0.01).reserve(ROUND)
    assert not fresh.exists()

    used = tmp_path / "used"
    budget = open_budget(used, epsilon(3))
    budget.reserve(ROUND)
    before, modified = used.read_bytes(), used.stat().st_mtime_ns
    with pytest.raises(BudgetExhausted):
        budget.reserve(ROUND)
    assert (used.read_bytes(), used.stat().st_mtime_ns) == (before, modified)
    assert budget.epsilon() == epsilon(2)
    budget.reserve(replace(ROUND, steps=1))  # what still fits is still allowed


@pytest.mark.parametrize("limit", [math.nan, -1.0, 0.0])
def test_a_limit_that_allows_nothing(ledger: Path, limit: float) -> None:
    with pytest.raises(BudgetExhausted):
        open_budget(ledger, limit).reserve(ROUND)


@pytest.mark.parametrize("noise_multiplier", [0.0, -1.0])
def test_a_round_without_noise_fits_no_finite_limit(ledger: Path, noise_multiplier: float) -> None:
    with pytest.raises(BudgetExhausted, match="epsilon inf"):
        open_budget(ledger, 1e300).reserve(replace(ROUND, noise_multiplier=noise_multiplier))


def test_a_reservation_is_on_the_disk_before_reserve_returns(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            order.append("directory")
            assert os.fstat(descriptor).st_ino == ledger.parent.stat().st_ino
        else:
            # the whole line has left the program's own buffers by now
            order.append(f"file with {ledger.read_bytes().count(10)} lines")
        real_fsync(descriptor)

    monkeypatch.setattr(module.os, "fsync", fsync)
    budget = open_budget(ledger)
    budget.reserve(ROUND)
    order.append("returned")
    budget.reserve(replace(ROUND, round=2))
    order.append("returned")
    # a new file's name is on the disk only after its directory was synced
    assert order == ["file with 1 lines", "directory", "returned", "file with 2 lines", "returned"]


def test_a_reservation_that_did_not_reach_the_disk_does_not_return(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = open_budget(ledger)
    budget.reserve(ROUND)

    def fails(descriptor: int) -> None:
        raise OSError(5, "input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(module.os, "fsync", fails)
        with pytest.raises(OSError, match="input/output error"):
            budget.reserve(replace(ROUND, round=2))
    with pytest.raises(LedgerDamaged):  # nobody knows what is on the disk; reopen to see
        budget.reserve(replace(ROUND, round=2))
    assert open_budget(ledger).epsilon() == epsilon(4)


def test_a_full_disk_leaves_the_ledger_as_it_was(ledger: Path) -> None:
    """A part of a line would be taken for damage for ever after."""
    budget = open_budget(ledger)
    budget.reserve(ROUND)
    before = ledger.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
    try:
        with pytest.raises(StoreNotWritable):
            budget.reserve(replace(ROUND, round=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ledger.read_bytes() == before
    budget.reserve(replace(ROUND, round=2))
    assert open_budget(ledger).epsilon() == budget.epsilon() == epsilon(4)


def test_a_reservation_that_another_writer_has_overtaken_is_refused(ledger: Path) -> None:
    mine, other = open_budget(ledger, epsilon(3)), open_budget(ledger, epsilon(3))
    mine.reserve(ROUND)
    with pytest.raises(LedgerDamaged, match="changed by somebody else"):
        other.reserve(ROUND)  # it would fit what this object has seen, but not what was spent
    assert open_budget(ledger).epsilon() == epsilon(2)


def lines_of(ledger: Path) -> list[bytes]:
    budget = open_budget(ledger)
    for number in range(1, 5):
        budget.reserve(replace(ROUND, round=number))
    return ledger.read_bytes().splitlines(keepends=True)


def with_entry(line: bytes, **changes: object) -> bytes:
    """A line whose body is changed and whose hash is not."""
    parsed = json.loads(line)
    parsed["body"] = json.dumps({**json.loads(parsed["body"]), **changes}, sort_keys=True)
    return json.dumps(parsed, sort_keys=True).encode() + b"\n"


DAMAGE: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "middle line removed": lambda lines: [*lines[:1], *lines[2:]],
    "first line removed": lambda lines: lines[1:],
    "two lines swapped": lambda lines: [lines[0], lines[2], lines[1], lines[3]],
    "line repeated": lambda lines: [*lines[:2], *lines[1:]],
    "fewer steps": lambda lines: [lines[0], with_entry(lines[1], steps=1), *lines[2:]],
    "more noise": lambda lines: [*lines[:3], with_entry(lines[3], noise_multiplier=9.0)],
    "reservation turned into a commit": lambda lines: [with_entry(lines[0], kind="commit"), *lines[1:]],
    "one bit flipped": lambda lines: [
        bytes([lines[0][40] ^ 1]).join([lines[0][:40], lines[0][41:]]),
        *lines[1:],
    ],
    "last line cut short": lambda lines: [*lines[:3], lines[3][:-10]],
    "last newline missing": lambda lines: [*lines[:3], lines[3][:-1]],
    "empty line": lambda lines: [*lines[:2], b"\n", *lines[2:]],
    "not JSON": lambda lines: [*lines, b"garbage\n"],
    "not UTF-8": lambda lines: [*lines, b"\xff\xfe\xfa\n"],
    "a list": lambda lines: [*lines, b"[1]\n"],
    "nothing inside": lambda lines: [*lines, b"{}\n"],
    "body is a number": lambda lines: [*lines, b'{"body": 1, "hash": "00"}\n'],
    "nested too deeply": lambda lines: [*lines, b"[" * 100_000 + b"\n"],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_ledger_is_refused(ledger: Path, damage: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = lines_of(ledger)
    damaged = b"".join(damage(lines))
    assert damaged != ledger.read_bytes()
    ledger.write_bytes(damaged)
    with pytest.raises(LedgerDamaged, match=r"line \d of ledger.jsonl"):
        open_budget(ledger)
    assert ledger.read_bytes() == damaged  # left as evidence


@pytest.mark.parametrize(
    "changes",
    [{"kind": "refund"}, {"steps": -2}, {"steps": math.inf}, {"steps": "two"}, {"sample_rate": None}],
)
def test_an_entry_that_makes_no_sense_is_refused_even_with_a_right_hash(
    ledger: Path, changes: dict[str, object]
) -> None:
    entry = {"kind": "reserve", "noise_multiplier": 1.0, "sample_rate": 0.2, "steps": 2, **changes}
    body = json.dumps(entry, sort_keys=True)
    ledger.write_text(json.dumps({"body": body, "hash": module._link("0" * 64, body)}) + "\n")
    with pytest.raises(LedgerDamaged, match="line 1"):
        open_budget(ledger)
