"""The empirical audit of a study: measurements of what its mechanism leaks, beside what its accounting claims.

    noise and clipping   canaries through the participant's trainer, every record in every step
    sampling             the same at the study's rate
    one training         canaries in a whole training of the study, one run
    gradient inversion   an attack on a single text's gradient, without noise and with the study's

All records are synthetic, drawn from the study's public ranges: nothing is read and nothing is charged. Each number is a lower
bound of ε or the success of one attack, so the audit shows faults; it never shows that there are none.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from hansa.errors import AuditFailed, UsageError
from hansa.participant.one_run_audit import OneRunAudit, audit_one_run, verify_one_run
from hansa.participant.trainer_canaries import trainer_step
from hansa.privacy.accounting import Mechanism, calibrate, epsilon_of
from hansa.privacy.canary import CanaryAudit, audit_settings, measure_canaries, verify_claim
from hansa.privacy.inversion_check import InversionCheck, check_inversion, verify_inversion
from hansa.privacy.noise import SecretRandom
from hansa.study import Study

SCHEMA = "hansa/empirical-audit/v1"
ROWS = "synthetic, drawn from the public ranges of the study's columns; no record was read and nothing is charged"

Found = CanaryAudit | OneRunAudit | InversionCheck
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        canaries: Of each canary audit.
        run_canaries: Of the one training.
        run_seconds: After which the training begins no further round.
        texts: That are attacked.
    """

    canaries: int
    run_canaries: int
    run_seconds: float
    texts: int


