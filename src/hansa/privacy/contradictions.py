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
        - Distributed noise of more members than another's statement says were in the sum is found.
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
                found += _overstated(witness.statement, witness.audit, study, audits)
    return found


def seen_rounds(statement: Statement, study: StudyRecord, audit: LedgerAudit) -> list[int]:
    """Give the rounds of a study that had left when the statement was signed and that ended in a sum."""
    size, void = statement.ledger.size, set(study.void_rounds)
    rounds = {
        one.spending.round
        for one in audit.reservations
        if one.spending.study == study.id and not one.purpose and 0 < one.committed_line <= size
    }
    return sorted(rounds - void)


_AGREED = (
    "name",
    "mode",
    "sample_rate",
    "clip_norm",
    "steps_per_round",
    "rounds_planned",
    "cohort",
    "protections",
    "noise_contributors",
    "colluders",
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
        shared = set(seen_rounds(one.statement, study, one.audit)) & set(
            seen_rounds(other.statement, same, other.audit)
        )
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
        for number in seen_rounds(witness, study, own):
            if member not in missing.get(number, set()) and number not in rounds:
                found.append(
                    RecordsContradict(
                        f"{witness.participant!r} states that {member!r} was in round {number} of study {study.name!r},"
                        f" and no ledger of {member!r} here has paid for it"
                    )
                )
                break
    return found


def _overstated(
    witness: Statement, own: LedgerAudit, study: StudyRecord, audits: Sequence[LedgerAudit]
) -> list[RecordsContradict]:
    """Noise of members that were not there would make ε too small."""
    members = {drop.round: study.cohort - len(drop.missing) for drop in study.dropouts}
    seen = set(seen_rounds(witness, study, own))
    found = []
    for audit in audits:
        for one in audit.reservations:
            most = members.get(one.spending.round, study.cohort)
            counts = one.spending.study == study.id and one.arrived is not None
            if counts and one.spending.round in seen and one.counted.contributors > most:
                found.append(
                    RecordsContradict(
                        f"{audit.opening.participant!r} counts the noise of {one.counted.contributors} members in round"
                        f" {one.spending.round} of study {study.name!r}, {witness.participant!r} states that {most} were there"
                    )
                )
                break
    return found
