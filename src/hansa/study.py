"""The study: the training agreement that all participants hold, read from study.toml.

Everything that the participants must agree on before the first record is read stands here: the columns, the
model, the privacy parameters, the rounds, the compression and the protection. A message of a round carries
none of it. The identity of a study is the hash of its canonical form (RFC 8785): the order of keys does not
count, comments neither, and a default counts as if it were written down.

A study holds no secret. This module reads it; it does not decide whether a participant agrees to it.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hansa import errors, labels
from hansa.study_privacy import PrivacySettings
from hansa.study_problems import lowered, problem_of

PARTICIPANTS_LEAST = 3  # the sum of two shows each of them the other one's update
PARTICIPANTS_MOST = 258  # three 8-bit lanes fit a 48-bit plaintext slot up to here
STUDY_BYTES_MOST = 1 << 20
_INTEGER_MOST = 2**53 - 1  # RFC 7493 section 2.2 (I-JSON): larger integers have no canonical form

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
TrainedTensor = Literal["embedding", "class_token", "head", "attention", "experts"]
Integer = Annotated[int, Field(ge=-_INTEGER_MOST, le=_INTEGER_MOST)]


class _Settings(BaseModel):
    """A section: unknown keys are errors, types are exact, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ColumnSchema(_Settings):
    """One column of the table."""

    name: Name = Field(description="name of the column in the data file")
    kind: Literal["numeric", "categorical"] = Field(description="how the column is encoded")
    token: Name = Field(default="", description="feature token that it feeds; default: its own name")
    values: Annotated[tuple[Integer, ...], Field(strict=False, max_length=1000)] = Field(
        default=(), description="categorical: public vocabulary; anything else has code 0"
    )
    minimum: float | None = Field(default=None, description="numeric: public lower bound, clamps values")
    maximum: float | None = Field(default=None, description="numeric: public upper bound, clamps values")

    @model_validator(mode="before")
    @classmethod
    def _own_token(cls, value: Any) -> Any:
        # Filled in before hashing: naming the own token and leaving it out are the same agreement.
        if isinstance(value, dict) and "token" not in value and isinstance(value.get("name"), str):
            return {**value, "token": value["name"]}
        return value

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        bounded = self.minimum is not None or self.maximum is not None
        if self.kind == "categorical":
            if not self.values or bounded:
                raise ValueError("a categorical column has `values` and neither `minimum` nor `maximum`")
            if len(set(self.values)) != len(self.values):
                raise ValueError("`values` names a category twice")
            return self
        if self.values or self.minimum is None or self.maximum is None:
            raise ValueError("a numeric column has `minimum` and `maximum` and no `values`")
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum} is not below maximum {self.maximum}")
        return self


class DataSchema(_Settings):
    """The table that every participant holds: its columns and its label."""

    label: Name = Field(description="name of the label column")
    positive_class: Integer = Field(default=1, description="label value that the model predicts")
    negative_class: Integer = Field(default=0, description="the other label value")
    person: Name | None = Field(
        default=None, description="column that says whose a record is, where privacy.unit is person"
    )
    columns: Annotated[tuple[ColumnSchema, ...], Field(strict=False, min_length=1, max_length=1000)] = Field(
        description="feature columns, in order"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [column.name for column in self.columns]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"column {name!r} is declared twice")
        if self.label in names:
            raise ValueError(f"label {self.label!r} is also a feature column")
        if self.person in (*names, self.label):
            raise ValueError(f"person {self.person!r} is also a feature column or the label")
        if self.positive_class == self.negative_class:
            raise ValueError(f"positive_class and negative_class are both {self.positive_class}")
        return self

    @property
    def numeric(self) -> tuple[ColumnSchema, ...]:
        """Numeric columns, in order."""
        return tuple(column for column in self.columns if column.kind == "numeric")

    @property
    def categorical(self) -> tuple[ColumnSchema, ...]:
        """Categorical columns, in order."""
        return tuple(column for column in self.columns if column.kind == "categorical")


