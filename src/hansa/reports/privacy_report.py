"""What a privacy report says, and its form for programs: schema `hansa/privacy-report/v1`. The one source of its numbers.

Page, document and JSON are made from `PrivacyReport.to_json`; none of them computes. An ε that has no finite value is null, and
so is a limit that does not exist. docs/privacy.md lists the keys.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hansa.errors import ReportValueInvalid
from hansa.reports.data_set_report import DataSet

SCHEMA = "hansa/privacy-report/v1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that does not hold.

    Attributes:
        file: The file at fault, below the folder that was audited; empty where it is between several.
        code: Code of the error.
        message: What does not hold.
    """

    file: str
    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reviewed:
    """A file that was read.

    Attributes:
        file: Its path below the folder that was audited.
        kind: `ledger` or `statement`.
        participant: Whose it says it is; empty where it cannot be read.
        sha256: Hash of its bytes, hexadecimal.
        verified: Whether it holds.
        problem: What does not.
    """

    file: str
    kind: str
    participant: str
    sha256: str
    verified: bool
    problem: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """A round whose sum lacks somebody, as its other participants state it."""

    round: int
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyReport:
    """A study over all participants.

    Attributes:
        study: Its id.
        name: Its name; empty where no statement that holds describes it, and everything below is then empty.
        mode: `local` or `distributed` noise.
        noise_contributors: Distributed: fewest members whose noise is in a sum.
        colluders: Distributed: members whose noise does not count.
        clip_norm: C.
        sample_rate: q that was agreed on.
        steps_per_round: Steps.
        rounds_planned: Rounds.
        cohort: Participants that the study has.
        smallest_sum: Fewest participants in a sum that is known of; None where no round ended.
        protections: Layers, on or off.
        base_model: Hash of the public base model; empty where nobody stated it.
        dropouts: Rounds whose sum lacks somebody.
        void_rounds: Rounds without a sum.
        stated_by: Participants whose statements describe it.
        seen_in: Participants whose ledgers name it.
    """

    study: str
    name: str
    mode: str
    noise_contributors: int | None
    colluders: int | None
    clip_norm: float | None
    sample_rate: float | None
    steps_per_round: int | None
    rounds_planned: int | None
    cohort: int | None
    smallest_sum: int | None
    protections: Mapping[str, bool]
    base_model: str
    dropouts: tuple[Missing, ...]
    void_rounds: tuple[int, ...]
    stated_by: tuple[str, ...]
    seen_in: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer of protection over all studies; `off_in` has the names of those that lack it."""

    layer: str
    on: bool
    off_in: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Overall:
    """The whole.

    Attributes:
        participants: Participants with a ledger that holds.
        data_sets: Data sets with one.
        studies: Studies named there.
        epsilon_max: Largest ε of a participant, its data sets composed: what bounds anybody whose records lie at one participant.
        epsilon_max_at: That participant.
        epsilon_everywhere: ε of somebody with a unit in every data set here.
        everywhere_delta: δ of it, the smallest of the ledgers.
        layers: Layers of protection.
        layers_off: How many of them are off somewhere.
    """

    participants: int
    data_sets: int
    studies: int
    epsilon_max: float
    epsilon_max_at: str
    epsilon_everywhere: float
    everywhere_delta: float | None
    layers: tuple[Layer, ...]
    layers_off: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyReport:
    """A privacy report.

    Attributes:
        verified: Whether everything holds.
        date: Day of the newest entry of a ledger that holds, YYYY-MM-DD; empty if there is none.
        time: The same in seconds since 1970.
        made_with: Version of hansa that recomputed the numbers.
        problems: What does not hold.
        cautions: What a reader must not overlook.
        overall: The whole.
        data_sets: Each data set, by participant.
        studies: Each study.
        files: Every file that was read.
    """

    verified: bool
    date: str
    time: int
    made_with: str
    problems: tuple[Problem, ...]
    cautions: tuple[str, ...]
    overall: Overall
    data_sets: tuple[DataSet, ...]
    studies: tuple[StudyReport, ...]
    files: tuple[Reviewed, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON types.

        Raises:
            ReportValueInvalid: A value is of a type that JSON does not have, or is not a number.

        Guarantees:
            - Holds dictionaries, lists, strings, integers, finite floats, booleans and null only; an infinite ε is null.
        """
        fields: dict[str, Any] = _plain({"schema": SCHEMA, **_fields(self)})
        return fields


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _plain(_fields(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if value is None or type(value) in (str, bool, int):
        return value
    if type(value) is float:
        if math.isnan(value):
            raise ReportValueInvalid("a number of a privacy report is NaN")
        return None if math.isinf(value) else value
    raise ReportValueInvalid(f"a privacy report holds a {type(value).__name__}")
