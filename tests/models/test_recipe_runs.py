"""Runs of recipes: the order of phases, resuming, and what the output folder says."""

import json
from pathlib import Path
from typing import Any

import pytest

from hansa import errors
from hansa.models import recipe_runs
from hansa.models.recipe_runs import Step, run_recipe
from hansa.models.recipes import Recipe
from hansa.models.saving import load_model

SIZES = {"dim": 16, "layers": 1, "heads": 2, "experts": 8, "top_k": 2, "expert_dim": 4, "context": 32}


class Killed(BaseException):
    """Stands for a kill: nothing may catch it and tidy up."""


def phase(name: str, stage: str, **changes: Any) -> dict[str, Any]:
    common = {"name": name, "stage": stage, "data": f"{name}.jsonl", "steps": 4, "batch_size": 2}
    return common | {"learning_rate": 0.01} | changes


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    (folder / "words.jsonl").write_text('{"text": "salt and timber"}\n{"text": "wind and rain"}\n')
    (folder / "easy.jsonl").write_text('{"prompt": "Wind? ", "text": "West."}\n')
    (folder / "hard.jsonl").write_text('{"prompt": "Salt? ", "text": "Dry, on wood."}\n')
    (folder / "pairs.jsonl").write_text('{"prompt": "Ice? ", "chosen": "None.", "rejected": "Who knows."}\n')
    values = {
        "schema": "hansa/recipe/v1",
        "name": "small",
        "public_data": True,
        "model": SIZES,
        "phase": [
            phase("words", "pretraining", balance_weight=0.01),
            phase("easy", "specialisation", moves=["experts"], experts="0-3"),
            phase("hard", "specialisation", moves=["experts", "router"]),
            phase("pairs", "alignment"),
        ],
    }
    return Recipe.model_validate(values | changes)


def run(recipe: Recipe, folder: Path, output: Path, kill: tuple[int, int] | None = None) -> list[Step]:
    steps: list[Step] = []

    def note(step: Step) -> None:
        steps.append(step)
        if (step.number, step.done) == kill and not step.kept:
            raise Killed

    run_recipe(recipe, folder, output, tables=None, progress=note)
    return steps


