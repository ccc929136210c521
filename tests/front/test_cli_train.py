"""`hansa model train`: the example in this process, a kill in another one, a table, and errors."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hansa import errors
from hansa.cli import app

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "examples" / "recipes"
MAIN = "from hansa.cli import main; main()"


def test_the_example_runs_and_every_stage_learns(tmp_path: Path) -> None:
    arguments = ["model", "train", str(RECIPES / "harbour.toml"), "--output", str(tmp_path / "out")]
    found = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    result = json.loads(found.stdout)
    assert (result["schema"], result["privacy"]) == ("hansa/recipe-result/v1", "none")
    assert [phase["name"] for phase in result["phases"]] == [
        "harbour-words",
        "weather",
        "cargo",
        "plain-answers",
    ]
    assert all(phase["after"]["loss"] < 0.5 * phase["before"]["loss"] for phase in result["phases"])
    assert result["phases"][-1]["after"]["margin"] > 1
    assert "NO PRIVACY" in found.stderr
    # again: nothing is learned twice, and the table says the same
    again = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert again.stderr.count("kept from an earlier run") == 4
    assert "NO PRIVACY" in again.stdout
    assert "plain-answers" in again.stdout
    explained = CliRunner().invoke(
        app, ["model", "explain", "--base", str(tmp_path / "out"), "--tokens", "87,105"]
    )
    assert explained.exit_code == 0


def small_recipe(folder: Path) -> Path:
    text = (RECIPES / "harbour.toml").read_text()
    for old, new in (
        ("experts = 128 ", "experts = 8 "),
        ("top_k = 4", "top_k = 2"),
        ('"0-63"', '"0-3"'),
        ('"64-127"', '"4-7"'),
    ):
        assert old in text
        text = text.replace(old, new)
    text = text.replace("steps = 200", "steps = 6").replace("steps = 60", "steps = 6")
    text = text.replace('"data/', f'"{RECIPES}/data/')
    path = folder / "small.toml"
    path.write_text(text)
    return path


def contents(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAIN, "model", "train", str(small_recipe(tmp_path)), "--output"]
    surroundings = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(
        [*command, str(tmp_path / "whole")], env=surroundings, capture_output=True, check=True
    )
    assert b"kept" not in whole.stderr
    with subprocess.Popen(
        [*command, str(tmp_path / "killed")], env=surroundings, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("phase 2"):
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    rest = subprocess.run(
        [*command, str(tmp_path / "killed")], env=surroundings, capture_output=True, check=True
    )
    assert b"phase 1 harbour-words (pretraining): kept" in rest.stderr
    found = {name: raw for name, raw in contents(tmp_path / "killed").items() if ".partial" not in name}
    assert found == contents(tmp_path / "whole")


def test_a_table_is_pretrained_without_its_labels(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    example = ROOT / "examples" / "bank"
    rows = pq.read_table(example / "data" / "credit_default.parquet").slice(0, 200)
    place = rows.column_names.index("DEFAULT_NEXT_MONTH")
    kind = rows.schema.field(place).type
    found = []
    for name in ("as-it-is", "turned"):
        values = rows.column(place).to_numpy()
        turned = pa.array(1 - values if name == "turned" else values, kind)
        pq.write_table(rows.set_column(place, "DEFAULT_NEXT_MONTH", turned), tmp_path / "public.parquet")
        (tmp_path / "table.toml").write_text(
            'schema = "hansa/recipe/v1"\nname = "table"\npublic_data = true\n'
            f'[model]\nstudy = "{example}/study.toml"\n'
            '[[phase]]\nname = "base"\nstage = "pretraining"\ndata = "public.parquet"\n'
            "steps = 12\nbatch_size = 16\nlearning_rate = 1e-2\nbalance_weight = 0.01\n"
        )
        arguments = ["model", "train", str(tmp_path / "table.toml"), "--output", str(tmp_path / name)]
        shown = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        (phase,) = json.loads(shown.stdout)["phases"]
        assert phase["after"]["loss"] < phase["before"]["loss"]
        found.append(json.loads((tmp_path / name / "config.json").read_text())["sha256"])
    assert found[0] == found[1]


def test_ctrl_c_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hansa import cli_train

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_train, "_tell", stop)
    arguments = ["model", "train", str(small_recipe(tmp_path)), "--output", str(tmp_path / "out")]
    found = CliRunner().invoke(app, arguments)
    assert isinstance(found.exception, errors.Interrupted)
    assert "finished phases are kept" in found.exception.message


def test_errors_end_in_their_status(tmp_path: Path) -> None:
    arguments = ["model", "train", str(tmp_path / "none.toml"), "--output", str(tmp_path / "out")]
    found = CliRunner().invoke(app, arguments)
    assert isinstance(found.exception, errors.RecipeFileMissing)
    assert found.exception.exit_status == 78
    with pytest.raises(errors.RecipeFileMissing):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
