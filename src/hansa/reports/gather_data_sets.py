"""One data set of a report: what its ledger gives, recomputed, and what its owner's statement adds."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from hansa.errors import AccountantsDisagree, AuditFailed, Error
from hansa.privacy.accounting import epsilon_of
from hansa.privacy.audit import LedgerAudit
from hansa.privacy.cross_check import cross_check_all
from hansa.privacy.ledger_format import RELATION
from hansa.privacy.ledger_history import Reservation
from hansa.privacy.statement import EmpiricalBound, Inversion, Statement
from hansa.privacy.statement_audit import epsilon_by_month
from hansa.privacy.stating import rounds_of
from hansa.reports.curves import Curves
from hansa.reports.data_set_report import (
    Approved,
    DataSet,
    Empirical,
    Inverted,
    Mechanism,
    MonthSpent,
    Round,
    RoundRange,
    Spent,
    StudySpent,
)

LAST_SECOND = 253_402_300_799  # of the year 9999: a clock may say anything


class DataSets:
    """The data sets of a report.

    Args:
        curves: ε by round.
        name_of: Names a file.
        problem: Is told of what does not hold, and in which file.
    """

    def __init__(
        self, *, curves: Curves, name_of: Callable[[Path], str], problem: Callable[[Path, Error], None]
    ) -> None:
        self._curves, self._name_of, self._problem = curves, name_of, problem

    def of(self, audit: LedgerAudit, statement: Statement | None, path: Path | None) -> DataSet:
        """Describe one data set.

        Args:
            audit: Its ledger.
            statement: Its owner's statement, where one holds.
            path: File of the statement.
        """
        limits = statement.limits if statement else None
        last = audit.reservations[-1].epsilon_limit if audit.reservations else None
        for_ever, per_study, per_month = (
            (limits.epsilon, limits.epsilon_per_study, limits.epsilon_per_month)
            if limits
            else (last, None, None)
        )
        names = {study.id: study.name for study in statement.studies} if statement else {}
        opening, rounds = audit.opening, self._rounds(audit)
        return DataSet(
            participant=opening.participant,
            name=statement.data_set if statement else "",
            public_key=opening.public_key.hex(),
            data=opening.data.hex(),
            unit=opening.unit,
            relation=RELATION,
            delta=opening.delta,
            spent=self._spent(audit, audit.reservations, audit.epsilon, for_ever),
            studies=tuple(
                self._study_spent(audit, study, epsilon, names.get(study, ""), per_study)
                for study, epsilon in audit.study_epsilon.items()
            ),
            months=tuple(
                MonthSpent(month=month, spent=_limited(epsilon, per_month))
                for month, epsilon in epsilon_by_month(audit).items()
            ),
            rounds=rounds,
            ranges=_ranges(rounds, names),
            limits=_stated_limits(statement),
            code_version=statement.code.version if statement else "",
            code_sha256=statement.code.sha256 if statement else "",
            approvals=_approvals(statement, names),
            empirical=tuple(
                self._empirical(bound, opening.participant, path or audit.path)
                for bound in (statement.empirical if statement else ())
            ),
            inversions=tuple(
                self._inverted(found, opening.participant, path or audit.path)
                for found in (statement.inversions if statement else ())
            ),
            statement=self._name_of(path) if path else "",
            ledger=self._name_of(audit.path),
            entries=audit.head.size,
            root=audit.head.root.hex(),
            notes=tuple(audit.notes),
        )

    def _spent(
        self, audit: LedgerAudit, reservations: Sequence[Reservation], epsilon: float, limit: float | None
    ) -> Spent:
        """Step 4: ε with what other accountants say; a disagreement is a problem of the report."""
        mechanisms = [
            (*one.counted.mechanism, one.counted.steps) for one in reservations if one.counted.steps
        ]
        plain = _limited(epsilon, limit)
        if not mechanisms or math.isinf(epsilon):
            return plain
        try:
            check = cross_check_all(mechanisms, audit.opening.delta)
        except AccountantsDisagree as error:
            self._problem(audit.path, error)
            return plain
        return Spent(
            epsilon=epsilon,
            prv_low=check.prv_low,
            prv_high=check.prv_high,
            rdp=check.rdp,
            limit=plain.limit,
            left=plain.left,
        )

    def _study_spent(
        self, audit: LedgerAudit, study: str, epsilon: float, name: str, limit: float | None
    ) -> StudySpent:
        own = [one for one in audit.reservations if one.spending.study == study]
        steps: dict[tuple[float, float], int] = {}
        for one in own:
            steps[one.counted.mechanism] = steps.get(one.counted.mechanism, 0) + one.counted.steps
        paid, sent = rounds_of(own, size=len(audit.roots))
        return StudySpent(
            study=study,
            name=name,
            spent=self._spent(audit, own, epsilon, limit),
            rounds_paid=paid,
            rounds_sent=sent,
            mechanisms=tuple(
                Mechanism(noise_multiplier=sigma, sample_rate=rate, steps=count)
                for (sigma, rate), count in sorted(steps.items())
            ),
        )

    def _rounds(self, audit: LedgerAudit) -> tuple[Round, ...]:
        after = self._curves.after(audit)
        rows = zip(audit.reservations, audit.round_epsilon, after, strict=True)
        return tuple(
            Round(
                study=one.spending.study,
                round=one.spending.round,
                attempt=one.spending.attempt,
                epsilon=epsilon,
                epsilon_after=reached,
                noise_multiplier=one.counted.noise_multiplier,
                noise_contributors=one.counted.contributors,
                sample_rate=one.counted.sample_rate,
                steps=one.counted.steps,
                committed=one.committed,
                month=one.month,
                line=one.line,
                purpose=one.purpose,
            )
            for one, epsilon, reached in rows
        )

    def _empirical(self, bound: EmpiricalBound, participant: str, path: Path) -> Empirical:
        """Step 5: a lower bound above the ε of the same steps is a problem of the report."""
        mechanism = Mechanism(
            noise_multiplier=bound.noise_multiplier, sample_rate=bound.sample_rate, steps=bound.steps
        )
        claimed = epsilon_of(
            noise_multiplier=bound.noise_multiplier,
            sample_rate=bound.sample_rate,
            steps=bound.steps,
            delta=bound.delta,
        )
        holds = bound.epsilon_at_least <= claimed
        if not holds:
            error = AuditFailed(
                f"{participant!r} measured epsilon {bound.epsilon_at_least:.3f} or more ({bound.name}),"
                f" above the {claimed:.3f} that its steps cost by the accountant"
            )
            self._problem(path, error)
        return Empirical(
            name=bound.name,
            mechanism=mechanism,
            delta=bound.delta,
            epsilon_at_least=bound.epsilon_at_least,
            epsilon_claimed=claimed,
            confidence=bound.confidence,
            canaries=bound.canaries,
            holds=holds,
        )

    def _inverted(self, found: Inversion, participant: str, path: Path) -> Inverted:
        """Step 5: an attack that succeeds in spite of the noise is a problem of the report."""
        if not found.passed:
            error = AuditFailed(
                f"an attack on a gradient of {participant!r} ({found.name}) recovered {found.recovered:.1%} of the tokens"
                f" in spite of the noise, and guessing {found.chance:.1%}"
            )
            self._problem(path, error)
        return Inverted(
            name=found.name,
            tokens=found.tokens,
            recovered_without_noise=found.recovered_without_noise,
            recovered=found.recovered,
            chance=found.chance,
            holds=found.passed,
        )


def _stated_limits(statement: Statement | None) -> dict[str, float | int | None]:
    """Give the owner's limits that are no limits of ε."""
    if statement is None:
        return {}
    limits = statement.limits
    return {
        "delta": limits.delta,
        "smallest_cohort": limits.smallest_cohort,
        "most_rounds": limits.most_rounds,
    }


