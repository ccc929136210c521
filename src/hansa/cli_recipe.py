"""`hansa study recipe`: settings of a private study from public numbers alone. Nothing heavy is imported before it runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hansa.cli_asking import option
from hansa.errors import OutputNotWritable, UsageError


def recipe(
    epsilon: Annotated[float, typer.Argument(help="Privacy limit of each participant over all rounds.")],
    study: Annotated[
        Path | None,
        option("A study.toml that says the rest; the options below replace parts of it.", "--study"),
    ] = None,
    participants: Annotated[int | None, option("Participants (15).")] = None,
    records: Annotated[int | None, option("Records of a participant, roughly; public.")] = None,
    entries: Annotated[int | None, option("Trained entries of the model.")] = None,
    delta: Annotated[float | None, option("Probability beyond epsilon (1e-5).")] = None,
    mode: Annotated[str | None, option("Whose noise suffices: local (default) or distributed.")] = None,
    colluders: Annotated[
        int | None, option("Distributed noise: members whose noise does not count; has to be said.")
    ] = None,
    trained_base: Annotated[
        bool,
        option(
            "The base already solves the task: a head trained on public labels, or in an earlier study.",
            "--trained-base",
        ),
    ] = False,
    output: Annotated[
        Path | None, option("Write the sections to this new file instead of printing them.")
    ] = None,
    json_only: Annotated[bool, option("Print one JSON object on stdout and nothing else.", "--json")] = False,
) -> None:
    """Choose learning rate, rounds, sample rate, clip norm and bits for a limit: sections of a study.toml.

    The settings follow from the numbers given here and no data at all, so that nobody tunes on private results.
    """
    if study is None and (records is None or entries is None):
        raise UsageError(
            "without --study, --records and --entries have to be said",
            hint="hansa study recipe 8 --study study.toml",
        )
    from hansa.privacy_recipe import recipe_for, trained_entries_of
    from hansa.study import load_study

    known = None if study is None else load_study(study)
    if known is not None:
        participants = known.aggregation.participants if participants is None else participants
        records = known.privacy.nominal_records if records is None else records
        delta = known.privacy.delta if delta is None else delta
        if mode is None:
            mode, colluders = known.privacy.mode, known.privacy.colluders if colluders is None else colluders
    chosen = recipe_for(
        epsilon=epsilon,
        delta=1e-5 if delta is None else delta,
        participants=15 if participants is None else participants,
        nominal_records=records or 0,
        trained_entries=trained_entries_of(known) if entries is None and known is not None else entries or 0,
        mode=mode or "local",
        colluders=colluders,
        strict=known is not None and known.aggregation.mode == "strict",
        trained_base=trained_base,
    )
    text = chosen.toml()
    if output is not None:
        try:
            with output.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            reason = error.strerror or "unknown reason"
            raise OutputNotWritable(f"{str(output)!r} cannot be written: {reason.lower()}") from error
    if json_only:
        found = {"schema": "hansa/study-recipe/v1", **asdict(chosen), "sections": chosen.sections()}
        typer.echo(json.dumps(found, sort_keys=True))
        return
    typer.echo(text if output is None else f"wrote {output}", nl=output is not None)
