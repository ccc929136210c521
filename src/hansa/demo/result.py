"""What a run of the demo measured, and its form for programs: report.json, schema `hansa/demo-report/v1`.

The evaluator that fills it in sees every bank's data, which no study allows; the numbers describe the demo,
not a service of the system. Derived numbers (gains, totals, the largest ε) are computed here once, so that
the terminal, the page and the JSON cannot disagree.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hansa.errors import ReportValueInvalid

SCHEMA = "hansa/demo-report/v1"
FP32_BYTES = 4


def _check(name: str, value: float | None, least: float, most: float = math.inf) -> None:
    # Written so that NaN fails: every comparison with it is false.
    if value is not None and not (least <= value <= most and math.isfinite(value)):
        raise ReportValueInvalid(f"{name} = {value} is not a finite number in {least:g}..{most:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Area under the ROC curve of every arm, in [0, 1]; None where the arm was not run.

    Attributes:
        joint: The joint model with the study's protections.
        local_only_same_network: The same network at each bank alone, no DP, early stopping; mean over banks.
        local_only_logistic_regression: Logistic regression at each bank alone, no DP; mean over banks.
        local_only_dp: The same network at each bank alone under the study's DP; mean over banks.
        federated_no_dp: Federated, compressed, without DP.
        federated_no_compression: Federated with DP, every entry sent in full resolution.
        pooled: The same network on everybody's rows in one place, no DP.
        base: The public base model before any bank trained it.
    """

    joint: float
    local_only_same_network: float | None = None
    local_only_logistic_regression: float | None = None
    local_only_dp: float | None = None
    federated_no_dp: float | None = None
    federated_no_compression: float | None = None
    pooled: float | None = None
    base: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(f"auc of {field.name}", getattr(self, field.name), 0.0, 1.0)

    @property
    def local_only(self) -> float | None:
        """The better of the two models that a bank can make alone without DP: the baseline to beat."""
        both = (self.local_only_same_network, self.local_only_logistic_regression)
        return max((score for score in both if score is not None), default=None)

    def get(self, arm: str) -> float | None:
        """Return the score of an arm by its key in report.json, `local_only` included."""
        score: float | None = getattr(self, arm)
        return score

    def to_json(self) -> dict[str, float | None]:
        """Return every arm, `local_only` included."""
        return {**dataclasses.asdict(self), "local_only": self.local_only}


