"""The command line in a subprocess, as a user meets it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HANSA = Path(sys.executable).with_name("hansa")
MINIATURE = ("demo", "bank", "--participants", "4", "--rounds", "2")


def run(*arguments: str, cwd: Path | None = None, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(HANSA), *arguments],
        cwd=cwd or ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def last_lines(stderr: str) -> tuple[str, str]:
    """The error and the hint, which are the last two lines."""
    error, hint = stderr.strip().splitlines()[-2:]
    return error, hint


@pytest.fixture(scope="module")
def miniature(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[subprocess.CompletedProcess[str], Path, float]:
    folder = tmp_path_factory.mktemp("demo")
    started = time.monotonic()
    found = run(*MINIATURE, "--output", str(folder / "report"))
    return found, folder / "report", time.monotonic() - started


def test_the_whole_demo_in_miniature(miniature: tuple[subprocess.CompletedProcess[str], Path, float]) -> None:
    found, folder, _ = miniature
    assert found.returncode == 0, found.stderr
    report = json.loads((folder / "report.json").read_text())
    assert report["schema"] == "hansa/demo-report/v1"
    assert (report["participants"], report["rounds"], report["seed"]) == (4, 2, 0)
    assert 0.0 < report["epsilon"]["max"] <= report["epsilon"]["limit"] == 8.0
    assert set(report["epsilon"]["per_participant"]) == {f"bank-{k:02d}" for k in range(1, 5)}
    for layer in ("differential_privacy", "secure_aggregation_masks", "homomorphic_encryption", "signatures"):
        assert report["protections"][layer] is True
    assert report["auc"]["local_only_same_network"] > 0.5
    assert report["auc"]["pooled"] is None
    # Two rounds carry the whole set-up of the epoch; over the thirty of the full demo it is 0.69.
    assert report["traffic"]["uplink_bytes_per_parameter"] <= 0.9
    assert re.fullmatch("[0-9a-f]{64}", report["model_hash"])
    assert "<svg" in (folder / "report.html").read_text()


def test_the_demo_warns_of_nothing_unexpected(
    miniature: tuple[subprocess.CompletedProcess[str], Path, float],
) -> None:
    found, _, _ = miniature
    assert "Warning" not in found.stderr
    assert "Traceback" not in found.stderr


def test_stdout_has_the_shape_that_the_readme_shows(
    miniature: tuple[subprocess.CompletedProcess[str], Path, float],
) -> None:
    found, _, _ = miniature

    def shape(text: str) -> list[str]:
        headings = [line.split("  ")[0] for line in text.splitlines() if line[:1].isupper()]
        rows = [line.split("  ")[0] for line in text.splitlines() if line[:1].islower() and "  " in line]
        return headings + rows

    readme = (ROOT / "README.md").read_text()
    shown = readme.split("<!-- demo-output:begin -->")[1].split("<!-- demo-output:end -->")[0]
    table = shown[shown.index("MODEL ") : shown.rindex("next: ")]
    mine = found.stdout[: found.stdout.rindex("next: ")]
    assert shape(table.replace("    MODEL", "MODEL")) == shape(mine)


def test_the_readme_names_options_and_commands_that_exist() -> None:
    import typer

    from hansa.cli import app

    readme = (ROOT / "README.md").read_text()
    printed = run("demo", "bank", "--help").stdout
    named = set(re.findall(r"`(--[a-z]+)", readme.split("`hansa demo bank --help`")[1].split("\n\n")[0]))
    assert len(named) >= 6
    assert [option for option in named if option not in printed] == []
    tree = typer.main.get_command(app)
    for words in re.findall(r"`hansa ([a-z]+(?: [a-z]+)?)", readme):
        command = tree
        for word in words.split():
            command = command.commands[word]  # type: ignore[attr-defined]


def test_banks_that_vanish_cost_the_others_nothing_and_json_stands_alone_on_stdout(tmp_path: Path) -> None:
    found = run(
        "demo",
        "bank",
        "--participants",
        "4",
        "--rounds",
        "2",
        "--drop",
        "1",
        "--json",
        "--output",
        str(tmp_path),
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    report = json.loads(found.stdout)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["protections"]["dropout_recovery"] is True
    assert len(report["epsilon"]["per_participant"]) == 4
    assert report["rounds"] == 2


def test_first_output_comes_before_the_slow_imports(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [str(HANSA), *MINIATURE, "--output", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "hansa demo bank" in first
        assert not _loaded(process.pid, "libtorch")
    finally:
        process.kill()
        process.communicate()


def _loaded(process_id: int, library: str) -> bool:
    return library in Path(f"/proc/{process_id}/maps").read_text()


@pytest.mark.parametrize("which", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_demo_ends_with_130_and_leaves_nothing(tmp_path: Path, which: signal.Signals) -> None:
    state = tmp_path / "state"
    state.mkdir()
    process = subprocess.Popen(
        [
            str(HANSA),
            "demo",
            "bank",
            "--participants",
            "3",
            "--rounds",
            "200",
            "--output",
            str(tmp_path / "out"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(state)},
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("round 1/" in line for line in lines)
        assert list(state.glob("hansa-*"))
        os.killpg(process.pid, which) if which is signal.SIGINT else process.send_signal(which)
        _, stderr = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    error, hint = last_lines(stderr)
    assert process.returncode == 130
    assert error.startswith("hansa: error: stopped")
    assert error.endswith("[interrupted]")
    assert hint.startswith("hansa: hint: ")
    assert not list(state.glob("hansa-*"))
    assert not (tmp_path / "out" / "report.json").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (("--participants", "2"), "cohort_too_small", 78),
        (("--participants", "1"), "cohort_too_small", 78),
        (("--participants", "16", "--partition", "segments"), "cohort_too_large", 78),
        (("--participants", "4", "--drop", "2"), "cohort_too_small", 78),
        (("--participants", "3", "--drop", "1"), "cohort_too_small", 78),
        (("--drop", "-1"), "usage", 2),
        (("--partition", "alphabetical"), "usage", 2),
        (("--epsilon", "0.0001"), "privacy_target_unreachable", 78),
        (("--epsilon", "-1"), "invalid_value", 78),
        (("--rounds", "0"), "invalid_value", 78),
        (("--seed", "-1"), "usage", 2),
        (("--study", "no/such/study.toml"), "study_file_missing", 78),
        (("--frobnicate",), "usage", 2),
    ],
)
def test_a_bad_option_ends_with_its_error_and_status(
    arguments: tuple[str, ...], code: str, status: int, tmp_path: Path
) -> None:
    found = run("demo", "bank", *arguments, "--output", str(tmp_path / "out"))
    error, hint = last_lines(found.stderr)
    assert found.returncode == status
    assert error.startswith("hansa: error: ")
    assert error.endswith(f"[{code}]")
    assert hint.startswith("hansa: hint: ")
    assert "Traceback" not in found.stderr
    assert found.stdout == ""
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("rounds = 30", "rouns = 30", "unknown_key"),
        ("rounds = 30", 'rounds = "many"', "invalid_value"),
        ("rounds = 30", "rounds = = 30", "study_syntax"),
        ("masks = true", "masks = false", "invalid_value"),
        ('encryption = "bfv"', 'encryption = "none"', "invalid_value"),
    ],
)
def test_a_bad_study_file_is_named(old: str, new: str, code: str, tmp_path: Path) -> None:
    text = (ROOT / "examples/bank/study.toml").read_text()
    assert old in text
    file = tmp_path / "study.toml"
    file.write_text(text.replace(old, new))
    found = run("study", "validate", str(file))
    error, _ = last_lines(found.stderr)
    assert (found.returncode, found.stdout) == (78, "")
    assert error.endswith(f"[{code}]")


def test_a_good_study_file_is_valid() -> None:
    found = run("study", "validate", "examples/bank/study.toml", "--json")
    assert found.returncode == 0
    document = json.loads(found.stdout)
    assert document["schema"] == "hansa/study-check/v1"
    assert document["protections"]["differential_privacy"] is True


def test_a_damaged_data_file_is_refused(tmp_path: Path) -> None:
    example = tmp_path / "examples" / "bank"
    (example / "data").mkdir(parents=True)
    (example / "study.toml").write_text((ROOT / "examples/bank/study.toml").read_text())
    whole = (ROOT / "examples/bank/data/credit_default.parquet").read_bytes()
    (example / "data" / "credit_default.parquet").write_bytes(whole[:1000] + b"\x00" + whole[1001:])
    found = run("demo", "bank", cwd=tmp_path)
    assert found.returncode == 65
    assert last_lines(found.stderr)[0].endswith("[checksum_mismatch]")


def test_explain_knows_every_code_and_says_so_for_others() -> None:
    found = run("explain", "budget_exhausted")
    assert found.returncode == 0
    assert "privacy limit" in found.stdout
    unknown = run("explain", "no_such_code")
    assert unknown.returncode == 2
    assert "budget_exhausted" in unknown.stderr


def test_no_option_reaches_noise_sampling_or_keys() -> None:
    text = run("demo", "bank", "--help").stdout
    options = set(re.findall(r"--[a-z-]+", text))
    assert options == {
        "--participants", "--drop", "--epsilon", "--rounds", "--partition", "--seed", "--compare", "--study", "--output",
        "--json", "--help", "--no-compare",
    } - {"--no-compare"}  # fmt: skip


def test_telemetry_of_the_framework_is_off_before_it_is_imported() -> None:
    script = (
        "import hansa.cli, os, sys; "
        "assert 'flwr' not in sys.modules and 'torch' not in sys.modules; "
        "print(os.environ['FLWR_TELEMETRY_ENABLED'], os.environ['FLWR_DISABLE_UPDATE_CHECK'])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0", "1"]
