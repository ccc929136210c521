"""The section [privacy] of a study: what is protected, by how much, and whose noise does it.

In `local` mode each participant's own noise suffices. In `distributed` mode the participants' shares add up to it, and the
guarantee rests on a number of them being honest.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

HONEST_LEAST = 2  # with one honest share there is nothing distributed
BITS_LEAST = 16  # on a coarser grid rounding would cost more than the shares save


class PrivacySettings(BaseModel):
    """Differential privacy of each participant's records towards everybody else."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    unit: Literal["record", "person"] = Field(
        default="record", description="what is protected: one record, or all records of a person"
    )
    records_per_person: int | None = Field(
        default=None, ge=1, le=1000, description="unit person: records of a person that take part, at most"
    )
    neighbouring: Literal["add_or_remove_one"] = Field(
        default="add_or_remove_one", description="how neighbouring data sets differ, in units"
    )
    mode: Literal["local", "distributed"] = Field(
        default="local", description="whose noise suffices: each one's own, or that of several in the sum"
    )
    noise_contributors: int | None = Field(
        default=None, ge=1, description="distributed: fewest members whose updates are in a sum"
    )
    colluders: int | None = Field(
        default=None,
        ge=0,
        description="distributed: members whose noise does not count, for they may tell it",
    )
    epsilon: float = Field(gt=0, le=100, description="limit of each participant over all rounds")
    delta: float = Field(gt=0, le=1e-3, description="probability beyond epsilon, over all rounds")
    clip_norm: float = Field(gt=0, le=1000, description="l2 bound of one unit's gradient")
    sample_rate: float = Field(gt=0, le=1, description="Poisson probability of a unit in a step; public")
    nominal_records: int = Field(
        ge=1, le=10**9, description="public size, in units; times sample_rate the divisor"
    )

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if self.sample_rate * self.nominal_records < 1:
            product = self.sample_rate * self.nominal_records
            raise ValueError(f"sample_rate times nominal_records is {product:g}, below 1 record a step")
        if self.delta * self.nominal_records >= 1:  # publishing one record whole would satisfy such a delta
            raise ValueError(f"delta {self.delta:g} is not below 1 / nominal_records")
        if (self.unit == "person") != (self.records_per_person is not None):
            raise ValueError("`records_per_person` belongs to unit person, which cannot be without it")
        return self

    def noise_problem(self, *, participants: int, strict: bool, local_steps: int, bits: int) -> str:
        """Say what about the noise does not fit the rest of a study; empty if everything does."""
        if self.mode == "local":
            named = self.noise_contributors is not None or self.colluders is not None
            return "noise_contributors and colluders belong to privacy.mode = 'distributed'" if named else ""
        if self.noise_contributors is None or self.colluders is None:
            return "privacy.mode = 'distributed' needs noise_contributors and colluders, said outright"
        lowest = threshold_of(participants, strict=strict)
        problems = (
            (
                not lowest <= self.noise_contributors <= participants,
                f"privacy.noise_contributors is {self.noise_contributors}, not from the threshold {lowest} to the"
                f" participants {participants}",
            ),
            (
                self.noise_contributors - self.colluders < HONEST_LEAST,
                f"privacy.noise_contributors {self.noise_contributors} less colluders {self.colluders} is below"
                f" {HONEST_LEAST}",
            ),
            (
                local_steps != 1,
                f"training.local_steps is {local_steps}: with distributed noise it is 1, for in a sum of several steps"
                " nothing bounds one record's share",
            ),
            (
                bits < BITS_LEAST,
                f"compression.bits is {bits}: with distributed noise it is {BITS_LEAST} to 20, for rounding to a"
                " coarse grid adds to what one record can change",
            ),
        )
        return next((words for is_wrong, words in problems if is_wrong), "")

    def noise_warnings(self) -> tuple[str, ...]:
        """Say on whom the guarantee rests, where it does not rest on the participant alone."""
        if self.mode == "local":
            return ()
        contributors, colluders = self.noise_contributors or 0, self.colluders or 0
        rests = (
            f"no participant's own noise suffices: the guarantee rests on {contributors - colluders} honest members among"
            f" every {contributors} that take part, and on the masks that hide each single update"
        )
        curious = (
            "no colluder is assumed: a member that remembers its own noise sees the sum with less than the accounted one;"
            " colluders = 1 holds against each member by itself"
        )
        return (rests, curious) if colluders == 0 else (rests,)


def threshold_of(participants: int, *, strict: bool) -> int:
    """T: members that must remain in a round, as `secure_agg.parameters.Terms` has it."""
    return participants if strict else 2 * participants // 3 + 1
