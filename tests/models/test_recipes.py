"""Reading a recipe: what is refused, by which error, with which words."""

import re
from pathlib import Path
from typing import Any

import pytest

from hansa import errors
from hansa.models.recipes import Recipe, load_recipe

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "recipes" / "harbour.toml"
MINIMAL: dict[str, Any] = {
    "schema": "hansa/recipe/v1",
    "name": "small",
    "public_data": True,
    "phase": [{"name": "a", "stage": "pretraining", "data": "a.jsonl", "steps": 1, "learning_rate": 0.1}],
}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = EXAMPLE.read_text()
    assert old in text
    return written(tmp_path, text.replace(old, new, 1))


def test_the_example_is_the_three_stages_in_order() -> None:
    recipe = load_recipe(EXAMPLE)
    assert [phase.stage for phase in recipe.phase] == [
        "pretraining",
        "specialisation",
        "specialisation",
        "alignment",
    ]
    assert (recipe.model.experts, recipe.model.top_k) == (128, 4)
    assert recipe.phase[-1].moves == ("adapters",)


def test_a_default_that_is_written_down_is_the_same_recipe() -> None:
    short = Recipe.model_validate(MINIMAL)
    long = Recipe.model_validate(MINIMAL | {"seed": 0, "model": {"dim": 64}})
    other = Recipe.model_validate(MINIMAL | {"seed": 1})
    assert short.id == long.id != other.id


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ("public_data = true", "public_data = false", errors.InvalidValue, "no privacy"),
        ("public_data = true", "", errors.InvalidValue, "public_data is missing"),
        ("layers = 2", "layer = 2", errors.UnknownKey, "model.layer"),
        ("beta = 0.1", "betta = 0.1", errors.UnknownKey, r"phase\[3\].betta"),
        ("steps = 200", "steps = 0", errors.InvalidValue, r"phase\[0\].steps = 0"),
        ("steps = 200", 'steps = "200"', errors.InvalidValue, r"phase\[0\].steps"),
        ("learning_rate = 1e-2", "learning_rate = nan", errors.InvalidValue, "learning_rate"),
        ('name = "cargo"', 'name = "weather"', errors.InvalidValue, "two phases are called 'weather'"),
        ('stage = "pretraining"', 'stage = "alignment"', errors.InvalidValue, "balance"),
        ('stage = "alignment"', 'stage = "pretraining"', errors.InvalidValue, "beta"),
        ("beta = 0.1", 'moves = ["experts"]', errors.InvalidValue, "adapters"),
        ("dim = 32", 'start = "elsewhere"', errors.InvalidValue, "comes from `start`"),
        ("balance_weight = 0.01", 'balance_weight = 0.01\nmoves = ["head"]', errors.InvalidValue, "router"),
        ('experts = "0-63"', 'experts = "0-63"\nweight_decay = 0.1', errors.InvalidValue, "shrink"),
        ("seed = 0", "seed = ", errors.RecipeSyntaxError, "line"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, old: str, new: str, error: type[errors.Error], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        load_recipe(changed(tmp_path, old, new))
    assert "study" not in caught.value.hint
    assert caught.value.hint


def test_stages_have_an_order(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    head, *phases = text.split("[[phase]]")
    moved = "[[phase]]".join([head, phases[1], phases[0], *phases[2:]])
    with pytest.raises(errors.InvalidValue, match=r"'harbour-words' \(pretraining\) comes after 'weather'"):
        load_recipe(written(tmp_path, moved))


def test_a_misspelt_key_is_answered_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(errors.UnknownKey) as caught:
        load_recipe(changed(tmp_path, "batch_size", "batchsize"))
    assert caught.value.hint == "did you mean 'batch_size'?"


def test_a_table_is_pretrained_only() -> None:
    table = MINIMAL | {"model": {"study": "study.toml"}}
    Recipe.model_validate(table)
    for change in ({"stage": "specialisation"}, {"moves": ["head"]}, {"validation": "b.jsonl"}):
        phase = MINIMAL["phase"][0] | change
        with pytest.raises(ValueError, match="table"):
            Recipe.model_validate(table | {"phase": [phase]})


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(errors.RecipeFileMissing, match="no such file") as caught:
        load_recipe(tmp_path / "none.toml")
    named = re.search(r"examples/\S+\.toml", caught.value.hint)
    assert named is not None
    assert (EXAMPLE.parents[2] / named[0]).is_file()
