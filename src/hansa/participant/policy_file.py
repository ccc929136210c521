"""The policy of one data set, read from policy.toml: strict, so that a misspelt limit is an error and not an absent limit."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hansa.errors import ConfigurationError, InvalidValue, PolicyFileMissing, PolicySyntaxError
from hansa.participant.policy import Policy
from hansa.study import PARTICIPANTS_LEAST, PARTICIPANTS_MOST, Name, Slug
from hansa.study_privacy import HONEST_LEAST
from hansa.study_problems import lowered, problem_of

POLICY_BYTES_MOST = 1 << 20
_HINT = "correct the policy file; `hansa policy check POLICY.toml STUDY.toml` reads it"

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Epsilon = Annotated[float, Field(gt=0, le=1000)]
Layer = Literal[
    "differential_privacy",
    "own_noise_suffices",
    "secure_aggregation_masks",
    "homomorphic_encryption",
    "compression",
    "signatures",
    "in_slot_tag",
    "dropout_recovery",
    "crash_recovery",
    "coordinator_equivocation_check",
]


class _Settings(BaseModel):
    """A section: unknown keys are errors, types are exact, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class EpsilonLimits(_Settings):
    """ε that may be spent on the data set."""

    for_ever: Epsilon = Field(description="by everybody, for ever")
    per_study: Epsilon | None = Field(
        default=None, description="by any one study; default: no limit of its own"
    )
    per_month: Epsilon | None = Field(
        default=None, description="by all studies in a calendar month (UTC); default: no limit of its own"
    )


class AllowLists(_Settings):
    """What may be trained, and for whom. An empty list allows anything, and a warning says so."""

    models: Annotated[tuple[Hash, ...], Field(strict=False, max_length=1000)] = Field(
        default=(), description="SHA-256 of base models, 64 hexadecimal digits"
    )
    submitters: Annotated[tuple[Name, ...], Field(strict=False, max_length=1000)] = Field(
        default=(), description="names of those who may submit a study"
    )


class PolicyFile(_Settings):
    """The keys of policy.toml."""

    schema_version: Literal["hansa/policy/v1"] = Field(alias="schema", description="version of the format")
    data_set: Slug = Field(description="short name of the data set: a-z, 0-9 and -")
    studies: Annotated[tuple[Hash, ...], Field(strict=False, max_length=1000)] = Field(
        default=(), description="ids of the studies that were agreed to; empty: none is allowed"
    )
    delta_limit: float = Field(gt=0, le=1e-3, description="largest delta of a study")
    smallest_cohort: int = Field(
        default=PARTICIPANTS_LEAST,
        ge=PARTICIPANTS_LEAST,
        le=PARTICIPANTS_MOST,
        description="fewest participants",
    )
    most_rounds: int | None = Field(
        default=None, ge=1, le=100_000, description="most rounds that a study may plan; default: any number"
    )
    noise_contributors_least: int | None = Field(
        default=None,
        ge=HONEST_LEAST,
        le=PARTICIPANTS_MOST,
        description="fewest members whose noise a distributed study counts on; default: no distributed study is allowed",
    )
    colluders_least: int = Field(
        default=1,
        ge=0,
        le=PARTICIPANTS_MOST,
        description="fewest members whose noise a distributed study leaves uncounted; 0 gives up protection from the other members",
    )
    required_layers: Annotated[tuple[Layer, ...], Field(strict=False, max_length=100)] = Field(
        default=(
            "differential_privacy",
            "secure_aggregation_masks",
            "homomorphic_encryption",
            "signatures",
        ),
        description="protections that must be on",
    )
    epsilon: EpsilonLimits = Field(description="limits of epsilon")
    allow: AllowLists = Field(default_factory=AllowLists, description="models and submitters")

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        lists = {
            "studies": self.studies,
            "required_layers": self.required_layers,
            "allow.models": self.allow.models,
            "allow.submitters": self.allow.submitters,
        }
        for key, values in lists.items():
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{key} names {value!r} twice")
        return self

    def policy(self) -> Policy:
        """Make the rules that the participant's gate applies."""
        limits: dict[str, Any] = {"epsilon_limit": self.epsilon.for_ever}
        if self.epsilon.per_study is not None:
            limits["epsilon_per_study"] = self.epsilon.per_study
        if self.epsilon.per_month is not None:
            limits["epsilon_per_month"] = self.epsilon.per_month
        return Policy(
            studies=frozenset(self.studies),
            delta_limit=self.delta_limit,
            smallest_cohort=self.smallest_cohort,
            most_rounds=self.most_rounds,
            noise_contributors_least=self.noise_contributors_least,
            colluders_least=self.colluders_least,
            models=frozenset(self.allow.models),
            submitters=frozenset(self.allow.submitters),
            required_layers=frozenset(self.required_layers),
            data_set=self.data_set,
            **limits,
        )


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Args:
        path: A policy.toml, UTF-8.

    Raises:
        PolicyFileMissing: The file cannot be read.
        PolicySyntaxError: The file is not TOML, or says a key twice; the message names the line.
        UnknownKey: A key is not known; the hint names the nearest one.
        InvalidValue: A value is missing, has the wrong type, is out of its bounds, not a number, or stands twice in a list.

    Guarantees:
        - A file that is not understood in every key gives no policy at all.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(POLICY_BYTES_MOST + 1)
    except OSError as error:
        raise PolicyFileMissing(
            f"policy file {str(path)!r} cannot be read: {lowered(error.strerror)}"
        ) from error
    if len(raw) > POLICY_BYTES_MOST:
        raise PolicySyntaxError(f"policy file {str(path)!r} is longer than {POLICY_BYTES_MOST} bytes")
    try:
        return parse_policy(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PolicySyntaxError(f"policy file {str(path)!r} is not UTF-8 (at line {line})") from error


def parse_policy(text: str) -> Policy:
    """Read a policy from the text of a policy file; raises as `load_policy` does."""
    try:
        tables = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or an integer with thousands of digits
        raise PolicySyntaxError(f"policy is not TOML: {lowered(str(error))}") from error
    except RecursionError as error:
        raise PolicySyntaxError("policy is not TOML: values are nested too deeply") from error
    problem: ConfigurationError
    try:
        return PolicyFile.model_validate(tables).policy()
    except ValidationError as error:
        problem = problem_of(error, PolicyFile)
    if isinstance(problem, InvalidValue):
        problem = InvalidValue(problem.message, hint=_HINT)
    raise problem  # outside the handler, so that pydantic's report does not travel along