class ModelSettings(_Settings):
    """Sizes of the feature-token Mixture-of-Experts transformer."""

    dim: int = Field(default=32, ge=4, le=4096, multiple_of=4, description="width of a token, features")
    layers: int = Field(default=2, ge=1, le=64, description="transformer blocks")
    heads: int = Field(default=4, ge=1, le=64, description="attention heads; divides dim")
    experts: int = Field(default=128, ge=1, le=1024, description="routed experts of a block")
    top_k: int = Field(default=4, ge=1, le=64, description="experts that serve a token")
    expert_dim: int = Field(default=8, ge=4, le=4096, multiple_of=4, description="hidden width of an expert")
    shared_expert_dim: int = Field(default=16, ge=0, le=4096, multiple_of=4, description="same, shared; or 0")
    quantile_bins: int = Field(default=6, ge=1, le=64, description="bins of a numeric column's encoding")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is above experts {self.experts}")
        return self


class AdapterSettings(_Settings):
    """What is trained: low-rank adapters with a frozen public factor A, feature embeddings, head."""

    rank: int = Field(default=4, ge=4, le=256, multiple_of=4, description="rank r of an adapter")
    alpha: float = Field(default=8.0, gt=0, le=1024, description="an adapter adds alpha / rank times x A B")
    targets: Annotated[tuple[Literal["attention", "experts"], ...], Field(strict=False)] = Field(
        default=("attention", "experts"), description="matrices that carry adapters"
    )
    train_embeddings: bool = Field(default=True, description="whether the feature embeddings are trained")
    train_head: bool = Field(default=True, description="whether the head is trained")
    factor_seed: int = Field(default=0, ge=0, le=_INTEGER_MOST, description="public seed of the factors A")

    @model_validator(mode="after")
    def _trains_something(self) -> Self:
        if len(set(self.targets)) != len(self.targets):
            raise ValueError("`targets` names a target twice")
        if not (self.targets or self.train_embeddings or self.train_head):
            raise ValueError("nothing is trained: no targets, train_embeddings and train_head are false")
        return self


class ServerOptimizerSettings(_Settings):
    """The optimizer that every participant applies to the mean update (Reddi et al. 2021, algorithm 2)."""

    name: Literal["adam"] = Field(default="adam", description="optimizer")
    learning_rate: float = Field(gt=0, le=10, description="step size of the first round")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the first moment a round")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="decay of the second moment a round")
    epsilon: float = Field(default=1e-8, gt=0, le=1, description="added to the root of the second moment")


class TrainingSettings(_Settings):
    """How long and how fast."""

    rounds: int = Field(ge=1, le=100_000, description="rounds of the study")
    local_steps: int = Field(default=1, ge=1, le=1000, description="DP-SGD steps of a participant in a round")
    local_learning_rate: float = Field(default=0.1, gt=0, le=10, description="step size between local steps")
    learning_rate_schedule: Literal["constant", "linear"] = Field(
        default="constant", description="over the rounds: constant, or linear down to a tenth"
    )
    server_optimizer: ServerOptimizerSettings = Field(description="how the mean update is applied")
    result_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="of the way from the base to the last state, what the result keeps",
    )


class CompressionSettings(_Settings):
    """The share of the trainable entries that moves in a round, and its resolution."""

    kept_share: float = Field(default=0.3, gt=0, le=1, description="share of entries that move in a round")
    bits: int = Field(default=8, ge=4, le=20, description="bits of one entry after rounding")
    explore_share: float = Field(default=0.5, ge=0, le=1, description="share of them drawn at random")
    always: Annotated[tuple[TrainedTensor, ...], Field(strict=False, max_length=16)] = Field(
        default=(), description="trained tensors that move whole in every round"
    )
    range_noise_multiples: float = Field(
        default=16.0, gt=0, le=1000, description="a member's range, in deviations of one entry's local noise"
    )


