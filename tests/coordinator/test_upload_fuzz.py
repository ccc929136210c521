"""Thousands of spoilt uploads: none crashes the aggregator, and none changes the sum other than as what it is."""

from collections import Counter

import numpy as np
import pytest

from hansa.errors import (
    AggregateHashMismatch,
    CiphertextSizeMismatch,
    DuplicateMessage,
    MalformedCiphertext,
)
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.bfv import _scheme
from hansa.secure_agg.ciphertext_format import (
    POLYNOMIAL_BYTES,
    SEED_BYTES,
    SEEDED_BYTES,
    pack_coefficients,
    unpack_coefficients,
)

COUNT = 2
PRIME = _scheme().ring.data_prime


def flip(upload, generator, _):
    place = int(generator.integers(SEEDED_BYTES))
    return [
        upload[0][:place]
        + bytes([upload[0][place] ^ 1 << int(generator.integers(8))])
        + upload[0][place + 1 :],
        upload[1],
    ]


def truncate(upload, generator, _):
    return [upload[0], upload[1][: int(generator.integers(SEEDED_BYTES))]]


def drop(upload, generator, _):
    return [upload[int(generator.integers(COUNT))]]


def splice(upload, generator, other):
    place = int(generator.integers(1, SEEDED_BYTES))
    return [upload[0][:place] + other[0][place:], upload[1]]


def zero(upload, generator, _):
    start, length = int(generator.integers(SEEDED_BYTES)), int(generator.integers(1, SEEDED_BYTES))
    return [(upload[0][:start] + bytes(length) + upload[0][start + length :])[:SEEDED_BYTES], upload[1]]


def append(upload, generator, _):
    return [upload[0], upload[1] + generator.bytes(int(generator.integers(1, 400)))]


def append_ciphertext(upload, _, other):
    return [*upload, other[0]]


def reverse(upload, *_):
    return upload[::-1]


def swap_coefficients(upload, generator, _):
    coefficients = unpack_coefficients(upload[1][SEED_BYTES:])
    one, two = generator.integers(coefficients.size, size=2)
    coefficients[[one, two]] = coefficients[[two, one]]
    return [upload[0], upload[1][:SEED_BYTES] + pack_coefficients(coefficients)]


def extreme_coefficient(upload, generator, _):
    coefficients = unpack_coefficients(upload[1][SEED_BYTES:])
    extremes = [0, 1, PRIME - 1, PRIME, PRIME + 1, 2**60 - 1]
    coefficients[generator.integers(coefficients.size)] = extremes[int(generator.integers(len(extremes)))]
    return [upload[0], upload[1][:SEED_BYTES] + pack_coefficients(coefficients)]


def only_extremes(upload, generator, _):
    value = [0, PRIME - 1, 2**60 - 1][int(generator.integers(3))]
    coefficients = np.full(POLYNOMIAL_BYTES * 8 // 60, value, dtype=np.uint64)
    return [upload[0][:SEED_BYTES] + pack_coefficients(coefficients), upload[1]]


def other_seed(upload, generator, _):
    seed = [bytes(SEED_BYTES), b"\xff" * SEED_BYTES, generator.bytes(SEED_BYTES)][int(generator.integers(3))]
    return [seed + upload[0][SEED_BYTES:], upload[1]]


def noise(upload, generator, _):
    return [generator.bytes(SEEDED_BYTES), upload[1]]


MUTATIONS = (
    flip,
    truncate,
    drop,
    splice,
    zero,
    append,
    append_ciphertext,
    reverse,
    swap_coefficients,
    extreme_coefficient,
    only_extremes,
    other_seed,
    noise,
)


class Attempts:
    """One attempt after another; each is closed when its members are used up, and its sum compared."""

    def __init__(self, members, adder, adding):
        self._members, self._adder, self._adding = members, adder, adding
        self.number, self.compared = -1, 0
        self.begin()

    def begin(self):
        self.number += 1
        self.accepted = []
        self.aggregator = RoundAggregator(
            roster=self._members.roster,
            terms=self._members.terms,
            epoch=1,
            round_index=1,
            attempt=self.number,
            sums=self._adder.begin(len(self._members.names)),
            expected=self._members.expected(COUNT),
        )

    @property
    def next_name(self):
        return self._members.names[len(self.accepted)]

    def send(self, signed_for, sent):
        name = self.next_name
        header = self._members.header(name, signed_for, attempt=self.number, ciphertext_count=COUNT)
        assert self.aggregator.accept(header, iter(sent)) == name
        self.accepted.append(sent)
        with pytest.raises(DuplicateMessage):
            self.aggregator.accept(header, iter(sent))
        if len(self.accepted) == len(self._members.names):
            self.close()
            self.begin()

    def close(self):
        """The aggregate is the sum of what was accepted, coefficient by coefficient, computed without SEAL where that can be."""
        _, aggregate = self.aggregator.close()
        assert aggregate == self._adding.sums_of(self.accepted)
        for place in range(COUNT):
            first = sum(
                unpack_coefficients(upload[place][SEED_BYTES:]).astype(object) for upload in self.accepted
            )
            found = unpack_coefficients(aggregate[place][:POLYNOMIAL_BYTES])
            assert (found == (first % PRIME).astype(np.uint64)).all()
        self.compared += len(self.accepted)


def test_2200_spoilt_uploads_never_crash_the_aggregator_and_never_change_a_sum_silently(
    senders, adders, adding, uploads
):
    adder, generator = adders(), np.random.default_rng(11)
    attempts = Attempts(senders(24), adder, adding)
    originals = [upload[:COUNT] for upload in uploads]
    seen = Counter()
    for index in range(1100):
        mutate = MUTATIONS[index % len(MUTATIONS)]
        upload, other = (originals[int(place)] for place in generator.integers(len(originals), size=2))
        spoilt = mutate(upload, generator, other)
        # Bytes that differ from the signed ones, whatever they are, never reach the parser.
        if spoilt != upload:
            with pytest.raises((AggregateHashMismatch, CiphertextSizeMismatch)):
                attempts.send(upload, spoilt)
            seen["not signed"] += 1
        # Signed as they are by a member of bad faith: refused, or exactly what they decrypt to.
        try:
            attempts.send(spoilt, spoilt)
            seen["added"] += 1
        except (MalformedCiphertext, CiphertextSizeMismatch) as error:
            seen[type(error).__name__] += 1
        assert adder.terms == len(attempts.accepted)
    while attempts.compared < seen["added"]:
        attempts.send(originals[0], originals[0])
        seen["added"] += 1
    assert adder.starts == 1  # no worker died
    assert seen["not signed"] > 1000
    assert seen.total() - seen["not signed"] >= 1100
    assert min(seen["added"], seen["MalformedCiphertext"], seen["CiphertextSizeMismatch"]) > 50
