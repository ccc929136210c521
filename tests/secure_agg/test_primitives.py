"""Shamir shares, sum tags and seals."""

import hashlib
import itertools
import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.errors import (
    AggregateTagMismatch,
    InvalidValue,
    MalformedMessage,
    NotEnoughShares,
    UpdateShapeMismatch,
)
from hansa.secure_agg.derivation import (
    derive_key,
    fill_with_keystream,
    framed,
    keystream,
    keystream_words,
    labelled_hash,
)
from hansa.secure_agg.masks import mask_stream
from hansa.secure_agg.parameters import PLAIN_MODULUS, TAG_SLOTS
from hansa.secure_agg.sealing import MemberKey, seal, seal_to_member, unseal
from hansa.secure_agg.shamir import FIELD_PRIME, combine, field_element, random_element, split
from hansa.secure_agg.tag import SumTag

SECRETS = st.integers(0, FIELD_PRIME - 1).map(lambda value: value.to_bytes(32, "little"))


# -- Shamir ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(secret=SECRETS, shares=st.integers(1, 9), data=st.data())
def test_any_t_shares_recover_and_t_minus_one_fit_every_secret(secret, shares, data):
    threshold = data.draw(st.integers(1, shares))
    dealt = split(secret, threshold=threshold, shares=shares, random_bytes=os.urandom)
    assert len(set(dealt)) == shares or threshold == 1
    chosen = data.draw(st.permutations(range(shares)))
    assert combine({index: dealt[index] for index in chosen[:threshold]}, threshold) == secret
    assert combine(dict(enumerate(dealt)), threshold) == secret
    if threshold > 1:
        few = {index: dealt[index] for index in chosen[: threshold - 1]}
        with pytest.raises(NotEnoughShares):
            combine(few, threshold)
        # As the value at 0 of lower degree they give a value of which the secret is no function.
        if threshold > 2:
            assert combine(few, threshold - 1) != secret


def test_bounds_of_shares():
    for threshold in (0, 4):
        with pytest.raises(InvalidValue):
            split(bytes(32), threshold=threshold, shares=3, random_bytes=bytes)
    for wrong in (b"", bytes(31), FIELD_PRIME.to_bytes(32, "little"), b"\xff" * 32):
        with pytest.raises(MalformedMessage):
            field_element(wrong)
        with pytest.raises(MalformedMessage):
            combine({0: wrong}, 1)
    draws = iter([b"\xff" * 32, (FIELD_PRIME - 1).to_bytes(32, "little")])
    assert field_element(random_element(lambda _: next(draws))) == FIELD_PRIME - 1


# -- tags ----------------------------------------------------------------------------------------------------


