"""A hash tree over a list of leaf hashes, in the form of RFC 6962 section 2.1.

The left subtree of n leaves is the full one of the largest power of two below n. The root binds every leaf and its place;
ceil(log2 n) nodes or fewer show that one leaf is at its place. Nodes are labelled hashes of 32 bytes, so whoever makes the list
cannot find a second one with the same root, and a node is never taken for a leaf, whose hash is under another label.
"""

from collections.abc import Sequence

from hansa import labels
from hansa.secure_agg.derivation import labelled_hash

NODE_BYTES = 32


def _node(left: bytes, right: bytes) -> bytes:
    return labelled_hash(labels.SHARE_NODE, left, right)


def _left_size(size: int) -> int:
    """Return the largest power of two below the number of leaves, of which there are two or more."""
    return 1 << (size - 1).bit_length() - 1


def tree(leaves: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
    """Build the tree over one leaf or more.

    Args:
        leaves: Leaf hashes of 32 bytes, under a label of their own.

    Returns:
        The root, and the path of each leaf: the siblings on the way from it to the root, joined.

    Guarantees:
        - `root_of` gives the root for each leaf at its index with its path.
    """
    if len(leaves) == 1:
        return leaves[0], [b""]
    split = _left_size(len(leaves))
    left, left_paths = tree(leaves[:split])
    right, right_paths = tree(leaves[split:])
    paths = [path + right for path in left_paths] + [path + left for path in right_paths]
    return _node(left, right), paths


def root_of(leaf: bytes, index: int, size: int, path: bytes) -> bytes:
    """Return the root that a leaf hash has with a path; empty if no path at this index has that length.

    Args:
        leaf: Leaf hash, 32 bytes.
        index: Place of the leaf, 0 to `size` - 1.
        size: Number of leaves.
        path: Joined siblings from the leaf to the root; untrusted.

    Guarantees:
        - Another leaf, index or path than those of the tree has another root, up to a collision of SHA-256.
    """
    if size == 1:
        return b"" if path else leaf
    below, sibling = path[:-NODE_BYTES], path[-NODE_BYTES:]
    split = _left_size(size)
    on_left = index < split
    found = (
        root_of(leaf, index, split, below) if on_left else root_of(leaf, index - split, size - split, below)
    )
    if not found or len(sibling) != NODE_BYTES:
        return b""
    return _node(found, sibling) if on_left else _node(sibling, found)
