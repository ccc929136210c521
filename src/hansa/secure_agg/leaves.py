"""The leaves under a package's root: what a dealer commits to for each member that it deals shares to.

A leaf is three hashes of 16 bytes: of the sealed shares, of the seed share, of the mask share. It is hashed with the package
and its place, and the signed package holds the root of the tree over all of them. In quorum mode a share travels as

    posted      to the coordinator   sealed shares 80 (none at the dealer's own place), leaf 48
    delivered   to its holder        sealed shares 80, leaf 48, path of 32 a level; nothing at the dealer's own place

and the list of all leaves, 48 bytes each, stays at the coordinator until somebody has to know whose share is wrong.
"""

import hmac
from collections.abc import Mapping, Sequence

from hansa import labels
from hansa.errors import PackageHashMismatch
from hansa.secure_agg.derivation import labelled_hash
from hansa.secure_agg.merkle import root_of, tree
from hansa.secure_agg.messages import Package
from hansa.secure_agg.sealing import SEAL_TAG_BYTES
from hansa.secure_agg.shamir import SHARE_BYTES

BLOB_BYTES = 2 * SHARE_BYTES + SEAL_TAG_BYTES
# A holder or the coordinator would need a second preimage. A dealer that finds a collision has two values for one share, which
# name nobody else: the leaves that tell one member from another are bound by the tree's hashes of 32 bytes.
SHORT_HASH_BYTES = 16
LEAF_BYTES = 3 * SHORT_HASH_BYTES


def _share_hash(label: bytes, package_id: bytes, index: int, data: bytes) -> bytes:
    return labelled_hash(label, package_id, index.to_bytes(8, "big"), data)[:SHORT_HASH_BYTES]


def leaf_of(package_id: bytes, index: int, blob: bytes, seed_share: bytes, mask_share: bytes) -> bytes:
    """Return the leaf of the member at an index, 48 bytes; `blob` is its sealed shares, empty for the dealer's own."""
    return (
        _share_hash(labels.SHARE_BLOB, package_id, index, blob)
        + _share_hash(labels.SEED_SHARE, package_id, index, seed_share)
        + _share_hash(labels.MASK_SHARE, package_id, index, mask_share)
    )


def _leaf_hash(package_id: bytes, index: int, leaf: bytes) -> bytes:
    return labelled_hash(labels.SHARE_LEAF, package_id, index.to_bytes(8, "big"), leaf)


def leaf_tree(package_id: bytes, leaves: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
    """Return the root over a package's leaves in roster order, and the path of each."""
    return tree([_leaf_hash(package_id, index, leaf) for index, leaf in enumerate(leaves)])


def leaves_of(posted: Sequence[bytes]) -> bytes:
    """Return the joined leaves of posted shares that were verified; empty in strict mode."""
    return b"".join(share[-LEAF_BYTES:] for share in posted)


def verify_posted(package: Package, place: int, posted: Sequence[bytes]) -> None:
    """Check the posted shares of a package, as the coordinator does.

    Args:
        package: The package, in quorum mode.
        place: Place of its sender in the roster.
        posted: Posted shares in roster order, one for each member; untrusted.

    Raises:
        PackageHashMismatch: A sealed share or a leaf is not the one that the package names.
    """
    for index, share in enumerate(posted):
        blob_bytes = 0 if index == place else BLOB_BYTES
        if len(share) != blob_bytes + LEAF_BYTES:
            raise PackageHashMismatch(f"a posted share of {package.sender!r} has {len(share)} bytes")
        named = _share_hash(labels.SHARE_BLOB, package.package_id, index, share[:blob_bytes])
        if share[blob_bytes:][:SHORT_HASH_BYTES] != named:
            raise PackageHashMismatch(f"a posted share of {package.sender!r} is not the one of its leaf")
    root, _ = leaf_tree(package.package_id, [share[-LEAF_BYTES:] for share in posted])
    if root != package.leaf_root:
        raise PackageHashMismatch(f"the leaves posted by {package.sender!r} are not those of its package")


def delivered_shares(package: Package, place: int, posted: Sequence[bytes]) -> list[bytes]:
    """Return what each member is delivered of posted shares that were verified, in roster order."""
    _, paths = leaf_tree(package.package_id, [share[-LEAF_BYTES:] for share in posted])
    delivered = [share + path for share, path in zip(posted, paths, strict=True)]
    delivered[place] = b""  # its sender has its own
    return delivered


def verify_delivered(package: Package, index: int, members: int, delivered: bytes) -> tuple[bytes, bytes]:
    """Check what came beside a package for the member at an index.

    Args:
        package: The package, its signature checked.
        index: Own place in the roster.
        members: Members of the epoch.
        delivered: Delivered share; untrusted.

    Returns:
        Sealed shares, 80 bytes, and leaf, 48 bytes.

    Raises:
        PackageHashMismatch: The leaf is not the one at this place under the root, or the sealed shares are not those of
            the leaf.
    """
    blob, leaf = delivered[:BLOB_BYTES], delivered[BLOB_BYTES : BLOB_BYTES + LEAF_BYTES]
    path = delivered[BLOB_BYTES + LEAF_BYTES :]
    root = root_of(_leaf_hash(package.package_id, index, leaf), index, members, path)
    if not hmac.compare_digest(root, package.leaf_root):
        raise PackageHashMismatch(
            f"the leaf delivered with the package of {package.sender!r} is not under its root"
        )
    if leaf[:SHORT_HASH_BYTES] != _share_hash(labels.SHARE_BLOB, package.package_id, index, blob):
        raise PackageHashMismatch(f"a sealed share of {package.sender!r} is not the one in its package")
    return blob, leaf


def released_as_dealt(
    package: Package, leaves: bytes, members: int, released: Mapping[int, bytes], *, uploaded: bool
) -> dict[int, bytes]:
    """Tell from the leaves of a package which released shares are those that its dealer dealt.

    Args:
        package: The dealer's package.
        leaves: Its leaves in roster order, joined; untrusted.
        members: Members of the epoch.
        released: Released share of each holder, by its index.
        uploaded: Whether the dealer uploaded, so that these are shares of its seed and not of its mask key.

    Returns:
        Those that match, by index of their holder.

    Raises:
        PackageHashMismatch: The leaves are not those of the package.
    """
    items = [leaves[start : start + LEAF_BYTES] for start in range(0, len(leaves), LEAF_BYTES)]
    if len(leaves) != LEAF_BYTES * members or leaf_tree(package.package_id, items)[0] != package.leaf_root:
        raise PackageHashMismatch(f"the leaves shown for {package.sender!r} are not those of its package")
    place = 1 if uploaded else 2
    label = labels.SEED_SHARE if uploaded else labels.MASK_SHARE
    return {
        index: share
        for index, share in released.items()
        if _share_hash(label, package.package_id, index, share)
        == items[index][SHORT_HASH_BYTES * place : SHORT_HASH_BYTES * (place + 1)]
    }
