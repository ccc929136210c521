"""A member of bad faith signs a ciphertext that it has spoilt: what is added is found by the tag at every participant."""

from dataclasses import replace

import cbor2
import numpy as np
import pytest

from hansa.errors import AggregateRangeViolation, AggregateTagMismatch
from hansa.secure_agg.ciphertext_format import SEED_BYTES, pack_coefficients, unpack_coefficients
from hansa.secure_agg.cohort import ciphertext_list_hash
from hansa.secure_agg.messages import Envelope, UploadHeader, sign_message

MALLORY = "bank-003"


def flipped(data):
    coefficients = unpack_coefficients(data[SEED_BYTES:])
    coefficients[7] ^= np.uint64(1)
    return data[:SEED_BYTES] + pack_coefficients(coefficients)


def swapped(data):
    coefficients = unpack_coefficients(data[SEED_BYTES:])
    coefficients[[7, 8]] = coefficients[[8, 7]]
    return data[:SEED_BYTES] + pack_coefficients(coefficients)


def zeroed(data):
    return data[:SEED_BYTES] + pack_coefficients(np.zeros(4096, dtype=np.uint64))


def other_seed(data):
    return bytes(SEED_BYTES) + data[SEED_BYTES:]


def most_significant(data):
    """A coefficient moved by half of q: as far from its plaintext as it can be."""
    coefficients = unpack_coefficients(data[SEED_BYTES:])
    coefficients[0] ^= np.uint64(1 << 58)
    return data[:SEED_BYTES] + pack_coefficients(coefficients)


def released(members, spoil):
    """A round up to its releases, in which one member has spoilt its ciphertext before it signed it."""
    round_ = members.begin()
    round_.levels = members.levels(100)
    for name in members.names:
        members.start(name, round_)
        header, ciphertexts = members.machines[name].protect(round_.levels[name])
        if name == MALLORY:
            ciphertexts = [spoil(ciphertexts[0])]
            body = replace(
                UploadHeader.decode(Envelope.decode(header).body),
                ciphertext_list_hash=ciphertext_list_hash(ciphertexts),
            )
            header = sign_message(members.identities[name], body)
            members.stores[name].put("upload", _with_header(members.stores[name].get("upload"), header))
        round_.aggregator.accept(header, ciphertexts)
    return round_, members.released(round_)


@pytest.mark.parametrize("spoil", [swapped, zeroed, other_seed, most_significant])
def test_a_spoilt_ciphertext_that_is_signed_and_added_is_found_by_the_tag(house, spoil):
    members = house(4)
    _, releases = released(members, spoil)
    for name in members.names:
        with pytest.raises((AggregateTagMismatch, AggregateRangeViolation)):
            members.machines[name].unmask(releases)


def test_one_that_still_decrypts_to_its_update_counts_as_that(house):
    """The lowest bit of a coefficient is far below the noise margin: the sum is exact, and nothing is wrong."""
    members = house(4)
    round_, releases = released(members, flipped)
    for name in members.names:
        np.testing.assert_array_equal(members.machines[name].unmask(releases).total, round_.expected())


def _with_header(record, header):
    """Mallory's own store, so that its honest machine answers for what it has sent."""
    return cbor2.dumps(cbor2.loads(record) | {"header": header})
