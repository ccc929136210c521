"""`hansa audit statement` and `report`, as a participant and an auditor meet them."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hansa.cli import main
from hansa.participant.round_rosters import RoundRosters
from hansa.participant.store import SealedStore, open_or_make_key
from hansa.privacy.statement import read_statement
from hansa.study import load_study

EXAMPLES = Path(__file__).parents[2] / "examples" / "bank"
POLICY = EXAMPLES / "policy.toml"
Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command of `hansa audit` in this process; give stdout and stderr."""

    def command(*arguments: object, status: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["hansa", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        found = capsys.readouterr()
        assert ended.value.code == status, found.out + found.err
        assert "Traceback" not in found.err
        return found.out, found.err

    return command


def code_of(stderr: str) -> str:
    error, hint = stderr.strip().splitlines()[-2:]
    assert hint.startswith("hansa: hint: ")
    match = re.fullmatch(r"hansa: error: .* \[(\w+)\]", error)
    assert match
    return match[1]


@pytest.fixture
def home(tmp_path: Path, institution: Callable[..., Any]) -> tuple[Path, Any]:
    """A participant's home folder, and the ledger of the bank example in it."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    bank = institution()
    store = SealedStore(folder / "identity.store", open_or_make_key(folder / "identity.key"))
    store.put("identity", bank.identity.export())
    store.close()
    study = load_study(EXAMPLES / "study.toml")
    bank.spend(study, 3, sigma=6.0, missing={})
    RoundRosters(bank.ledger.parent, study.id).note_sum(2, ("bank-1", "bank-9"), ("bank-1",))
    return folder, bank


def test_a_report_is_written_in_every_format(run: Run, sound_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("typst")
    out, err = run(
        "report",
        sound_folder,
        "--output",
        tmp_path / "r",
        "--format",
        "html",
        "--format",
        "json",
        "--format",
        "pdf",
    )
    assert err == ""
    assert out.startswith("VERIFIED\nOFF      dropout recovery in merchant-fraud\n")
    assert re.search(r"^bank-1 +cards +record +2\.41 +4 +1\.59 +1e-5$", out, flags=re.MULTILINE)
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [
        "privacy-report.html", "privacy-report.json", "privacy-report.pdf",
    ]  # fmt: skip


def test_page_and_json_are_the_usual_formats(run: Run, sound_folder: Path, tmp_path: Path) -> None:
    out, _ = run("report", sound_folder, "--output", tmp_path, "--json")
    written = (tmp_path / "privacy-report.json").read_text()
    assert out == written
    assert json.loads(written)["verified"] is True
    assert (tmp_path / "privacy-report.html").exists()


def test_what_does_not_hold_ends_in_1_and_the_report_is_there(
    run: Run, audit_place: Path, tmp_path: Path
) -> None:
    path = audit_place / "bank-2" / "statement-1.json"
    path.write_bytes(path.read_bytes().replace(b'"epsilon":4,', b'"epsilon":9,'))
    out, err = run("report", audit_place, "--output", tmp_path / "r", status=1)
    assert out.startswith("NOT VERIFIED\nproblem  bank-2/statement-1.json: statement-1.json does not hold")
    assert code_of(err) == "statement_invalid"
    assert "bank-2/statement-1.json" in err
    assert "Not verified" in (tmp_path / "r" / "privacy-report.html").read_text()


def test_missing_input_ends_in_66(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        _, err = run("report", tmp_path / place, "--output", tmp_path / "r", status=66)
        assert code_of(err) == "ledger_file_missing"


def test_a_known_key_is_held_against_the_files(run: Run, sound_folder: Path, tmp_path: Path) -> None:
    _, err = run("report", sound_folder, "--output", tmp_path, "--key", f"bank-1={'00' * 32}", status=1)
    assert code_of(err) == "ledger_not_verified"
    _, err = run("report", sound_folder, "--output", tmp_path, "--key", "bank-1", status=2)
    assert code_of(err) == "usage"


def test_a_folder_that_cannot_be_written_ends_in_73(run: Run, sound_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    _, err = run("report", sound_folder, "--output", tmp_path / "file" / "r", status=73)
    assert code_of(err) == "output_not_writable"


def test_verify_names_a_statement_that_does_not_hold(run: Run, audit_place: Path) -> None:
    out, _ = run("verify", audit_place)
    assert (
        "statement-1.json: clinic-4 states 1 studies of data set 'patients', signed after 23 entries" in out
    )
    path = audit_place / "bank-3" / "ledger-1.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    out, err = run("verify", audit_place, status=1)
    assert re.search(
        r"^NOT  .*bank-3/statement-1\.json: ledger-1\.jsonl ends after line 19", out, flags=re.MULTILINE
    )
    assert "'bank-1' states that 'bank-3' was in round 12" in out
    assert code_of(err) == "history_forked"
    out, _ = run("verify", audit_place, "--json", status=1)
    found = json.loads(out)
    assert found["verified"] is False
    assert [one["verified"] for one in found["statements"]] == [True, True, False, True]
    assert found["contradictions"][0]["code"] == "records_contradict"


def test_a_participant_signs_its_statement(
    run: Run, home: tuple[Path, Any], tmp_path: Path, audits: ModuleType
) -> None:
    folder, bank = home
    study = EXAMPLES / "study.toml"
    approvals, empirical = tmp_path / "approvals.json", tmp_path / "empirical.json"
    one = {"study": load_study(study).id, "approved_by": "A. Officer", "role": "DPO", "time": audits.START}
    approvals.write_text(json.dumps({"schema": "hansa/approvals/v1", "approvals": [one]}))
    empirical.write_text(json.dumps({"schema": "hansa/empirical-audit/v1", "study": "a" * 64, "checks": []}))
    arguments = [
        "statement", bank.ledger, "--home", folder, "--policy", POLICY, "--study", study, "--output", bank.statement,
        "--base-model", f"bank-credit-default={'ab' * 32}", "--approvals", approvals, "--empirical", empirical,
    ]  # fmt: skip
    shown, _ = run(*arguments, "--dry-run")
    assert not bank.statement.exists()
    assert json.loads(shown)["statement"]["participant"] == "bank-1"
    out, err = run(*arguments)
    assert (err, out.splitlines()[0]) == ("", f"wrote {bank.statement}")
    assert out.splitlines()[1].startswith("next: ")
    stated = read_statement(bank.statement)
    assert (stated.data_set, stated.limits.epsilon, stated.approvals[0].approved_by) == (
        "credit-cards",
        8.0,
        "A. Officer",
    )
    (described,) = stated.studies
    assert (described.base_model, described.rounds_reserved) == ("ab" * 32, 3)
    assert [(drop.round, drop.missing) for drop in described.dropouts] == [(2, ("bank-9",))]
    run("verify", bank.folder)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"--home": "nowhere"}, 66, "home_missing"),
        ({"--policy": "nowhere"}, 78, "policy_file_missing"),
        ({"--study": "nowhere"}, 78, "study_file_missing"),
        ({"--base-model": "x=1"}, 2, "usage"),
        ({"--approvals": str(POLICY)}, 1, "statement_invalid"),
        ({"--approvals": "nowhere"}, 66, "ledger_file_missing"),
        ({"--empirical": "nowhere"}, 66, "ledger_file_missing"),
    ],
)
def test_what_is_wrong_with_the_files_of_a_statement_is_named(
    run: Run, home: tuple[Path, Any], change: dict[str, str], status: int, code: str
) -> None:
    folder, bank = home
    options = {
        "--home": folder, "--policy": POLICY, "--study": EXAMPLES / "study.toml", "--output": bank.statement, **change,
    }  # fmt: skip
    _, err = run(
        "statement", bank.ledger, *(part for pair in options.items() for part in pair), status=status
    )
    assert code_of(err) == code
    assert not bank.statement.exists()


def test_a_study_that_nobody_described_ends_in_66(
    run: Run, home: tuple[Path, Any], audits: ModuleType
) -> None:
    folder, bank = home
    bank.spend(audits.study_of("another"), 1)
    _, err = run(
        "statement", bank.ledger, "--home", folder, "--policy", POLICY, "--study", EXAMPLES / "study.toml",
        "--output", bank.statement, status=66,
    )  # fmt: skip
    assert code_of(err) == "statement_incomplete"
