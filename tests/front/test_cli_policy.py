"""`hansa policy check`: allowed or refused with the code, and what the rules leave open."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hansa import cli

ROOT = Path(__file__).resolve().parents[2]
STUDY, POLICY = ROOT / "examples/bank/study.toml", ROOT / "examples/bank/policy.toml"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hansa", "policy", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = POLICY.read_text()
    assert text.count(old) == 1
    file = tmp_path / "policy.toml"
    file.write_text(text.replace(old, new))
    return file


def test_the_example_allows_the_example_and_says_what_it_leaves_open(run: Run) -> None:
    status, out, err = run(POLICY, STUDY)
    assert status == 0
    assert out.startswith("data set credit-cards, study bank-credit-default (")
    assert out.endswith("): allowed\n")
    assert "hansa: warning: any base model is allowed" in err
    assert "hansa: warning: anybody may submit a study" in err


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ('studies = ["', 'studies = ["' + "0" * 64 + '"] # ["', "unknown_study"),
        ("most_rounds = 100", "most_rounds = 29", "too_many_rounds"),
        ("smallest_cohort = 3", "smallest_cohort = 16", "cohort_below_policy"),
        ("delta_limit = 1e-5", "delta_limit = 1e-6", "budget_exhausted"),
        ("per_study = 8.0", "per_study = 3.0", "budget_exhausted"),
        ("submitters = []", 'submitters = ["ministry"]', "submitter_not_allowed"),
        ("models = []", f'models = ["{"ab" * 32}"]', "model_not_allowed"),
    ],
)
def test_a_refusal_carries_its_code(run: Run, tmp_path: Path, old: str, new: str, code: str) -> None:
    file = changed(tmp_path, old, new)
    status, out, err = run(file, STUDY)
    assert status == 3
    assert f": refused [{code}]" in out
    assert err.strip().splitlines()[-2].endswith(f"[{code}]")
    status, out, _ = run(file, STUDY, "--json")
    found = json.loads(out)
    assert status == 3
    assert (found["schema"], found["allowed"], found["code"]) == ("hansa/policy-check/v1", False, code)


def test_a_named_submitter_and_model_are_allowed(run: Run, tmp_path: Path) -> None:
    file = changed(tmp_path, "submitters = []", 'submitters = ["ministry"]')
    file.write_text(file.read_text().replace("models = []", f'models = ["{"ab" * 32}"]'))
    status, out, err = run(file, STUDY, "--submitter", "ministry", "--model-hash", "ab" * 32, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["allowed"], found["code"], found["warnings"]) == (True, None, [])


def test_a_policy_that_is_not_understood_is_no_policy(run: Run, tmp_path: Path) -> None:
    status, out, err = run(changed(tmp_path, "per_month", "per_mnth"), STUDY)
    assert (status, out) == (78, "")
    assert "[unknown_key]" in err
    assert "did you mean 'per_month'" in err
    assert run(tmp_path / "none.toml", STUDY)[0] == 78
    assert run(POLICY, tmp_path / "none.toml")[0] == 78
