"""Statements against the ledgers beside them. Needs the files only, as `audit` does.

1 form         canonical, nothing unknown in it, signed by the key that it names (`statement`)
2 ledger       the ledger of that key and data set is there, holds, and begins with the tree head that the statement names
3 agreement    participant, unit, δ; of every study the rounds, steps, rate and noise multipliers are those of the ledger
4 limits       ε for ever, of each study and of each month is within the limits that the statement names

What participants say of each other is held together in `contradictions`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hansa.errors import AuditError, HistoryForked, StatementMismatch
from hansa.privacy.audit import Finding, LedgerAudit, epsilon_of_reservations
from hansa.privacy.ledger_history import Reservation
from hansa.privacy.limit_check import is_above
from hansa.privacy.statement import STATEMENTS, Statement, StudyRecord, read_statement
from hansa.privacy.stating import noise_multipliers, rounds_of


@dataclass(frozen=True, kw_only=True, slots=True)
class StatementFinding:
    """One statement of an audit.

    Attributes:
        path: Its file.
        statement: What it says, where its form and signature hold; whether it can be relied on is `error`.
        audit: The ledger that it goes with; None where there is none that holds.
        error: What does not hold; None if all does.
    """

    path: Path
    statement: Statement | None
    audit: LedgerAudit | None
    error: AuditError | None


def audit_statements(
    place: Path, ledgers: Sequence[Finding], *, keys: Mapping[str, bytes] | None = None
) -> list[StatementFinding]:
    """Steps 1 to 4 for every statement in a folder and the folders below it.

    Args:
        place: The folder; a file has no statements beside it.
        ledgers: What `audit.audit_folder` found there.
        keys: Keys that the auditor knows, by participant.

    Guarantees:
        - There is a finding for every statement, in the order of their paths.
    """
    longest: dict[tuple[str, str], LedgerAudit] = {}
    for finding in ledgers:
        if finding.audit is not None:
            data = (finding.audit.opening.public_key.hex(), finding.audit.opening.data.hex())
            other = longest.setdefault(data, finding.audit)
            longest[data] = max(finding.audit, other, key=lambda one: len(one.leaves))
    paths = sorted(path for path in place.rglob(STATEMENTS) if path.is_file()) if place.is_dir() else []
    return [_finding(path, longest, keys or {}) for path in paths]


def _finding(
    path: Path, ledgers: Mapping[tuple[str, str], LedgerAudit], keys: Mapping[str, bytes]
) -> StatementFinding:
    statement, audit, problem = None, None, None
    try:
        statement = read_statement(path)
        known = keys.get(statement.participant)
        if known is not None and known.hex() != statement.public_key:
            raise StatementMismatch(
                f"{path.name} names another key for {statement.participant!r} than the one that was given"
            )
        audit = ledgers.get((statement.public_key, statement.data))
        if audit is None:
            raise StatementMismatch(
                f"no ledger that holds is beside {path.name}, the statement of {statement.participant!r}"
                f" about data set {statement.data_set!r}"
            )
        verify_statement(statement, audit, name=path.name)
    except AuditError as error:
        problem = error
    return StatementFinding(path=path, statement=statement, audit=audit, error=problem)


def verify_statement(statement: Statement, audit: LedgerAudit, *, name: str) -> None:
    """Steps 2 to 4: check a statement against the ledger of the same key and data set.

    Args:
        statement: Its form and signature checked.
        audit: The ledger.
        name: Name of the statement's file, for messages.

    Raises:
        HistoryForked: The ledger does not begin with the tree head that the statement names, or is shorter.
        StatementMismatch: The two say different things, or ε is above a limit that the statement names.
    """
    # 2
    size, ledger = statement.ledger.size, audit.path.name
    if size > len(audit.roots):
        raise HistoryForked(
            f"{ledger} ends after line {len(audit.roots)}, and had {size} when {name} was signed"
        )
    if audit.roots[size - 1].hex() != statement.ledger.root:
        raise HistoryForked(
            f"the first {size} lines of {ledger} are not those that it had when {name} was signed"
        )
    # 3
    opening = audit.opening
    for what, stated, found in (
        ("participant", statement.participant, opening.participant),
        ("unit", statement.unit, opening.unit),
        ("delta", statement.delta, opening.delta),
    ):
        if stated != found:
            raise StatementMismatch(f"{name} says {what} {stated!r}, {ledger} says {found!r}")
    before = [one for one in audit.reservations if one.line <= size]
    by_study = {study.id: study for study in statement.studies}
    for unnamed in sorted({one.spending.study for one in before} - by_study.keys()):
        raise StatementMismatch(f"{name} does not name study {unnamed[:16]}, which {ledger} does")
    for study in statement.studies:
        own = [one for one in before if one.spending.study == study.id]
        _verify_study(study, own, size=size, name=name, ledger=ledger)
    # 4
    _verify_limits(statement, audit, name)


def _verify_study(
    study: StudyRecord, own: Sequence[Reservation], *, size: int, name: str, ledger: str
) -> None:
    reserved, committed = rounds_of(own, size=size)
    used = noise_multipliers(own, size=size)
    for what, stated, found in (
        ("were paid for", study.rounds_reserved, reserved),
        ("have left", study.rounds_committed, committed),
    ):
        if stated != found:
            raise StatementMismatch(
                f"{name} says that {stated} rounds of study {study.name!r} {what}, {ledger} says {found}"
            )
    if study.noise_multipliers != used:
        raise StatementMismatch(
            f"{name} says noise multipliers {_listed(study.noise_multipliers)} of study {study.name!r},"
            f" {ledger} says {_listed(used)}"
        )
    # What else looks at the data for a study, such as an audit by canaries, has a rate and steps of its own.
    agreed = (study.sample_rate, study.steps_per_round)
    if reserved and agreed not in {(one.spending.sample_rate, one.spending.steps) for one in own}:
        raise StatementMismatch(
            f"no round of study {study.name!r} in {ledger} has the sample rate {agreed[0]:g} and {agreed[1]} steps of {name}"
        )


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values)) or "none"


def _verify_limits(statement: Statement, audit: LedgerAudit, name: str) -> None:
    limits = statement.limits
    if statement.delta > limits.delta:
        raise StatementMismatch(
            f"{audit.path.name} has delta {statement.delta:g}, above the limit {limits.delta:g} of {name}"
        )
    checks = [("for ever", audit.epsilon, limits.epsilon)]
    checks += [
        (f"of study {study[:16]}", spent, limits.epsilon_per_study)
        for study, spent in audit.study_epsilon.items()
    ]
    checks += [
        (f"of the month {month}", spent, limits.epsilon_per_month)
        for month, spent in epsilon_by_month(audit).items()
    ]
    for what, spent, limit in checks:
        if is_above(spent, limit):
            raise StatementMismatch(
                f"{audit.path.name} spends epsilon {spent:.6g}, above the limit {what}, {limit:g}, of {name}"
            )


def epsilon_by_month(audit: LedgerAudit) -> dict[str, float]:
    """Compute ε of each calendar month by itself."""
    by_month: dict[str, list[Reservation]] = {}
    for reservation in audit.reservations:
        by_month.setdefault(reservation.month, []).append(reservation)
    return {
        month: epsilon_of_reservations(own, audit.opening.delta) for month, own in sorted(by_month.items())
    }
