"""The ledger where noise is distributed: worst case until a commit says what arrived, and an auditor finds the same numbers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hansa.cli import app
from hansa.errors import BudgetExhausted, LedgerDamaged, LedgerNotVerified
from hansa.privacy.audit import audit_ledger
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.distributed import DistributedNoise
from hansa.privacy.ledger import Ledger, LedgerOwner, read_ledger
from hansa.privacy.ledger_history import entry_fields
from hansa.privacy.limit_check import verify_limits
from hansa.privacy.spending import total_epsilon
from hansa.privacy.spent import reservations_in

DELTA = 1e-5
NOISE = DistributedNoise(contributors=11, colluders=1, variance=10**6, clip_levels=3000, entries=100)
ROUND = Spending(
    study="a" * 64,
    round=1,
    attempt=0,
    noise_multiplier=NOISE.noise_multiplier,
    sample_rate=0.2,
    steps=1,
    distributed=NOISE,
)
LOCAL = Spending(study="b" * 64, round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)
Opener = Callable[..., Budget]


def epsilon(*arrived: int) -> float:
    """ε of rounds with so many members each."""
    steps: dict[tuple[float, float], int] = {}
    for members in arrived:
        mechanism = (NOISE.arrived(members).noise_multiplier, 0.2)
        steps[mechanism] = steps.get(mechanism, 0) + 1
    return total_epsilon(steps, DELTA)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger-1.jsonl"


@pytest.fixture
def opened(path: Path, ledger_owner: Callable[..., LedgerOwner]) -> Opener:
    def make(limit: float = 50.0) -> Budget:
        return Budget(path, epsilon_limit=limit, delta=DELTA, owner=ledger_owner())

    return make


def test_a_round_costs_the_worst_case_until_its_commit_says_what_arrived(opened: Opener, path: Path) -> None:
    budget = opened()
    assert budget.reserve(ROUND) == epsilon(11)
    budget.commit(ROUND, contributors=15)
    assert budget.epsilon() == epsilon(15) < epsilon(11)
    assert budget.reserve(replace(ROUND, round=2)) == epsilon(15, 11)
    assert opened().epsilon() == epsilon(15, 11)  # a crash here leaves the worst case
    opened().commit(replace(ROUND, round=2), contributors=13)
    assert opened().epsilon() == epsilon(15, 13)
    assert audit_ledger(path).epsilon == epsilon(15, 13)
    mechanisms = [one.mechanism.noise_multiplier for one in reservations_in(path)]
    assert mechanisms == [NOISE.arrived(15).noise_multiplier, NOISE.arrived(13).noise_multiplier]


@pytest.mark.parametrize("contributors", [0, 3, 11])
def test_no_commit_says_less_than_was_counted_on(opened: Opener, path: Path, contributors: int) -> None:
    """0 where the own update is not known to be in the sum: nothing better than the reservation is claimed."""
    budget = opened()
    budget.reserve(ROUND)
    budget.commit(ROUND, contributors=contributors)
    budget.commit(ROUND, contributors=15)  # once
    assert budget.epsilon() == epsilon(11)
    (reservation,) = read_ledger(path).history.reservations
    assert (reservation.committed, reservation.counted) == (True, ROUND)


def test_an_auditor_recomputes_epsilon_from_what_arrived(opened: Opener, path: Path) -> None:
    budget = opened()
    for number, members in enumerate((15, 11, 14), start=1):
        budget.reserve(replace(ROUND, round=number))
        budget.commit(replace(ROUND, round=number), contributors=members)
    budget.reserve(replace(ROUND, round=4))  # never committed
    budget.reserve(LOCAL)
    budget.commit(LOCAL, contributors=15)  # own noise: the number of members changes nothing
    audit = audit_ledger(path)
    assert audit.epsilon == budget.epsilon()
    assert list(audit.round_epsilon[:4]) == [epsilon(15), epsilon(11), epsilon(14), epsilon(11)]
    assert audit.study_epsilon["a" * 64] == pytest.approx(epsilon(15, 11, 14, 11), rel=1e-12)
    assert [one.counted.contributors for one in audit.reservations] == [15, 11, 14, 11, 1]
    shown = json.loads(CliRunner().invoke(app, ["audit", "show", str(path), "--json"]).stdout)
    assert [one["noise_contributors"] for one in shown["rounds"]] == [15, 11, 14, 11, 1]
    assert shown["rounds"][0]["noise_multiplier"] == NOISE.arrived(15).noise_multiplier


def test_the_entries_name_everything_that_the_noise_multiplier_follows_from(
    opened: Opener, path: Path
) -> None:
    budget = opened()
    budget.reserve(ROUND)
    budget.commit(ROUND, contributors=14)
    reserve, commit = (json.loads(line)["entry"] for line in path.read_text().splitlines()[1:])
    assert reserve["distributed"] == {
        "format": "hansa/distributed-noise/v1",
        "contributors": 11,
        "colluders": 1,
        "variance": 10**6,
        "clip_levels": 3000,
        "entries": 100,
    }
    assert commit["distributed"] == reserve["distributed"] | {"contributors": 14}
    assert (reserve["kind"], commit["kind"]) == ("reserve", "commit")
    assert reserve["noise_multiplier"] == NOISE.noise_multiplier


def test_entries_of_local_noise_are_spelled_as_before(opened: Opener, path: Path) -> None:
    budget = opened()
    budget.reserve(LOCAL)
    budget.commit(LOCAL)
    found = [json.loads(line)["entry"] for line in path.read_text().splitlines()[1:]]
    steps = {"study", "round", "attempt", "noise_multiplier", "sample_rate", "steps"}
    common = {"kind", "previous", "sequence", "time"}
    assert [set(entry) for entry in found] == [steps | common | {"epsilon_limit"}, steps | common]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"contributors": 10}, {}),  # fewer than were counted on
        ({"contributors": 15, "colluders": 0}, {}),
        ({"contributors": 15, "variance": 2 * 10**6}, {}),
        ({"contributors": 15, "clip_levels": 2000}, {}),
        ({"contributors": 15, "entries": 1}, {}),
        ({"contributors": 15}, {"sample_rate": 0.1}),
        ({"contributors": 15}, {"round": 2}),
        ({"contributors": 15}, {"study": "c" * 64}),
    ],
    ids=str,
)
def test_a_commit_that_names_another_noise_than_more_members_is_refused(
    path: Path, ledger_owner: Callable[..., LedgerOwner], changes: dict[str, Any], steps: dict[str, Any]
) -> None:
    ledger = Ledger(path, owner=ledger_owner(), delta=DELTA)
    ledger.append("reserve", {**entry_fields(ROUND), "epsilon_limit": None})
    other = replace(NOISE, **changes)
    false = replace(ROUND, distributed=other, noise_multiplier=other.noise_multiplier, **steps)
    with pytest.raises(LedgerDamaged, match="was not reserved"):
        ledger.history.verify_reserved(false)
    with pytest.raises(LedgerDamaged, match="was not reserved"):
        ledger.append("commit", entry_fields(false))
    with pytest.raises(LedgerNotVerified, match=r"line 3 .*was not reserved"):
        audit_ledger(path)


@pytest.mark.parametrize("kind", ["reserve", "commit"])
def test_a_noise_multiplier_that_does_not_follow_from_the_noise_is_refused(
    path: Path, ledger_owner: Callable[..., LedgerOwner], kind: str
) -> None:
    ledger = Ledger(path, owner=ledger_owner(), delta=DELTA)
    limit = {"epsilon_limit": None}
    false = replace(ROUND, noise_multiplier=NOISE.noise_multiplier + 0.001)
    if kind == "commit":
        ledger.append("reserve", {**entry_fields(ROUND), **limit})
        limit = {}
    with pytest.raises(LedgerDamaged, match="noise multiplier is not that of the noise"):
        ledger.append(kind, {**entry_fields(false), **limit})
    with pytest.raises(LedgerNotVerified, match="noise multiplier is not that of the noise"):
        audit_ledger(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "hansa/distributed-noise/v2"},
        {"contributors": 1},
        {"colluders": -1},
        {"variance": 15},
        {"variance": 1e6},
        {"clip_levels": 0},
        {"entries": True},
        {"more": 1},
    ],
    ids=str,
)
def test_noise_out_of_its_form_is_no_entry(
    path: Path, ledger_owner: Callable[..., LedgerOwner], changes: dict[str, Any]
) -> None:
    ledger = Ledger(path, owner=ledger_owner(), delta=DELTA)
    fields = {**entry_fields(ROUND), "epsilon_limit": None}
    fields["distributed"] = fields["distributed"] | changes
    with pytest.raises(LedgerDamaged, match="distributed of a reserve entry"):
        ledger.append("reserve", fields)
    assert not path.exists() or path.read_bytes() == b""


def test_several_steps_cannot_be_reserved_with_distributed_noise(
    path: Path, ledger_owner: Callable[..., LedgerOwner]
) -> None:
    ledger = Ledger(path, owner=ledger_owner(), delta=DELTA)
    with pytest.raises(LedgerDamaged, match="in one step"):
        ledger.append("reserve", {**entry_fields(replace(ROUND, steps=2)), "epsilon_limit": None})


# -- limits -----------------------------------------------------------------------------------------------


def test_noise_that_arrived_makes_room_for_rounds_and_the_auditor_agrees(opened: Opener, path: Path) -> None:
    """A limit that the worst case of every round would pass, and what arrived does not."""
    limit = epsilon(15, 15, 15, 11) * 1.0000001
    assert epsilon(11, 11, 11, 11) > limit
    budget = opened(limit)
    for number in (1, 2, 3, 4):
        budget.reserve(replace(ROUND, round=number))
        budget.commit(replace(ROUND, round=number), contributors=15)
    with pytest.raises(BudgetExhausted):
        opened(limit).reserve(replace(ROUND, round=5))
    assert audit_ledger(path).epsilon == epsilon(15, 15, 15, 15)


def test_a_round_that_was_reserved_above_its_limit_is_found_though_more_noise_arrived_later(
    path: Path, ledger_owner: Callable[..., LedgerOwner]
) -> None:
    """What counts is what was known then: the commits stand below the reservation."""
    limit = epsilon(11, 11) * 0.999
    assert epsilon(15, 15) < limit
    ledger = Ledger(path, owner=ledger_owner(), delta=DELTA)
    rounds = [replace(ROUND, round=number) for number in (1, 2)]
    for spending in rounds:
        ledger.append("reserve", {**entry_fields(spending), "epsilon_limit": limit})
    for spending in rounds:
        ledger.append("commit", entry_fields(spending.arrived(15)))
    with pytest.raises(
        LedgerNotVerified, match=r"line 3 of ledger-1\.jsonl spends epsilon .* above the limit"
    ):
        audit_ledger(path)


def test_the_first_reservation_above_its_limit_is_named_among_many(
    path: Path, ledger_owner: Callable[..., LedgerOwner]
) -> None:
    ledger = Ledger(path, owner=ledger_owner(), delta=DELTA)
    members = [15, 11, 15, 13, 15, 15, 12, 15, 15]
    limits = [epsilon(*members[:at], 11) for at in range(len(members))]
    limit = (limits[5] + limits[6]) / 2  # the seventh is the first above
    for number, arrived in enumerate(members, start=1):
        spending = replace(ROUND, round=number)
        ledger.append("reserve", {**entry_fields(spending), "epsilon_limit": limit})
        ledger.append("commit", entry_fields(spending.arrived(arrived) if arrived > 11 else spending))
    reservations = ledger.history.reservations
    with pytest.raises(LedgerNotVerified, match=f"^line {reservations[6].line} of"):
        verify_limits(path.name, DELTA, reservations)
    verify_limits(path.name, DELTA, reservations[:6])


def test_a_ledger_of_local_noise_takes_a_distributed_study_and_the_other_way_round(
    opened: Opener, path: Path
) -> None:
    budget = opened()
    budget.reserve(LOCAL)
    budget.commit(LOCAL)
    budget.reserve(ROUND)
    budget.commit(ROUND, contributors=12)
    budget.reserve(replace(LOCAL, round=2))
    mechanisms = {(1.0, 0.2): 4, (NOISE.arrived(12).noise_multiplier, 0.2): 1}
    assert opened().epsilon() == audit_ledger(path).epsilon == total_epsilon(mechanisms, DELTA)
