"""Sealing for one member, for a pair of members, and for the group.

For one member: HPKE (RFC 9180) in base mode with the hybrid KEM ML-KEM-768 + X25519, HKDF-SHA256 and
ChaCha20-Poly1305; it stays closed while either ML-KEM (FIPS 203) or X25519 holds. For pairs and the group:
ChaCha20-Poly1305 (RFC 8439) under keys that seal one message each, so the nonce is zero.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from hansa import labels
from hansa.errors import MalformedMessage
from hansa.secure_agg.derivation import derive_key, framed
from hansa.secure_agg.identity import RandomBytes

SEAL_TAG_BYTES = 16
MEMBER_SEAL_BYTES = 1120 + SEAL_TAG_BYTES  # encapsulated key and tag
MEMBER_KEY_BYTES = 1184 + 32
MEMBER_SECRET_BYTES = 64 + 32
_NONCE = bytes(12)
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class MemberKey:
    """The key pair of one member for one epoch.

    Attributes:
        secret: 96 bytes, ML-KEM seed (64) then X25519 key (32); for the owner's encrypted store only.
        public: 1216 bytes, ML-KEM-768 encapsulation key (1184) then X25519 key (32).

    Guarantees:
        - repr() shows no secret.
    """

    __slots__ = ("_private", "public", "secret")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != MEMBER_SECRET_BYTES:
            raise MalformedMessage(f"a member key has {len(secret)} bytes, not {MEMBER_SECRET_BYTES}")
        lattice = MLKEM768PrivateKey.from_seed_bytes(secret[:64])
        curve = X25519PrivateKey.from_private_bytes(secret[64:])
        self.secret = secret
        self.public = lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        self._private = MLKEM768X25519PrivateKey(lattice, curve)

    @classmethod
    def generate(cls, random_bytes: RandomBytes) -> "MemberKey":
        """Make a new key pair."""
        return cls(random_bytes(MEMBER_SECRET_BYTES))

    def open(self, sealed: bytes, info: bytes) -> bytes | None:
        """Return what `seal_to_member` sealed, or None if it does not open."""
        try:
            return _SUITE.decrypt(sealed, self._private, info=info)
        except InvalidTag:
            return None

    def __repr__(self) -> str:
        return f"MemberKey(public={self.public.hex()[:16]}...)"


def seal_to_member(public: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Seal bytes to one member's epoch key; MalformedMessage if that is not a key. OpenSSL draws the randomness."""
    try:
        lattice = MLKEM768PublicKey.from_public_bytes(public[:1184])
        curve = X25519PublicKey.from_public_bytes(public[1184:])
        return _SUITE.encrypt(plaintext, MLKEM768X25519PublicKey(lattice, curve), info=info)
    except ValueError as error:
        raise MalformedMessage("a member's epoch key is not an ML-KEM-768 and X25519 key") from error


def exchange(private: X25519PrivateKey, public: bytes, whose: str) -> bytes:
    """Return the X25519 secret of two keys; MalformedMessage for a point of low order (RFC 7748 section 6.1)."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise MalformedMessage(f"the key of {whose!r} is not a usable X25519 point") from error


def pair_key(private: X25519PrivateKey, public: bytes, group_key: bytes, manifest: bytes, peer: str) -> bytes:
    """Derive the channel key of two members of an epoch, 32 bytes.

    The group key enters beside the X25519 secret: it came by the hybrid KEM, so whoever records traffic and
    later breaks X25519 still lacks it.
    """
    secret = framed(exchange(private, public, peer), group_key)
    return derive_key(secret, salt=manifest, info=labels.SHARE_CHANNEL)


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Seal one message under a key that seals no other."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, plaintext, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes | None:
    """Return what `seal` sealed, or None if it does not open."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, associated)
    except InvalidTag:
        return None


def share_key(channel: bytes, package_id: bytes, dealer: str, holder: str) -> bytes:
    """Derive the key that seals one package's shares from dealer to holder."""
    return derive_key(
        channel, salt=package_id, info=framed(labels.SHARE_SEAL, dealer.encode(), holder.encode())
    )


def release_key(group_key: bytes, roster_hash: bytes, sender: str) -> bytes:
    """Derive the key that seals one member's released shares to the group."""
    return derive_key(group_key, salt=roster_hash, info=framed(labels.RELEASE_SEAL, sender.encode()))
