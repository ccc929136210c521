"""A folder as an auditor gets it: ledgers and statements of some participants that share one study, and some a second one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hansa.privacy.budget import Budget, Spending
from hansa.privacy.distributed import DistributedNoise
from hansa.privacy.ledger import LedgerOwner
from hansa.privacy.statement import Approval, EmpiricalBound, Inversion, Limits, Statement, sign_statement
from hansa.privacy.stating import StudyFacts, make_statement
from hansa.secure_agg.identity import Identity
from hansa.study import Study, load_study

EXAMPLE = Path(__file__).parents[1] / "examples" / "bank" / "study.toml"
DELTA = 1e-5
START = 1_790_000_000
DAY = 86_400
LIMITS = Limits(
    epsilon=4.0, epsilon_per_study=3.0, epsilon_per_month=None, delta=1e-5, smallest_cohort=3, most_rounds=100
)
BOUND = EmpiricalBound(
    name="canaries: noise and clipping",
    noise_multiplier=6.0,
    sample_rate=1.0,
    steps=36,
    delta=DELTA,
    epsilon_at_least=3.9,
    confidence=0.999,
    canaries=10_000,
)

INVERSION = Inversion(
    name="gradient inversion",
    tokens=96,
    recovered_without_noise=0.97,
    recovered=0.01,
    chance=0.01,
    passed=True,
)

# Three members or more, of which one may tell its noise: noise multiplier 1.213, and 1.486 with four.
SHARED_NOISE = DistributedNoise(
    contributors=3, colluders=1, variance=10**8, clip_levels=11_560, entries=10_000
)


def study_of(name: str = "credit-default", rounds: int = 12, participants: int = 4, **privacy: Any) -> Study:
    study = load_study(EXAMPLE).with_changes(participants=participants, rounds=rounds)
    return study.model_copy(
        update={"name": name, "privacy": study.privacy.model_copy(update={"sample_rate": 0.1, **privacy})}
    )


@dataclass(kw_only=True)
class Institution:
    """A participant that is written by hand: its ledger, and what it states."""

    folder: Path
    name: str
    seed: int
    clock: int = START
    data: bytes = b"d" * 32
    unit: str = "record"
    facts: dict[str, StudyFacts] = field(default_factory=dict)

    @property
    def identity(self) -> Identity:
        return Identity.load(bytes([self.seed]) * 32)

    @property
    def owner(self) -> LedgerOwner:
        return LedgerOwner(
            participant=self.name,
            public_key=self.identity.public,
            data=self.data,
            sign=self.identity.sign,
            unit=self.unit,
            now=lambda: float(self.clock),
        )

    @property
    def ledger(self) -> Path:
        return self.folder / self.name / "ledger-1.jsonl"

    @property
    def statement(self) -> Path:
        return self.folder / self.name / "statement-1.json"

    def spend(
        self,
        study: Study,
        rounds: int,
        *,
        sigma: float = 1.2,
        missing: dict[int, tuple[str, ...]] | None = None,
        void: tuple[int, ...] = (),
        limit: float = 4.0,
        days: float = 3.0,
        open_rounds: tuple[int, ...] = (),
        noise: DistributedNoise | None = None,
        arrived: dict[int, int] | None = None,
    ) -> None:
        """Pay for the rounds of a study in which this participant is not missing, and commit them.

        Args:
            noise: What is reserved, where members' noise adds up.
            arrived: Members whose noise was in a sum, by round; as many as were reserved by default.
        """
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        missing = missing or {}
        budget = Budget(self.ledger, epsilon_limit=limit, delta=DELTA, owner=self.owner)
        for number in range(1, rounds + 1):
            self.clock += int(days * DAY)
            if self.name in missing.get(number, ()):
                continue
            spending = Spending(
                study=study.id,
                round=number,
                attempt=0,
                noise_multiplier=sigma if noise is None else noise.noise_multiplier,
                distributed=noise,
                sample_rate=study.privacy.sample_rate,
                steps=study.training.local_steps,
            )
            budget.reserve(spending)
            if number not in open_rounds:
                budget.commit(spending.arrived((arrived or {}).get(number, spending.contributors)))
        self.facts[study.id] = StudyFacts(
            study=study,
            missing=missing,
            void_rounds=void,
            base_model="ab" * 32,
        )

    def state(self, *, changes: dict[str, Any] | None = None, **given: Any) -> Statement:
        """Sign a statement; `changes` alters what it says before it is signed."""
        usual: dict[str, Any] = {
            "data_set": "cards",
            "limits": LIMITS,
            "approvals": [
                Approval(study=study, approved_by="Data protection office", role="DPO", time=START)
                for study in self.facts
            ],
            "empirical": [BOUND],
            "inversions": [INVERSION],
        }
        statement = make_statement(
            self.ledger, self.owner, studies=list(self.facts.values()), **{**usual, **given}
        )
        if changes:
            statement = statement.model_copy(update=changes)
        self.statement.write_bytes(sign_statement(statement, self.identity.sign))
        return statement


NAMES = ("bank-1", "bank-2", "bank-3", "clinic-4")
MISSING = {2: ("bank-3",), 7: ("bank-2", "bank-3"), 9: ("clinic-4",)}


def make_folder(folder: Path) -> dict[str, Institution]:
    """Four institutions share a study; two of them share a second one."""
    first, second = study_of(), study_of("merchant-fraud", 8, 3, sample_rate=0.05)
    found = {}
    for seed, name in enumerate(NAMES, start=1):
        one = Institution(folder=folder, name=name, seed=seed, data=bytes([seed]) * 32)
        one.unit = "person" if name == "clinic-4" else "record"
        one.spend(first, 12, missing=MISSING)
        if name in ("bank-1", "bank-2"):
            one.spend(second, 5, sigma=0.9, void=(3,), open_rounds=(5,))
        one.state(data_set="patients" if name == "clinic-4" else "cards")
        found[name] = one
    return found