@dataclass(frozen=True, kw_only=True, slots=True)
class Epsilon:
    """Privacy spent.

    Attributes:
        limit: ε that no bank may pass.
        delta: δ at which every ε is stated.
        unit: What one neighbouring data set differs by, for example "one record, added or removed".
        mechanism: Mechanism and accountant in words.
        noise_multiplier: σ, standard deviation of the noise in units of the clip norm.
        per_participant: ε spent at the end by each bank.
        by_round: Largest ε over the banks after each round.
    """

    limit: float
    delta: float
    unit: str
    mechanism: str
    noise_multiplier: float
    per_participant: Mapping[str, float]
    by_round: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("limit", "delta", "noise_multiplier"):
            _check(f"epsilon.{name}", getattr(self, name), 0.0)
        for bank, spent in self.per_participant.items():
            _check(f"epsilon of {bank!r}", spent, 0.0)
        for spent in self.by_round:
            _check("epsilon by round", spent, 0.0)

    @property
    def max(self) -> float:
        """The largest ε of a bank."""
        return max(self.per_participant.values())

    def to_json(self) -> dict[str, Any]:
        """Return every field and `max`."""
        return {**_fields(self), "max": self.max}


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Bytes of one participant in one round, as the aggregator counts them.

    Attributes:
        uplink_bytes: Ciphertexts and the signed header that a bank sends.
        downlink_bytes: Ciphertexts of the sum and all signed headers that a bank receives.
        trainable_parameters: Entries that are trained.
        kept_entries: Entries that move in a round.
        padding_entries: Places in the ciphertexts that carry no entry.
        ciphertexts: Ciphertexts of one upload.
    """

    uplink_bytes: int
    downlink_bytes: int
    trainable_parameters: int
    kept_entries: int
    padding_entries: int
    ciphertexts: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 1 if field.name == "trainable_parameters" else 0
            _check(f"traffic.{field.name}", getattr(self, field.name), least)

    @property
    def fp32_bytes(self) -> int:
        """The same update uncompressed and unprotected, 4 bytes a trainable parameter; one direction."""
        return FP32_BYTES * self.trainable_parameters

    @property
    def uplink_bytes_per_parameter(self) -> float:
        """Bytes sent for each trainable parameter."""
        return self.uplink_bytes / self.trainable_parameters

    def to_json(self, messages: int) -> dict[str, Any]:
        """Return every field, the derived ones, and totals over `messages` = participants times rounds."""
        return {
            **_fields(self),
            "fp32_bytes": self.fp32_bytes,
            "uplink_bytes_per_parameter": self.uplink_bytes_per_parameter,
            "uplink_bytes_total": self.uplink_bytes * messages,
            "downlink_bytes_total": self.downlink_bytes * messages,
            "fp32_bytes_total": self.fp32_bytes * messages,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Seconds:
    """Where the time went.

    Attributes:
        total: Wall seconds of the whole demo.
        per_round: Mean wall seconds of a joint round.
        by_step: Seconds spent in each step of a round, added up over all banks, mean over rounds. Banks work
            side by side, so the sum is above `per_round`.
    """

    total: float
    per_round: float
    by_step: Mapping[str, float]

    def __post_init__(self) -> None:
        _check("seconds.total", self.total, 0.0)
        _check("seconds.per_round", self.per_round, 0.0)
        for step, seconds in self.by_step.items():
            _check(f"seconds of step {step!r}", seconds, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """A finished run.

    Args:
        participants: Number of banks.
        rounds: Joint rounds.
        partition: Name of the way the rows were dealt to the banks.
        partition_notes: What the partition maker re-drew or kept back.
        seed: Seed of everything public.
        auc: Scores on the consortium-wide test set.
        own_auc: The same on each bank's own customers, mean over banks.
        auc_by_round: Joint score on the test set after each round; None where it was not measured.
        epsilon: Privacy spent.
        traffic: Bytes of a bank in a round.
        seconds: Time by step.
        peak_memory_bytes: Peak of all processes together.
        protections: Every layer, on or off; as `Study.protections` gives it.
        absent_steps: Protections that do not exist yet, in words.
        model_hash: Hash of the state that all banks ended with, hex.
        study_id: Identity of the study, hex.
        versions: Version of every package that matters.
        settings_origin: On what data the settings were chosen.
        data_source: The data, its licence and attribution.
        caveats: What a reader must know before quoting a number.

    Raises:
        ReportValueInvalid: A number is NaN, infinite or out of its bounds, or the parts disagree on the
            number of participants or rounds.

    Guarantees:
        - A result that exists has no NaN and no infinity in it.
        - to_json() holds plain dict, list, str, int, float, bool and None only.
        - An arm that was not run is null.
    """

    participants: int
    rounds: int
    partition: str
    partition_notes: tuple[str, ...]
    seed: int
    auc: Scores
    own_auc: Scores
    auc_by_round: tuple[float | None, ...]
    epsilon: Epsilon
    traffic: Traffic
    seconds: Seconds
    peak_memory_bytes: int
    protections: Mapping[str, bool]
    absent_steps: tuple[str, ...]
    model_hash: str
    study_id: str
    versions: Mapping[str, str]
    settings_origin: str
    data_source: str
    caveats: tuple[str, ...]

    def __post_init__(self) -> None:
        _check("participants", self.participants, 1)
        _check("rounds", self.rounds, 1)
        _check("peak_memory_bytes", self.peak_memory_bytes, 0)
        for score in self.auc_by_round:
            _check("auc_by_round", score, 0.0, 1.0)
        for name, found, wanted in (
            ("auc_by_round", len(self.auc_by_round), self.rounds),
            ("epsilon.by_round", len(self.epsilon.by_round), self.rounds),
            ("epsilon.per_participant", len(self.epsilon.per_participant), self.participants),
        ):
            if found != wanted:
                raise ReportValueInvalid(f"{name} has {found} values, not {wanted}")
        self.to_json()  # a value that JSON does not have is refused here, not when the report is written

    @property
    def gain_over_local_only(self) -> float | None:
        """Relative gain in AUC of the joint model over the better local-only model; 0.1 is ten percent."""
        return _gain(self.auc.joint, self.auc.local_only)

    @property
    def gain_over_same_network(self) -> float | None:
        """Relative gain in AUC of the joint model over the same network trained at each bank alone."""
        return _gain(self.auc.joint, self.auc.local_only_same_network)

    def to_json(self) -> dict[str, Any]:
        """Return the content of report.json."""
        document = {
            **_fields(self),
            "schema": SCHEMA,
            "auc": self.auc.to_json(),
            "own_auc": self.own_auc.to_json(),
            "gain": {
                "joint_vs_local_only": self.gain_over_local_only,
                "joint_vs_same_network": self.gain_over_same_network,
            },
            "epsilon": self.epsilon.to_json(),
            "traffic": self.traffic.to_json(self.participants * self.rounds),
            "seconds": _fields(self.seconds),
        }
        plain: dict[str, Any] = _plain(document, "report")
        return plain


def _gain(joint: float, other: float | None) -> float | None:
    return None if not other else joint / other - 1.0


def _fields(part: Any) -> dict[str, Any]:
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}


def _plain(value: Any, name: str) -> Any:
    """Turn numbers of other libraries into Python's own, tuples into lists; refuse everything else."""
    if value is None or isinstance(value, str):
        return value if value is None else str(value)
    if isinstance(value, bool) or type(value).__name__ == "bool":  # numpy's bool is no subclass of bool
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        _check(name, float(value), -math.inf)
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    raise ReportValueInvalid(f"{name} is a {type(value).__name__}, which JSON does not have")
