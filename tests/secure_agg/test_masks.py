import hashlib
import hmac

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from hansa.errors import MalformedMessage
from hansa.secure_agg import masks
from hansa.secure_agg.cohort import cohort_hash
from hansa.secure_agg.masks import (
    add_mask,
    mask_stream,
    net_mask,
    pair_seed,
    pair_sign,
    self_seed,
    take_mask,
)
from hansa.secure_agg.parameters import PLAIN_MODULUS

# RFC 7748 section 6.1
ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645c6df4c1dc5d7b4b8b0a0a8a0e6b1c2d3")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
GOLDEN_SEED = "f48fbbf267065bfbfe75e71686c6f91ffbb2e32134cf15d9b2cec8980e7e6f77"
GOLDEN_WORDS = [161771687067360, 24560308785954, 270979380576596]
GOLDEN_MASK = "989d91c4b599edbcfb1ca7c15af98c34456b67267f4f3561bf3213721f166c49"
COHORT = bytes(range(32))


def _hkdf(secret, salt, info):
    """RFC 5869 with SHA-256 for one block, written down a second time."""
    extracted = hmac.digest(salt or bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def _stream(key, nonce, count):
    """AES-256-CTR out of single AES blocks, written down a second time."""
    blocks = -(-count // 2)
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    data = b"".join(
        cipher.update(nonce.to_bytes(8, "big") + block.to_bytes(8, "big")) for block in range(blocks)
    )
    return [int.from_bytes(data[8 * word : 8 * word + 8], "little") for word in range(count)]


def _reference(seed, slots, modulus):
    shift = 64 - (modulus - 1).bit_length()
    other = _hkdf(seed, b"", b"hansa/v1/secure-agg/mask-replacement")
    values = []
    for slot, word in enumerate(_stream(seed, 0, slots)):
        value = word >> shift
        if value >= modulus:
            value = next(w >> shift for w in _stream(other, slot, 256) if w >> shift < modulus)
        values.append(value)
    return values


def _pair(private, public, cohort=COHORT, *, participant="a", peer="b", round_index=1, attempt=2):
    return pair_seed(
        X25519PrivateKey.from_private_bytes(private),
        X25519PrivateKey.from_private_bytes(public).public_key().public_bytes_raw(),
        cohort,
        participant=participant,
        peer=peer,
        round_index=round_index,
        attempt=attempt,
    )


def test_both_ends_derive_the_same_seed():
    assert _pair(ALICE, BOB) == _pair(BOB, ALICE, participant="b", peer="a")


def test_another_cohort_pair_round_or_attempt_gives_another_seed():
    seeds = {
        _pair(ALICE, BOB),
        _pair(ALICE, BOB, cohort=bytes(32)),
        _pair(ALICE, BOB, peer="c"),
        _pair(ALICE, BOB, participant="ab", peer="b"),
        _pair(ALICE, BOB, round_index=2),
        _pair(ALICE, BOB, attempt=3),
        _pair(ALICE, BOB, round_index=2, attempt=1),
    }
    assert len(seeds) == 7


def test_the_seed_of_a_pair_is_frozen_and_equals_a_second_implementation():
    shared = X25519PrivateKey.from_private_bytes(ALICE).exchange(
        X25519PrivateKey.from_private_bytes(BOB).public_key()
    )
    parts = (b"hansa/v1/secure-agg/pair-mask", b"a", b"b", (1).to_bytes(8, "big"), (2).to_bytes(8, "big"))
    info = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert _pair(ALICE, BOB) == _hkdf(shared, COHORT, info)
    assert _pair(ALICE, BOB).hex() == GOLDEN_SEED


@pytest.mark.parametrize(
    "point",
    [
        bytes(32),
        b"\x01" + bytes(31),
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    ],
)
def test_a_point_of_low_order_is_refused(point):
    private = X25519PrivateKey.from_private_bytes(ALICE)
    with pytest.raises(MalformedMessage):
        pair_seed(private, point, COHORT, participant="a", peer="b", round_index=1, attempt=0)


def test_the_mask_stream_is_frozen_and_equals_a_second_implementation():
    seed = hashlib.sha256(b"seed").digest()
    mask = mask_stream(seed, 4096)
    assert mask.tolist() == _reference(seed, 4096, PLAIN_MODULUS)
    assert [int(value) for value in mask[:3]] == GOLDEN_WORDS
    assert hashlib.sha256(mask.astype("<u8").tobytes()).hexdigest() == GOLDEN_MASK


# Just above a power of two, about half of all words are rejected: the path that t takes once in 2^34 words.
@pytest.mark.parametrize("modulus", [2**47 + 5, 2**33 + 1, 5, 3 * 2**40])
def test_rejected_words_are_replaced_alike_and_uniformly(modulus):
    seed = hashlib.sha256(modulus.to_bytes(8, "big")).digest()
    mask = mask_stream(seed, 3000, modulus)
    assert mask.tolist() == _reference(seed, 3000, modulus)
    assert (
        mask_stream(seed, 1000, modulus).tolist() == mask[:1000].tolist()
    )  # addressed by slot, not by order
    assert int(mask.max()) < modulus
    counts = np.bincount((mask.astype(object) * 5 // modulus).astype(int), minlength=5)
    assert chisquare(counts).pvalue > 1e-4


def test_reduction_in_place_of_rejection_would_not_be_uniform():
    modulus = 3 * 2**46
    words = np.array(_stream(bytes(32), 0, 3000), dtype=np.uint64) >> np.uint64(16)
    thirds = (words % np.uint64(modulus)).astype(object) * 3 // modulus
    assert chisquare(np.bincount(thirds.astype(int), minlength=3)).pvalue < 1e-9


@settings(max_examples=30, deadline=None)
@given(participants=st.integers(2, 12), slots=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_net_masks_of_a_whole_cohort_add_up_to_zero(participants, slots, seed):
    ids = [f"p{index:02d}" for index in range(participants)]
    secrets = {name: hashlib.sha256(f"{seed}{name}".encode()).digest() for name in ids}

    def pairs(name):
        for peer in ids:
            if peer != name:
                yield pair_sign(name, peer), _pair(secrets[name], secrets[peer], participant=name, peer=peer)

    masks = [net_mask(pairs(name), slots) for name in ids]
    assert all(int(mask.max()) < PLAIN_MODULUS for mask in masks)
    total = sum(mask.astype(object) for mask in masks)
    assert not np.any(total % PLAIN_MODULUS)
    if participants > 2:
        assert np.any(sum(mask.astype(object) for mask in masks[:-1]) % PLAIN_MODULUS)


def test_the_self_mask_seed_is_frozen_and_binds_cohort_member_round_and_attempt():
    def seed(secret=ALICE, cohort=COHORT, participant="a", round_index=1, attempt=2):
        return self_seed(secret, cohort, participant=participant, round_index=round_index, attempt=attempt)

    parts = (b"hansa/v1/secure-agg/self-mask", b"a", (1).to_bytes(8, "big"), (2).to_bytes(8, "big"))
    info = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert seed() == _hkdf(ALICE, COHORT, info)
    others = {seed(BOB), seed(cohort=bytes(32)), seed(participant="b"), seed(round_index=2), seed(attempt=3)}
    assert len(others | {seed()}) == 6


def test_the_cohort_hash_binds_every_part():
    keys = {"bank-000": b"one", "bank-001": b"two", "bank-002": b"three"}
    golden = cohort_hash(b"m" * 32, 1, 0, keys, b"t" * 32)
    assert golden == cohort_hash(b"m" * 32, 1, 0, dict(reversed(keys.items())), b"t" * 32)

    def framed_hash(*parts):
        return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()

    members = [
        part for name, data in keys.items() for part in (name.encode(), _message_hash(framed_hash, data))
    ]
    head = (b"hansa/v2/secure-agg/cohort", b"m" * 32, (1).to_bytes(8, "big"), bytes(8), b"t" * 32)
    assert golden == framed_hash(*head, *members)
    others = {
        cohort_hash(b"n" * 32, 1, 0, keys, b"t" * 32),
        cohort_hash(b"m" * 32, 2, 0, keys, b"t" * 32),
        cohort_hash(b"m" * 32, 1, 1, keys, b"t" * 32),
        cohort_hash(b"m" * 32, 1, 0, keys, b"u" * 32),
        cohort_hash(b"m" * 32, 1, 0, keys | {"bank-002": b"four"}, b"t" * 32),
        cohort_hash(b"m" * 32, 1, 0, {"bank-000": b"one", "bank-001": b"two"}, b"t" * 32),
        cohort_hash(
            b"m" * 32, 1, 0, {"bank-000": b"two", "bank-001": b"one", "bank-002": b"three"}, b"t" * 32
        ),
    }
    assert len(others) == 7
    assert golden not in others


def _message_hash(framed_hash, data):
    return framed_hash(b"hansa/v1/secure-agg/signed-message", data)


def _net_mask_by_definition(seeds, slots):
    total = sum(sign * mask_stream(seed, slots).astype(object) for sign, seed in seeds)
    return (total % PLAIN_MODULUS).tolist()


@pytest.mark.parametrize("slots", [1, 7, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 3 * (1 << 15) + 5])
def test_a_net_mask_is_the_same_whole_or_in_pieces(slots):
    seeds = [(sign, hashlib.sha256(bytes([place])).digest()) for place, sign in enumerate((1, -1, -1, 1, -1))]
    for some in (seeds[:1], seeds[1:2], seeds):
        mask = net_mask(iter(some), slots)
        assert mask.dtype == np.uint64
        assert mask.tolist() == _net_mask_by_definition(some, slots)
    assert not net_mask([], slots).any()


def test_a_rejected_word_of_a_later_piece_is_replaced_by_its_own_slot(monkeypatch):
    seed, slots, modulus = hashlib.sha256(b"pieces").digest(), 1000, 2**47 + 5
    whole = mask_stream(seed, slots, modulus).tolist()
    assert whole == _reference(seed, slots, modulus)
    monkeypatch.setattr(masks, "PLAIN_MODULUS", modulus)
    monkeypatch.setattr(masks, "_PIECE_SLOTS", 64)
    real = masks._MaskStream
    monkeypatch.setattr(masks, "_MaskStream", lambda seed: real(seed, modulus))
    assert net_mask([(1, seed)], slots).tolist() == whole
    assert net_mask([(-1, seed)], slots).tolist() == [-value % modulus for value in whole]


EDGES = [0, 1, 2, PLAIN_MODULUS // 2, PLAIN_MODULUS - 2, PLAIN_MODULUS - 1]


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.tuples(*2 * [st.sampled_from(EDGES) | st.integers(0, PLAIN_MODULUS - 1)]), min_size=1)
)
def test_masks_are_added_and_taken_modulo_t(values):
    slots, mask = np.array(values, dtype=np.uint64).T
    before = slots.copy()
    assert add_mask(slots, mask).tolist() == [(a + b) % PLAIN_MODULUS for a, b in values]
    assert take_mask(slots, mask).tolist() == [(a - b) % PLAIN_MODULUS for a, b in values]
    np.testing.assert_array_equal(take_mask(add_mask(slots, mask), mask), before)
    np.testing.assert_array_equal(slots, before)