QUICK = Effort(canaries=10_000, run_canaries=500, run_seconds=10.0, texts=3)
FULL = Effort(canaries=40_000, run_canaries=1000, run_seconds=90.0, texts=8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One measurement.

    Attributes:
        name: What was measured.
        found: What it showed.
        error: Why it fails; None where it holds.
        seconds: How long it took.
    """

    name: str
    found: Found
    error: AuditFailed | None
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EmpiricalAudit:
    """All measurements of a study.

    Attributes:
        study: The agreement.
        mechanism: σ, q and all steps of the study.
        claimed: ε that the accountant claims for them.
        checks: The measurements, in the order in which they were made.
        quick: Whether the smaller effort was made.
        seconds: How long all took.
        finished: When, in seconds since 1970.
    """

    study: Study
    mechanism: Mechanism
    claimed: float
    checks: tuple[Check, ...]
    quick: bool
    seconds: float
    finished: int = field(default_factory=lambda: int(time.time()))

    @property
    def errors(self) -> list[AuditFailed]:
        """What does not hold."""
        return [check.error for check in self.checks if check.error is not None]


def audit_study(
    study: Study, *, quick: bool = False, progress: Progress | None = None, random: SecretRandom | None = None
) -> EmpiricalAudit:
    """Measure what a study's mechanism leaks, on synthetic records.

    Args:
        study: The agreement; σ is calibrated for it as a participant does.
        quick: Whether to take fewer canaries and texts.
        progress: Called with a line about what is being done.
        random: Secret randomness; a test may inject it.

    Returns:
        Every measurement, those that fail among them.

    Raises:
        UsageError: The study's noise is not each participant's own.
        PrivacyTargetUnreachable: No σ reaches the study's target.

    Guarantees:
        - No data file is read and no ledger is written.
        - Noise over √2, no clipping, clipping by tokens and a fourfold sample rate of the trainer each end in an error.
    """
    started = time.monotonic()
    if study.privacy.mode != "local":
        raise UsageError(
            f"mode {study.privacy.mode!r} cannot be audited so, only 'local'",
            hint="the audit trains one participant alone, whose own noise must suffice",
        )
    say = progress or (lambda _: None)
    effort = QUICK if quick else FULL
    random = SecretRandom() if random is None else random
    mechanism, claimed = _planned(study)
    checks = []
    for name, measure in _measurements(study, mechanism, effort, say, random):
        say(name)
        begun = time.monotonic()
        found = measure()
        checks.append(Check(name=name, found=found, error=_error_of(found), seconds=time.monotonic() - begun))
    return EmpiricalAudit(
        study=study,
        mechanism=mechanism,
        claimed=claimed,
        checks=tuple(checks),
        quick=quick,
        seconds=time.monotonic() - started,
    )


def _planned(study: Study) -> tuple[Mechanism, float]:
    """What a participant will run over the whole study, and its ε."""
    privacy, steps = study.privacy, study.training.rounds * study.training.local_steps
    sigma = calibrate(
        epsilon=privacy.epsilon, delta=privacy.delta, sample_rate=privacy.sample_rate, steps=steps
    )
    mechanism = Mechanism(sigma, privacy.sample_rate, steps)
    return mechanism, epsilon_of(**mechanism._asdict(), delta=privacy.delta)


def _measurements(
    study: Study, mechanism: Mechanism, effort: Effort, say: Progress, random: SecretRandom
) -> list[tuple[str, Callable[[], Found]]]:
    privacy, sigma = study.privacy, mechanism.noise_multiplier
    step = trainer_step(study)

    def canaries(setting: Mechanism) -> CanaryAudit:
        return measure_canaries(
            setting,
            delta=privacy.delta,
            clip_norm=privacy.clip_norm,
            canaries=effort.canaries,
            step=step,
            random=random,
        )

    def training() -> OneRunAudit:
        every = max(1, study.training.rounds // 10)
        return audit_one_run(
            study,
            noise_multiplier=sigma,
            canaries=effort.run_canaries,
            seconds_most=effort.run_seconds,
            progress=lambda done, of: None if done % every else say(f"one training: round {done} of {of}"),
            random=random,
        )

    def inversion() -> InversionCheck:
        return check_inversion(
            noise_multiplier=sigma, clip_norm=privacy.clip_norm, texts=effort.texts, random=random
        )

    noise, sampling = audit_settings(sigma, privacy.sample_rate)
    return [
        ("noise and clipping", lambda: canaries(noise)),
        ("sampling", lambda: canaries(sampling)),
        ("one training", training),
        ("gradient inversion", inversion),
    ]


def _error_of(found: Found) -> AuditFailed | None:
    try:
        if isinstance(found, CanaryAudit):
            verify_claim(found)
        elif isinstance(found, OneRunAudit):
            verify_one_run(found)
        else:
            verify_inversion(found)
    except AuditFailed as error:
        return error
    return None


def as_json(audit: EmpiricalAudit) -> dict[str, Any]:
    """Put an audit into its JSON form."""
    privacy = audit.study.privacy
    return {
        "schema": SCHEMA,
        "code_version": version("hansa"),
        "study": audit.study.id,
        "study_name": audit.study.name,
        "unit": privacy.unit,
        "neighbouring": privacy.neighbouring,
        **audit.mechanism._asdict(),
        "clip_norm": privacy.clip_norm,
        "delta": privacy.delta,
        "claimed_epsilon": audit.claimed,
        "rows": ROWS,
        "charged": False,
        "quick": audit.quick,
        "passed": not audit.errors,
        "finished": audit.finished,
        "seconds": round(audit.seconds, 3),
        "checks": [
            {
                "name": check.name,
                "passed": check.error is None,
                "problem": None if check.error is None else check.error.message,
                "seconds": round(check.seconds, 3),
                **_found_json(check.found),
            }
            for check in audit.checks
        ],
    }


def _found_json(found: Found) -> dict[str, Any]:
    if isinstance(found, InversionCheck):
        return {
            "kind": "inversion",
            "tokens": found.tokens,
            "recovered_without_noise": found.recovered_without_noise,
            "recovered": found.recovered,
            "chance": found.chance,
            "p_value": found.p_value,
            "confidence": found.confidence,
        }
    common = {**found.mechanism._asdict(), "delta": found.delta, "claimed_epsilon": found.claimed}
    if isinstance(found, CanaryAudit):
        return common | {
            "kind": "canaries",
            "lower_bound": found.largest,
            "lower_bound_gaussian": found.shown.epsilon,
            "lower_bound_free": found.shown.epsilon_free,
            "confidence": found.confidence,
            "canaries": found.canaries,
        }
    shown = found.shown
    return common | {
        "kind": "one_run",
        "rounds": found.rounds,
        "lower_bound": shown.epsilon,
        "lower_bound_most": shown.epsilon_most,
        "confidence": shown.confidence,
        "canaries": shown.canaries,
        "guesses": shown.guesses,
        "correct": shown.correct,
        "true_positive_rate_at_1_percent": shown.true_positive_rate,
    }
