"""What the protocol takes from a study, the same at both sides."""

from collections.abc import Sequence

from hansa.secure_agg.identity import Roster
from hansa.secure_agg.parameters import Terms
from hansa.study import Study


def terms_of(study: Study) -> Terms:
    """Take the terms of an epoch from the study."""
    aggregation = study.aggregation
    return Terms(
        participants=aggregation.participants,
        mode=aggregation.mode,
        bits=study.compression.bits,
        noise_contributors=study.privacy.noise_contributors or 0,
    )


def roster_of(
    study: Study, session_id: bytes, members: Sequence[tuple[str, bytes]], authority: bytes
) -> Roster:
    """Make the roster of a session of a study.

    Args:
        study: The agreement.
        session_id: 16 random bytes, one value per run.
        members: (participant id, Ed25519 public key), sorted by id.
        authority: Certificate (DER) of the consortium's authority; empty for one that pins raw keys only.

    Raises:
        See `secure_agg.identity.Roster`.
    """
    study_id = bytes.fromhex(study.id)
    return Roster(session_id=session_id, study_id=study_id, members=tuple(members), authority=authority)
