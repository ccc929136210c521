"""`hansa budget forecast`: the table, the JSON, and every way to ask wrongly."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hansa import cli
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.ledger import LedgerOwner

ROOT = Path(__file__).resolve().parents[2]
STUDY = str(ROOT / "examples/bank/study.toml")


class Run:
    """The command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["hansa", "budget", "forecast", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self._capsys.readouterr()
        return int(ended.value.code or 0), out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)


def test_a_table_with_every_round_and_the_one_that_passes_the_limit(run: Run) -> None:
    status, out, err = run(STUDY, "--rounds", "33")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line[:14].strip().isdigit()]
    assert [int(row[0]) for row in rows] == list(range(34))
    assert float(rows[0][1]) == 0.0
    assert 7.9 < float(rows[30][1]) <= 8.0 < float(rows[31][1])
    assert [row[0] for row in rows if "passes" in row] == ["31", "32", "33"]
    assert "further round 31 would pass the limit" in out
    assert "checked: " in out


def test_a_long_table_is_thinned_but_keeps_what_matters(run: Run) -> None:
    _, out, _ = run(STUDY, "--rounds", "200")
    numbers = [int(line.split()[0]) for line in out.splitlines() if line[:14].strip().isdigit()]
    assert {0, 1, 31, 200} <= set(numbers)
    assert len(numbers) < 60
    assert "of 200 rounds shown; --json has 200" in out


def test_json_with_a_ledger(run: Run, tmp_path: Path, ledger_owner: Callable[..., LedgerOwner]) -> None:
    ledger = tmp_path / "ledger"
    Budget(ledger, epsilon_limit=100.0, delta=1e-5, owner=ledger_owner()).reserve(
        Spending(study="other", round=1, attempt=0, noise_multiplier=2.5, sample_rate=0.4, steps=3)
    )
    before = ledger.read_bytes()
    status, out, err = run(STUDY, "--rounds", "2", "--spent", str(ledger), "--limit", "3", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["schema"] == "hansa/budget-forecast/v1"
    assert found["limit"] == 3.0
    assert 0 < found["epsilon_before"] < found["epsilon_after_round"][0] < found["epsilon_after_round"][1]
    assert found["check"]["prv_low"] <= found["epsilon_after_round"][1] <= found["check"]["prv_high"]
    assert ledger.read_bytes() == before  # looking ahead spends nothing


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("--rounds", "-1"), 2, "usage"),
        (("--rounds", "1000000"), 2, "usage"),
        (("--limit", "0"), 2, "usage"),
        (("--limit", "nan"), 2, "usage"),
        (("--limit", "inf"), 2, "usage"),
        (("--spent", "no-such-ledger"), 66, "spent_file_missing"),
    ],
)
def test_a_bad_option_ends_with_its_error_and_status(
    run: Run, arguments: tuple[str, ...], status: int, code: str
) -> None:
    found, out, err = run(STUDY, *arguments)
    error, hint = err.strip().splitlines()
    assert (found, out) == (status, "")
    assert error.endswith(f"[{code}]")
    assert hint.startswith("hansa: hint: ")


def test_a_damaged_ledger_and_a_missing_study_are_named(run: Run, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.write_text("{}\n")
    status, _, err = run(STUDY, "--spent", str(ledger))
    assert status == 3
    assert "[ledger_damaged]" in err
    status, _, err = run("none.toml")
    assert status == 78
    assert "[study_file_missing]" in err
