"""`hansa audit` in a subprocess, as an auditor meets it: results, exit statuses, hints, JSON."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hansa.cli import main
from hansa.privacy.accounting import Mechanism
from hansa.privacy.budget import Budget, Spending
from hansa.privacy.ledger import LedgerOwner

HANSA = Path(sys.executable).with_name("hansa")
ROUND = Spending(study="a" * 64, round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.2, steps=2)
Spend = Callable[..., Path]


def run(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        [str(HANSA), "audit", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == status, found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    if status == 0:
        assert found.stderr == ""
    return found


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that fails in this process, which is faster; give stderr."""

    def failing(*arguments: str, status: int) -> str:
        monkeypatch.setattr(sys, "argv", ["hansa", "audit", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == status
        return capsys.readouterr().err

    return failing


def error_of(found: subprocess.CompletedProcess[str] | str) -> tuple[str, str]:
    """Code of the error, and its message; the hint is there."""
    stderr = found if isinstance(found, str) else found.stderr
    error, hint = stderr.strip().splitlines()[-2:]
    match = re.fullmatch(r"hansa: error: (.*) \[(\w+)\]", error)
    assert match, error
    assert hint.startswith("hansa: hint: ")
    return match[2], match[1]


@pytest.fixture
def spend(tmp_path: Path, ledger_owner: Callable[..., LedgerOwner]) -> Spend:
    """Spend rounds in a ledger of a folder; commit all but the last."""

    def rounds(*numbers: int, name: str = "ledger-1.jsonl", **owner: Any) -> Path:
        path = tmp_path / "ledgers" / name
        path.parent.mkdir(exist_ok=True)
        budget = Budget(path, epsilon_limit=20.0, delta=1e-5, owner=ledger_owner(**owner))
        for number in numbers:
            budget.reserve(replace(ROUND, round=number))
            if number != numbers[-1]:
                budget.commit(replace(ROUND, round=number))
        return path

    return rounds


def saved(path: Path, *arguments: object) -> Path:
    path.write_text(run(*arguments, "--json").stdout)
    return path


def spoil(path: Path, line: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b'"steps":2', b'"steps":1')
    path.write_bytes(b"".join(lines))


def test_ledgers_that_hold(spend: Spend) -> None:
    folder = spend(1, 2).parent
    spend(1, name="ledger-2.jsonl", participant="bank-2", seed=2)
    found = run("verify", folder).stdout.splitlines()
    assert len(found) == 3
    assert re.match(
        r"verified .*ledger-1\.jsonl: bank-1, epsilon [\d.]+ of 20 at delta 1e-05, 4 entries", found[0]
    )
    assert found[1].startswith("verified")
    assert found[2].startswith("next: ")
    assert run("verify", folder, "--quick").stdout.splitlines() == found


def test_ledgers_that_hold_in_json(spend: Spend) -> None:
    folder = spend(1, 2).parent
    found = json.loads(run("verify", folder, "--json").stdout)
    assert (found["schema"], found["verified"]) == ("hansa/audit-verify/v1", True)
    (ledger,) = found["ledgers"]
    assert (ledger["participant"], ledger["entries"], ledger["epsilon_limit"]) == ("bank-1", 4, 20.0)
    assert [round["committed"] for round in ledger["rounds"]] == [True, False]
    assert ledger["studies"] == {"a" * 64: ledger["epsilon"]}


def test_a_ledger_that_does_not_hold_says_file_line_and_why(spend: Spend) -> None:
    path = spend(1, 2)
    spend(1, name="ledger-2.jsonl", participant="bank-2", seed=2)
    spoil(path, 3)
    found = run("verify", path.parent, status=1)
    code, message = error_of(found)
    assert code == "ledger_not_verified"
    assert "line 3 of ledger-1.jsonl" in message
    first, second = found.stdout.splitlines()
    assert first.startswith("NOT ")
    assert second.startswith("verified")
    found = run("verify", path.parent, "--json", status=1)
    parsed = json.loads(found.stdout)
    assert parsed["verified"] is False
    assert [ledger["verified"] for ledger in parsed["ledgers"]] == [False, True]
    assert parsed["ledgers"][0]["code"] == "ledger_not_verified"
    assert "line 3" in parsed["ledgers"][0]["problem"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "nowhere"],
        ["verify", "."],
        ["show", "nowhere"],
        ["head", "nowhere"],
        ["prove", "nowhere", "--entry", "0"],
        ["verify", "--proof", "nowhere"],
        ["verify", "nowhere", "--head", "nowhere"],
    ],
    ids=" ".join,
)
def test_missing_input_ends_in_66(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: Callable[..., str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of(run_here(*arguments, status=66))[0] == "ledger_file_missing"


def test_a_history_that_was_cut_is_found_by_an_earlier_head(spend: Spend, tmp_path: Path) -> None:
    path = spend(1, 2)
    head = saved(tmp_path / "head.json", "head", path)
    assert run("head", path).stdout.split()[-1] == json.loads(head.read_text())["signature"]
    spend(3)
    run("verify", path, "--head", head)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    run("verify", path)
    assert error_of(run("verify", path, "--head", head, status=1))[0] == "history_forked"
    head.write_text("[]")
    assert error_of(run("verify", path, "--head", head, status=1))[0] == "proof_invalid"


def test_a_proof_is_checked_with_and_without_the_ledger(
    spend: Spend, tmp_path: Path, ledger_owner: Callable[..., LedgerOwner]
) -> None:
    path = spend(1, 2, 3)
    proof = saved(tmp_path / "proof.json", "prove", path, "--entry", 3)
    assert json.loads(proof.read_text())["entry"]["round"] == 2
    assert run("prove", path, "--entry", 3).stdout.startswith("entry 3 of 6 of bank-1: reserve\n")
    key = ledger_owner().public_key.hex()
    assert run("verify", "--proof", proof, "--key", f"bank-1={key}").stdout.startswith("proof ")
    found = json.loads(run("verify", path.parent, "--proof", proof, "--json").stdout)
    assert found["proofs"] == [{"file": str(proof), "participant": "bank-1", "public_key": key}]
    wrong = f"bank-1={ledger_owner(seed=2).public_key.hex()}"
    assert error_of(run("verify", "--proof", proof, "--key", wrong, status=1))[0] == "proof_invalid"
    changed = json.loads(proof.read_text())
    changed["entry"]["steps"] = 1
    proof.write_text(json.dumps(changed))
    assert error_of(run("verify", "--proof", proof, status=1))[0] == "proof_invalid"
    proof.write_text("no json")
    assert error_of(run("verify", "--proof", proof, status=1))[0] == "proof_invalid"


def test_show_prints_what_was_spent(spend: Spend) -> None:
    path = spend(1, 2)
    found = run("show", path).stdout.splitlines()
    assert found[0].startswith("bank-1, data 6464")
    assert found[1].split() == ["STUDY", "ROUND", "ATTEMPT", "EPSILON", "COMMITTED", "SIGMA", "RATE", "STEPS"]
    rows = [line.split() for line in found[2:4]]
    assert [(row[1], row[4:]) for row in rows] == [
        ("1", ["yes", "1", "0.2", "2"]),
        ("2", ["no", "1", "0.2", "2"]),
    ]
    assert found[-1].startswith("in all  epsilon ")
    parsed = json.loads(run("show", path, "--json").stdout)
    assert parsed["schema"] == "hansa/audit-show/v1"
    assert [round["round"] for round in parsed["rounds"]] == [1, 2]
    with path.open("ab") as file:
        file.write(b'{"entry"')
    assert "cut short" in run("show", path).stdout.splitlines()[-1]


def test_a_charge_is_shown_by_its_purpose_and_is_no_round(
    spend: Spend, ledger_owner: Callable[..., LedgerOwner]
) -> None:
    path = spend(1)
    budget = Budget(path, epsilon_limit=20.0, delta=1e-5, owner=ledger_owner())
    budget.charge("canary", Mechanism(1.0, 0.2, 3), study="b" * 64)
    rows = [line.split() for line in run("show", path).stdout.splitlines()]
    assert ["b" * 16, "canary"] in [row[:2] for row in rows]
    parsed = json.loads(run("show", path, "--json").stdout)
    assert [round["round"] for round in parsed["rounds"]] == [1]
    (charge,) = parsed["charges"]
    assert (charge["purpose"], charge["study"], charge["steps"], charge["line"]) == ("canary", "b" * 64, 3, 3)
    assert set(parsed["studies"]) == {ROUND.study, "b" * 64}


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify"],
        ["verify", "{ledger}", "--key", "bank-1=zz"],
        ["verify", "{ledger}", "--key", "00" * 32],
        ["prove", "{ledger}", "--entry", "4"],
        ["prove", "{ledger}", "--entry", "-1"],
        ["prove", "{ledger}"],
    ],
    ids=" ".join,
)
def test_wrong_use_ends_in_2(spend: Spend, run_here: Callable[..., str], arguments: list[str]) -> None:
    path = str(spend(1, 2))
    filled = [argument.replace("{ledger}", path) for argument in arguments]
    assert error_of(run_here(*filled, status=2))[0] == "usage"


def test_the_owner_of_another_key_is_found_when_the_key_is_known(
    spend: Spend, ledger_owner: Callable[..., LedgerOwner]
) -> None:
    path = spend(1)
    other = f"bank-1={ledger_owner(seed=2).public_key.hex()}"
    assert error_of(run("verify", path, "--key", other, status=1))[0] == "ledger_not_verified"
    run("verify", path, "--key", f"bank-1={ledger_owner().public_key.hex()}")


def test_nothing_heavy_is_imported_for_help() -> None:
    program = "import sys; from hansa import cli; print([m for m in ('torch', 'scipy', 'rfc8785') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert "verify" in run("--help").stdout
