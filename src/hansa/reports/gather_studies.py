"""The studies of a report, put together from what ledgers name and statements describe."""

from collections.abc import Sequence

from hansa.privacy.audit import LedgerAudit
from hansa.privacy.contradictions import seen_rounds
from hansa.privacy.statement import Statement, StudyRecord
from hansa.reports.privacy_report import Layer, Missing, StudyReport


def studies_of(audits: Sequence[LedgerAudit], statements: Sequence[Statement]) -> tuple[StudyReport, ...]:
    """Describe every study that a ledger or a statement names, by its name.

    Args:
        audits: One ledger for each data set.
        statements: Statements that hold.
    """
    ledgers = {(audit.opening.public_key.hex(), audit.opening.data.hex()): audit for audit in audits}
    stated: dict[str, list[tuple[Statement, StudyRecord]]] = {}
    for statement in statements:
        for study in statement.studies:
            stated.setdefault(study.id, []).append((statement, study))
    seen: dict[str, set[str]] = {}
    for audit in audits:
        for study_id in audit.study_epsilon:
            seen.setdefault(study_id, set()).add(audit.opening.participant)
    found = []
    for study_id in seen.keys() | stated.keys():
        by = sorted(stated.get(study_id, ()), key=lambda pair: pair[0].participant)
        who = tuple(sorted(seen.get(study_id, ())))
        found.append(_described(study_id, by, who, ledgers) if by else _unknown(study_id, who))
    return tuple(sorted(found, key=lambda one: (one.name, one.study)))


def _described(
    study_id: str,
    stated: Sequence[tuple[Statement, StudyRecord]],
    seen_in: tuple[str, ...],
    ledgers: dict[tuple[str, str], LedgerAudit],
) -> StudyReport:
    first = stated[0][1]
    missing: dict[int, set[str]] = {}
    summed: set[int] = set()
    for statement, study in stated:
        for drop in study.dropouts:
            missing.setdefault(drop.round, set()).update(drop.missing)
        audit = ledgers.get((statement.public_key, statement.data))
        if audit is not None:
            summed.update(seen_rounds(statement, study, audit))
    dropped = max((len(missing.get(number, ())) for number in summed | missing.keys()), default=None)
    return StudyReport(
        study=study_id,
        name=first.name,
        mode=first.mode,
        noise_contributors=first.noise_contributors,
        colluders=first.colluders,
        clip_norm=float(first.clip_norm),
        sample_rate=float(first.sample_rate),
        steps_per_round=first.steps_per_round,
        rounds_planned=first.rounds_planned,
        cohort=first.cohort,
        smallest_sum=None if dropped is None else first.cohort - dropped,
        protections=dict(sorted(first.protections.items())),
        base_model=next((study.base_model for _, study in stated if study.base_model), ""),
        dropouts=tuple(
            Missing(round=number, missing=tuple(sorted(names))) for number, names in sorted(missing.items())
        ),
        void_rounds=tuple(sorted({number for _, study in stated for number in study.void_rounds})),
        stated_by=tuple(sorted({statement.participant for statement, _ in stated})),
        seen_in=seen_in,
    )


def _unknown(study_id: str, seen_in: tuple[str, ...]) -> StudyReport:
    return StudyReport(
        study=study_id,
        name="",
        mode="",
        noise_contributors=None,
        colluders=None,
        clip_norm=None,
        sample_rate=None,
        steps_per_round=None,
        rounds_planned=None,
        cohort=None,
        smallest_sum=None,
        protections={},
        base_model="",
        dropouts=(),
        void_rounds=(),
        stated_by=(),
        seen_in=seen_in,
    )


def layers_of(statements: Sequence[Statement]) -> tuple[Layer, ...]:
    """Tell of every layer of protection whether it is on in every study, as stated by every participant."""
    off: dict[str, set[str]] = {}
    for statement in statements:
        for study in statement.studies:
            for layer, on in study.protections.items():
                names = off.setdefault(layer, set())
                if not on:
                    names.add(study.name)
    return tuple(
        Layer(layer=layer, on=not names, off_in=tuple(sorted(names))) for layer, names in sorted(off.items())
    )
