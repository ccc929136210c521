"""From released shares to the secrets of a cohort (steps 5.2 and 5.3 of unmasking).

5.2 any T shares of a secret, against the commitment in its dealer's package: in an honest round no share hash is needed
5.3 only where that fails: the dealer's leaves, fetched, tell which shares are those that it dealt
"""

import hmac
from collections.abc import Callable, Collection, Mapping

from hansa.errors import MalformedMessage, NotEnoughShares, PackageLeavesMissing, ShareCommitmentMismatch
from hansa.secure_agg.epoch import Epoch
from hansa.secure_agg.leaves import released_as_dealt
from hansa.secure_agg.messages import Package
from hansa.secure_agg.packages import mask_public, seed_commitment
from hansa.secure_agg.shamir import SHARE_BYTES, combine

Leaves = Callable[[str], bytes]


def recover_secrets(
    epoch: Epoch,
    packages: Mapping[str, Package],
    uploaded: Collection[str],
    released: Mapping[str, bytes],
    leaves: Leaves | None,
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Recover one secret of each member of a cohort.

    The T shares used of a secret are those of the first holders in roster order, with holders that released a wrong share of
    another secret last. Where those T give a secret the shares beyond them are not looked at: a wrong one among them is not
    noticed, and its holder not named.

    Args:
        epoch: The running epoch.
        packages: Package of each member of the cohort.
        uploaded: Who of them uploaded: of those the self-mask seed is recovered, of the others the mask key.
        released: Of each holder, a share for each member of the cohort by sorted id, joined; of T holders or more.
        leaves: Called with a dealer, gives the leaves of its package in roster order, joined. They are untrusted, and asked
            for only where shares do not give the dealer's secret. None if there is no way to them.

    Returns:
        The secret of each member, and the holders of whom a wrong share was noticed, sorted.

    Raises:
        PackageLeavesMissing: Leaves are needed and there are none.
        PackageHashMismatch: The leaves that were given are not those of the signed package.
        NotEnoughShares: Fewer than T shares of a secret are those that were dealt.
        ShareCommitmentMismatch: A member dealt shares that do not give the secret it committed to.

    Guarantees:
        - Every secret that is returned is the one that its dealer committed to.
        - While T shares of each secret are as dealt and the leaves can be had, wrong ones cost nothing but their holder's name.
        - A member is named only where its share differs from the one that the signed package stands for.
    """
    members, threshold = epoch.terms.participants, epoch.terms.threshold
    names = {epoch.index(holder): holder for holder in released}
    order, wrong = sorted(names), set[int]()
    secrets: dict[str, bytes] = {}
    for place, dealer in enumerate(sorted(packages)):
        package, sent = packages[dealer], dealer in uploaded
        part = slice(SHARE_BYTES * place, SHARE_BYTES * (place + 1))
        # 5.2
        secret = _combined(package, {i: released[names[i]][part] for i in order[:threshold]}, uploaded=sent)
        if secret is None:
            # 5.3
            if leaves is None:
                raise PackageLeavesMissing(
                    f"the leaves of the package of {dealer!r} are needed and not there"
                )
            shares = {index: released[names[index]][part] for index in order}
            good = released_as_dealt(package, leaves(dealer), members, shares, uploaded=sent)
            wrong |= set(shares) - set(good)
            order.sort(key=lambda index: (index in wrong, index))
            secret = _from_good(package, good, threshold, uploaded=sent)
        secrets[dealer] = secret
    return secrets, tuple(sorted(names[index] for index in wrong))


def _from_good(package: Package, good: Mapping[int, bytes], threshold: int, *, uploaded: bool) -> bytes:
    if len(good) < threshold:
        raise NotEnoughShares(
            f"{len(good)} good shares of {package.sender!r} are fewer than the threshold {threshold}"
        )
    secret = _combined(package, {index: good[index] for index in sorted(good)[:threshold]}, uploaded=uploaded)
    if secret is None:
        raise ShareCommitmentMismatch(
            f"the shares that {package.sender!r} dealt do not give the secret that it committed to"
        )
    return secret


def _combined(package: Package, shares: Mapping[int, bytes], *, uploaded: bool) -> bytes | None:
    """Return the secret that T shares give, or None unless it is the one that its dealer committed to."""
    try:
        secret = combine(shares, len(shares))
    except MalformedMessage:  # no field element: of whoever released it, or of a dealer that dealt it so
        return None
    found = seed_commitment(package.package_id, secret) if uploaded else mask_public(secret)
    expected = package.seed_commitment if uploaded else package.mask_key
    return secret if hmac.compare_digest(found, expected) else None
