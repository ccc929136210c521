"""Recipes: the public training of a model before any study, read from a TOML file.

    pretraining      next tokens of a text, or hidden features of a table without labels
    specialisation   next tokens, in ordered phases: a curriculum, each phase with its data and the experts that move
    alignment        direct preference optimisation on pairs of a chosen and a rejected answer

A recipe protects nobody: there is no clipping, no noise and no budget. It is for data that anybody may read, and it says so itself
(`public_data = true`). What a member's records teach is taught in a study.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hansa import errors, labels
from hansa.study_problems import lowered, problem_of

RECIPE_BYTES_MOST = 1 << 20
STAGES = ("pretraining", "specialisation", "alignment")
NOTICE = "NO PRIVACY: a recipe trains on public data only, without clipping, noise or a budget; records of people belong in a study"
_TABLE_KEYS = {"name", "stage", "data", "steps", "batch_size", "learning_rate", "balance_weight"}
_HINT = "correct the recipe; docs/models.md lists its keys"

Stage = Literal["pretraining", "specialisation", "alignment"]
Part = Literal["everything", "adapters", "attention", "router", "experts", "shared", "embedding", "head"]
Target = Literal["attention", "router", "experts", "shared"]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Rate = Annotated[float, Field(gt=0.0, le=10.0)]


class _Section(BaseModel):
    """A section: unknown keys are errors, types are exact, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSection(_Section):
    """The model that the first phase starts from: a new one of these sizes, a saved one, or a new one of a study's sizes."""

    start: str = Field(default="", description="folder of a saved model or a public checkpoint")
    study: str = Field(default="", description="study.toml whose table model is made")
    dim: Count = Field(default=64, description="width of a token")
    layers: Count = Field(default=4, description="blocks")
    heads: Count = Field(default=4, description="attention heads")
    experts: Count = Field(default=128, description="routed experts of a block")
    top_k: Count = Field(default=4, description="experts that serve a token")
    expert_dim: Count = Field(default=32, description="hidden width of a routed expert")
    shared_expert_dim: int = Field(
        default=64, ge=0, description="hidden width of the shared experts; 0: none"
    )
    context: Annotated[int, Field(ge=2, le=32_768)] = Field(default=256, description="longest text, tokens")
    rank: Count = Field(default=4, description="rank of the adapters")
    alpha: Annotated[float, Field(gt=0.0, le=1000.0)] = Field(
        default=4.0, description="an adapter adds alpha / rank times its product"
    )
    targets: Annotated[tuple[Target, ...], Field(strict=False)] = Field(
        default=("attention", "experts"), description="matrices that carry adapters"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.start and self.study:
            raise ValueError("`start` and `study` exclude each other")
        allowed = {"start", "study"} | ({"rank", "alpha", "targets"} if self.start else set())
        extra = sorted(self.model_fields_set - allowed)
        if (self.start or self.study) and extra:
            raise ValueError(
                f"`{extra[0]}` comes from {'`start`' if self.start else '`study`'}; leave it out"
            )
        return self


class Phase(_Section):
    """One phase: a stage over one data set."""

    name: Slug = Field(description="name of the phase, its own in the recipe")
    stage: Stage = Field(description="what is learned")
    data: Annotated[str, Field(min_length=1)] = Field(description="JSON lines; Parquet for a table")
    validation: str = Field(
        default="", description="JSON lines that the loss is reported on; default: the data"
    )
    steps: Count = Field(description="optimizer steps")
    batch_size: Count = Field(default=16, description="texts or pairs a step")
    learning_rate: Rate = Field(description="peak rate of AdamW, falling to zero along a cosine")
    weight_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(default=0.0, description="of AdamW")
    moves: Annotated[tuple[Part, ...], Field(strict=False, min_length=1)] = Field(
        default=("everything",), description="which parts of the model move"
    )
    experts: str = Field(default="", description='which routed experts move, such as "0-15"; all by default')
    balance_weight: Annotated[float, Field(ge=0.0, le=10.0)] = Field(
        default=0.0, description="of the load-balance loss; it needs a router that moves"
    )
    beta: Rate = Field(default=0.1, description="alignment: how strongly to leave the start costs")

    @model_validator(mode="before")
    @classmethod
    def _own_parts(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("stage") == "alignment" and "moves" not in value:
            return {**value, "moves": ["adapters"]}
        return value

    @model_validator(mode="after")
    def _fits_stage(self) -> Self:
        if self.stage == "alignment" and self.moves != ("adapters",):
            raise ValueError('alignment moves ["adapters"] only: without them the model is its own reference')
        if self.stage != "alignment" and "beta" in self.model_fields_set:
            raise ValueError("`beta` belongs to alignment")
        if self.stage == "alignment" and self.balance_weight:
            raise ValueError("alignment has no load-balance loss")
        if self.balance_weight and not {"everything", "router"} & set(self.moves):
            raise ValueError("`balance_weight` is above 0 and no router moves")
        if self.experts and self.weight_decay:
            raise ValueError("`weight_decay` would shrink the experts that stand still; leave it out")
        return self


class Recipe(_Section):
    """The whole recipe.

    Guarantees:
        - Phases are in the order of the stages, and each has a name of its own.
    """

    schema_: Literal["hansa/recipe/v1"] = Field(alias="schema", description="version of this format")
    name: Slug = Field(description="name of the recipe")
    public_data: bool = Field(description="true: everybody may read the data of every phase")
    seed: Annotated[int, Field(ge=0, lt=2**53)] = Field(default=0, description="seed of start and batches")
    model: ModelSection = Field(default=ModelSection(), description="where the first phase starts")
    phase: Annotated[tuple[Phase, ...], Field(strict=False, min_length=1, max_length=99)] = Field(
        description="the phases, in order"
    )

    @field_validator("public_data")
    @classmethod
    def _is_public(cls, value: bool) -> bool:
        if not value:
            raise ValueError("must be true, for a recipe has no privacy; other data belongs in a study")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        names = [phase.name for phase in self.phase]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two phases are called {twice!r}")
        for before, after in zip(self.phase, self.phase[1:], strict=False):
            if STAGES.index(after.stage) < STAGES.index(before.stage):
                raise ValueError(
                    f"phase {after.name!r} ({after.stage}) comes after {before.name!r} ({before.stage});"
                    f" the order is {', '.join(STAGES)}"
                )
        return self

    @model_validator(mode="after")
    def _fits_table(self) -> Self:
        for phase in self.phase if self.model.study else ():
            if phase.stage != "pretraining":
                raise ValueError(
                    f"phase {phase.name!r}: a table is pretrained only, its labels are a study's"
                )
            extra = sorted(phase.model_fields_set - _TABLE_KEYS)
            if extra:
                raise ValueError(f"phase {phase.name!r}: `{extra[0]}` has no meaning for a table")
        return self

    @property
    def id(self) -> str:
        """Hash of the canonical form, 64 hexadecimal digits; comments and the order of keys do not count."""
        canonical = rfc8785.dumps(self.model_dump(mode="json", by_alias=True))
        return hashlib.sha256(labels.RECIPE + canonical).hexdigest()


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeFileMissing: The file cannot be read.
        RecipeSyntaxError: The file is not TOML; the message names the line.
        UnknownKey: A key is not known; the hint names the nearest one.
        InvalidValue: A value is missing, has the wrong type, is out of its bounds or contradicts another one.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(RECIPE_BYTES_MOST + 1)
    except OSError as error:
        reason = lowered(error.strerror)
        raise errors.RecipeFileMissing(f"recipe {str(path)!r} cannot be read: {reason}") from error
    if len(raw) > RECIPE_BYTES_MOST:
        raise errors.RecipeSyntaxError(f"recipe {str(path)!r} is longer than {RECIPE_BYTES_MOST} bytes")
    try:
        values = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise errors.RecipeSyntaxError(f"recipe {str(path)!r} is not TOML: {lowered(str(error))}") from error
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problem = problem_of(error, Recipe)
    if problem.hint == problem.default_hint:
        problem.hint = _HINT
    raise problem
