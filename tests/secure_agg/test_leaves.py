"""The tree over the leaves of a package: its structure is that of RFC 6962, and nothing but the right leaf verifies."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.errors import PackageHashMismatch
from hansa.secure_agg.leaves import (
    BLOB_BYTES,
    LEAF_BYTES,
    delivered_shares,
    leaf_of,
    leaf_tree,
    leaves_of,
    released_as_dealt,
    verify_delivered,
    verify_posted,
)
from hansa.secure_agg.merkle import root_of, tree
from hansa.secure_agg.messages import Package

ID = b"i" * 16


def h(label, *parts):
    """The labelled hash, written out: SHA-256 over each part led by its length."""
    framed = b""
    for part in (b"hansa/v1/secure-agg/" + label, *parts):
        framed += len(part).to_bytes(8, "big") + part
    return hashlib.sha256(framed).digest()


def node(left, right):
    return h(b"share-node", left, right)


def leaf_hashes(count):
    return [bytes([index]) * 32 for index in range(1, count + 1)]


def known_roots(hashes):
    """The trees of 1 to 8 leaves as RFC 6962 section 2.1 draws them, without a rule."""
    a, b, c, d, e, f, g, i = hashes
    ab, cd, ef, gi = node(a, b), node(c, d), node(e, f), node(g, i)
    abcd = node(ab, cd)
    return [
        a,
        ab,
        node(ab, c),
        abcd,
        node(abcd, e),
        node(abcd, ef),
        node(abcd, node(ef, g)),
        node(abcd, node(ef, gi)),
    ]


def test_the_trees_of_one_to_eight_leaves_are_those_of_rfc_6962():
    hashes = leaf_hashes(8)
    assert [tree(hashes[:size])[0] for size in range(1, 9)] == known_roots(hashes)


def test_paths_are_the_siblings_from_the_leaf_upwards():
    a, b, c, d, e, f, g = hashes = leaf_hashes(7)
    ab, cd, ef = node(a, b), node(c, d), node(e, f)
    _, paths = tree(hashes)  # the example of RFC 6962 section 2.1.3
    assert paths[0] == b + cd + node(ef, g)
    assert paths[3] == c + ab + node(ef, g)
    assert paths[4] == f + g + node(ab, cd)
    assert paths[6] == ef + node(ab, cd)
    _, paths = tree(leaf_hashes(100))
    assert [len(path) // 32 for path in paths] == [7] * 96 + [4] * 4


@pytest.mark.parametrize("size", [*range(1, 34), 64, 65, 100, 258])
def test_every_leaf_verifies_at_its_place_and_nowhere_else(size):
    hashes = [index.to_bytes(32, "big") for index in range(size)]
    root, paths = tree(hashes)
    for index, (leaf, path) in enumerate(zip(hashes, paths, strict=True)):
        assert root_of(leaf, index, size, path) == root
        for other in {0, index ^ 1, index // 2, size - 1, size // 2} - {index}:
            if other < size:
                assert root_of(leaf, other, size, path) != root
                assert root_of(hashes[other], index, size, path) != root
        for wrong in (path[:-32], path[:-1], path + b"x", path + bytes(32), bytes(32) + path):
            if wrong != path:
                assert root_of(leaf, index, size, wrong) != root


@given(st.data())
def test_no_other_leaf_index_or_path_has_the_root(data):
    size = data.draw(st.integers(1, 258))
    hashes = [hashlib.sha256(index.to_bytes(2, "big")).digest() for index in range(size)]
    root, paths = tree(hashes)
    index, other = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    leaf, path = data.draw(st.sampled_from([hashes[other], root, *paths[index:]]))[:32], paths[index]
    if leaf != hashes[index]:
        assert root_of(leaf, index, size, path) != root
    if other != index:
        assert root_of(hashes[index], other, size, path) != root
    if path:
        place = data.draw(st.integers(0, len(path) - 1))
        flipped = path[:place] + bytes([path[place] ^ 1]) + path[place + 1 :]
        assert root_of(hashes[index], index, size, flipped) != root
    length = data.draw(st.integers(0, 40 * 32))
    if length != len(path):
        assert root_of(hashes[index], index, size, bytes(length)) != root


# -- leaves ------------------------------------------------------------------------------------------------------


def package(root, package_id=ID):
    empty = {"session": bytes(16), "study": bytes(32), "epoch": 0, "sender": "b", "round": 0, "number": 1}
    return Package(
        **empty, package_id=package_id, mask_key=bytes(32), seed_commitment=bytes(32), leaf_root=root
    )


def dealt(members=5, place=1, package_id=ID):
    """A package of the member at a place, and what is posted with it; share k of member j is easily known."""
    posted = []
    for index in range(members):
        blob = b"" if index == place else bytes([index]) * BLOB_BYTES
        leaf = leaf_of(package_id, index, blob, bytes([index]) * 32, bytes([index + 100]) * 32)
        posted.append(blob + leaf)
    return package(leaf_tree(package_id, [share[-48:] for share in posted])[0], package_id), posted


def test_a_leaf_is_three_short_hashes_and_enters_the_tree_with_package_and_place():
    (_, posted), place = dealt(2), (1).to_bytes(8, "big")
    blob, seed, mask = b"", b"\x01" * 32, b"\x65" * 32
    assert posted[1] == b"".join(
        h(label, ID, place, data)[:16]
        for label, data in ((b"share-blob", blob), (b"seed-share", seed), (b"mask-share", mask))
    )
    leaves = [posted[0][80:], posted[1]]
    root = node(*(h(b"share-leaf", ID, index.to_bytes(8, "big"), leaves[index]) for index in (0, 1)))
    assert leaf_tree(ID, leaves)[0] == root
    assert leaf_tree(b"j" * 16, leaves)[0] != root
    assert leaf_tree(ID, leaves[::-1])[0] != root


@pytest.mark.parametrize("members", [3, 4, 5, 8, 100])
def test_what_is_posted_verifies_and_what_is_delivered_of_it_does_too(members):
    body, posted = dealt(members)
    verify_posted(body, 1, posted)
    shares = delivered_shares(body, 1, posted)
    assert shares[1] == b""
    for index in {0, 2, members - 1}:
        assert verify_delivered(body, index, members, shares[index]) == (
            posted[index][:BLOB_BYTES],
            posted[index][BLOB_BYTES:],
        )


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_share_of_another_place_or_package_or_a_changed_one_is_not_taken():
    body, posted = dealt()
    right = delivered_shares(body, 1, posted)[3]
    other_body, other_posted = dealt(package_id=b"j" * 16)
    other = delivered_shares(other_body, 1, other_posted)
    cases = [delivered_shares(body, 1, posted)[place] for place in (0, 1, 2, 4)]
    cases += [other[3], right[:80] + other[3][80:], other[3][:80] + right[80:]]
    cases += [b"", right[:80], right[:128], right[:-32], right[:-1], right + b"x", right + bytes(32)]
    cases += [flipped(right, place) for place in range(0, len(right), 7)]
    for wrong in cases:
        if wrong != right:
            with pytest.raises(PackageHashMismatch, match="'b'"):
                verify_delivered(body, 3, 5, wrong)
    with pytest.raises(PackageHashMismatch):
        verify_delivered(body, 3, 4, right)


def test_released_shares_are_told_apart_by_the_leaves_and_other_leaves_are_refused():
    body, posted = dealt()
    leaves = leaves_of(posted)
    seeds = {index: bytes([index]) * 32 for index in (0, 2, 3)}
    masks = {index: bytes([index + 100]) * 32 for index in (0, 2, 3)}
    assert released_as_dealt(body, leaves, 5, seeds, uploaded=True) == seeds
    assert released_as_dealt(body, leaves, 5, masks, uploaded=False) == masks
    assert released_as_dealt(body, leaves, 5, masks, uploaded=True) == {}
    wrong = seeds | {2: seeds[3], 4: bytes(32)}
    assert released_as_dealt(body, leaves, 5, wrong, uploaded=True) == {0: seeds[0], 3: seeds[3]}
    swapped = leaves[LEAF_BYTES:] + leaves[:LEAF_BYTES]
    for shown in (b"", leaves[:-1], leaves + bytes(48), leaves[:-48], swapped, flipped(leaves, 100)):
        with pytest.raises(PackageHashMismatch, match="leaves shown for 'b'"):
            released_as_dealt(body, shown, 5, seeds, uploaded=True)
