"""A participant's statement from its own files: identity, policy, studies, and the rosters beside the ledger."""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from hansa.errors import LedgerNotVerified, StoreDamaged
from hansa.participant.policy import Policy
from hansa.participant.round_rosters import RoundRosters
from hansa.participant.store import SealedStore, open_or_make_key
from hansa.privacy.audit import read
from hansa.privacy.ledger import LedgerOwner
from hansa.privacy.statement import Approval, EmpiricalBound, Inversion, Limits, sign_statement
from hansa.privacy.stating import StudyFacts, make_statement
from hansa.secure_agg.identity import Identity
from hansa.study import Study

_IDENTITY = "identity"


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


def identity_in(home: Path) -> Identity:
    """Read the identity in a participant's home folder: identity.store, sealed under identity.key.

    Raises:
        StoreDamaged: There is none.
        KeyFileUnsafe, StoreInUse: Others can read the key, or another process has the store open.
    """
    store_file = home / "identity.store"
    if not store_file.exists():
        raise StoreDamaged(
            f"there is no identity in {str(home)!r}", hint="give the participant's home folder"
        )
    with closing(SealedStore(store_file, open_or_make_key(home / "identity.key"))) as store:
        secret = store.get(_IDENTITY)
    if secret is None:
        raise StoreDamaged("identity.store holds no identity")
    return Identity.load(secret)
