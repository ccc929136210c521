"""What participants state about each other, held together.

It finds what no ledger alone can show: an end that was cut off, where others saw the rounds that are missing. A statement is
its signer's word, so a contradiction says that one of two is wrong, not which.
"""

from collections.abc import Sequence
from itertools import combinations

from hansa.errors import RecordsContradict
from hansa.privacy.audit import Finding, LedgerAudit
from hansa.privacy.statement import Statement, StudyRecord
from hansa.privacy.statement_audit import StatementFinding


def contradictions(
    ledgers: Sequence[Finding], statements: Sequence[StatementFinding]
) -> list[RecordsContradict]:
    """Find what two participants' records say differently; only of records that hold by themselves.

    Guarantees:
        - A round that a participant took part in, by another's statement, and has not paid for, by its own ledger, is found; also
          one behind the end of that ledger.
        - One finding for each pair of participants and study, with the first round in question.
    """
    sound = [one for one in statements if one.error is None]
    audits = [finding.audit for finding in ledgers if finding.audit is not None]
    found = []
    for one, other in combinations(sound, 2):
        found += _differences(one, other)
    for witness in sound:
        if witness.statement is not None and witness.audit is not None:
            for study in witness.statement.studies:
                found += _unpaid(witness.statement, witness.audit, study, audits)
    return found


def seen_rounds(study: StudyRecord, audit: LedgerAudit) -> list[int]:
    """Give the rounds of a study that had left when the statement was signed and that ended in a sum.

    Rounds are committed in their order, so these are the first ones.
    """
    committed = sorted(
        {
            one.spending.round
            for one in audit.reservations
            if one.spending.study == study.id and one.committed and not one.purpose
        }
    )
    void = set(study.void_rounds)
    return [number for number in committed[: study.rounds_committed] if number not in void]


_AGREED = (
    "name",
    "mode",
    "sample_rate",
    "clip_norm",
    "steps_per_round",
    "rounds_planned",
    "cohort",
    "protections",
)


def _differences(one: StatementFinding, other: StatementFinding) -> list[RecordsContradict]:
    if one.statement is None or other.statement is None or one.audit is None or other.audit is None:
        return []
    both = f"{one.path.name} and {other.path.name}"
    words = []
    theirs = {study.id: study for study in other.statement.studies}
    for study in one.statement.studies:
        same = theirs.get(study.id)
        if same is None:
            continue
        words += [
            f"{name} of study {study.name!r}"
            for name in _AGREED
            if getattr(study, name) != getattr(same, name)
        ]
        shared = set(seen_rounds(study, one.audit)) & set(seen_rounds(same, other.audit))
        mine, others = ({drop.round: drop.missing for drop in of.dropouts} for of in (study, same))
        unlike = [number for number in sorted(shared) if mine.get(number) != others.get(number)]
        if unlike:
            words.append(f"who was missing in round {unlike[0]} of study {study.name!r}")
    return [RecordsContradict(f"{both} differ in {what}") for what in words]


def _unpaid(
    witness: Statement, own: LedgerAudit, study: StudyRecord, audits: Sequence[LedgerAudit]
) -> list[RecordsContradict]:
    paid: dict[str, set[int]] = {}
    for audit in audits:
        rounds = {
            one.spending.round
            for one in audit.reservations
            if one.spending.study == study.id and not one.purpose
        }
        if rounds:
            paid.setdefault(audit.opening.participant, set()).update(rounds)
    missing = {drop.round: set(drop.missing) for drop in study.dropouts}
    found = []
    for member, rounds in sorted(paid.items()):
        for number in seen_rounds(study, own):
            if member not in missing.get(number, set()) and number not in rounds:
                found.append(
                    RecordsContradict(
                        f"{witness.participant!r} states that {member!r} was in round {number} of study {study.name!r},"
                        f" and no ledger of {member!r} here has paid for it"
                    )
                )
                break
    return found
