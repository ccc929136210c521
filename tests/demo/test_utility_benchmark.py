"""The benchmark of utility: what is asked of the runs, that a stopped one goes on, and figures with the same bytes."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hansa.models.pretraining import PretrainingConfig
from hansa.privacy_recipe import recipe_for

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("utility", ROOT / "benchmarks" / "utility.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, path = dict(os.environ), list(sys.path)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    os.environ.clear()
    os.environ.update(before)
    sys.path[:] = path
    return module


class Counted:
    """A place whose runs cost nothing."""

    def __init__(self) -> None:
        self.studies: list[Any] = []

    def alone(self) -> dict[str, list[float]]:
        return {"logistic regression": [0.6] * 15, "same network": [0.5, 0.9, 0.5, *[0.55] * 12]}

    def joint(self, study: Any, *, private: bool) -> float:
        self.studies.append((study, private))
        return 0.5 + study.aggregation.participants / 100


@pytest.fixture
def place(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Counted:
    place = Counted()

    class Base:
        layout = type("Layout", (), {"size": 55_265})

    place.base = Base  # type: ignore[attr-defined]
    monkeypatch.setattr(bench, "Place", lambda *_: place)
    return place


def test_every_setting_is_run_once_with_the_recipes_settings_and_a_stopped_benchmark_goes_on(
    bench: ModuleType, place: Counted, tmp_path: Path
) -> None:
    matrix = bench.Matrix(partitions=("segments",), seeds=(0, 1), epsilons=(3.0, 8.0))
    path = tmp_path / "runs.json"
    bench.Bench(matrix, bench.Runs(path)).run()
    assert len(place.studies) == 2 * 2 * (2 * 2 + 1)
    for study, private in place.studies:
        mode = study.privacy.mode
        recipe = recipe_for(
            epsilon=study.privacy.epsilon, delta=1e-5, participants=study.aggregation.participants,
            nominal_records=1400, trained_entries=55_265, mode=mode,
            colluders=bench.COLLUDERS if mode == "distributed" else None,
        )  # fmt: skip
        assert recipe.applied_to(study) == study
        assert private or study.privacy.epsilon == 8.0
    known = json.loads(path.read_text())
    key = bench.joint_key("segments", 1, 15, 8.0, "local")
    del known[key]
    path.write_text(json.dumps(known))
    place.studies.clear()
    bench.Bench(matrix, bench.Runs(path)).run()
    assert len(place.studies) == 1
    assert json.loads(path.read_text())[key] == 0.65


def test_rows_compare_like_with_like_and_name_the_better_local_model(
    bench: ModuleType, place: Counted
) -> None:
    matrix = bench.Matrix(partitions=("segments",), seeds=(0,))
    runs = bench.Runs(None)
    bench.Bench(matrix, runs).run()
    runs.found[bench.joint_key("segments", 0, 15, 8.0, "local")] = 0.6
    runs.found[bench.joint_key("segments", 0, 15, 3.0, "distributed")] = 0.63
    results = bench.Results(matrix, runs.found)
    assert results.best_alone("segments", 3) == ("same network", [pytest.approx(1.9 / 3)])
    assert results.best_alone("segments", 15)[0] == "logistic regression"
    rows = {row["metric"]: row for row in bench.rows_of(results, "here")}
    cost = rows["segments, 15 banks: epsilon 8, local noise, against none"]
    assert (cost["hansa"], cost["goal"]) == (pytest.approx(100 * (0.6 / 0.65 - 1)), -2.0)
    shared = rows["segments, 15 banks: distributed at epsilon 3 against local at 8"]
    assert (shared["hansa"], shared["goal"]) == (pytest.approx(5.0), 0.0)
    wide = rows["segments: 15 banks against 3, without privacy"]
    assert (wide["hansa"], wide["goal"]) == (pytest.approx(100 * (0.65 / 0.53 - 1)), 15.0)
    assert len([name for name in rows if ": AUC, " in name]) == 2 * (2 * 3 + 1)


def test_figures_have_the_same_bytes_for_the_same_results(
    bench: ModuleType, place: Counted, tmp_path: Path
) -> None:
    matrix = bench.Matrix(partitions=("dirichlet",), seeds=(0,))
    runs = bench.Runs(None)
    bench.Bench(matrix, runs).run()
    for folder in ("a", "b"):
        bench.draw(bench.Results(matrix, runs.found), tmp_path / folder)
    first, second = (tmp_path / folder / "utility-dirichlet.svg" for folder in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert b"distributed noise" in first.read_bytes()


def test_the_quick_matrix_is_small(bench: ModuleType) -> None:
    assert bench.QUICK.pretraining == PretrainingConfig(steps=20)
    assert (bench.QUICK.rounds, len(bench.QUICK.seeds), max(bench.QUICK.banks)) == (4, 1, 4)
