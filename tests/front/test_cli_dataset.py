"""`hansa participant dataset` in a subprocess, as the owner of the data meets it."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from hansa import cli

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/bank"
STUDY = EXAMPLE / "study.toml"
SECRET = "8675309"
Run = Callable[..., subprocess.CompletedProcess[str]]
HEADER = "client,LIMIT_BAL,SEX,EDUCATION,MARRIAGE,AGE," + ",".join(
    [f"PAY_{k}" for k in (0, 2, 3, 4, 5, 6)]
    + [f"BILL_AMT{k}" for k in range(1, 7)]
    + [f"PAY_AMT{k}" for k in range(1, 7)]
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def run(home: Path) -> Run:
    def call(*arguments: object, place: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-c", "from hansa.cli import main; main()", "participant", "dataset"]
        where = ["--home", str(home)] if place else []
        return subprocess.run(
            [*command, *map(str, arguments), *where],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "HANSA_HOME": str(home)},
        )

    return call


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The same within this process, for the many cases that differ in their arguments only."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = ["hansa", "participant", "dataset", *map(str, arguments), "--home", str(home)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(command, int(ended.value.code or 0), out, err)

    return call


def clients(path: Path, rows: int = 600, *, delimiter: str = ",", **cells: str) -> Path:
    """Write clients of a bank; `cells` replace columns of every third row."""
    names = [*HEADER.split(","), "late"]
    lines = [delimiter.join(names)]
    for row in range(rows):
        usual = {name: str(row % 2) for name in names}
        usual |= {
            "client": f"c{row // 2}",
            "AGE": str(20 + row % 60),
            "LIMIT_BAL": str(1000 + row),
            "SEX": str(1 + row % 2),
        }
        lines.append(delimiter.join((usual | (cells if row % 3 == 0 else {}))[name] for name in names))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def add_csv(run: Run, name: str = "cards", *more: object) -> subprocess.CompletedProcess[str]:
    return run("add", name, "--kind", "csv", "--path", "clients.csv", "--label", "late", *more)


def failure(found: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    """The exit status and the code of the error; there is a hint, and no traceback."""
    error, hint = found.stderr.strip().splitlines()[-2:]
    assert error.startswith("hansa: error: ")
    assert hint.startswith("hansa: hint: ")
    assert "Traceback" not in found.stderr
    return found.returncode, error.rsplit("[", 1)[1].removesuffix("]")


def test_add_check_stats_list_remove(run: Run, home: Path) -> None:
    clients(home / "clients.csv")
    dry = add_csv(run, "cards", "--person", "client", "--dry-run", "--json")
    assert json.loads(dry.stdout)["written"] is False
    assert not (home / "datasets.toml").exists()
    added = add_csv(run, "cards", "--person", "client")
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout.splitlines()[-1] == "next: hansa participant dataset check cards STUDY.toml"
    assert (home / "datasets.toml").stat().st_mode & 0o777 == 0o600

    checked = run("check", "cards", STUDY, "--json")
    report = json.loads(checked.stdout)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert (report["schema"], report["rows"], report["fits"]) == ("hansa/dataset-check/v1", 600, True)
    words = run("check", "cards", STUDY, place=False)  # HANSA_HOME
    assert words.stdout.splitlines()[-1] == "data set cards, 600 rows: fits"

    shown = run("stats", "cards", "--json")
    found = json.loads(shown.stdout)
    assert (found["schema"], found["sent"], found["rows"]) == ("hansa/dataset-stats/v1", False, 600)
    assert found["persons"] == {"count": 300, "most_records": 2}
    assert "nothing was sent" in run("stats", "cards").stderr

    listed = json.loads(run("list", "--json").stdout)
    assert listed["data_sets"] == [{"name": "cards", "kind": "csv", "policy": None, "ledger": None}]
    removed = run("remove", "cards")
    assert removed.returncode == 0
    assert "the ledger stays" in removed.stdout
    assert failure(run("stats", "cards")) == (66, "unknown_dataset")


def test_every_problem_of_the_data_is_listed_and_none_of_its_values(run: Run, home: Path) -> None:
    clients(home / "clients.csv", AGE=f"{SECRET}y", SEX="5", late="", BILL_AMT1="NaN")
    add_csv(run)
    found = run("check", "cards", STUDY)
    assert failure(found) == (65, "schema_mismatch")
    wrong = "error  column 'AGE' is not a number in 200 of 600 rows, first in data row 1 [non_numeric_column]"
    assert wrong in found.stdout.splitlines()[:2]
    for said in (
        "label 'DEFAULT_NEXT_MONTH' ('late' in the data) is missing",
        "'SEX' is outside",
        "'BILL_AMT1' is missing in 200 of 600",
    ):
        assert said in found.stdout
    assert SECRET not in found.stdout + found.stderr
    report = json.loads(run("check", "cards", STUDY, "--json").stdout)
    assert {p["code"] for p in report["problems"] if p["severity"] == "error"} == {
        "non_numeric_column",
        "invalid_label",
    }
    (home / "clients.csv").write_text("")
    assert failure(run("check", "cards", STUDY)) == (65, "data_unreadable")


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        (lambda file: file.unlink(), 66, "data_file_missing"),
        (lambda file: file.write_text(file.read_text().replace("client,", "AGE,", 1)), 65, "schema_mismatch"),
        (lambda file: clients(file, delimiter=";"), 65, "schema_mismatch"),
        (lambda file: file.write_text(file.read_text() + f"{SECRET},1\n"), 65, "data_unreadable"),
        (lambda file: file.write_bytes(file.read_bytes() + b"\xff"), 65, "data_unreadable"),
        (lambda file: file.write_text(""), 65, "data_unreadable"),
    ],
    ids=["missing file", "duplicate column", "wrong delimiter", "short line", "wrong encoding", "empty"],
)
def test_bad_data_has_its_code(
    here: Run, home: Path, change: Callable[[Path], object], status: int, code: str
) -> None:
    file = clients(home / "clients.csv")
    add_csv(here)
    change(file)
    found = here("check", "cards", STUDY)
    assert failure(found) == (status, code)
    assert SECRET not in found.stdout + found.stderr


def test_a_database_is_checked_and_a_query_that_writes_is_refused(run: Run, home: Path) -> None:
    home.mkdir()
    names = [*HEADER.split(",")[1:], "DEFAULT_NEXT_MONTH"]
    with closing(sqlite3.connect(home / "bank.db")) as connection, connection:
        connection.execute(f"CREATE TABLE clients ({', '.join(names)})")
        connection.executemany(
            f"INSERT INTO clients VALUES ({', '.join('?' * len(names))})",
            [[20 + row % 2] * (len(names) - 1) + [row % 2] for row in range(600)],
        )
    before = (home / "bank.db").read_bytes()
    query = "SELECT * FROM clients"
    assert (
        run("add", "cards", "--kind", "sql", "--url", "sqlite:///bank.db", "--query", query).returncode == 0
    )
    assert run("check", "cards", STUDY).returncode == 0
    run(
        "add",
        "worse",
        "--kind",
        "sql",
        "--url",
        "sqlite:///bank.db",
        "--query",
        f"{query}; DELETE FROM clients",
    )
    assert failure(run("check", "worse", STUDY)) == (78, "query_refused")
    run("add", "other", "--kind", "sql", "--url", "postgresql+nodriver://bank@127.0.0.1:1/x", "--table", "t")
    assert failure(run("check", "other", STUDY)) == (78, "driver_missing")
    assert (home / "bank.db").read_bytes() == before


def test_texts_need_no_study_and_tables_do(run: Run, home: Path) -> None:
    home.mkdir()
    (home / "notes.jsonl").write_text('{"text": "a note", "label": "x"}\n')
    run("add", "notes", "--kind", "jsonl", "--path", "notes.jsonl")
    assert run("check", "notes").returncode == 0
    assert failure(run("check", "notes", STUDY)) == (65, "schema_mismatch")
    clients(home / "clients.csv")
    add_csv(run)
    assert failure(run("check", "cards")) == (2, "usage")


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("add", "x", "--kind", "cvs", "--path", "a"), 78, "invalid_value"),
        (("add", "x", "--kind", "csv"), 78, "invalid_value"),
        (("add", "X", "--kind", "csv", "--path", "a"), 78, "invalid_value"),
        (
            ("add", "x", "--kind", "sql", "--url", f"postgresql://b:{SECRET}@h/d", "--table", "t"),
            78,
            "invalid_value",
        ),
        (("add", "x", "--kind", "csv", "--path", "a", "--column", "AGE"), 2, "usage"),
        (("add", "x", "--path", "a"), 2, "usage"),
        (("list",), 66, "dataset_file_missing"),
        (("remove", "x"), 66, "dataset_file_missing"),
        (("stats", "x"), 66, "dataset_file_missing"),
        (("check", "x", "none.toml"), 78, "study_file_missing"),
    ],
)
def test_bad_usage_has_its_code_and_writes_nothing(
    here: Run, home: Path, arguments: tuple[str, ...], status: int, code: str
) -> None:
    found = here(*arguments)
    assert failure(found) == (status, code)
    assert SECRET not in found.stdout + found.stderr
    assert not home.exists()


def test_adding_a_name_twice_is_refused(run: Run) -> None:
    assert add_csv(run).returncode == 0
    assert failure(add_csv(run)) == (78, "dataset_exists")


def test_the_example_fits(run: Run, home: Path) -> None:
    home.mkdir()
    for name in ("datasets.toml", "policy.toml"):
        shutil.copy(EXAMPLE / name, home)
    (home / "data").symlink_to(EXAMPLE / "data")
    found = run("check", "credit-cards", STUDY)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "data set credit-cards, 30000 rows: fits"
    assert sorted(path.name for path in home.iterdir()) == [
        "data",
        "datasets.toml",
        "policy.toml",
    ]  # nothing is kept
