"""What a privacy report says about one data set; `privacy_report` is the whole of it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """ε by three accountants, and what it may be.

    Attributes:
        epsilon: By PLD, an upper bound: the number that counts.
        prv_low: Lower end of what PRV finds; None where there is nothing to compare.
        prv_high: Upper end of it.
        rdp: Upper bound by RDP.
        limit: The owner's limit, by its statement, or for ever by its ledger; None for none.
        left: What may still be spent; None without a limit.
    """

    epsilon: float
    prv_low: float | None = None
    prv_high: float | None = None
    rdp: float | None = None
    limit: float | None = None
    left: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Mechanism:
    """Equal steps: noise multiplier σ, Poisson rate q, how many."""

    noise_multiplier: float
    sample_rate: float
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """A round that was paid for, or another charge.

    Attributes:
        study: Id of the study.
        round: Its round.
        attempt: The attempt that paid.
        epsilon: ε of the round by itself.
        epsilon_after: ε of the data set after it.
        noise_multiplier: σ that counts: what was reserved, or what is known to have arrived where noise is distributed.
        noise_contributors: Members whose noise is in it; 1 where the participant's own suffices.
        sample_rate: q.
        steps: Steps.
        committed: Whether its update is known to have left; it counts either way.
        month: Calendar month that it counts in.
        line: Line of the ledger.
        purpose: What else looked at the data; empty for a round's update. Such a charge has round 0.
    """

    study: str
    round: int
    attempt: int
    epsilon: float
    epsilon_after: float
    noise_multiplier: float
    noise_contributors: int
    sample_rate: float
    steps: int
    committed: bool
    month: str
    line: int
    purpose: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRange:
    """Rounds of a study that follow each other and are alike: a table's row.

    Attributes:
        study: Id of the study.
        study_name: Its name; empty where no statement names it.
        first: First round.
        last: Last round.
        entries: Reservations in it: one for each round, more where attempts were paid for again.
        epsilon_each: ε of each by itself.
        epsilon_after: ε of the data set after the last.
        noise_multiplier: σ that counts.
        noise_contributors: As for a round.
        sample_rate: q.
        steps: Steps of each.
        committed: Whether their updates are known to have left.
        month: Calendar month that they count in.
        purpose: As for a round.
    """

    study: str
    study_name: str
    first: int
    last: int
    entries: int
    epsilon_each: float
    epsilon_after: float
    noise_multiplier: float
    noise_contributors: int
    sample_rate: float
    steps: int
    committed: bool
    month: str
    purpose: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySpent:
    """What a study spent on a data set.

    Attributes:
        study: Its id.
        name: Its name; empty where no statement names it.
        spent: ε of the study by itself.
        rounds_paid: Rounds that were paid for.
        rounds_sent: Rounds whose update is known to have left.
        mechanisms: What counts, equal steps added up.
    """

    study: str
    name: str
    spent: Spent
    rounds_paid: int
    rounds_sent: int
    mechanisms: tuple[Mechanism, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class MonthSpent:
    """What all studies spent on a data set in a calendar month."""

    month: str
    spent: Spent


@dataclass(frozen=True, kw_only=True, slots=True)
class Empirical:
    """A measured lower bound beside the ε of the same steps.

    Attributes:
        name: Which audit.
        mechanism: What was measured.
        delta: δ.
        epsilon_at_least: What was shown.
        epsilon_claimed: ε of these steps by PLD, computed for this report.
        confidence: Probability with which the bound holds.
        canaries: How many; None where it was not said.
        holds: Whether the bound is not above the claim.
    """

    name: str
    mechanism: Mechanism
    delta: float
    epsilon_at_least: float
    epsilon_claimed: float
    confidence: float
    canaries: int | None
    holds: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Inverted:
    """An attack that tries to read text out of a gradient.

    Attributes:
        name: Which audit.
        tokens: Tokens that it was after.
        recovered_without_noise: Share that it found without noise; what shows that the attack works.
        recovered: Share that it found with the study's clipping and noise.
        chance: Share that guessing finds.
        holds: Whether it did no better than guessing.
    """

    name: str
    tokens: int
    recovered_without_noise: float
    recovered: float
    chance: float
    holds: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Approved:
    """Who agreed that a study may use the data set."""

    study: str
    study_name: str
    approved_by: str
    role: str
    date: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """A data set of a participant, by a ledger that holds.

    Attributes:
        participant: Whose.
        name: What the owner calls it; empty without a statement that holds.
        public_key: The key that signed, hexadecimal.
        data: Commitment to the data, hexadecimal.
        unit: `record` or `person`.
        relation: How neighbouring data sets differ.
        delta: δ.
        spent: In all.
        studies: By study.
        months: By month.
        rounds: By round, in order.
        ranges: The same, rounds that are alike in one.
        limits: The owner's other limits, by name; None for none.
        code_version: Version of the program; empty without a statement that holds.
        code_sha256: Hash of its source files.
        approvals: Who approved what.
        empirical: What was measured.
        inversions: What attacks recovered.
        statement: File of the statement that was used; empty for none.
        ledger: File of the ledger.
        entries: Its entries.
        root: Its Merkle root, hexadecimal.
        notes: What a reader should know of the ledger and what is no fault.
    """

    participant: str
    name: str
    public_key: str
    data: str
    unit: str
    relation: str
    delta: float
    spent: Spent
    studies: tuple[StudySpent, ...]
    months: tuple[MonthSpent, ...]
    rounds: tuple[Round, ...]
    ranges: tuple[RoundRange, ...]
    limits: Mapping[str, float | None]
    code_version: str
    code_sha256: str
    approvals: tuple[Approved, ...]
    empirical: tuple[Empirical, ...]
    inversions: tuple[Inverted, ...]
    statement: str
    ledger: str
    entries: int
    root: str
    notes: tuple[str, ...]
