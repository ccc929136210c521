"""Running a recipe phase by phase, so that a run that was killed goes on where it stopped.

1 bind      the manifest to the recipe and to every file that it reads
2 phase     train, save the model under phases/, then enter the phase in the manifest; each on disk before the next
3 finish    save the last phase's model in the output folder itself

A phase is the smallest step: what a killed phase had learned is lost, what a finished phase learned is not learned again.

    OUTPUT/recipe-run.json, config.json, model-*.safetensors, phases/01-NAME/, phases/02-NAME/, ...
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from hansa import labels
from hansa.errors import InvalidValue, OutputNotWritable, RecipeChanged
from hansa.models.checkpoints import load_checkpoint
from hansa.models.config import ModelConfig
from hansa.models.recipe_stages import Measured, moving_names, train_on_table, train_on_texts
from hansa.models.recipe_texts import (
    BYTE_VOCABULARY,
    Samples,
    digest_of,
    encoder_for,
    read_pairs,
    read_texts,
)
from hansa.models.recipes import NOTICE, ModelSection, Phase, Recipe
from hansa.models.saving import SCHEMA as MODEL_SCHEMA
from hansa.models.saving import Model, load_model, put_file, save_model
from hansa.models.tensor_files import CONFIG, read_json
from hansa.models.text import TextTransformer
from hansa.models.transformer import FeatureTransformer

SCHEMA = "hansa/recipe-run/v1"
MANIFEST = "recipe-run.json"


class Tables(Protocol):
    """Public tables of a study; the room of participants knows how to read them."""

    config: ModelConfig
    used_JZ: Tensor

    def features(self, path: Path) -> Tensor:
        """Give the encoded rows of a file without labels, (n, J, Z)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A finished phase: what the model made of the data before and after, and the hash of the saved weights."""

    name: str
    stage: str
    steps: int
    before: Measured
    after: Measured
    weights_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Where a run stands: `done` steps of a phase; `kept` where an earlier run had finished it."""

    number: int
    phase: Phase
    done: int
    loss: float | None
    kept: bool = False


def run_recipe(
    recipe: Recipe,
    folder: Path,
    output: Path,
    *,
    tables: Tables | None,
    progress: Callable[[Step], None],
) -> tuple[Finished, ...]:
    """Run a recipe, or the rest of it.

    Args:
        recipe: The recipe.
        folder: Where its paths start.
        output: Folder of the model, the phases and the manifest.
        tables: Reads tables, where the recipe names a study.
        progress: Called at the start of a phase and after each step.

    Raises:
        RecipeChanged: The output folder belongs to another recipe or to other data.
        OutputNotWritable: It holds something else, or cannot be written to.
        ConfigurationError, DataError, CheckpointError: What the recipe names is not what it should be.

    Guarantees:
        - A finished phase is not run again. Killed at any moment and run again, it ends in the same bytes as without the kill,
          given the same versions, processor and number of threads.
        - The saved model says in its config.json that it was trained without privacy.
    """
    run = _Run(recipe, folder, output, tables)
    model = run.bind()
    for number, phase in enumerate(recipe.phase, start=1):
        if number <= len(run.finished):
            progress(Step(number=number, phase=phase, done=phase.steps, loss=None, kept=True))
            continue
        progress(Step(number=number, phase=phase, done=0, loss=None))
        before, after = run.train(model, number, _steps_of(number, phase, progress))
        run.finish_phase(model, number, before, after)
    run.finish(model)
    return tuple(run.finished)


def _steps_of(number: int, phase: Phase, progress: Callable[[Step], None]) -> Callable[[int, float], None]:
    return lambda done, loss: progress(Step(number=number, phase=phase, done=done, loss=loss))


