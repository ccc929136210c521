"""Step E2: the two common keys of an epoch, sealed by its dealer so that the members open them and nobody else does."""

import hmac
from collections.abc import Mapping
from typing import TypedDict

from hansa import labels
from hansa.errors import HeKeyMismatch, HeParameterMismatch
from hansa.secure_agg.bfv import HeKey
from hansa.secure_agg.cohort import counter_bytes
from hansa.secure_agg.derivation import derive_key, framed, labelled_hash
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.messages import GROUP_KEY_BYTES, Deal, Join
from hansa.secure_agg.sealing import MEMBER_SEAL_BYTES, MemberKey, seal, seal_to_member, unseal


class SealedKeys(TypedDict):
    """The fields that a Deal has of its own."""

    he_key_id: bytes
    group_commitment: bytes
    envelopes: bytes
    sealed_he_key: bytes


def group_commitment(group_key: bytes) -> bytes:
    """Return the hash of a group key that may be public."""
    return labelled_hash(labels.GROUP_COMMITMENT, group_key)


def seal_keys(
    roster: Roster, epoch: int, joins: Mapping[str, Join], he_key: HeKey, group_key: bytes
) -> SealedKeys:
    """Seal the group key to every member in roster order, and the HE key under the group key.

    Raises:
        MalformedMessage: A member's KEM key is none.
    """
    commitment = group_commitment(group_key)
    envelopes = [
        seal_to_member(
            joins[name].kem_key, group_key, _deal_info(roster, epoch, he_key.key_id, commitment, name)
        )
        for name in roster.participants
    ]
    return SealedKeys(
        he_key_id=he_key.key_id,
        group_commitment=commitment,
        envelopes=b"".join(envelopes),
        sealed_he_key=seal(_he_seal_key(group_key, he_key.key_id), he_key.export(), commitment),
    )


def open_keys(deal: Deal, roster: Roster, participant: str, member: MemberKey) -> tuple[bytes, HeKey]:
    """Open a deal as one of its members.

    Args:
        deal: Signed by the dealer; what it holds is untrusted.
        roster: The pinned roster.
        participant: Own id.
        member: Own KEM key of this epoch.

    Returns:
        The group key and the HE key.

    Raises:
        HeKeyMismatch: The sealed keys do not open, are not those committed to, or are not keys for our parameters.
    """
    size = MEMBER_SEAL_BYTES + GROUP_KEY_BYTES
    if len(deal.envelopes) != size * len(roster.members):
        raise HeKeyMismatch("the deal has not one envelope for each member")
    place = roster.participants.index(participant)
    info = _deal_info(roster, deal.epoch, deal.he_key_id, deal.group_commitment, participant)
    group_key = member.open(deal.envelopes[size * place : size * (place + 1)], info)
    if group_key is None or not hmac.compare_digest(group_commitment(group_key), deal.group_commitment):
        raise HeKeyMismatch("the sealed group key does not open or is not the one committed to")
    serialised = unseal(_he_seal_key(group_key, deal.he_key_id), deal.sealed_he_key, deal.group_commitment)
    try:
        he_key = None if serialised is None else HeKey.load(serialised)
    except HeParameterMismatch as error:
        raise HeKeyMismatch("the sealed HE key is not a key for our parameters") from error
    if he_key is None or not hmac.compare_digest(he_key.key_id, deal.he_key_id):
        raise HeKeyMismatch("the sealed HE key does not open or is not the one committed to")
    return group_key, he_key


def _deal_info(roster: Roster, epoch: int, he_key_id: bytes, commitment: bytes, member: str) -> bytes:
    context = (roster.session_id, roster.study_id, counter_bytes(epoch), he_key_id, commitment)
    return framed(labels.DEAL, *context, member.encode())


def _he_seal_key(group_key: bytes, he_key_id: bytes) -> bytes:
    return derive_key(group_key, salt=he_key_id, info=labels.HE_KEY_SEAL)
