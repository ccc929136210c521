"""Round-key packages: one-time keys, made before they are needed, whose secrets the others can recover.

A package serves one cohort (I1). It holds a fresh X25519 key for the pairwise masks and the seed of a
self-mask; in quorum mode both secrets are shared among all members of the epoch, and each member's two shares
are sealed to it alone. Either secret can be recovered by T members; both together would open the update, so
nobody ever releases more than one kind of share.

The dealer commits to what it deals: a member's leaf is the hashes of its sealed and of its opened shares, and the
signed package holds the root of the tree over all leaves. Members get their own leaf and its path; the list of all
leaves stays at the coordinator, until released shares do not give a secret and somebody has to be named for it. See
`leaves.py` for the forms in which shares are posted and delivered.
"""

from dataclasses import dataclass
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa import labels
from hansa.errors import MalformedMessage, ShareHashMismatch, ShareOpenFailed
from hansa.secure_agg.derivation import labelled_hash
from hansa.secure_agg.epoch import Epoch
from hansa.secure_agg.identity import Identity, RandomBytes
from hansa.secure_agg.leaves import leaf_of, leaf_tree, verify_delivered
from hansa.secure_agg.messages import Package, sign_message
from hansa.secure_agg.sealing import seal, share_key, unseal
from hansa.secure_agg.shamir import FIELD_PRIME, SHARE_BYTES, random_element, split


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPackage:
    """A package together with its secrets.

    Attributes:
        number: Counts the packages of one member in one epoch, from 1.
        mask_private: X25519 private key, 32 bytes.
        seed: Seed of the self-mask, 32 bytes; empty in strict mode.
        signed: The signed Package.
        posted: Posted shares in roster order; all empty in strict mode.
        own_shares: Own seed share and mask share, 64 bytes; empty in strict mode.
    """

    number: int
    mask_private: bytes
    seed: bytes
    signed: bytes
    posted: tuple[bytes, ...]
    own_shares: bytes

    def encode(self) -> bytes:
        """Return the bytes for the owner's store."""
        return cbor2.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def decode(cls, data: bytes) -> "OwnPackage":
        """Read what `encode` wrote."""
        values: dict[str, Any] = cbor2.loads(data)
        return cls(**values | {"posted": tuple(values["posted"])})

    def __repr__(self) -> str:
        return f"OwnPackage(number {self.number})"


def mask_public(mask_private: bytes) -> bytes:
    """Return the public half of a mask key."""
    return X25519PrivateKey.from_private_bytes(mask_private).public_key().public_bytes_raw()


def seed_commitment(package_id: bytes, seed: bytes) -> bytes:
    """Return the commitment to a self-mask seed."""
    return labelled_hash(labels.SEED_COMMITMENT, package_id, seed)


def _mask_private(random_bytes: RandomBytes) -> bytes:
    """Draw an X25519 scalar, clamped (RFC 7748 section 5) and below the prime of the shares."""
    while True:
        scalar = bytearray(random_bytes(32))
        scalar[0] &= 248
        scalar[31] = scalar[31] & 127 | 64
        if int.from_bytes(scalar, "little") < FIELD_PRIME:
            return bytes(scalar)


def make_package(
    epoch: Epoch, identity: Identity, *, number: int, round_index: int, random_bytes: RandomBytes
) -> OwnPackage:
    """Step E4: make a package.

    Args:
        epoch: The running epoch.
        identity: Own signing key.
        number: Number of the package in this epoch, above all before.
        round_index: The latest round entered.
        random_bytes: Source of the secrets.

    Guarantees:
        - Any T members recover either secret from their shares, T - 1 know nothing of either.
        - Only the member that a blob is for can open it.
    """
    names, own = epoch.roster.participants, epoch.participant
    package_id, mask_private, seed = random_bytes(16), _mask_private(random_bytes), b""
    own_shares = root = b""
    posted = [b""] * len(names)
    if not epoch.terms.strict:
        seed = random_element(random_bytes)
        seed_shares, mask_shares = (
            split(secret, threshold=epoch.terms.threshold, shares=len(names), random_bytes=random_bytes)
            for secret in (seed, mask_private)
        )
        leaves = []
        for index, (name, *shares) in enumerate(zip(names, seed_shares, mask_shares, strict=True)):
            blob = b""
            if name == own:
                own_shares = b"".join(shares)
            else:
                key = share_key(epoch.pair_keys[name], package_id, own, name)
                blob = seal(key, b"".join(shares), epoch.manifest_hash)
            leaves.append(leaf_of(package_id, index, blob, *shares))
            posted[index] = blob + leaves[index]
        root, _ = leaf_tree(package_id, leaves)
    body = Package(
        session=epoch.roster.session_id,
        study=epoch.roster.study_id,
        epoch=epoch.number,
        sender=own,
        round=round_index,
        number=number,
        package_id=package_id,
        mask_key=mask_public(mask_private),
        seed_commitment=seed_commitment(package_id, seed) if seed else b"",
        leaf_root=root,
    )
    return OwnPackage(
        number=number,
        mask_private=mask_private,
        seed=seed,
        signed=sign_message(identity, body),
        posted=tuple(posted),
        own_shares=own_shares,
    )


def verify_form(package: Package, *, strict: bool) -> None:
    """Raise MalformedMessage unless a package holds the commitments that the mode asks for."""
    if bool(package.seed_commitment) == strict or bool(package.leaf_root) == strict:
        raise MalformedMessage(f"the package of {package.sender!r} has not the commitments of its mode")


def open_shares(epoch: Epoch, package: Package, delivered: bytes) -> bytes:
    """Open and check the shares that another member dealt to this one.

    Args:
        epoch: The running epoch.
        package: The package, its signature checked.
        delivered: Delivered share; untrusted.

    Returns:
        Seed share and mask share, 64 bytes.

    Raises:
        PackageHashMismatch: See `leaves.verify_delivered`.
        ShareOpenFailed: They do not open.
        ShareHashMismatch: A share is not the one of the leaf.

    Guarantees:
        - Shares that are returned match the leaf that a full list of leaves with the package's root holds for this member.
    """
    index, package_id = epoch.index(epoch.participant), package.package_id
    blob, leaf = verify_delivered(package, index, epoch.terms.participants, delivered)
    key = share_key(epoch.pair_keys[package.sender], package_id, package.sender, epoch.participant)
    shares = unseal(key, blob, epoch.manifest_hash)
    if shares is None or len(shares) != 2 * SHARE_BYTES:
        raise ShareOpenFailed(f"the shares that {package.sender!r} dealt do not open")
    if leaf_of(package_id, index, blob, shares[:SHARE_BYTES], shares[SHARE_BYTES:]) != leaf:
        raise ShareHashMismatch(f"the shares that {package.sender!r} dealt are not those in its package")
    return shares
