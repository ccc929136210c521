"""The tree of RFC 6962: roots worked out by hand, proofs of every leaf and size, and every wrong proof refused."""

import hashlib
from itertools import product

import pytest

from hansa.errors import ProofInvalid
from hansa.privacy.merkle import (
    EMPTY_ROOT,
    GrowingTree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_of_leaves,
    verify_consistency,
    verify_inclusion,
)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def node(left: bytes, right: bytes) -> bytes:
    return sha(b"\x01" + left + right)


LEAVES = [sha(b"\x00" + bytes([number])) for number in range(8)]
A, B, C, D, E, F, G, H = LEAVES
BY_HAND = [
    sha(b""),
    A,
    node(A, B),
    node(node(A, B), C),
    node(node(A, B), node(C, D)),
    node(node(node(A, B), node(C, D)), E),
    node(node(node(A, B), node(C, D)), node(E, F)),
    node(node(node(A, B), node(C, D)), node(node(E, F), G)),
    node(node(node(A, B), node(C, D)), node(node(E, F), node(G, H))),
]


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_worked_out_by_hand(size: int) -> None:
    assert root_of_leaves(LEAVES[:size]) == BY_HAND[size]
    tree = GrowingTree()
    for leaf in LEAVES[:size]:
        tree.append(leaf)
    assert (tree.root(), tree.size) == (BY_HAND[size], size)


def test_the_smallest_trees_in_digits() -> None:
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"


def test_a_leaf_is_hashed_under_another_first_byte_than_a_node() -> None:
    assert leaf_hash(A + B) != root_of_leaves([A, B])


def test_proofs_worked_out_by_hand() -> None:
    assert inclusion_proof(LEAVES[:7], 0) == [B, node(C, D), node(node(E, F), G)]
    assert inclusion_proof(LEAVES[:7], 6) == [node(E, F), BY_HAND[4]]
    assert consistency_proof(LEAVES[:7], 3) == [C, D, node(A, B), node(node(E, F), G)]
    assert consistency_proof(LEAVES[:7], 4) == [node(node(E, F), G)]
    assert consistency_proof(LEAVES[:7], 6) == [node(E, F), G, BY_HAND[4]]


def test_a_copy_grows_on_its_own() -> None:
    tree = GrowingTree()
    for leaf in LEAVES[:3]:
        tree.append(leaf)
    other = tree.copy()
    other.append(D)
    assert (tree.root(), other.root()) == (BY_HAND[3], BY_HAND[4])


MANY = [leaf_hash(number.to_bytes(2, "big")) for number in range(40)]


def test_every_leaf_of_every_tree_is_proven() -> None:
    for size in range(1, len(MANY) + 1):
        root = root_of_leaves(MANY[:size])
        for index in range(size):
            path = inclusion_proof(MANY[:size], index)
            assert len(path) <= (size - 1).bit_length()
            verify_inclusion(MANY[index], index, size, path, root)


def test_every_tree_continues_every_earlier_one() -> None:
    roots = [root_of_leaves(MANY[:size]) for size in range(len(MANY) + 1)]
    for size, earlier in product(range(len(MANY) + 1), repeat=2):
        if earlier <= size:
            verify_consistency(
                earlier, size, roots[earlier], roots[size], consistency_proof(MANY[:size], earlier)
            )


def refused_inclusion(*arguments: object) -> None:
    with pytest.raises(ProofInvalid):
        verify_inclusion(*arguments)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 21])
def test_another_leaf_place_size_path_or_root_is_refused(size: int) -> None:
    leaves = MANY[:size]
    root = root_of_leaves(leaves)
    for index in range(size):
        path = inclusion_proof(leaves, index)
        refused_inclusion(leaf_hash(b"another"), index, size, path, root)
        refused_inclusion(leaves[index], index, size, path, bytes(32))
        refused_inclusion(leaves[index], index, size, [*path, bytes(32)], root)
        refused_inclusion(leaves[index], -1, size, path, root)
        refused_inclusion(leaves[index], size, size, path, root)
        for place in range(len(path)):
            refused_inclusion(leaves[index], index, size, path[:place] + path[place + 1 :], root)
            changed = [*path[:place], bytes([path[place][0] ^ 1]) + path[place][1:], *path[place + 1 :]]
            refused_inclusion(leaves[index], index, size, changed, root)
            refused_inclusion(leaves[index], index, size, [*path[:place], b"short", *path[place + 1 :]], root)
        for other in range(size):
            if other != index:
                refused_inclusion(leaves[index], other, size, path, root)


@pytest.mark.parametrize("earlier", range(1, 13))
def test_a_history_that_was_forked_is_refused(earlier: int) -> None:
    size = 13
    true, forked = MANY[:size], [*MANY[: earlier - 1], leaf_hash(b"forked"), *MANY[earlier:size]]
    proof = consistency_proof(true, earlier)
    with pytest.raises(ProofInvalid, match="does not continue"):
        verify_consistency(earlier, size, root_of_leaves(forked[:earlier]), root_of_leaves(true), proof)
    own_proof = consistency_proof(forked, earlier)
    with pytest.raises(ProofInvalid, match="does not continue"):
        verify_consistency(earlier, size, root_of_leaves(true[:earlier]), root_of_leaves(forked), own_proof)


@pytest.mark.parametrize("earlier", range(14))
def test_a_proof_of_consistency_that_was_changed_is_refused(earlier: int) -> None:
    size = 13
    leaves = MANY[:size]
    roots = root_of_leaves(leaves[:earlier]), root_of_leaves(leaves)
    proof = consistency_proof(leaves, earlier)
    wrong = [[*proof, bytes(32)], [b"short", *proof]]
    wrong += [proof[:place] + proof[place + 1 :] for place in range(len(proof))]
    wrong += [[*proof[:place], bytes(32), *proof[place + 1 :]] for place in range(len(proof))]
    for changed in wrong:
        with pytest.raises(ProofInvalid):
            verify_consistency(earlier, size, *roots, changed)
    with pytest.raises(ProofInvalid):
        verify_consistency(earlier, size, bytes(32), roots[1], proof)
    with pytest.raises(ProofInvalid):
        verify_consistency(size + 1, size, *roots, proof)


def test_no_proof_is_made_of_what_is_not_there() -> None:
    for index in (-1, 8):
        with pytest.raises(ProofInvalid):
            inclusion_proof(LEAVES, index)
    for earlier in (-1, 9):
        with pytest.raises(ProofInvalid):
            consistency_proof(LEAVES, earlier)