def _reference_tags(group_key, cohort, slots, terms=1):
    """The definition, in Python integers, written down a second time."""
    key = derive_key(group_key, salt=cohort, info=b"hansa/v1/secure-agg/tag-coefficients")
    offsets = mask_stream(derive_key(group_key, salt=cohort, info=b"hansa/v1/secure-agg/tag-offsets"), 8)
    tags = []
    for row in range(TAG_SLOTS):
        total = terms * int(offsets[row])
        for place, value in enumerate(slots.tolist()):
            block, at = divmod(place, 1 << 15)
            word = int(keystream_words(key, 2 * at + 2, nonce=block)[2 * at + row // 4])
            total += (word >> (16 * (row % 4)) & 0xFFFF) * value
        tags.append(total % PLAIN_MODULUS)
    return tags


def test_tags_are_their_definition_also_at_the_largest_values():
    tag = SumTag(b"g" * 32, b"c" * 32)
    for slots in (np.full(300, PLAIN_MODULUS - 1, dtype=np.uint64), mask_stream(b"s" * 32, 37)):
        assert tag.append(slots)[-TAG_SLOTS:].tolist() == _reference_tags(b"g" * 32, b"c" * 32, slots)


def test_a_long_vector_of_largest_values_is_exact():
    slots = np.full(3 * (1 << 15) + 5, PLAIN_MODULUS - 1, dtype=np.uint64)
    tag = SumTag(b"g" * 32, b"c" * 32)
    total = (-np.array(tag._linear(np.ones_like(slots)), dtype=object)) % PLAIN_MODULUS
    assert tag._linear(slots) == total.tolist()  # (t - 1) h = -h


def _tags_by_block(group_key, cohort, slots):
    """The definition once more, fast enough for several blocks: Python integers without rounding."""
    key = derive_key(group_key, salt=cohort, info=b"hansa/v1/secure-agg/tag-coefficients")
    totals = np.zeros(TAG_SLOTS, dtype=object)
    for block, start in enumerate(range(0, slots.size, 1 << 15)):
        part = slots[start : start + (1 << 15)].astype(object)
        words = keystream_words(key, 2 * part.size, nonce=block).reshape(-1, 2)
        for row in range(TAG_SLOTS):
            coefficients = words[:, row // 4] >> np.uint64(16 * (row % 4)) & np.uint64(0xFFFF)
            totals[row] += int((coefficients.astype(object) * part).sum())
    return (totals % PLAIN_MODULUS).tolist()


@pytest.mark.parametrize(
    "slots", [1, (1 << 13) - 1, 1 << 13, (1 << 13) + 1, (1 << 15) + 1, 2 * (1 << 15) + 77]
)
def test_tags_over_pieces_and_blocks_are_their_definition(slots):
    tag = SumTag(b"g" * 32, b"c" * 32)
    for vector in (mask_stream(b"v" * 32, slots), np.full(slots, PLAIN_MODULUS - 1, dtype=np.uint64)):
        assert tag._linear(vector) == _tags_by_block(b"g" * 32, b"c" * 32, vector)


@pytest.mark.parametrize("count", [0, 1, 2, 1000, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 100_000])
def test_a_key_stream_is_aes_in_counter_mode_whatever_its_length(count):
    cipher = Cipher(algorithms.AES(b"k" * 32), modes.CTR((7).to_bytes(8, "big") + bytes(8))).encryptor()
    expected = np.frombuffer(cipher.update(bytes(8 * count)), dtype="<u8")
    words = keystream_words(b"k" * 32, count, nonce=7)
    assert (words.dtype, words.flags.writeable) == (np.uint64, True)
    np.testing.assert_array_equal(words, expected)
    pieces = np.empty(count, dtype="<u8")
    stream = keystream(b"k" * 32, 7)
    for part in np.array_split(pieces, 3):
        fill_with_keystream(stream, part)
    np.testing.assert_array_equal(pieces, expected)


@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.binary(max_size=300), min_size=1, max_size=6))
def test_a_labelled_hash_is_that_of_the_framed_parts(parts):
    assert labelled_hash(*parts) == hashlib.sha256(framed(*parts)).digest()


@settings(max_examples=25, deadline=None)
@given(terms=st.integers(1, 9), slots=st.integers(1, 50), seed=st.integers(0, 2**32), data=st.data())
def test_sums_pass_and_every_change_is_found(terms, slots, seed, data):
    generator = np.random.default_rng(seed)
    tag = SumTag(b"g" * 32, b"c" * 32)
    vectors = generator.integers(0, PLAIN_MODULUS, (terms, slots)).astype(np.uint64)
    tagged = [tag.append(vector).astype(object) for vector in vectors]
    total = (sum(tagged) % PLAIN_MODULUS).astype(np.uint64)
    expected = (sum(vector.astype(object) for vector in vectors) % PLAIN_MODULUS).astype(np.uint64)
    np.testing.assert_array_equal(tag.verify(total, terms), expected)
    modulus = np.uint64(PLAIN_MODULUS)
    place = data.draw(st.integers(0, total.size - 1))
    added = total.copy()
    added[place] = (added[place] + np.uint64(data.draw(st.integers(1, PLAIN_MODULUS - 1)))) % modulus
    chosen = np.concatenate([np.full(slots, 7), np.zeros(8)]).astype(np.uint64)
    for wrong, count in (
        (added, terms),  # a known delta
        (total, terms + 1),  # another roster
        ((total.astype(object) * 2 % PLAIN_MODULUS).astype(np.uint64), terms),  # scaling
        (np.zeros_like(total), terms),
        (chosen, terms),  # a sum of one's own without the key
    ):
        with pytest.raises(AggregateTagMismatch):
            tag.verify(wrong, count)
    for other in (
        SumTag(b"g" * 32, b"d" * 32),
        SumTag(b"h" * 32, b"c" * 32),
    ):  # an earlier round; another key
        with pytest.raises(AggregateTagMismatch):
            other.verify(total, terms)


def test_slots_without_a_tag_are_refused():
    tag = SumTag(b"g" * 32, b"c" * 32)
    for wrong in (np.zeros(8, np.uint64), np.zeros((2, 20), np.uint64), np.zeros(20)):
        with pytest.raises(UpdateShapeMismatch):
            tag.verify(wrong, 1)
    assert repr(tag) == "SumTag(...)"


# -- seals -----------------------------------------------------------------------------------------------------


def test_a_member_seal_opens_for_its_member_and_context_only(seeded_bytes):
    one, two = (MemberKey.generate(seeded_bytes(name)) for name in ("one", "two"))
    sealed = seal_to_member(one.public, b"key" * 10, b"context")
    assert one.open(sealed, b"context") == b"key" * 10
    assert MemberKey(one.secret).open(sealed, b"context") == b"key" * 10
    assert two.open(sealed, b"context") is None
    assert one.open(sealed, b"other") is None
    for wrong in (b"", sealed[:-1], bytes(len(sealed))):
        assert one.open(wrong, b"context") is None
    assert seal_to_member(one.public, b"key" * 10, b"context") != sealed
    with pytest.raises(MalformedMessage):
        MemberKey(bytes(95))
    for wrong in (b"", one.public[:-1], b"\xff" * 1216):
        with pytest.raises(MalformedMessage):
            seal_to_member(wrong, b"", b"")
    assert one.secret.hex()[:8] not in repr(one)


def test_a_seal_opens_under_its_key_and_context_only():
    sealed = seal(b"k" * 32, b"plain", b"context")
    assert unseal(b"k" * 32, sealed, b"context") == b"plain"
    for key, data, context in itertools.product(
        (b"k" * 32, b"j" * 32), (sealed, sealed[:-1]), (b"context", b"")
    ):
        if (key, data, context) != (b"k" * 32, sealed, b"context"):
            assert unseal(key, data, context) is None
