"""`hansa audit empirical`: the correct mechanism passes, each mutation of the trainer fails, and the output is what was found."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hansa import cli, empirical_audit
from hansa.empirical_audit import Effort, EmpiricalAudit, as_json, audit_study
from hansa.errors import UsageError
from hansa.participant import trainer
from hansa.privacy import inversion_check
from hansa.privacy.accounting import epsilon_of
from hansa.privacy.canary import CanaryAudit
from hansa.privacy.noise import SecretRandom
from hansa.study import Study, load_study

ROOT = Path(__file__).resolve().parents[2]
BANK = str(ROOT / "examples/bank/study.toml")
CANARIES, TRAINING, INVERSION = ("noise and clipping", "sampling"), "one training", "gradient inversion"
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def little_effort(monkeypatch: Patch) -> None:
    little = Effort(canaries=5000, run_canaries=100, run_seconds=600.0, texts=1)
    monkeypatch.setattr(empirical_audit, "QUICK", little)


@pytest.fixture(scope="module")
def study() -> Study:
    """The bank's study at a rate whose fourfold is still a rate, and with few rounds."""
    bank = load_study(Path(BANK))
    sampled = bank.privacy.model_copy(update={"sample_rate": 0.2, "epsilon": 4.0})
    return bank.model_copy(update={"privacy": sampled}).with_changes(rounds=5)


def audit(study: Study) -> EmpiricalAudit:
    return audit_study(study, quick=True, random=SecretRandom(bytes(32)))


def failed(found: EmpiricalAudit) -> set[str]:
    return {check.name for check in found.checks if check.error is not None}


def test_the_mechanism_that_trains_passes_and_the_claim_is_the_studys(study: Study) -> None:
    told: list[str] = []
    found = audit_study(study, quick=True, progress=told.append)
    assert found.errors == []
    assert [check.name for check in found.checks] == [*CANARIES, TRAINING, INVERSION]
    assert set(told) >= {*CANARIES, TRAINING, INVERSION, "one training: round 5 of 5"}
    assert found.mechanism.steps == 5
    assert found.claimed == epsilon_of(**found.mechanism._asdict(), delta=1e-5) <= 4.0
    noise = found.checks[0].found
    assert isinstance(noise, CanaryAudit)
    assert noise.mechanism.noise_multiplier == found.mechanism.noise_multiplier
    assert noise.largest > 0.5 * noise.claimed


def noise_over_sqrt_2(patch: Patch) -> None:
    real = trainer.gaussian_noise
    patch.setattr(trainer, "gaussian_noise", lambda *a, **k: real(*a, **k) / math.sqrt(2))


def no_clipping(patch: Patch) -> None:
    real = trainer.clipped_sum
    patch.setattr(trainer, "clipped_sum", lambda *a, **k: real(*a, **k | {"clip_norm": None}))


def four_times_the_rate(patch: Patch) -> None:
    real = trainer.poisson_sample
    patch.setattr(trainer, "poisson_sample", lambda n, rate, random: real(n, 4 * rate, random))


def clipping_by_tokens(patch: Patch) -> None:
    real = trainer.clipped_sum

    def by_tokens(model: Any, layout: Any, features: Any, labels: Any, **rest: Any) -> Any:
        if "canaries" not in {slot.name for slot in layout.slots}:
            return real(model, layout, features, labels, **rest)  # a table's model has no tokens to part
        samples, tokens, width = features.shape
        each = features.reshape(samples * tokens, 1, width)
        return real(model, layout, each, labels.repeat_interleave(tokens), **rest)

    patch.setattr(trainer, "clipped_sum", by_tokens)


@pytest.mark.parametrize(
    ("mutation", "by"),
    [
        (noise_over_sqrt_2, "noise and clipping"),
        (no_clipping, "noise and clipping"),
        (four_times_the_rate, "sampling"),
        (clipping_by_tokens, "noise and clipping"),
    ],
)
def test_each_mutation_of_the_trainer_is_caught(
    mutation: Callable[[Patch], None], by: str, study: Study, monkeypatch: Patch
) -> None:
    mutation(monkeypatch)
    found = audit(study)
    assert by in failed(found)
    assert {error.code for error in found.errors} == {"audit_failed"}
    document = as_json(found)
    assert document["passed"] is False
    problems = {check["name"]: check["problem"] for check in document["checks"]}
    assert "above the claimed" in problems[by]


def test_a_gradient_without_noise_is_caught(study: Study, monkeypatch: Patch) -> None:
    real = inversion_check.gaussian_noise
    monkeypatch.setattr(inversion_check, "gaussian_noise", lambda *a, **k: 0 * real(*a, **k))
    assert failed(audit(study)) == {INVERSION}


