"""`hansa study recipe`: sections that a study takes as they are, the same for the same numbers, and every way to ask wrongly."""

import json
import sys
import tomllib
from pathlib import Path

import pytest

from hansa import cli
from hansa.study import load_study, parse_study

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "examples/bank/study.toml"


class Run:
    """The command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["hansa", "study", "recipe", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self._capsys.readouterr()
        return int(ended.value.code or 0), out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)


def test_what_it_prints_is_toml_with_the_sections_of_a_study(run: Run) -> None:
    status, out, err = run("3", "--study", str(STUDY))
    assert (status, err) == (0, "")
    sections = tomllib.loads(out)
    assert set(sections) == {"privacy", "training", "compression"}
    assert sections["privacy"]["epsilon"] == 3.0
    assert sections["privacy"]["nominal_records"] == load_study(STUDY).privacy.nominal_records


def test_the_json_names_the_noise_and_what_it_costs(run: Run) -> None:
    status, out, _ = run("8", "--study", str(STUDY), "--json")
    found = json.loads(out)
    assert (status, found["schema"]) == (0, "hansa/study-recipe/v1")
    assert found["epsilon_spent"] <= found["epsilon"] == 8.0
    assert found["noise_multiplier"] > 0
    assert found["sections"]["training"]["rounds"] == found["rounds"]


def test_numbers_alone_are_enough(run: Run) -> None:
    arguments = ("8", "--records", "1400", "--entries", "55265", "--participants", "15")
    assert run(*arguments)[:2] == run(*arguments)[:2]
    assert run(*arguments)[0] == 0


def test_a_file_is_written_once(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "sections.toml"
    arguments = ("8", "--study", str(STUDY), "--output", str(path))
    assert run(*arguments)[0] == 0
    assert tomllib.loads(path.read_text())["privacy"]["epsilon"] == 8.0
    status, out, err = run(*arguments)
    assert (status, out) == (73, "")
    assert "output_not_writable" in err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("8",), 2, "--records and --entries have to be said"),
        (("0", "--study", str(STUDY)), 78, "epsilon 0 is not above 0"),
        (("8", "--study", str(STUDY), "--mode", "distributed"), 78, "colluders belong to distributed noise"),
        (("8", "--study", str(STUDY), "--colluders", "1"), 78, "colluders belong to distributed noise"),
        (("8", "--study", str(STUDY), "--mode", "shared"), 78, "'shared' is neither"),
        (("8", "--study", str(STUDY), "--records", "2"), 78, "less than 1 a step"),
        (("8", "--study", str(STUDY), "--participants", "2"), 78, "2 participants are fewer than 3"),
    ],
)
def test_a_wrong_question_is_named(run: Run, arguments: tuple[str, ...], status: int, words: str) -> None:
    found, out, err = run(*arguments)
    assert (found, out) == (status, "")
    assert words in err


def test_the_sections_in_a_whole_study_file(run: Run) -> None:
    """As an author uses them: in the place of the three sections of a file."""
    parts = ("\n" + STUDY.read_text()).split("\n[")
    kept = [part for part in parts if not part.startswith(("privacy]", "training", "compression]"))]
    _, sections, _ = run("1", "--study", str(STUDY))
    study = parse_study("\n[".join(kept).lstrip("\n") + "\n" + sections)
    assert study.privacy.epsilon == 1.0
    assert study.aggregation.participants == 15
