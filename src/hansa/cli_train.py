"""`hansa model train`: run a recipe on public data. Progress goes to stderr, the result to stdout."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hansa.errors import Interrupted

if TYPE_CHECKING:
    from hansa.models.recipe_runs import Finished, Step
    from hansa.models.recipes import Recipe

SCHEMA = "hansa/recipe-result/v1"
_LINES_A_PHASE = 5


def model_train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as examples/recipes/harbour.toml.")],
    output: Annotated[
        Path, typer.Option(help="Folder of the model and its phases; a run that was killed goes on in it.")
    ],
    json_only: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")
    ] = False,
) -> None:
    """Train a model on PUBLIC data: pretraining, specialisation of experts, alignment. There is no privacy in it.

    Every phase is saved when it ends; run again after a crash, the command goes on with the phase that was interrupted.
    """
    from hansa.models.recipes import NOTICE, load_recipe

    agreed = load_recipe(recipe)
    typer.echo(f"hansa: {NOTICE}", err=True)
    typer.echo(f"recipe {agreed.name}: {len(agreed.phase)} phases, seed {agreed.seed}", err=True)
    from hansa.models.recipe_runs import run_recipe

    folder, tables = recipe.parent, None
    if agreed.model.study:
        from hansa.recipe_tables import StudyTables
        from hansa.study import load_study

        tables = StudyTables(load_study(folder / agreed.model.study), folder / agreed.phase[0].data)
    try:
        finished = run_recipe(agreed, folder, output, tables=tables, progress=_tell)
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; finished phases are kept",
            hint="the same command goes on with the phase that was stopped",
        ) from None
    if json_only:
        typer.echo(json.dumps(_as_json(agreed, finished, output), sort_keys=True))
        return
    typer.echo(_as_words(agreed, finished, output), nl=False)


def _tell(step: "Step") -> None:
    phase = step.phase
    place = f"phase {step.number} {phase.name} ({phase.stage})"
    if step.kept:
        typer.echo(f"{place}: kept from an earlier run", err=True)
    elif step.loss is None:
        typer.echo(f"{place}: {phase.steps} steps, moves {', '.join(phase.moves)}", err=True)
    elif step.done == phase.steps or step.done % max(1, phase.steps // _LINES_A_PHASE) == 0:
        typer.echo(f"{place}: step {step.done} of {phase.steps}, loss {step.loss:.3f}", err=True)


def _as_json(recipe: "Recipe", finished: tuple["Finished", ...], output: Path) -> dict[str, object]:
    from hansa.models.recipes import NOTICE

    return {
        "schema": SCHEMA,
        "recipe": recipe.name,
        "recipe_id": recipe.id,
        "privacy": "none",
        "notice": NOTICE,
        "model": str(output),
        "phases": [asdict(phase) for phase in finished],
    }


def _as_words(recipe: "Recipe", finished: tuple["Finished", ...], output: Path) -> str:
    from hansa.models.recipes import NOTICE

    lines = [f"{'PHASE':24} {'STAGE':14} {'STEPS':>6} {'LOSS BEFORE':>12} {'AFTER':>8} {'MARGIN':>8}"]
    for phase in finished:
        margin = "-" if phase.after.margin is None else f"{phase.after.margin:.3f}"
        lines.append(
            f"{phase.name:24} {phase.stage:14} {phase.steps:6d} {phase.before.loss:12.3f} {phase.after.loss:8.3f} {margin:>8}"
        )
    lines.append(f"model   {output}")
    lines.append(f"privacy {NOTICE}")
    if not recipe.model.study:
        lines.append(f"next    hansa model explain --base {output} --tokens 72,101,108")
    return "\n".join(lines) + "\n"
