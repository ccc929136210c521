"""Making a statement: what the owner says, put beside what its ledger says. See `statement` for the form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hansa.errors import LedgerMismatch, StatementIncomplete
from hansa.privacy.audit import LedgerAudit, audit_ledger
from hansa.privacy.code_identity import code_identity
from hansa.privacy.ledger import LedgerOwner
from hansa.privacy.ledger_history import Reservation
from hansa.privacy.statement import (
    Approval,
    Code,
    Dropout,
    EmpiricalBound,
    Head,
    Inversion,
    Limits,
    Statement,
    StudyRecord,
)
from hansa.study import Study

_EVERYTHING = 2**53  # lines; no ledger is longer


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyFacts:
    """What a participant knows of a study beside the agreement.

    Attributes:
        study: The agreement.
        missing: Rounds whose sum lacks somebody, and who.
        void_rounds: Rounds that were left behind without a sum.
        base_model: Hash of the public base model, hexadecimal; None where the participant knows none.
    """

    study: Study
    missing: Mapping[int, Sequence[str]] = field(default_factory=dict)
    void_rounds: Sequence[int] = ()
    base_model: str | None = None


def make_statement(
    ledger: Path,
    owner: LedgerOwner,
    *,
    data_set: str,
    limits: Limits,
    studies: Sequence[StudyFacts],
    approvals: Sequence[Approval] = (),
    empirical: Sequence[EmpiricalBound] = (),
    inversions: Sequence[Inversion] = (),
) -> Statement:
    """Put a statement together; `statement.sign_statement` signs it.

    Args:
        ledger: The data set's ledger, which is audited first.
        owner: Whose ledger it is.
        data_set: What the owner calls the data set.
        limits: The owner's own limits.
        studies: Every study in the ledger; further ones may stand there.
        approvals: Who agreed that a study may use the data set.
        empirical: What audits of the mechanism showed.
        inversions: What attacks on gradients recovered.

    Raises:
        LedgerFileMissing, LedgerNotVerified: There is no ledger, or it does not hold: nothing can be stated about it.
        LedgerMismatch: It is of another participant, key, data set or unit.
        StatementIncomplete: The ledger names a study that is not among `studies`.

    Guarantees:
        - What can be read off the ledger is read off it: rounds, noise multipliers, tree head.
    """
    audit = audit_ledger(ledger)
    _verify_owner(audit, owner)
    known = {facts.study.id: facts for facts in studies}
    for study in audit.study_epsilon:
        if study not in known:
            raise StatementIncomplete(f"{ledger.name} names study {study[:16]}, which is not described")
    code = code_identity()
    return Statement(
        participant=owner.participant,
        public_key=owner.public_key.hex(),
        data=owner.data.hex(),
        data_set=data_set,
        unit="person" if owner.unit == "person" else "record",
        delta=audit.opening.delta,
        limits=limits,
        studies=tuple(_record(known[study], audit.reservations) for study in sorted(known)),
        code=Code(version=code.version, sha256=code.sha256.hex(), files=code.files),
        ledger=Head(size=audit.head.size, root=audit.head.root.hex()),
        approvals=tuple(approvals),
        empirical=tuple(empirical),
        inversions=tuple(inversions),
        time=int(owner.now()),
    )


def _verify_owner(audit: LedgerAudit, owner: LedgerOwner) -> None:
    opening = audit.opening
    mine = (owner.participant, owner.public_key, owner.data, owner.unit)
    if (opening.participant, opening.public_key, opening.data, opening.unit) != mine:
        raise LedgerMismatch(
            f"{audit.path.name} is not the ledger of {owner.participant!r}, its key, data and unit"
        )


def _record(facts: StudyFacts, reservations: Sequence[Reservation]) -> StudyRecord:
    study = facts.study
    own = [one for one in reservations if one.spending.study == study.id]
    reserved, committed = rounds_of(own, size=_EVERYTHING)
    return StudyRecord(
        id=study.id,
        name=study.name,
        mode=study.privacy.mode,
        noise_contributors=study.privacy.noise_contributors,
        colluders=study.privacy.colluders,
        noise_multipliers=noise_multipliers(own, size=_EVERYTHING),
        sample_rate=study.privacy.sample_rate,
        clip_norm=study.privacy.clip_norm,
        steps_per_round=study.training.local_steps,
        rounds_planned=study.training.rounds,
        rounds_reserved=reserved,
        rounds_committed=committed,
        cohort=study.aggregation.participants,
        protections=study.protections(),
        base_model=facts.base_model,
        dropouts=tuple(
            Dropout(round=number, missing=tuple(sorted(names)))
            for number, names in sorted(facts.missing.items())
        ),
        void_rounds=tuple(sorted(facts.void_rounds)),
    )


def rounds_of(reservations: Sequence[Reservation], *, size: int) -> tuple[int, int]:
    """Count rounds that were paid for and rounds known to have left; repeated attempts once, other charges not.

    Args:
        reservations: Reservations of one study.
        size: How many lines of the ledger to look at.
    """
    rounds = [one for one in reservations if not one.purpose and one.line <= size]
    left = {one.spending.round for one in rounds if 0 < one.committed_line <= size}
    return len({one.spending.round for one in rounds}), len(left)


def noise_multipliers(reservations: Sequence[Reservation], *, size: int) -> tuple[float, ...]:
    """Give every noise multiplier that counted after so many lines, in order of size; arguments as for `rounds_of`."""
    found = set()
    for one in reservations:
        spent = one.counted if 0 < one.committed_line <= size else one.spending
        if one.line <= size and spent.steps:
            found.add(spent.noise_multiplier)
    return tuple(sorted(found))
