"""Settings of a private study from public numbers alone, so that nobody tunes on private results.

    q       0.4, halved as long as that costs less than a tenth more noise
    σ       the least noise multiplier for (ε, δ), q and T (`privacy.accounting.calibrate`)
    R       noise of a round's mean update over the clip norm, both as ℓ₂ norms on the K entries that move:
                local         σ √K / (q N √n)
                distributed   σ √K / (q N √(n h)) · (1 + √K / L),  h honest contributors, L grid levels a clip norm
R says how hard a study is. Where it is large and the base solves the task already, the result keeps less of the way from that
base (`training.result_share`), so that noise does not spoil what was there. Every other setting is one number, for none of
them had to follow R: Adam divides by the size of what it sees, noise included, and the same rate was best from R = 0.1 to
R = 1.1. Where the numbers come from stands in `docs/utility.md`: UCI Adult and SUPPORT2, never the bank example's table.
"""

import math
from dataclasses import dataclass

import torch

from hansa.errors import InvalidValue
from hansa.models.config import ModelConfig
from hansa.models.pretraining import layout_of
from hansa.models.transformer import FeatureTransformer
from hansa.privacy.accounting import calibrate, epsilon_of
from hansa.secure_agg.codec import kept_entries
from hansa.secure_agg.parameters import MAXIMUM_BITS, layout_for
from hansa.study import PARTICIPANTS_LEAST, Study, study_of
from hansa.study_privacy import BITS_LEAST, threshold_of

CLIP_NORM = 0.5
ROUNDS = 30
SAMPLE_RATE_MOST, SAMPLE_RATE_LEAST = 0.4, 0.025
NOISE_GROWTH_MOST = 1.1  # of R, for half the records a step
KEPT_SHARE, EXPLORE_SHARE = 0.29, 0.2
LOCAL_BITS = 8
RANGE_NOISE_MULTIPLES = 16.0
LEARNING_RATE = 0.06
RATIO_TRAINED = 0.25  # R up to which the whole way from a base that solves the task already is kept
RESULT_SHARE_LEAST = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyRecipe:
    """Settings for one study.

    Attributes:
        epsilon: Limit of each participant.
        delta: δ.
        mode: Whose noise suffices.
        noise_contributors: Distributed: fewest members in a sum; else None.
        colluders: Distributed: members whose noise does not count; else None.
        clip_norm: C.
        sample_rate: q.
        nominal_records: N, units of a participant.
        rounds: T, with one step each.
        learning_rate: Server Adam's in the first round; it falls linearly to a tenth.
        result_share: Share of the way from the base that the result keeps.
        bits: Bits of an entry.
        noise_multiplier: σ.
        noise_ratio: R.
        epsilon_spent: ε of all rounds with σ, at most `epsilon`.
    """

    epsilon: float
    delta: float
    mode: str
    noise_contributors: int | None
    colluders: int | None
    clip_norm: float
    sample_rate: float
    nominal_records: int
    rounds: int
    learning_rate: float
    result_share: float
    bits: int
    noise_multiplier: float
    noise_ratio: float
    epsilon_spent: float

    def sections(self) -> dict[str, dict[str, object]]:
        """Give the sections [privacy], [training] and [compression] of a study, without what the recipe does not choose."""
        privacy = {
            "mode": self.mode,
            "noise_contributors": self.noise_contributors,
            "colluders": self.colluders,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "clip_norm": self.clip_norm,
            "sample_rate": self.sample_rate,
            "nominal_records": self.nominal_records,
        }
        optimizer = {"name": "adam", "learning_rate": self.learning_rate, "beta1": 0.9, "beta2": 0.99}
        return {
            "privacy": {key: value for key, value in privacy.items() if value is not None},
            "training": {
                "rounds": self.rounds,
                "local_steps": 1,
                "learning_rate_schedule": "linear",
                "result_share": self.result_share,
            },
            "training.server_optimizer": optimizer,
            "compression": {
                "kept_share": KEPT_SHARE,
                "bits": self.bits,
                "explore_share": EXPLORE_SHARE,
                "range_noise_multiples": RANGE_NOISE_MULTIPLES,
            },
        }

    def toml(self) -> str:
        """Write the sections as TOML."""
        lines = [
            f"# noise multiplier {self.noise_multiplier:g}, epsilon {self.epsilon_spent:.4g} of {self.epsilon:g},"
            f" noise over clip norm {self.noise_ratio:.3g}"
        ]
        for name, keys in self.sections().items():
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in keys.items())]
        return "\n".join(lines) + "\n"

    def applied_to(self, study: Study) -> Study:
        """Give a study with these settings; what the recipe does not choose stays as it is.

        Raises:
            ConfigurationError: The result is no valid study, such as one with another number of participants.
        """
        agreement = study.model_dump(by_alias=True)
        agreement["privacy"] |= {"noise_contributors": None, "colluders": None}
        for name, keys in self.sections().items():
            section = agreement
            for part in name.split("."):
                section = section[part]
            section |= keys
        return study_of(agreement)


