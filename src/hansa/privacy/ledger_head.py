"""Signed tree heads of a ledger, and proofs that an entry is in it. Both are small files that need no ledger to be checked.

A tree head says: after so many entries, this participant's ledger of this data has this Merkle root. Whoever keeps one can
tell later whether the ledger still begins with the same entries. Form: canonical JSON (RFC 8785); signature: Ed25519
(RFC 8032) over the labelled type and the hash of the head, as for every message that a participant's identity signs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hansa import labels
from hansa.errors import LedgerDamaged, ProofInvalid
from hansa.privacy.ledger_format import HEAD_FORMAT, SIGNED_AS, decode_entry, leaf_of
from hansa.privacy.merkle import verify_inclusion

HEAD_FILE_SCHEMA = "hansa/audit-head/v1"
PROOF_SCHEMA = "hansa/audit-proof/v1"
_PATH_MOST = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeHead:
    """What is signed after every entry.

    Attributes:
        participant: Whose ledger.
        public_key: Its Ed25519 key, 32 bytes.
        data: Commitment to the data, 32 bytes.
        size: Number of entries.
        root: Merkle root over them.
    """

    participant: str
    public_key: bytes
    data: bytes
    size: int
    root: bytes

    def encode(self) -> bytes:
        """Spell the head canonically; this is the body that is signed as `ledger-head`."""
        before = _spelled_before_root(self.participant, self.public_key, self.data)
        return b'%s%s","size":%d}' % (before, self.root.hex().encode(), self.size)

    def verify_signature(self, signature: bytes) -> None:
        """Check a signature of this head under the key that it names.

        Raises:
            ProofInvalid: It is not one.
        """
        body = self.encode()
        signed = labels.SIGNATURE + SIGNED_AS.encode() + b"\x00" + hashlib.sha256(body).digest()
        try:
            _key(self.public_key).verify(signature, signed)
        except (InvalidSignature, ValueError) as error:
            raise ProofInvalid(f"it is not signed by the key of {self.participant!r}") from error

    def _fields(self) -> dict[str, Any]:
        return {
            "participant": self.participant,
            "public_key": self.public_key.hex(),
            "data": self.data.hex(),
            "size": self.size,
            "root": self.root.hex(),
        }

    def as_json(self, signature: bytes) -> dict[str, Any]:
        """Give the head with its signature for a file."""
        return {"schema": HEAD_FILE_SCHEMA, **self._fields(), "signature": signature.hex()}


@lru_cache(maxsize=64)
def _spelled_before_root(participant: str, public_key: bytes, data: bytes) -> bytes:
    """Spell what all heads of a ledger begin with: `root` and `size` come last in the canonical order of the keys."""
    empty = TreeHead(participant=participant, public_key=public_key, data=data, size=0, root=b"")
    return rfc8785.dumps({"format": HEAD_FORMAT, **empty._fields()}).removesuffix(b'","size":0}')


@lru_cache(maxsize=64)
def _key(public_key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public_key)


def head_of_json(found: Mapping[str, Any]) -> TreeHead:
    """Read a tree head that `TreeHead.as_json` or a proof gave, and check its signature.

    Raises:
        ProofInvalid: A field is missing or of the wrong type, or the signature is not one.
    """
    size = found.get("size")
    participant = found.get("participant")
    if type(size) is not int or not 0 < size < 2**53 or not isinstance(participant, str):
        raise ProofInvalid("a tree head has no participant, or no size of 1 or more")
    head = TreeHead(
        participant=participant,
        public_key=_bytes(found, "public_key", 32),
        data=_bytes(found, "data", 32),
        size=size,
        root=_bytes(found, "root", 32),
    )
    try:
        head.verify_signature(_bytes(found, "signature", 64))
    except UnicodeEncodeError as error:
        raise ProofInvalid("the participant of a tree head is not text") from error
    return head


def proof_as_json(
    head: TreeHead, signature: bytes, index: int, encoded: bytes, path: list[bytes]
) -> dict[str, Any]:
    """Give the proof that an entry is in a ledger: the entry, its place, its path, and the signed tree head."""
    return {
        **head.as_json(signature),
        "schema": PROOF_SCHEMA,
        "index": index,
        "entry": json.loads(encoded),
        "path": [node.hex() for node in path],
    }


def verify_proof(found: Mapping[str, Any]) -> TreeHead:
    """Check an inclusion proof by itself.

    Args:
        found: As `proof_as_json` gives it; untrusted.

    Returns:
        The signed tree head that the entry is under. Whose key it is signed with is for the caller to judge.

    Raises:
        ProofInvalid: Signature, path, place or entry do not hold.

    Guarantees:
        - What is accepted was signed as part of this ledger at this place, up to a collision of SHA-256.
    """
    head = head_of_json(found)
    path, index, entry = found.get("path"), found.get("index"), found.get("entry")
    if not isinstance(path, list) or len(path) > _PATH_MOST or type(index) is not int:
        raise ProofInvalid("a proof has no path or no index")
    nodes = [_bytes({"node of the path": node}, "node of the path", 32) for node in path]
    try:
        encoded = rfc8785.dumps(entry)
        sequence = decode_entry(encoded)["sequence"]
    except (ValueError, RecursionError, LedgerDamaged) as error:
        raise ProofInvalid("the entry of a proof is not one") from error
    if sequence != index:
        raise ProofInvalid(f"the entry of a proof is number {sequence}, not {index}")
    verify_inclusion(leaf_of(encoded), index, head.size, nodes, head.root)
    return head


def _bytes(found: Mapping[str, Any], name: str, size: int) -> bytes:
    value = found.get(name)
    if not isinstance(value, str) or len(value) != 2 * size or value != value.lower():
        raise ProofInvalid(f"{name} is not {2 * size} hexadecimal digits")
    try:
        return bytes.fromhex(value)
    except ValueError as error:
        raise ProofInvalid(f"{name} is not {2 * size} hexadecimal digits") from error
