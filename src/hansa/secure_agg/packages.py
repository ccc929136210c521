"""Round-key packages: one-time keys, made before they are needed, whose secrets the others can recover.

A package serves one cohort (I1). It holds a fresh X25519 key for the pairwise masks and the seed of a
self-mask; in quorum mode both secrets are shared among all members of the epoch, and each member's two shares
are sealed to it alone. Either secret can be recovered by T members; both together would open the update, so
nobody ever releases more than one kind of share.
"""

import hmac
from dataclasses import dataclass
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa import labels
from hansa.errors import MalformedMessage, PackageHashMismatch, ShareHashMismatch, ShareOpenFailed
from hansa.secure_agg.derivation import labelled_hash
from hansa.secure_agg.epoch import Epoch
from hansa.secure_agg.identity import Identity, RandomBytes
from hansa.secure_agg.messages import SHORT_HASH_BYTES, Package, sign_message
from hansa.secure_agg.sealing import SEAL_TAG_BYTES, seal, share_key, unseal
from hansa.secure_agg.shamir import FIELD_PRIME, SHARE_BYTES, random_element, split

BLOB_BYTES = 2 * SHARE_BYTES + SEAL_TAG_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPackage:
    """A package together with its secrets.

    Attributes:
        number: Counts the packages of one member in one epoch, from 1.
        mask_private: X25519 private key, 32 bytes.
        seed: Seed of the self-mask, 32 bytes; empty in strict mode.
        signed: The signed Package.
        blobs: Sealed shares in roster order; empty at the own place, and everywhere in strict mode.
        own_shares: Own seed share and mask share, 64 bytes; empty in strict mode.
    """

    number: int
    mask_private: bytes
    seed: bytes
    signed: bytes
    blobs: tuple[bytes, ...]
    own_shares: bytes

    def encode(self) -> bytes:
        """Return the bytes for the owner's store."""
        return cbor2.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def decode(cls, data: bytes) -> "OwnPackage":
        """Read what `encode` wrote."""
        values: dict[str, Any] = cbor2.loads(data)
        return cls(**values | {"blobs": tuple(values["blobs"])})

    def __repr__(self) -> str:
        return f"OwnPackage(number {self.number})"


def mask_public(mask_private: bytes) -> bytes:
    """Return the public half of a mask key."""
    return X25519PrivateKey.from_private_bytes(mask_private).public_key().public_bytes_raw()


def seed_commitment(package_id: bytes, seed: bytes) -> bytes:
    """Return the commitment to a self-mask seed."""
    return labelled_hash(labels.SEED_COMMITMENT, package_id, seed)


def _short_hash(label: bytes, package_id: bytes, index: int, data: bytes) -> bytes:
    return labelled_hash(label, package_id, index.to_bytes(8, "big"), data)[:SHORT_HASH_BYTES]


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
    seed_shares: list[bytes] = []
    mask_shares: list[bytes] = []
    blobs = [b""] * len(names)
    if not epoch.terms.strict:
        seed = random_element(random_bytes)
        seed_shares, mask_shares = (
            split(secret, threshold=epoch.terms.threshold, shares=len(names), random_bytes=random_bytes)
            for secret in (seed, mask_private)
        )
        for index, name in enumerate(names):
            if name != own:
                key = share_key(epoch.pair_keys[name], package_id, own, name)
                blobs[index] = seal(key, seed_shares[index] + mask_shares[index], epoch.manifest_hash)

    def hashes(label: bytes, items: list[bytes]) -> bytes:
        return b"".join(_short_hash(label, package_id, index, item) for index, item in enumerate(items))

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
        blob_hashes=hashes(labels.SHARE_BLOB, blobs if seed else []),
        seed_share_hashes=hashes(labels.SEED_SHARE, seed_shares),
        mask_share_hashes=hashes(labels.MASK_SHARE, mask_shares),
    )
    place = epoch.index(own)
    return OwnPackage(
        number=number,
        mask_private=mask_private,
        seed=seed,
        signed=sign_message(identity, body),
        blobs=tuple(blobs),
        own_shares=seed_shares[place] + mask_shares[place] if seed else b"",
    )


def verify_form(package: Package, members: int, *, strict: bool) -> None:
    """Raise MalformedMessage unless a package has as many hashes as the mode asks for."""
    expected = 0 if strict else SHORT_HASH_BYTES * members
    hashes = (package.blob_hashes, package.seed_share_hashes, package.mask_share_hashes)
    if any(len(field) != expected for field in hashes) or bool(package.seed_commitment) == strict:
        raise MalformedMessage(f"the package of {package.sender!r} has not the hashes of {members} members")


def _item(hashes: bytes, index: int) -> bytes:
    return hashes[SHORT_HASH_BYTES * index : SHORT_HASH_BYTES * (index + 1)]


def verify_blob(package: Package, index: int, blob: bytes) -> None:
    """Raise PackageHashMismatch unless a sealed share is the one that the package names for a member."""
    expected = _item(package.blob_hashes, index)
    if not hmac.compare_digest(_short_hash(labels.SHARE_BLOB, package.package_id, index, blob), expected):
        raise PackageHashMismatch(f"a sealed share of {package.sender!r} is not the one in its package")


def is_seed_share(package: Package, index: int, share: bytes) -> bool:
    """Say whether bytes are the share of the self-mask seed that a package names for a member."""
    found = _short_hash(labels.SEED_SHARE, package.package_id, index, share)
    return hmac.compare_digest(found, _item(package.seed_share_hashes, index))


def is_mask_share(package: Package, index: int, share: bytes) -> bool:
    """Say whether bytes are the share of the mask key that a package names for a member."""
    found = _short_hash(labels.MASK_SHARE, package.package_id, index, share)
    return hmac.compare_digest(found, _item(package.mask_share_hashes, index))


def open_shares(epoch: Epoch, package: Package, blob: bytes) -> bytes:
    """Open and check the shares that another member dealt to this one.

    Returns:
        Seed share and mask share, 64 bytes.

    Raises:
        PackageHashMismatch: The blob is not the one in the package.
        ShareOpenFailed: It does not open.
        ShareHashMismatch: A share is not the one in the package.
    """
    index = epoch.index(epoch.participant)
    verify_blob(package, index, blob)
    key = share_key(epoch.pair_keys[package.sender], package.package_id, package.sender, epoch.participant)
    shares = unseal(key, blob, epoch.manifest_hash)
    if shares is None or len(shares) != 2 * SHARE_BYTES:
        raise ShareOpenFailed(f"the shares that {package.sender!r} dealt do not open")
    if not is_seed_share(package, index, shares[:SHARE_BYTES]) or not is_mask_share(
        package, index, shares[SHARE_BYTES:]
    ):
        raise ShareHashMismatch(f"the shares that {package.sender!r} dealt are not those in its package")
    return shares