class _Run:
    """A run's folder, manifest and data."""

    def __init__(self, recipe: Recipe, folder: Path, output: Path, tables: Tables | None) -> None:
        self._recipe, self._folder, self._output, self._tables = recipe, folder, Path(output), tables
        self._start = folder / recipe.model.start if recipe.model.start else None
        self.finished: list[Finished] = []

    def bind(self) -> Model:
        """Step 1: give the model of the last finished phase, or the start."""
        self._inputs = self._input_digests()
        manifest = self._output / MANIFEST
        if manifest.is_file():
            self._read(manifest)
        elif self._output.exists() and not _is_unused(self._output):
            raise OutputNotWritable(
                f"{str(self._output)!r} holds something else than a run of a recipe",
                hint="name a new or an empty folder with --output",
            )
        model = self._saved_phase() if self.finished else self._first_model()
        # Everything that can be wrong with later phases is found before the first one takes its time.
        self._data = {} if self._tables else self._samples(model)
        for phase in self._recipe.phase:
            moving_names(model, phase)
        if not manifest.is_file():
            self._write()
        return model

    def train(
        self, model: Model, number: int, progress: Callable[[int, float], None]
    ) -> tuple[Measured, Measured]:
        """Step 2, first half."""
        phase = self._recipe.phase[number - 1]
        seed = _draw(f"phase-{number}-{phase.name}", self._recipe.seed)
        if isinstance(model, FeatureTransformer) and self._tables is not None:
            features = self._tables.features(self._folder / phase.data)
            return train_on_table(model, phase, features, seed, progress)
        data, held = self._data[phase.name]
        return train_on_texts(cast("TextTransformer", model), phase, data, held, seed, progress)

    def finish_phase(self, model: Model, number: int, before: Measured, after: Measured) -> None:
        """Step 2, second half: the model first, then the manifest that tells of it."""
        phase = self._recipe.phase[number - 1]
        save_model(model, self._phase_folder(number), training=self._notes(number))
        sha256 = read_json(self._phase_folder(number) / CONFIG)["sha256"]
        self.finished.append(
            Finished(
                name=phase.name,
                stage=phase.stage,
                steps=phase.steps,
                before=before,
                after=after,
                weights_sha256=sha256,
            )
        )
        self._write()

    def finish(self, model: Model) -> None:
        """Step 3; may be repeated."""
        save_model(model, self._output, training=self._notes(len(self._recipe.phase)))
        if self._start is not None and (self._start / "tokenizer.json").is_file():
            raw = (self._start / "tokenizer.json").read_bytes()
            _put_bytes(raw, self._output / "tokenizer.json")

    def _first_model(self) -> Model:
        section = self._recipe.model
        if self._start is not None:
            return _loaded(self._start, section)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_draw("start", self._recipe.seed))
            if self._tables is not None:
                return FeatureTransformer(self._tables.config, self._tables.used_JZ).eval()
            sizes = section.model_dump(exclude={"start", "study"})
            return TextTransformer(ModelConfig.of_text(BYTE_VOCABULARY, **sizes)).eval()

    def _saved_phase(self) -> Model:
        folder = self._phase_folder(len(self.finished))
        model = load_model(folder)
        if read_json(folder / CONFIG)["sha256"] != self.finished[-1].weights_sha256:
            raise RecipeChanged(f"phases/{folder.name} is not the model that {MANIFEST} names")
        return model

    def _samples(self, model: Model) -> dict[str, tuple[Samples, Samples]]:
        if not isinstance(model, TextTransformer):
            raise InvalidValue("model.start reads tables; a recipe goes on with text models only")
        encode = encoder_for(self._start, model.config.vocabulary)
        ends = model.config.vocabulary == BYTE_VOCABULARY
        found = {}
        for phase in self._recipe.phase:
            read = read_pairs if phase.stage == "alignment" else read_texts
            data = read(self._folder / phase.data, encode, model.config.context, ends=ends)
            held = data
            if phase.validation:
                held = read(self._folder / phase.validation, encode, model.config.context, ends=ends)
            found[phase.name] = (data, held)
        return found

    def _input_digests(self) -> dict[str, str]:
        """Hash every file that the run depends on, by its path in the recipe."""
        section = self._recipe.model
        paths = [section.study] if section.study else []
        paths += [f"{section.start}/{CONFIG}"] if section.start else []
        paths += [path for phase in self._recipe.phase for path in (phase.data, phase.validation) if path]
        return {path: digest_of(self._folder / path) for path in paths}

    def _phase_folder(self, number: int) -> Path:
        return self._output / "phases" / f"{number:02d}-{self._recipe.phase[number - 1].name}"

    def _notes(self, phases: int) -> dict[str, Any]:
        done = [{"name": phase.name, "stage": phase.stage} for phase in self._recipe.phase[:phases]]
        return {
            "privacy": "none",
            "notice": NOTICE,
            "recipe": self._recipe.name,
            "recipe_id": self._recipe.id,
            "phases": done,
        }

    def _read(self, manifest: Path) -> None:
        values = read_json(manifest)
        if values.get("schema") != SCHEMA:
            raise RecipeChanged(f"{MANIFEST}: schema is {values.get('schema')!r}, not {SCHEMA}")
        if values.get("recipe_id") != self._recipe.id:
            raise RecipeChanged(f"{str(self._output)!r} holds a run of another recipe")
        known = values.get("inputs")
        for path, digest in self._inputs.items():
            if not isinstance(known, dict) or known.get(path) != digest:
                raise RecipeChanged(f"{path!r} is not the file that the run began with")
        try:
            self.finished = [_finished(entry) for entry in values["finished"]]
        except (KeyError, TypeError) as error:
            raise RecipeChanged(f"{MANIFEST} is damaged") from error

    def _write(self) -> None:
        values = {
            "schema": SCHEMA,
            "recipe_id": self._recipe.id,
            "inputs": self._inputs,
            "finished": [asdict(phase) for phase in self.finished],
        }
        try:
            self._output.mkdir(parents=True, exist_ok=True)
            _put_bytes(json.dumps(values, indent=2, sort_keys=True).encode() + b"\n", self._output / MANIFEST)
        except OSError as error:
            raise OutputNotWritable(
                f"{str(self._output)!r} cannot be written to: {error.strerror}"
            ) from error


def _loaded(folder: Path, section: ModelSection) -> Model:
    if read_json(folder / CONFIG).get("schema") == MODEL_SCHEMA:
        if section.model_fields_set & {"rank", "alpha", "targets"}:
            raise InvalidValue("model.start has adapters of its own; leave rank, alpha and targets out")
        return load_model(folder)
    adapters = ModelConfig(rank=section.rank, alpha=section.alpha, targets=section.targets)
    return load_checkpoint(folder, adapters=adapters)


def _finished(entry: Mapping[str, Any]) -> Finished:
    before, after = Measured(**entry["before"]), Measured(**entry["after"])
    return Finished(**{**entry, "before": before, "after": after})


def _is_unused(folder: Path) -> bool:
    """Say whether a folder is empty but for a manifest that a crash kept from getting its name."""
    return folder.is_dir() and all(entry == _partial(folder / MANIFEST) for entry in folder.iterdir())


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _put_bytes(raw: bytes, path: Path) -> None:
    partial = _partial(path)
    partial.write_bytes(raw)
    put_file(partial, path)


def _draw(purpose: str, seed: int) -> int:
    digest = hashlib.sha256(labels.RECIPE_DRAW + f"{purpose}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
