"""The file of an empirical audit, as a statement takes it up."""

import json
from pathlib import Path
from typing import Any

import pytest

from hansa.errors import LedgerFileMissing, StatementInvalid
from hansa.privacy.empirical_file import read_empirical

CANARIES = {
    "name": "sampling",
    "kind": "canaries",
    "passed": True,
    "noise_multiplier": 2.0,
    "sample_rate": 0.4,
    "steps": 4,
    "delta": 1e-5,
    "claimed_epsilon": 3.1,
    "lower_bound": 1.2,
    "confidence": 0.999,
    "canaries": 10_000,
}
INVERSION = {
    "name": "gradient inversion",
    "kind": "inversion",
    "passed": True,
    "tokens": 96,
    "recovered_without_noise": 0.97,
    "recovered": 0,
    "chance": 0.004,
}


def written(path: Path, **changes: Any) -> Path:
    found = {
        "schema": "hansa/empirical-audit/v1",
        "study": "a" * 64,
        "checks": [CANARIES, {**CANARIES, "kind": "one_run", "name": "one training"}, INVERSION],
        **changes,
    }
    path.write_text(json.dumps(found))
    return path


def test_bounds_and_attacks_are_read_and_nothing_else(tmp_path: Path) -> None:
    bounds, attacks = read_empirical(written(tmp_path / "audit.json"))
    assert [one.name for one in bounds] == ["sampling", "one training"]
    assert (bounds[0].epsilon_at_least, bounds[0].steps, bounds[0].study) == (1.2, 4, "a" * 64)
    assert (attacks[0].recovered, attacks[0].tokens, attacks[0].passed) == (0.0, 96, True)


def test_a_bound_above_its_claim_is_read_as_well(tmp_path: Path) -> None:
    failed = {**CANARIES, "passed": False, "lower_bound": 9.0}
    bounds, _ = read_empirical(written(tmp_path / "audit.json", checks=[failed]))
    assert bounds[0].epsilon_at_least == 9.0


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "hansa/empirical-audit/v2"},
        {"checks": None},
        {"checks": [{**CANARIES, "kind": "guess"}]},
        {"checks": [{**CANARIES, "lower_bound": None}]},
        {"checks": [{**CANARIES, "lower_bound": float("nan")}]},
        {"checks": [{**CANARIES, "steps": 0}]},
        {"checks": [{**CANARIES, "steps": 1.5}]},
        {"checks": ["canaries"]},
        {"study": "x"},
    ],
)
def test_another_form_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(StatementInvalid, match="no file of an empirical audit"):
        read_empirical(written(tmp_path / "audit.json", **changes))


def test_a_file_that_is_not_there_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(LedgerFileMissing):
        read_empirical(tmp_path / "none.json")
    (tmp_path / "x.json").write_bytes(b"\xff")
    with pytest.raises(StatementInvalid):
        read_empirical(tmp_path / "x.json")