def _ranges(rounds: Sequence[Round], names: Mapping[str, str]) -> tuple[RoundRange, ...]:
    """Put rounds that follow each other and are alike into one row."""
    found: list[list[Round]] = []
    for one in rounds:
        if found and one.round - found[-1][-1].round in (0, 1) and _look(one) == _look(found[-1][-1]):
            found[-1].append(one)
        else:
            found.append([one])
    return tuple(
        RoundRange(
            study=own[0].study,
            study_name=names.get(own[0].study, ""),
            first=own[0].round,
            last=own[-1].round,
            entries=len(own),
            epsilon_each=own[0].epsilon,
            epsilon_after=own[-1].epsilon_after,
            noise_multiplier=own[0].noise_multiplier,
            noise_contributors=own[0].noise_contributors,
            sample_rate=own[0].sample_rate,
            steps=own[0].steps,
            committed=own[0].committed,
            month=own[0].month,
            purpose=own[0].purpose,
        )
        for own in found
    )


def _look(one: Round) -> tuple[object, ...]:
    return (
        one.study,
        one.noise_multiplier,
        one.noise_contributors,
        one.sample_rate,
        one.steps,
        one.committed,
        one.month,
        one.purpose,
    )


def _limited(epsilon: float, limit: float | None) -> Spent:
    return Spent(epsilon=epsilon, limit=limit, left=None if limit is None else max(0.0, limit - epsilon))


def _approvals(statement: Statement | None, names: Mapping[str, str]) -> tuple[Approved, ...]:
    if statement is None:
        return ()
    return tuple(
        Approved(
            study=one.study,
            study_name=names.get(one.study, ""),
            approved_by=one.approved_by,
            role=one.role or "",
            date=date_of(one.time),
        )
        for one in statement.approvals
    )


def date_of(time: int) -> str:
    """Name the day of a time, YYYY-MM-DD in UTC; times before 1970 and after 9999 are the first and the last day."""
    return datetime.fromtimestamp(min(max(time, 0), LAST_SECOND), UTC).strftime("%Y-%m-%d")