class AggregationSettings(_Settings):
    """How updates are summed without being seen."""

    mode: Literal["quorum", "strict"] = Field(
        default="strict", description="quorum: a third may vanish in a round; strict: nobody may"
    )
    masks: bool = Field(default=True, description="updates carry pairwise masks; nothing else is built")
    encryption: Literal["bfv"] = Field(default="bfv", description="homomorphic encryption of updates")
    participants: int = Field(description="participants of every round")
    rounds_per_epoch: int = Field(
        default=0, ge=0, le=2**31 - 1, description="rounds that one set of keys serves; 0 for the whole study"
    )

    @field_validator("masks")
    @classmethod
    def _masked(cls, value: bool) -> bool:
        if not value:
            raise ValueError("updates without masks are not built")
        return value

    @field_validator("participants")
    @classmethod
    def _cohort(cls, value: int) -> int:
        if value < PARTICIPANTS_LEAST:
            raise errors.CohortTooSmall(f"aggregation.participants is {value}, below {PARTICIPANTS_LEAST}")
        if value > PARTICIPANTS_MOST:
            raise errors.CohortTooLarge(f"aggregation.participants is {value}, above {PARTICIPANTS_MOST}")
        return value


class EvaluationSettings(_Settings):
    """What may leave a participant besides the protected updates."""

    release: Literal["nothing"] = Field(default="nothing", description="results that the coordinator may see")


class Study(_Settings):
    """A training agreement.

    Guarantees:
        - `id` is the same for files that differ in key order, comments or defaults written down only.
        - `id` differs for any two different agreements (collision resistance of SHA-256).
        - An instance never changes; `with_changes` makes a new, fully checked one.
    """

    schema_version: Literal["hansa/study/v1"] = Field(alias="schema", description="version of the format")
    name: Slug = Field(description="short name: a-z, 0-9 and -")
    purpose: Annotated[str, Field(min_length=1, max_length=1000)] = Field(description="use of the data")
    data: DataSchema = Field(description="table that every participant holds")
    model: ModelSettings = Field(default_factory=ModelSettings, description="sizes of the model")
    adapters: AdapterSettings = Field(default_factory=AdapterSettings, description="what is trained")
    privacy: PrivacySettings = Field(description="differential privacy")
    training: TrainingSettings = Field(description="rounds and optimizer")
    compression: CompressionSettings = Field(default_factory=CompressionSettings, description="update form")
    aggregation: AggregationSettings = Field(description="protection of an update")
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings, description="released results")

    @model_validator(mode="after")
    def _rank_fits(self) -> Self:
        # The factors A are orthonormal, so their rank cannot pass the narrowest width that they read.
        model = self.model
        most = min(model.dim, model.expert_dim) if "experts" in self.adapters.targets else model.dim
        if self.adapters.rank > most:
            raise ValueError(f"adapters.rank {self.adapters.rank} is above the adapted width {most}")
        return self

    @model_validator(mode="after")
    def _noise_suffices(self) -> Self:
        problem = self.privacy.noise_problem(
            participants=self.aggregation.participants,
            strict=self.aggregation.mode == "strict",
            local_steps=self.training.local_steps,
            bits=self.compression.bits,
        )
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _person_is_named(self) -> Self:
        if (self.privacy.unit == "person") != (self.data.person is not None):
            raise ValueError("data.person belongs to privacy.unit person, which cannot be without it")
        return self

    @property
    def id(self) -> str:
        """SHA-256 of the label and the canonical JSON (RFC 8785) of the whole agreement, 64 hex digits."""
        agreement = self.model_dump(by_alias=True)
        later = (("aggregation", "rounds_per_epoch"), ("data", "person"), ("privacy", "records_per_person"))
        for section, key in later:
            if not agreement[section][key]:
                del agreement[section][key]  # studies from before this key keep their ids
        if agreement["training"]["result_share"] == 1:
            del agreement["training"]["result_share"]  # the same
        for key in ("noise_contributors", "colluders"):
            if agreement["privacy"][key] is None:  # the same; a number is always part of the agreement, 0 too
                del agreement["privacy"][key]
        canonical = rfc8785.dumps(agreement)
        return hashlib.sha256(labels.STUDY_ID + canonical).hexdigest()

    def with_changes(
        self, *, participants: int | None = None, epsilon: float | None = None, rounds: int | None = None
    ) -> "Study":
        """Make the study that differs in the given values; it has another `id`.

        Raises:
            ConfigurationError: A value is out of its bounds, with the class that `parse_study` raises.
        """
        agreement = self.model_dump(by_alias=True)
        changes = (
            ("aggregation", "participants", participants),
            ("privacy", "epsilon", epsilon),
            ("training", "rounds", rounds),
        )
        for section, key, value in changes:
            if value is not None:
                agreement[section][key] = value
        if participants == PARTICIPANTS_LEAST:  # with one of three gone, the sum of two would be opened
            agreement["aggregation"]["mode"] = "strict"
        return _validate(agreement)

    def protections(self) -> dict[str, bool]:
        """Tell of every layer of protection whether it is on.

        16 bits or more for every entry is the form that an integer sum needs anyway and no compression.
        """
        return {
            "differential_privacy": True,
            "own_noise_suffices": self.privacy.mode == "local",
            "secure_aggregation_masks": self.aggregation.masks,
            "homomorphic_encryption": self.aggregation.encryption == "bfv",
            "compression": self.compression.kept_share < 1 or self.compression.bits < 16,
            "signatures": True,
            "in_slot_tag": True,
            "dropout_recovery": self.aggregation.mode == "quorum",
            "crash_recovery": True,
            "coordinator_equivocation_check": True,
        }

    def warnings(self) -> tuple[str, ...]:
        """Say what a signer should know that no single protection says."""
        return self.privacy.noise_warnings()