def contents(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("recipe")
    recipe = recipe_of(folder)
    run(recipe, folder, folder / "whole")
    return recipe, folder, contents(folder / "whole")


def test_phases_run_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    steps = run(recipe_of(tmp_path), tmp_path, tmp_path / "out")
    begun = [step.phase.name for step in steps if step.done == 0]
    assert begun == ["words", "easy", "hard", "pairs"]
    assert [step.done for step in steps if step.phase.name == "easy"] == [0, 1, 2, 3, 4]
    assert [step.number for step in steps] == sorted(step.number for step in steps)
    # the other order of the same curriculum is another model
    recipe = recipe_of(tmp_path)
    swapped = recipe.model_copy(update={"phase": tuple(recipe.phase[i] for i in (0, 2, 1, 3))})
    run(swapped, tmp_path, tmp_path / "swapped")
    ours, theirs = (json.loads((tmp_path / o / "config.json").read_bytes()) for o in ("out", "swapped"))
    assert ours["sha256"] != theirs["sha256"]


@pytest.mark.parametrize("kill", [(1, 0), (1, 3), (2, 0), (2, 4), (4, 2)])
def test_a_run_that_died_goes_on_to_the_same_bytes(
    whole: tuple[Recipe, Path, dict[str, bytes]], tmp_path: Path, kill: tuple[int, int]
) -> None:
    recipe, folder, expected = whole
    with pytest.raises(Killed):
        run(recipe, folder, tmp_path / "out", kill)
    steps = run(recipe, folder, tmp_path / "out")
    assert [step.number for step in steps if step.kept] == list(range(1, kill[0]))
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("moment", ["put_file", "_put_bytes", "save_model"])
def test_death_between_model_and_manifest(
    whole: tuple[Recipe, Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Each call of the module that writes is the last one in turn; afterwards the run goes on to the same bytes."""
    recipe, folder, expected = whole
    for last in range(1, 5):
        real, calls = getattr(recipe_runs, moment), 0

        def dying(*arguments: Any, real: Any = real, last: int = last, **more: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == last:
                raise Killed
            real(*arguments, **more)

        output = tmp_path / f"{last}"
        with monkeypatch.context() as patch:
            patch.setattr(recipe_runs, moment, dying)
            with pytest.raises(Killed):
                run(recipe, folder, output)
        run(recipe, folder, output)
        found = {name: raw for name, raw in contents(output).items() if not name.endswith(".partial")}
        assert found == expected


def test_a_finished_run_learns_nothing_more(whole: tuple[Recipe, Path, dict[str, bytes]]) -> None:
    recipe, folder, expected = whole
    assert all(step.kept for step in run(recipe, folder, folder / "whole"))
    assert contents(folder / "whole") == expected


def test_the_saved_model_says_that_it_is_without_privacy(
    whole: tuple[Recipe, Path, dict[str, bytes]],
) -> None:
    recipe, _, expected = whole
    for name in ("config.json", "phases/01-words/config.json"):
        training = json.loads(expected[name])["training"]
        assert training["privacy"] == "none"
        assert "NO PRIVACY" in training["notice"]
        assert training["recipe_id"] == recipe.id


def test_a_recipe_goes_on_from_a_saved_model(
    whole: tuple[Recipe, Path, dict[str, bytes]], tmp_path: Path
) -> None:
    _, folder, _ = whole
    later = recipe_of(
        tmp_path, model={"start": str(folder / "whole")}, phase=[phase("pairs", "alignment", steps=12)]
    )
    steps = run(later, tmp_path, tmp_path / "out")
    assert steps[0].phase.stage == "alignment"
    manifest = json.loads((tmp_path / "out" / "recipe-run.json").read_text())
    (done,) = manifest["finished"]
    assert done["after"]["loss"] < done["before"]["loss"]
    assert done["after"]["margin"] > 0
    assert load_model(tmp_path / "out").config == load_model(folder / "whole").config


def test_other_recipes_data_and_folders_are_refused(tmp_path: Path) -> None:
    recipe, output = recipe_of(tmp_path), tmp_path / "out"
    with pytest.raises(Killed):
        run(recipe, tmp_path, output, (2, 0))
    before = contents(output)
    with pytest.raises(errors.RecipeChanged, match="another recipe"):
        run(recipe_of(tmp_path, seed=1), tmp_path, output)
    (tmp_path / "hard.jsonl").write_text('{"text": "something else"}\n')
    with pytest.raises(errors.RecipeChanged, match=r"'hard\.jsonl'"):
        run(recipe, tmp_path, output)
    with pytest.raises(errors.OutputNotWritable, match="something else"):
        run(recipe_of(tmp_path), tmp_path, tmp_path)
    recipe_of(tmp_path)  # the data as it was
    (output / "recipe-run.json").write_text('{"schema": "hansa/recipe-run/v0"}')
    with pytest.raises(errors.RecipeChanged, match="schema"):
        run(recipe, tmp_path, output)
    assert before.keys() == contents(output).keys()


def test_a_phase_that_was_replaced_is_refused(tmp_path: Path) -> None:
    recipe, output = recipe_of(tmp_path), tmp_path / "out"
    run(recipe, tmp_path, output)
    manifest = json.loads((output / "recipe-run.json").read_text())
    manifest["finished"] = manifest["finished"][:2]
    manifest["finished"][1]["weights_sha256"] = "0" * 64
    (output / "recipe-run.json").write_text(json.dumps(manifest))
    with pytest.raises(errors.RecipeChanged, match="02-easy"):
        run(recipe, tmp_path, output)


def test_what_is_wrong_with_a_later_phase_is_found_before_the_first(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"text": "no pair"}\n')
    with pytest.raises(errors.RecipeDataInvalid, match=r"pairs\.jsonl line 1"):
        run(recipe, tmp_path, tmp_path / "out")
    (tmp_path / "pairs.jsonl").unlink()
    with pytest.raises(errors.DataFileMissing, match="no such file"):
        run(recipe, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