def recipe_for(
    *,
    epsilon: float,
    delta: float,
    participants: int,
    nominal_records: int,
    trained_entries: int,
    mode: str = "local",
    colluders: int | None = None,
    strict: bool = False,
    trained_base: bool = False,
) -> PrivacyRecipe:
    """Choose the settings of a study.

    Args:
        epsilon: Limit of each participant over all rounds.
        delta: δ.
        participants: n.
        nominal_records: N, units that a participant has, roughly; public.
        trained_entries: Entries that are trained, d.
        mode: "local" or "distributed".
        colluders: Distributed only, and there it has to be said: members whose noise does not count.
        strict: Whether nobody may vanish in a round; always so for three participants.
        trained_base: Whether the base solves the task already, its head trained on public labels or in an earlier study.

    Raises:
        InvalidValue: A number is out of bounds, or `colluders` does not fit the mode.
        PrivacyTargetUnreachable: No noise multiplier that is allowed reaches the target.
        CohortTooSmall, CohortTooLarge: The number of participants cannot be served.

    Guarantees:
        - Depends on its arguments only: equal arguments give equal settings.
        - `epsilon_spent` is at most `epsilon`, and above it with σ less 0.001, unless σ is the least allowed.
        - σ does not grow with ε at equal q, and T is `ROUNDS` whatever the arguments are.
        - `result_share` does not grow with R, is `RESULT_SHARE_LEAST` or more, and 1 for a base that has nothing to lose.
        - R falls when ε, participants or records grow, all else equal.
    """
    _verify(epsilon, delta, nominal_records, trained_entries)
    _verify_mode(mode, colluders)
    sample_rate = _sample_rate(epsilon, delta, nominal_records)
    sigma = calibrate(epsilon=epsilon, delta=delta, sample_rate=sample_rate, steps=ROUNDS)
    bits = LOCAL_BITS if mode == "local" else _free_bits(participants)
    kept = kept_entries(trained_entries, KEPT_SHARE, layout_for(participants, bits))
    ratio = sigma * math.sqrt(kept / participants) / (sample_rate * nominal_records)
    contributors = None
    if colluders is not None:
        contributors = threshold_of(participants, strict=strict or participants == PARTICIPANTS_LEAST)
        if contributors - colluders < 2:
            raise InvalidValue(f"{contributors} contributors less {colluders} colluders are below 2")
        levels = math.floor((2 ** (bits - 1) - 1) / (RANGE_NOISE_MULTIPLES * sigma))
        ratio *= (1.0 + math.sqrt(kept) / max(1, levels)) / math.sqrt(contributors - colluders)
    return PrivacyRecipe(
        epsilon=epsilon,
        delta=delta,
        mode=mode,
        noise_contributors=contributors,
        colluders=colluders,
        clip_norm=CLIP_NORM,
        sample_rate=sample_rate,
        nominal_records=nominal_records,
        rounds=ROUNDS,
        learning_rate=LEARNING_RATE,
        result_share=_result_share(ratio) if trained_base else 1.0,
        bits=bits,
        noise_multiplier=sigma,
        noise_ratio=ratio,
        epsilon_spent=epsilon_of(noise_multiplier=sigma, sample_rate=sample_rate, steps=ROUNDS, delta=delta),
    )