def study_of(agreement: dict[str, Any]) -> Study:
    """Make the study of a parsed agreement, as `json.loads` or `tomllib.loads` gives it; raises as `load_study` does."""
    return _validate(agreement)


def load_study(path: Path) -> Study:
    """Read a study file.

    Args:
        path: A study.toml, UTF-8.

    Raises:
        StudyFileMissing: The file cannot be read.
        StudySyntaxError: The file is not TOML; the message names the line.
        UnknownKey: A key is not known; the hint names the nearest one.
        InvalidValue: A value has the wrong type, is out of its bounds or is missing.
        CohortTooSmall, CohortTooLarge: The number of participants cannot be served.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(STUDY_BYTES_MOST + 1)
    except OSError as error:
        reason = lowered(error.strerror)
        raise errors.StudyFileMissing(f"study file {str(path)!r} cannot be read: {reason}") from error
    if len(raw) > STUDY_BYTES_MOST:
        raise errors.StudySyntaxError(f"study file {str(path)!r} is longer than {STUDY_BYTES_MOST} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise errors.StudySyntaxError(f"study file {str(path)!r} is not UTF-8 (at line {line})") from error
    return parse_study(text)


def parse_study(text: str) -> Study:
    """Read a study from the text of a study file; raises as `load_study` does."""
    try:
        return _validate(tomllib.loads(text))
    except ValueError as error:  # TOMLDecodeError, or an integer with thousands of digits
        line = f"at line {text.rstrip().count(chr(10)) + 1}, end of document"
        message = lowered(str(error)).replace("at end of document", line)
        raise errors.StudySyntaxError(f"study is not TOML: {message}") from error
    except RecursionError as error:
        raise errors.StudySyntaxError("study is not TOML: values are nested too deeply") from error


def _validate(agreement: dict[str, Any]) -> Study:
    problem: errors.ConfigurationError
    try:
        return Study.model_validate(agreement)
    except ValidationError as error:
        problem = problem_of(error, Study)
    raise problem  # outside the handler, so that pydantic's report does not travel along
