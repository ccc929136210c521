"""What a participant allows, checked before any data is touched. A refusal spends nothing."""

from dataclasses import dataclass

from hansa.errors import BudgetExhausted, CohortBelowPolicy, LayerMissing, UnknownStudy
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
        delta_limit: Largest δ.
        smallest_cohort: Fewest participants of a round.
        required_layers: Protections that must be on, by their names in `Study.protections`.
    """

    studies: frozenset[str]
    epsilon_limit: float
    delta_limit: float = 1e-5
    smallest_cohort: int = PARTICIPANTS_LEAST
    required_layers: frozenset[str] = REQUIRED_LAYERS

    def verify_study(self, study: Study) -> None:
        """Check a study against the rules.

        Raises:
            UnknownStudy: The participant has not agreed to it.
            LayerMissing: A required protection is off.
            BudgetExhausted: δ is above the limit.
            CohortBelowPolicy: Too few participants.
        """
        if study.id not in self.studies:
            raise UnknownStudy(f"study {study.id[:16]} was not agreed to by this participant")
        layers = study.protections()
        missing = sorted(layer for layer in self.required_layers if not layers.get(layer, False))
        if missing:
            raise LayerMissing(
                f"the study switches off {', '.join(missing)}, which this participant requires"
            )
        if not study.privacy.delta <= self.delta_limit:  # a limit that is NaN allows nothing
            raise BudgetExhausted(
                f"delta {study.privacy.delta:g} of the study is above the limit {self.delta_limit:g}"
            )
        if study.aggregation.participants < self.smallest_cohort:
            raise CohortBelowPolicy(
                f"a cohort of {study.aggregation.participants} is below this participant's least, "
                f"{self.smallest_cohort}"
            )
