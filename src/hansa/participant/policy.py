"""What a participant allows, checked before any data is touched. A refusal spends nothing.

Two moments: `verify_study` when a study is offered, and `verify_round` before a round's reservation is written. The rules usually
come from a file (policy_file.py); what was spent comes from whoever keeps the ledger, through `privacy.spent.Spent`.
"""

import math
from dataclasses import dataclass

from hansa.errors import (
    BudgetExhausted,
    CohortBelowPolicy,
    LayerMissing,
    ModelNotAllowed,
    SubmitterNotAllowed,
    TooLittleNoise,
    TooManyRounds,
    UnknownStudy,
)
from hansa.privacy.accounting import Mechanism, epsilon_of_all
from hansa.privacy.spent import Spent
from hansa.study import PARTICIPANTS_LEAST, Study

REQUIRED_LAYERS = frozenset(
    {"differential_privacy", "secure_aggregation_masks", "homomorphic_encryption", "signatures"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """A participant's own rules for one data set.

    Attributes:
        studies: Ids of the studies that the participant has agreed to.
        epsilon_limit: ε that the data set may ever spend.
        epsilon_per_study: ε that any one study may spend on it.
        epsilon_per_month: ε that all studies together may spend on it in a calendar month, UTC.
        delta_limit: Largest δ.
        smallest_cohort: Fewest participants of a round.
        most_rounds: Most rounds that a study may plan; None for any number.
        models: Hashes of the base models that may be trained, hexadecimal; empty for any.
        submitters: Who may submit a study; empty for anybody.
        required_layers: Protections that must be on, by their names in `Study.protections`.
        noise_contributors_least: Fewest members that a study in distributed mode counts on; None allows no such study.
        colluders_least: Fewest members whose noise such a study must leave uncounted. With 0 the ε of the ledger would not hold
            towards any other member, for each knows its own share of the noise.
        data_set: Name of the data set, for messages.
    """

    studies: frozenset[str]
    epsilon_limit: float
    epsilon_per_study: float = math.inf
    epsilon_per_month: float = math.inf
    delta_limit: float = 1e-5
    smallest_cohort: int = PARTICIPANTS_LEAST
    most_rounds: int | None = None
    models: frozenset[str] = frozenset()
    submitters: frozenset[str] = frozenset()
    required_layers: frozenset[str] = REQUIRED_LAYERS
    noise_contributors_least: int | None = None
    colluders_least: int = 1
    data_set: str = ""

    def verify_study(
        self, study: Study, *, model_hash: str | None = None, submitter: str | None = None
    ) -> None:
        """Check a study against the rules.

        Args:
            study: The agreement that is offered.
            model_hash: Hash of its base model, hexadecimal; None where the caller knows none.
            submitter: Who submits it; None where the caller does not know.

        Raises:
            UnknownStudy: The participant has not agreed to it.
            SubmitterNotAllowed, ModelNotAllowed: It is not on a list that names somebody or something, or is not known.
            LayerMissing: A required protection is off.
            BudgetExhausted: δ is above the limit, or the study plans for more than one study may spend.
            CohortBelowPolicy: Too few participants.
            TooManyRounds: More rounds than any study may plan.
            TooLittleNoise: Its noise is distributed, among fewer members than the participant asks for or with fewer colluders
                left uncounted, or it allows none such.
        """
        if study.id not in self.studies:
            raise UnknownStudy(f"study {study.id[:16]} was not agreed to by this participant")
        if self.submitters and submitter not in self.submitters:
            raise SubmitterNotAllowed(f"{_shown(submitter)} may not submit studies to this participant")
        if self.models and model_hash not in self.models:
            raise ModelNotAllowed(
                f"base model {_shown(model_hash and model_hash[:16])} is not one that this participant allows"
            )
        layers = study.protections()
        missing = sorted(layer for layer in self.required_layers if not layers.get(layer, False))
        if missing:
            raise LayerMissing(
                f"the study switches off {', '.join(missing)}, which this participant requires"
            )
        self._verify_sizes(study)
        self._verify_noise(study)

    def _verify_noise(self, study: Study) -> None:
        """Check a distributed study: own noise does not suffice there, so nobody is drawn into one by leaving a key out."""
        least, offered = self.noise_contributors_least, study.privacy.noise_contributors
        if study.privacy.mode == "local":
            return
        if least is None:
            raise TooLittleNoise(
                "the study's noise is distributed, and this participant's policy sets no noise_contributors_least"
            )
        if offered is None or offered < least:
            raise TooLittleNoise(
                f"the study counts on the noise of {offered} members, below this participant's least, {least}"
            )
        if (study.privacy.colluders or 0) < self.colluders_least:
            raise TooLittleNoise(
                f"the study leaves the noise of {study.privacy.colluders} colluders uncounted, below this participant's least,"
                f" {self.colluders_least}"
            )

    def _verify_sizes(self, study: Study) -> None:
        if not study.privacy.delta <= self.delta_limit:  # a limit that is NaN allows nothing
            raise BudgetExhausted(
                f"delta {study.privacy.delta:g} of the study is above the limit {self.delta_limit:g}"
            )
        if not study.privacy.epsilon <= self.epsilon_per_study:
            raise BudgetExhausted(
                f"the study plans for epsilon {study.privacy.epsilon:g}, above the limit of one study, {self.epsilon_per_study:g}"
            )
        if study.aggregation.participants < self.smallest_cohort:
            raise CohortBelowPolicy(
                f"a cohort of {study.aggregation.participants} is below this participant's least, "
                f"{self.smallest_cohort}"
            )
        if self.most_rounds is not None and study.training.rounds > self.most_rounds:
            raise TooManyRounds(
                f"the study plans {study.training.rounds} rounds, above this participant's most, {self.most_rounds}"
            )

    def verify_round(
        self, study: str, mechanism: Mechanism, *, delta: float, spent: Spent, month: str
    ) -> None:
        """Check what a round would spend against every limit, before it is reserved.

        Args:
            study: Id of the study.
            mechanism: σ, q and steps of the round.
            delta: δ at which ε is stated.
            spent: What the data set has spent, such as the ledger answers.
            month: The month that the round counts in, YYYY-MM. A clock may be set back, so the caller gives the later one of
                `spending.month_of` its clock and the last month that the ledger has seen, as `Budget.reserve` does.

        Raises:
            BudgetExhausted: A limit would be passed; the message says which.

        Guarantees:
            - A round that meets a limit exactly is allowed, and one that passes it is refused.
            - Nothing is written: a refusal leaves what was spent as it was.
        """
        scopes: tuple[tuple[str, float, dict[str, str]], ...] = (
            ("for ever", self.epsilon_limit, {}),
            ("of one study", self.epsilon_per_study, {"study": study}),
            (f"of the month {month}", self.epsilon_per_month, {"month": month}),
        )
        for name, limit, scope in scopes:
            if limit == math.inf:
                continue
            after = epsilon_of_all([*spent(**scope), mechanism], delta)
            if not after <= limit:
                raise BudgetExhausted(
                    f"the round would spend epsilon {after:.3f}, above the limit {name}, {limit:g}"
                )

    def warnings(self) -> tuple[str, ...]:
        """Say what the rules leave open, so that nobody leaves it open by accident."""
        off = sorted(REQUIRED_LAYERS - self.required_layers)
        doors = (
            (not self.models, "any base model is allowed: allow.models is empty"),
            (not self.submitters, "anybody may submit a study: allow.submitters is empty"),
            (
                self.epsilon_per_study == math.inf,
                "one study may spend everything: epsilon.per_study is not set",
            ),
            (
                self.epsilon_per_month == math.inf,
                "one month may spend everything: epsilon.per_month is not set",
            ),
            (self.most_rounds is None, "a study may plan any number of rounds: most_rounds is not set"),
            (bool(off), f"not required: {', '.join(off)}"),
        )
        return tuple(words for is_open, words in doors if is_open)


def _shown(value: str | None) -> str:
    return "unknown" if value is None else repr(value)