def test_it_reads_no_data_and_writes_no_ledger(study: Study, tmp_path: Path, monkeypatch: Patch) -> None:
    from hansa.participant import dataset
    from hansa.privacy import ledger

    def touched(*_: Any, **__: Any) -> None:
        raise AssertionError("data or ledger was touched")

    monkeypatch.setattr(dataset, "read_table", touched)
    monkeypatch.setattr(ledger.Ledger, "__init__", touched)
    monkeypatch.chdir(tmp_path)
    audit(study)
    assert list(tmp_path.iterdir()) == []


# -- the command -----------------------------------------------------------------------------------------


class Run:
    """The command line in this process."""

    def __init__(self, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["hansa", "audit", "empirical", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self._capsys.readouterr()
        return int(ended.value.code or 0), out, err


@pytest.fixture
def run(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)


def test_a_table_on_stdout_progress_on_stderr_and_the_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "empirical.json"
    status, out, err = run(BANK, "--quick", "--output", str(file))
    assert status == 0, err
    assert {"noise and clipping", "one training: round 30 of 30"} <= set(err.splitlines())
    rows = {line[:20].strip(): line for line in out.splitlines() if "holds" in line}
    assert set(rows) == {*CANARIES, TRAINING, INVERSION}
    assert "no record was read and nothing is charged" in out
    assert "does not show that there are none" in out
    document = json.loads(file.read_text())
    for check in document["checks"][:3]:
        assert f"{check['claimed_epsilon']:.3f}" in rows[check["name"]]
        assert f"{check['lower_bound']:.3f}" in rows[check["name"]]


def test_json_has_its_schema_and_everything_that_a_report_needs(run: Run) -> None:
    status, out, err = run(BANK, "--quick", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    bank = load_study(Path(BANK))
    assert document["schema"] == "hansa/empirical-audit/v1"
    assert (document["study"], document["unit"], document["charged"]) == (bank.id, "record", False)
    assert (document["clip_norm"], document["delta"], document["sample_rate"], document["steps"]) == (
        0.5, 1e-5, 0.4, 30,
    )  # fmt: skip
    assert 7.9 < document["claimed_epsilon"] <= 8.0
    assert document["passed"] is True
    assert [check["kind"] for check in document["checks"]] == ["canaries", "canaries", "one_run", "inversion"]
    for check in document["checks"]:
        assert check["passed"] is True
        assert check["problem"] is None
        assert 0 < check["confidence"] < 1
        assert check["seconds"] > 0
    assert all(check["lower_bound"] <= check["claimed_epsilon"] for check in document["checks"][:3])
    assert {"canaries", "guesses", "correct", "true_positive_rate_at_1_percent"} <= set(document["checks"][2])


def test_a_bound_above_its_claim_ends_with_1_after_everything_is_told(
    run: Run, tmp_path: Path, monkeypatch: Patch
) -> None:
    no_clipping(monkeypatch)
    file = tmp_path / "empirical.json"
    status, out, err = run(BANK, "--quick", "--output", str(file))
    assert status == 1
    assert "[audit_failed]" in err
    assert "FAILS" in out
    assert INVERSION in out
    assert json.loads(file.read_text())["passed"] is False


def test_wrong_paths_end_before_anything_is_measured(run: Run, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(empirical_audit, "audit_study", lambda *_, **__: pytest.fail("it was measured"))
    monkeypatch.chdir(tmp_path)
    assert run()[0] == 78  # no study.toml here
    status, _, err = run(BANK, "--output", str(tmp_path / "no" / "folder.json"))
    assert (status, "[output_not_writable]" in err) == (73, True)


def test_noise_of_others_is_refused(study: Study) -> None:
    other = study.model_copy(update={"privacy": study.privacy.model_copy(update={"mode": "distributed"})})
    with pytest.raises(UsageError, match="only 'local'"):
        audit(other)


def test_a_study_of_persons_is_audited_as_such(study: Study) -> None:
    changed = {
        "data": study.data.model_copy(update={"person": "client"}),
        "privacy": study.privacy.model_copy(update={"unit": "person", "records_per_person": 3}),
    }
    found = audit(study.model_copy(update=changed))
    assert found.errors == []
    assert as_json(found)["unit"] == "person"


@pytest.mark.slow
def test_the_whole_audit_of_the_bank_passes() -> None:
    found = audit_study(load_study(Path(BANK)))
    assert found.errors == []