def trained_entries_of(study: Study) -> int:
    """Count the entries that a study trains with every quantile bin in use: the real model has at most these."""
    widths: dict[str, int] = {}
    for column in study.data.columns:
        own = study.model.quantile_bins + 2 if column.kind == "numeric" else len(column.values) + 1
        widths[column.token] = widths.get(column.token, 1) + own
    used_JZ = torch.arange(max(widths.values())) < torch.tensor(list(widths.values())).unsqueeze(1)
    with torch.random.fork_rng(devices=[]):
        return layout_of(study, FeatureTransformer(ModelConfig.of_study(study), used_JZ)).size


def recipe_of(study: Study, *, epsilon: float | None = None, trained_base: bool = False) -> PrivacyRecipe:
    """Choose the settings for a study's own ε, δ, participants, records, model and kind of noise; errors as of `recipe_for`.

    Args:
        study: The agreement.
        epsilon: Another limit in place of its own.
        trained_base: As in `recipe_for`.
    """
    privacy = study.privacy
    return recipe_for(
        epsilon=privacy.epsilon if epsilon is None else epsilon,
        delta=privacy.delta,
        participants=study.aggregation.participants,
        nominal_records=privacy.nominal_records,
        trained_entries=trained_entries_of(study),
        mode=privacy.mode,
        colluders=privacy.colluders,
        strict=study.aggregation.mode == "strict",
        trained_base=trained_base,
    )


def _verify(epsilon: float, delta: float, nominal: int, entries: int) -> None:
    if not 0 < epsilon <= 100:
        raise InvalidValue(f"epsilon {epsilon:g} is not above 0 and at most 100")
    if not 0 < delta <= 1e-3 or delta * nominal >= 1:
        raise InvalidValue(f"delta {delta:g} is not above 0, at most 0.001 and below 1 / {nominal} records")
    if SAMPLE_RATE_MOST * nominal < 1:
        raise InvalidValue(
            f"{nominal} records give less than 1 a step at the largest sample rate {SAMPLE_RATE_MOST:g}"
        )
    if entries < 1:
        raise InvalidValue(f"{entries} trained entries are below 1")


def _verify_mode(mode: str, colluders: int | None) -> None:
    if mode not in ("local", "distributed"):
        raise InvalidValue(f"mode {mode!r} is neither 'local' nor 'distributed'")
    if (mode == "distributed") != (colluders is not None):
        raise InvalidValue("colluders belong to distributed noise, where they have to be said")
    if colluders is not None and colluders < 0:
        raise InvalidValue(f"colluders = {colluders} is below 0")


def _sample_rate(epsilon: float, delta: float, nominal: int) -> float:
    """Halve q while R, which goes with σ / q, grows by less than a tenth, and a step keeps a record."""
    rate = SAMPLE_RATE_MOST
    sigma = calibrate(epsilon=epsilon, delta=delta, sample_rate=rate, steps=ROUNDS)
    while rate / 2 >= SAMPLE_RATE_LEAST and rate / 2 * nominal >= 1:
        halved = calibrate(epsilon=epsilon, delta=delta, sample_rate=rate / 2, steps=ROUNDS)
        if 2 * halved >= NOISE_GROWTH_MOST * sigma:
            break
        rate, sigma = rate / 2, halved
    return rate


def _result_share(ratio: float) -> float:
    """Share of the way from a base that solves the task already, to two digits: there is something to lose."""
    return float(f"{min(1.0, max(RESULT_SHARE_LEAST, (RATIO_TRAINED / ratio) ** 2)):.2g}")


def _free_bits(participants: int) -> int:
    """Most bits of an entry that share a slot as 16 do: a finer grid for the same bytes."""
    lanes = layout_for(participants, BITS_LEAST).lanes
    return max(
        bits for bits in range(BITS_LEAST, MAXIMUM_BITS + 1) if layout_for(participants, bits).lanes == lanes
    )


def _toml(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return repr(value)
