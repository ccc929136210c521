"""Every way to cheat with the aggregate, each with the error that stops it, and what an abort shows."""

import numpy as np
import pytest

from hansa.errors import (
    AggregateRangeViolation,
    AggregateTagMismatch,
    MalformedCiphertext,
    RosterEquivocation,
)
from hansa.secure_agg import uploading
from hansa.secure_agg.bfv import CiphertextSum, HeKey
from hansa.secure_agg.ciphertext_format import pack_coefficients, unpack_coefficients
from hansa.secure_agg.parameters import PLAIN_MODULUS

VICTIM = "bank-000"


# -- the aggregate ------------------------------------------------------------------------------------------


def _sum(ciphertexts):
    total = CiphertextSum()
    for ciphertext in ciphertexts:
        total.add(ciphertext)
    return total.serialise()


@pytest.mark.parametrize("mode", ["strict", "quorum"])
@pytest.mark.parametrize(
    "case",
    ["omit", "twice", "delta", "double", "fresh", "chosen", "other key", "probe", "noise", "transparent", "earlier"],
)  # fmt: skip
def test_an_aggregate_that_is_not_the_sum_ends_in_a_named_error_whatever_its_range(house, mode, case):
    members = house(4, mode)
    he_key, zeros = members.epochs[VICTIM].he_key, np.zeros(4096, dtype=np.uint64)
    round_ = members.uploaded()
    headers, (true,) = round_.aggregator.close()
    parts = [round_.uploads[name][1][0] for name in members.names]
    delta = zeros.copy()
    delta[3] = 1
    probe = zeros.copy()
    probe[0] = (1 << 60) // PLAIN_MODULUS
    noise = np.random.default_rng(0).integers(0, 2**59, (2, 4096)).astype(np.uint64)
    if case == "earlier":  # the honest sum of an earlier attempt of the same round
        headers, _ = members.uploaded(1, 1).aggregator.close()
    error = MalformedCiphertext if case == "transparent" else AggregateTagMismatch
    aggregate = {
        "omit": lambda: _sum(parts[:3]),
        "twice": lambda: _sum([*parts, parts[1]]),
        "delta": lambda: _sum([*parts, he_key.encrypt(delta)]),  # in range: only the tag can tell
        "double": lambda: _sum([*parts, *parts]),
        "fresh": lambda: _sum([he_key.encrypt(zeros)]),
        "chosen": lambda: _sum([he_key.encrypt(np.full(4096, 508, dtype=np.uint64))]),
        "other key": lambda: _sum([HeKey.generate().encrypt(zeros)]),
        "probe": lambda: pack_coefficients(np.concatenate([zeros, probe])),
        "noise": lambda: pack_coefficients(noise.reshape(-1)),
        "transparent": lambda: pack_coefficients(np.concatenate([probe, zeros])),
        "earlier": lambda: true,
    }[case]()
    if mode == "strict":
        with pytest.raises(error):
            members.machines[VICTIM].open(headers, [aggregate])
        with pytest.raises(RosterEquivocation):  # a round is opened once: no second question to the key
            members.machines[VICTIM].open(headers, [_sum([he_key.encrypt(zeros)])])
        return
    releases = [members.machines[name].answer(headers, [aggregate]) for name in members.names]
    for name in members.names:
        with pytest.raises(error):
            members.machines[name].unmask(releases)


def test_random_bit_flips_in_an_aggregate_are_never_accepted(house):
    members = house(3)
    generator = np.random.default_rng(5)
    for attempt in range(60):
        round_ = members.uploaded(1, attempt, count=30)
        headers, (aggregate,) = round_.aggregator.close()
        coefficients = unpack_coefficients(aggregate)
        coefficients[generator.integers(8192)] ^= np.uint64(1) << np.uint64(generator.integers(20, 60))
        copy = members.machine(VICTIM, members.stores[VICTIM].copy())  # two failures would end the epoch
        with pytest.raises((AggregateTagMismatch, MalformedCiphertext)):
            copy.open(headers, [pack_coefficients(coefficients)])


def test_a_modified_client_is_found_beyond_its_headroom_and_not_within_it(house, monkeypatch):
    members = house(4)
    for attempt, (value, found) in enumerate(((10**6, True), (200, False))):
        round_ = members.begin(1, attempt)
        for name in members.names:
            members.start(name, round_)
            levels = np.zeros(30, np.int64)
            with monkeypatch.context() as patched:
                if name == "bank-003":
                    real = uploading.pack_update

                    def cheating(levels, terms, real=real, value=value):
                        slots = real(levels, terms)
                        slots[0] += np.uint64(value)
                        return slots

                    patched.setattr(uploading, "pack_update", cheating)
                round_.aggregator.accept(*members.machines[name].protect(levels))
        if attempt == 0:
            view = round_.aggregator.close()
            # On copies, so that the model state is not spent.
            copies = {name: members.machine(name, members.stores[name].copy()) for name in members.names}
            releases = [copies[name].answer(*view) for name in members.names]
            with pytest.raises(AggregateRangeViolation):
                copies[VICTIM].unmask(releases)
        else:
            releases = members.released(round_)
            assert (
                members.machines[VICTIM].unmask(releases).total[0] == 200
            )  # the limit that the documents state
        assert found == (attempt == 0)
