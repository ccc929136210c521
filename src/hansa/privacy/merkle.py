"""The Merkle tree of a transparency log, RFC 6962 section 2.1: root, inclusion and consistency proofs, and their checks.

A root binds every entry and its place. An inclusion proof shows that an entry is at its place under a root; a consistency
proof shows that a later tree begins with all of an earlier one. Both are as long as the tree is high.
Leaves and nodes are hashed under different first bytes, so that neither is ever taken for the other.
The checks follow RFC 9162 sections 2.1.3.2 and 2.1.4.2, which gives the algorithm that RFC 6962 leaves to the reader.
"""

import hashlib
from collections.abc import Sequence

from hansa.errors import ProofInvalid

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of an entry: SHA-256 over 0x00 and the entry."""
    return hashlib.sha256(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """Return the largest power of two below a size of two or more."""
    return 1 << (size - 1).bit_length() - 1


class GrowingTree:
    """A tree that only grows; keeps one hash for each full subtree, so that an append costs O(1) and a root O(log n).

    Attributes:
        size: Number of leaves.

    Guarantees:
        - `root` is that of `root_of_leaves` over all leaves appended so far.
    """

    def __init__(self) -> None:
        self.size = 0
        self._full: list[bytes] = []  # roots of full subtrees, from the largest, one for each bit of the size

    def copy(self) -> "GrowingTree":
        """Return a tree of the same leaves that grows on its own."""
        other = GrowingTree()
        other.size, other._full = self.size, list(self._full)
        return other

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash at the end."""
        size, node = self.size, leaf
        while size & 1:
            node = _node(self._full.pop(), node)
            size >>= 1
        self._full.append(node)
        self.size += 1

    def root(self) -> bytes:
        """Return the root; the hash of nothing while there is no leaf."""
        if not self._full:
            return EMPTY_ROOT
        node = self._full[-1]
        for left in reversed(self._full[:-1]):
            node = _node(left, node)
        return node


def root_of_leaves(leaves: Sequence[bytes]) -> bytes:
    """Return the root over leaf hashes, MTH of RFC 6962 section 2.1."""
    tree = GrowingTree()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the path of a leaf, PATH of RFC 6962 section 2.1.1.

    Args:
        leaves: Leaf hashes.
        index: Place of the leaf, 0 to the number of leaves - 1.

    Guarantees:
        - `verify_inclusion` accepts it for this leaf, place and tree, and for no other.
    """
    if not 0 <= index < len(leaves):
        raise ProofInvalid(f"there is no entry {index} in a tree of {len(leaves)}")
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    left, right = leaves[:split], leaves[split:]
    if index < split:
        return [*inclusion_proof(left, index), root_of_leaves(right)]
    return [*inclusion_proof(right, index - split), root_of_leaves(left)]


def consistency_proof(leaves: Sequence[bytes], earlier: int) -> list[bytes]:
    """Return the proof that a tree begins with all of an earlier one, PROOF of RFC 6962 section 2.1.2.

    Args:
        leaves: Leaf hashes of the later tree.
        earlier: Size of the earlier one, from 0.

    Guarantees:
        - `verify_consistency` accepts it for these two roots, and for no root of another history.
    """
    if not 0 <= earlier <= len(leaves):
        raise ProofInvalid(f"a tree of {len(leaves)} cannot continue one of {earlier}")
    return _subproof(leaves, earlier, whole=True) if 0 < earlier < len(leaves) else []


def _subproof(leaves: Sequence[bytes], earlier: int, *, whole: bool) -> list[bytes]:
    if earlier == len(leaves):
        return [] if whole else [root_of_leaves(leaves)]
    split = _split(len(leaves))
    left, right = leaves[:split], leaves[split:]
    if earlier <= split:
        return [*_subproof(left, earlier, whole=whole), root_of_leaves(right)]
    return [*_subproof(right, earlier - split, whole=False), root_of_leaves(left)]


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf is at its place under a root.

    Args:
        leaf: Leaf hash.
        index: Claimed place, from 0.
        size: Claimed number of leaves.
        path: Siblings from the leaf to the root; untrusted.
        root: The root that is trusted.

    Raises:
        ProofInvalid: It is not, or the path has a length that no such path has.

    Guarantees:
        - Another leaf, place, size, path or root is refused, up to a collision of SHA-256.
    """
    if not 0 <= index < size or any(len(node) != HASH_BYTES for node in path):
        raise ProofInvalid(f"a proof for entry {index} of {size} is not one")
    place, last, node = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise ProofInvalid(f"the path of entry {index} in a tree of {size} is too long")
        if place & 1 or place == last:
            node = _node(sibling, node)
            while place and not place & 1:  # a node without a right sibling rises unchanged
                place, last = place >> 1, last >> 1
        else:
            node = _node(node, sibling)
        place, last = place >> 1, last >> 1
    if last or node != root:
        raise ProofInvalid(f"entry {index} is not the one under the signed root of {size} entries")


def verify_consistency(
    earlier: int, size: int, earlier_root: bytes, root: bytes, path: Sequence[bytes]
) -> None:
    """Check that the tree of one root begins with all of the tree of an earlier root.

    Args:
        earlier: Size of the earlier tree.
        size: Size of the later tree.
        earlier_root: Root of the earlier tree, trusted.
        root: Root of the later tree.
        path: The proof; untrusted.

    Raises:
        ProofInvalid: The later tree does not continue the earlier one, or the proof is not one.

    Guarantees:
        - Two trees that differ in any entry of the earlier one are never accepted, up to a collision of SHA-256.
    """
    if not 0 <= earlier <= size or any(len(node) != HASH_BYTES for node in path):
        raise ProofInvalid(f"a proof from {earlier} to {size} entries is not one")
    refused = ProofInvalid(
        f"the history of {size} entries does not continue the earlier one of {earlier} entries"
    )
    if earlier in (0, size):
        if path or earlier_root != (EMPTY_ROOT if earlier == 0 else root):
            raise refused
        return
    # A full earlier tree is itself the first node of the walk, and is then left out of the path.
    nodes = [earlier_root, *path] if earlier & (earlier - 1) == 0 else list(path)
    place, last = earlier - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    if not nodes:
        raise refused
    first = second = nodes[0]
    for sibling in nodes[1:]:
        if last == 0:
            raise refused
        if place & 1 or place == last:
            first, second = _node(sibling, first), _node(sibling, second)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            second = _node(second, sibling)
        place, last = place >> 1, last >> 1
    if last or first != earlier_root or second != root:
        raise refused
