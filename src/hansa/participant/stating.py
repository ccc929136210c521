"""A participant's statement from its own files: identity, policy, studies, and the rosters beside the ledger."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hansa.errors import LedgerNotVerified
from hansa.participant.home import ParticipantHome
from hansa.participant.policy import Policy
from hansa.participant.round_rosters import RoundRosters
from hansa.participant.settings import FILE_NAME
from hansa.participant.study_desk import StudyDesk
from hansa.privacy.audit import read
from hansa.privacy.ledger import LedgerOwner
from hansa.privacy.statement import Approval, EmpiricalBound, Inversion, Limits, sign_statement
from hansa.privacy.stating import StudyFacts, make_statement
from hansa.secure_agg.certificates import utc_now
from hansa.secure_agg.identity import Identity
from hansa.study import Study


def signed_statement(
    ledger: Path,
    identity: Identity,
    *,
    policy: Policy,
    studies: Sequence[Study],
    base_models: Mapping[str, str] | None = None,
    approvals: Sequence[Approval] = (),
    empirical: Sequence[EmpiricalBound] = (),
    inversions: Sequence[Inversion] = (),
) -> bytes:
    """Make and sign the statement about one data set.

    Args:
        ledger: The data set's ledger; who was missing in a round is read from the files beside it.
        identity: The participant's.
        policy: The owner's rules for the data set.
        studies: Every study in the ledger.
        base_models: Hash of the public base model by id of the study, hexadecimal.
        approvals: Who agreed that a study may use the data set.
        empirical: What audits of the mechanism showed.
        inversions: What attacks on gradients recovered.

    Returns:
        The bytes of its file.

    Raises:
        LedgerFileMissing, LedgerNotVerified, StatementIncomplete: See `privacy.stating.make_statement`.
        LedgerMismatch: The ledger is signed by another identity.
        StoreDamaged: A record of rosters is not one.
    """
    opening = read(ledger, every_signature=False).history.opening
    if opening is None:  # `read` gives none without one
        raise LedgerNotVerified(f"{ledger.name} has no entry")
    owner = LedgerOwner(
        participant=opening.participant,
        public_key=identity.public,
        data=opening.data,
        sign=identity.sign,
        unit=opening.unit,
    )
    facts = []
    for study in studies:
        seen = RoundRosters(ledger.parent, study.id)
        facts.append(
            StudyFacts(
                study=study,
                missing=seen.missing,
                void_rounds=tuple(sorted(seen.void)),
                base_model=(base_models or {}).get(study.id),
            )
        )
    statement = make_statement(
        ledger,
        owner,
        data_set=policy.data_set,
        limits=limits_of(policy),
        studies=facts,
        approvals=approvals,
        empirical=empirical,
        inversions=inversions,
    )
    return sign_statement(statement, identity.sign)


def limits_of(policy: Policy) -> Limits:
    """Give the limits of a policy; what is infinite there is none here."""

    def finite(limit: float) -> float | None:
        return limit if math.isfinite(limit) else None

    return Limits(
        epsilon=finite(policy.epsilon_limit),
        epsilon_per_study=finite(policy.epsilon_per_study),
        epsilon_per_month=finite(policy.epsilon_per_month),
        delta=policy.delta_limit,
        smallest_cohort=policy.smallest_cohort,
        most_rounds=policy.most_rounds,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What a participant's home knows of the studies that it approved.

    Attributes:
        studies: The agreements.
        base_models: Hash of each one's public base model, by its id.
        approvals: Who approved it, and when.
    """

    studies: Sequence[Study] = ()
    base_models: Mapping[str, str] = field(default_factory=dict)
    approvals: Sequence[Approval] = ()


def known_in(home: Path, data_set: str) -> Known:
    """Read the studies that were approved for a data set; a folder that is no home of a consortium's participant knows none.

    Raises:
        Error: A document there was altered; see `ParticipantHome.open` and `StudyDesk`.
    """
    if not (home / FILE_NAME).exists():
        return Known()
    opened = ParticipantHome.open(home)
    desk = StudyDesk(home, participant=opened.name, now=utc_now)
    bodies = [
        (study.proposal.body, study.answer.body)
        for study in desk.all()
        if study.answer is not None and study.state != "denied" and study.data_set == data_set
    ]
    return Known(
        studies=[proposal.agreement() for proposal, _ in bodies],
        base_models={proposal.study_id.hex(): proposal.base_model.hex() for proposal, _ in bodies},
        approvals=[
            Approval(
                study=proposal.study_id.hex(),
                approved_by="the administrator, by hand" if answer.by == "hand" else "the policy",
                role=f"proposed by {proposal.author}",
                time=int(answer.at.timestamp()),
            )
            for proposal, answer in bodies
        ],
    )
