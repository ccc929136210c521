"""What docs/threat-model.md says that a malicious coordinator can and cannot do to the sum, done for real.

Some of these tests show a limit. When the in-slot tag is built they must fail, and the document must change
with them.
"""

import math

import numpy as np
import pytest
from tenseal import sealapi

from hansa.errors import AggregateRangeViolation, MalformedCiphertext
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.bfv import CiphertextSum, HeKey, _scheme
from hansa.secure_agg.ciphertext_format import pack_coefficients
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.packing import pack
from hansa.secure_agg.parameters import PLAIN_MODULUS, SLOTS, Layout, layout_for
from hansa.secure_agg.participant import ParticipantRound, UsedKeys

NAMES = ("bank-1", "bank-2", "bank-3")
LAYOUT = layout_for(len(NAMES))
COUNT = LAYOUT.entries_per_ciphertext  # a full ciphertext: no padding that could give a change away
HE_KEY = HeKey.generate()
IDENTITIES = {name: Identity.generate() for name in NAMES}
ROSTER = Roster(
    session_id=bytes(16),
    study_id=bytes(32),
    members=tuple((name, IDENTITIES[name].public) for name in NAMES),
)


def protected_round(
    number: int,
) -> tuple[list[ParticipantRound], RoundAggregator, dict[str, bytes], np.ndarray]:
    """Run a round up to the uploads: its members, its aggregator, each first ciphertext, and the true sum."""
    members = [
        ParticipantRound(
            participant=name,
            identity=IDENTITIES[name],
            roster=ROSTER,
            he_key=HE_KEY,
            layout=LAYOUT,
            round_index=number,
            attempt=0,
            used_keys=UsedKeys(),
        )
        for name in NAMES
    ]
    keys = [member.advertise() for member in members]
    aggregator = RoundAggregator(ROSTER, number, 0)
    generator = np.random.default_rng(number)
    total, uploads = np.zeros(COUNT, dtype=np.int64), {}
    for name, member in zip(NAMES, members, strict=True):
        member.start(keys)
        levels = np.rint(generator.normal(0, 8, COUNT)).clip(-127, 127).astype(np.int64)
        header, ciphertexts = member.protect(levels, bytes(32), bytes(32))
        aggregator.accept(header, ciphertexts)
        total += levels
        uploads[name] = ciphertexts[0]
    return members, aggregator, uploads, total


def forged(sums: np.ndarray, c1_first: int) -> bytes:
    """Make a ciphertext of any sums from public values only: c0 carries the plaintext, c1 is a constant."""
    scheme, shifted = _scheme(), sums + LAYOUT.maximum_level * len(NAMES)
    digits = shifted.astype(object).reshape(LAYOUT.lanes, SLOTS)
    slots = sum(digits[lane] * LAYOUT.radix**lane for lane in range(LAYOUT.lanes))
    plain = sealapi.Plaintext()
    scheme.encoder.encode([int(slot) for slot in slots], plain)
    prime = scheme.ring.data_prime
    coefficients = [int(plain[place]) if place < plain.coeff_count() else 0 for place in range(SLOTS)]
    c0 = [(prime * value + PLAIN_MODULUS // 2) // PLAIN_MODULUS % prime for value in coefficients]
    c1 = [c1_first] + [0] * (SLOTS - 1)
    return b"".join(pack_coefficients(np.array(part, dtype=np.uint64)) for part in (c0, c1))


def test_limit_a_coordinator_without_any_key_can_set_the_sum_to_numbers_in_range():
    members, aggregator, _, total = protected_round(1)
    chosen = np.random.default_rng(9).integers(-381, 382, COUNT)
    assert not np.array_equal(chosen, total)
    for member in members:
        assert np.array_equal(member.open(aggregator.headers(), [forged(chosen, c1_first=1)]), chosen)


def test_a_ciphertext_whose_key_part_is_zero_is_refused():
    members, aggregator, _, total = protected_round(1)
    with pytest.raises(MalformedCiphertext):
        members[0].open(aggregator.headers(), [forged(total, c1_first=0)])


def test_limit_the_aggregate_of_an_earlier_round_is_accepted():
    _, earlier, _, earlier_total = protected_round(1)
    members, aggregator, _, total = protected_round(2)
    assert not np.array_equal(earlier_total, total)
    assert np.array_equal(members[0].open(aggregator.headers(), earlier.aggregate()), earlier_total)


@pytest.mark.parametrize("parts", [(0, 1), (0, 1, 2, 2), (0, 0, 1)])
def test_an_upload_left_out_or_added_twice_is_refused(parts):
    members, aggregator, uploads, _ = protected_round(1)
    running = CiphertextSum()
    for part in parts:
        running.add(uploads[NAMES[part]])
    with pytest.raises(AggregateRangeViolation):
        members[0].open(aggregator.headers(), [running.serialise()])


def log10_chance(participants: int, bits: int) -> float:
    """Decimal logarithm of the chance that a ciphertext of uniform slots passes the range check."""
    layout = Layout(participants=participants, bits=bits)
    return SLOTS * math.log10(layout.radix**layout.lanes / PLAIN_MODULUS)


def test_the_chances_that_the_threat_model_states():
    assert round(log10_chance(3, 8)) == -151
    assert round(log10_chance(15, 8)) == -513
    assert round(log10_chance(16, 8)) == -54


def test_a_scaled_aggregate_can_stay_in_range():
    layout = layout_for(15)
    levels = np.rint(np.random.default_rng(0).normal(0, 8, (15, layout.entries_per_ciphertext)))
    packed = [pack(row, layout)[0].astype(object) for row in levels.clip(-127, 127).astype(np.int64)]
    inside = [k for k in range(2, 6) if max(sum(packed) * k % PLAIN_MODULUS) < layout.radix**layout.lanes]
    assert inside == [3, 4]
