"""From an aggregate and the released shares to the sum of the updates (step R5).

5.1 every release: signed, for this cohort and roster, one a member; one that does not open is left out
5.2 T shares for each member of the cohort; the secret they give against its dealer's commitment (`recovery.py`)
5.3 only where that fails: every share against its dealer's leaves; wrong ones are left out and their holders named
5.4 decrypt, take the masks off, check the tag, check ranges
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from hansa.errors import (
    CohortMismatch,
    DuplicateMessage,
    GroupSealInvalid,
    NotEnoughShares,
    RosterEquivocation,
    RosterNotSubset,
)
from hansa.secure_agg.attempt import Attempt, RosterView
from hansa.secure_agg.cohort import open_each, transcript_link, verify_round
from hansa.secure_agg.epoch import Epoch
from hansa.secure_agg.masks import net_mask, pair_seed, pair_sign, self_seed, take_mask
from hansa.secure_agg.messages import Package, Release
from hansa.secure_agg.parameters import SLOTS
from hansa.secure_agg.recovery import Leaves, recover_secrets
from hansa.secure_agg.sealing import release_key, unseal
from hansa.secure_agg.shamir import SHARE_BYTES
from hansa.secure_agg.tag import SumTag
from hansa.secure_agg.wrapping import unpack_update_sum


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """The result of a round.

    Attributes:
        total: (m,) int64, sum of the levels of the roster.
        contributors: Ids of the roster, sorted: whose updates are in the sum.
        transcript: Next link of the transcript, 32 bytes.
        roster_hash: 32 bytes.
        faulty_holders: Members that released a share other than the one dealt to them, or nothing that opens.
    """

    total: NDArray[np.int64] = field(repr=False)
    contributors: tuple[str, ...]
    transcript: bytes
    roster_hash: bytes
    faulty_holders: tuple[str, ...] = ()


def open_sum(
    epoch: Epoch,
    attempt: Attempt,
    view: RosterView,
    count: int,
    mask: NDArray[np.uint64] | None,
    faulty_holders: tuple[str, ...] = (),
) -> Opened:
    """Step 5.4: decrypt an aggregate, take a mask off, check tag and ranges.

    Raises:
        MalformedCiphertext: The aggregate cannot be decrypted.
        AggregateTagMismatch: It is not the sum of the roster's uploads.
        AggregateRangeViolation: A member uploaded levels out of bounds. Not where noise is distributed: there are none.

    Guarantees:
        - The total is the sum of the levels that the roster uploaded, integer for integer; where noise is distributed, modulo the
          range of a lane.
    """
    slots = np.concatenate([epoch.he_key.decrypt(ciphertext) for ciphertext in view.aggregate])
    if mask is not None:
        slots = take_mask(slots, mask)
    data = SumTag(epoch.group_key, attempt.cohort_hash).verify(slots, len(view.headers))
    total = unpack_update_sum(data, epoch.terms, count, len(view.headers))
    link = transcript_link(epoch.group_key, attempt.transcript, view.roster_hash, view.aggregate_hash, total)
    return Opened(
        total=total,
        contributors=tuple(view.headers),
        transcript=link,
        roster_hash=view.roster_hash,
        faulty_holders=faulty_holders,
    )


def unmask(
    epoch: Epoch,
    attempt: Attempt,
    view: RosterView,
    count: int,
    releases: Sequence[bytes],
    leaves: Leaves | None = None,
) -> Opened:
    """Step R5: recover the masks of a roster and open its sum.

    Args:
        epoch: The running epoch.
        attempt: The attempt.
        view: The roster, checked by `view_roster`.
        count: Entries of an update.
        releases: Signed Release of at least T members of the roster; untrusted.
        leaves: Fetches the leaves of a dealer's package; see `recovery.recover_secrets`.

    Raises:
        MalformedMessage, UnknownSender, BadSignature, WrongSession, WrongEpoch, StaleRound, StateRollback: See
            `messages.open_signed` and `cohort.verify_round`.
        DuplicateMessage: Two releases of one member.
        CohortMismatch, RosterEquivocation: A release for another cohort, or for another roster or aggregate.
        RosterNotSubset: A release of a member outside the roster.
        GroupSealInvalid: Releases do not open under the group key, and those that do are fewer than T.
        NotEnoughShares: Fewer than T releases.
        NotEnoughShares, ShareCommitmentMismatch, PackageLeavesMissing, PackageHashMismatch: See
            `recovery.recover_secrets`.
        MalformedCiphertext, AggregateTagMismatch, AggregateRangeViolation: See `open_sum`.
    """
    packages = attempt.opened_packages()
    # 5.1
    released, broken = _open_releases(epoch, attempt, view, releases)
    # 5.2, 5.3
    secrets, wrong = recover_secrets(epoch, packages, view.headers, released, leaves)
    faulty = tuple(sorted({*broken, *wrong}))
    mask = net_mask(
        _residual_seeds(attempt, packages, view, secrets),
        epoch.terms.layout.ciphertexts_for(count) * SLOTS,
    )
    # 5.4
    return open_sum(epoch, attempt, view, count, mask, faulty)


def verify_certificate(
    epoch: Epoch, round_index: int, attempt: int, roster_hash: bytes, releases: Sequence[bytes]
) -> None:
    """Check that T members released for the roster whose sum this member has applied.

    Raises:
        NotEnoughShares: Fewer than T releases.
        RosterEquivocation: A release for another roster or aggregate.
        DuplicateMessage, StaleRound, StateRollback, MalformedMessage, UnknownSender, BadSignature, WrongSession,
        WrongEpoch:
            See `unmask`.
    """
    found = open_each(releases, Release, epoch.roster, epoch.number, DuplicateMessage)
    for name, (body, _) in found.items():
        verify_round(body, round_index, attempt)
        if not hmac.compare_digest(body.roster_hash, roster_hash):
            raise RosterEquivocation(f"the release of {name!r} is for another roster or aggregate")
    if len(found) < epoch.terms.threshold:
        raise NotEnoughShares(f"{len(found)} releases are fewer than the threshold {epoch.terms.threshold}")


def _open_releases(
    epoch: Epoch, attempt: Attempt, view: RosterView, releases: Sequence[bytes]
) -> tuple[dict[str, bytes], list[str]]:
    """Give the shares that each holder released, and the holders whose release does not open: no fault of the others."""
    opened: dict[str, bytes] = {}
    broken: list[str] = []
    found = open_each(releases, Release, epoch.roster, epoch.number, DuplicateMessage)
    for name, (body, _) in found.items():
        verify_round(body, attempt.round, attempt.attempt)
        if not hmac.compare_digest(body.cohort_hash, attempt.cohort_hash):
            raise CohortMismatch(f"the release of {name!r} is for another cohort")
        if not hmac.compare_digest(body.roster_hash, view.roster_hash):
            raise RosterEquivocation(f"the release of {name!r} is for another roster or aggregate")
        if name not in view.headers:
            raise RosterNotSubset(f"a release of {name!r}, who is not in the roster")
        key = release_key(epoch.group_key, view.roster_hash, name)
        shares = unseal(key, body.sealed_shares, attempt.cohort_hash)
        if shares is None or len(shares) != SHARE_BYTES * len(attempt.cohort):
            broken.append(name)
        else:
            opened[name] = shares
    if len(opened) < epoch.terms.threshold:
        if broken:
            raise GroupSealInvalid(f"the shares released by {', '.join(broken)} do not open")
        raise NotEnoughShares(f"{len(opened)} releases are fewer than the threshold {epoch.terms.threshold}")
    return opened, broken


def _residual_seeds(
    attempt: Attempt, packages: Mapping[str, Package], view: RosterView, secrets: Mapping[str, bytes]
) -> list[tuple[int, bytes]]:
    """Return sign and seed of every mask that is left in the aggregate."""
    at = {"round_index": attempt.round, "attempt": attempt.attempt}
    seeds = [
        (1, self_seed(secrets[name], attempt.cohort_hash, participant=name, **at)) for name in view.headers
    ]
    for gone in sorted(set(packages) - set(view.headers)):
        private = X25519PrivateKey.from_private_bytes(secrets[gone])
        for name in view.headers:
            seed = pair_seed(
                private,
                packages[name].mask_key,
                attempt.cohort_hash,
                participant=gone,
                peer=name,
                **at,
            )
            seeds.append((pair_sign(name, gone), seed))
    return seeds
