"""What docs/threat-model.md says that can and cannot be done to the sum and to a round, done for real.

Tests whose name begins with `test_limit` show what is not prevented. When one of them fails, the document must change
with it. What a whole study cannot prevent is in `test_limits.py`.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tenseal import sealapi

from hansa.errors import (
    AggregateTagMismatch,
    AlreadyReleased,
    CohortTooSmall,
    MalformedCiphertext,
    NotEnoughConsents,
    NotEnoughShares,
    PackageReuse,
    RosterEquivocation,
)
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.bfv import CiphertextSum, _scheme
from hansa.secure_agg.ciphertext_format import pack_coefficients, unpack_coefficients
from hansa.secure_agg.cohort import cohort_hash
from hansa.secure_agg.epoch import Epoch, EpochSetup
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.messages import Envelope
from hansa.secure_agg.packing import pack
from hansa.secure_agg.parameters import PLAIN_MODULUS, QUORUM, SLOTS, STRICT, TAG_SLOTS, Terms
from hansa.secure_agg.participant import RoundMachine
from hansa.secure_agg.relay import EpochRelay, PackageBoard
from hansa.secure_agg.store import MemoryStore
from hansa.secure_agg.tag import SumTag
from hansa.secure_agg.unmasking import unmask

NAMES = ("bank-1", "bank-2", "bank-3", "bank-4")
MODEL, HISTORY = b"m" * 32, bytes(32)
IDENTITIES = {name: Identity.generate() for name in NAMES}
ROSTER = Roster(
    session_id=bytes(16),
    study_id=bytes(32),
    members=tuple((name, IDENTITIES[name].public) for name in NAMES),
)


def enter(terms: Terms, stores: dict[str, MemoryStore]) -> tuple[dict[str, Epoch], dict[str, RoundMachine]]:
    """Play the set-up of an epoch; return what each member holds, and its machine for the rounds."""
    setups = {
        name: EpochSetup(
            participant=name, identity=IDENTITIES[name], roster=ROSTER, terms=terms, epoch=1, store=stores[name]
        )
        for name in NAMES
    }  # fmt: skip
    relay = EpochRelay(ROSTER, 1)
    for setup in setups.values():
        relay.accept_join(setup.join())
    relay.accept_deal(setups[relay.dealer].deal(relay.joins()))
    for setup in setups.values():
        relay.accept_vote(setup.vote(relay.joins(), relay.deal()))
    epochs = {name: setup.enter(relay.votes()) for name, setup in setups.items()}
    machines = {
        name: RoundMachine(epoch=epochs[name], identity=IDENTITIES[name], store=stores[name])
        for name in NAMES
    }
    return epochs, machines


@dataclass
class Attempt:
    """An attempt up to its uploads, with what the coordinator has of it, and the true sum, which it has not."""

    headers: list[bytes]
    aggregate: list[bytes]
    uploads: dict[str, bytes]
    cohort: bytes
    total: np.ndarray


class Consortium:
    """Four members of one epoch; each upload is one full ciphertext, without padding that could give a change away."""

    def __init__(self, mode: str) -> None:
        self.terms = Terms(participants=len(NAMES), mode=mode)
        self.count = self.terms.layout.capacity(1)
        self.stores = {name: MemoryStore() for name in NAMES}
        self.epochs, self.machines = enter(self.terms, self.stores)
        self.board = PackageBoard(ROSTER, self.terms, 1)
        self.aggregator = None

    def begin(self, attempt: int, cohort: tuple[str, ...] = NAMES) -> bytes:
        for name in cohort:
            for signed, blobs in self.machines[name].packages(self.board.handed_out(name)):
                self.board.accept(signed, blobs)
        packages, shares = self.board.take(cohort)
        for name in cohort:
            self.machines[name].start(
                1, attempt, packages, shares[name], model_hash=MODEL, transcript=HISTORY
            )
        self.aggregator = RoundAggregator(
            roster=ROSTER, terms=self.terms, epoch=1, round_index=1, attempt=attempt, cohort=cohort
        )
        named = dict(zip(cohort, packages, strict=True))
        return cohort_hash(self.epochs[NAMES[0]].manifest_hash, 1, attempt, named, HISTORY)

    def uploaded(self, attempt: int = 0, wrongly: str = "") -> Attempt:
        cohort = self.begin(attempt)
        generator = np.random.default_rng(attempt)
        total, uploads = np.zeros(self.count, dtype=np.int64), {}
        for name in NAMES:
            levels = np.rint(generator.normal(0, 8, self.count)).clip(-127, 127).astype(np.int64)
            if name == wrongly:  # a member that leaves its masks out, or takes other ones
                self.machines[name]._mask_seeds = lambda *_: [(1, b"w" * 32)]
            header, ciphertexts = self.machines[name].protect(levels)
            self.aggregator.accept(header, ciphertexts)
            total += levels
            (uploads[name],) = ciphertexts
        headers, aggregate = self.aggregator.close()
        return Attempt(headers, aggregate, uploads, cohort, total)

    def open(self, headers: list[bytes], aggregate: list[bytes]) -> list[np.ndarray]:
        """Every member's sum, all of them shown the same aggregate."""
        if self.terms.strict:
            return [self.machines[name].open(headers, aggregate).total for name in NAMES]
        releases = [self.machines[name].answer(headers, aggregate) for name in NAMES]
        return [self.machines[name].unmask(releases).total for name in NAMES]


@pytest.fixture(params=[STRICT, QUORUM])
def consortium(request) -> Consortium:
    return Consortium(request.param)


def added(*ciphertexts: bytes) -> list[bytes]:
    running = CiphertextSum()
    for ciphertext in ciphertexts:
        running.add(ciphertext)
    return [running.serialise()]


def forged(slots: np.ndarray, c1_first: int) -> bytes:
    """Make a ciphertext of any slots from public values only: c0 carries the plaintext, c1 is a constant."""
    scheme, plain = _scheme(), sealapi.Plaintext()
    scheme.encoder.encode([int(slot) for slot in slots], plain)
    prime = scheme.ring.data_prime
    coefficients = [int(plain[place]) if place < plain.coeff_count() else 0 for place in range(SLOTS)]
    c0 = [(prime * value + PLAIN_MODULUS // 2) // PLAIN_MODULUS % prime for value in coefficients]
    c1 = [c1_first] + [0] * (SLOTS - 1)
    return pack_coefficients(np.array(c0 + c1, dtype=np.uint64))


# -- what a coordinator without a key does to the sum --------------------------------------------------------


def test_the_true_sum_is_opened(consortium):
    attempt = consortium.uploaded()
    for total in consortium.open(attempt.headers, attempt.aggregate):
        np.testing.assert_array_equal(total, attempt.total)


def test_numbers_in_range_in_place_of_the_sum_are_refused(consortium):
    attempt, layout = consortium.uploaded(), consortium.terms.layout
    chosen = np.random.default_rng(9).integers(0, layout.radix**layout.lanes, SLOTS)
    with pytest.raises(AggregateTagMismatch):
        consortium.open(attempt.headers, [forged(chosen, c1_first=1)])


def test_numbers_in_range_added_to_the_sum_are_refused(consortium):
    attempt, added_by_coordinator = consortium.uploaded(), np.zeros(SLOTS, dtype=np.int64)
    added_by_coordinator[0] = 1
    summed, delta = unpack_coefficients(attempt.aggregate[0]), forged(added_by_coordinator, c1_first=0)
    changed = (summed.astype(object) + unpack_coefficients(delta)) % _scheme().ring.data_prime
    with pytest.raises(AggregateTagMismatch):
        consortium.open(attempt.headers, [pack_coefficients(changed.astype(np.uint64))])


def test_a_ciphertext_whose_key_part_is_zero_is_refused(consortium):
    attempt = consortium.uploaded()
    with pytest.raises(MalformedCiphertext):
        consortium.open(attempt.headers, [forged(np.ones(SLOTS, dtype=np.int64), c1_first=0)])


@pytest.mark.parametrize("times", [2, 3, 4])
def test_a_scaled_sum_is_refused_whether_it_stays_in_range_or_not(consortium, times):
    attempt = consortium.uploaded()
    with pytest.raises(AggregateTagMismatch):
        consortium.open(attempt.headers, added(*list(attempt.uploads.values()) * times))


@pytest.mark.parametrize("parts", [(0, 1, 2), (0, 1, 2, 3, 3), (0, 0, 1, 2)])
def test_an_upload_left_out_or_added_twice_is_refused(consortium, parts):
    attempt = consortium.uploaded()
    with pytest.raises(AggregateTagMismatch):
        consortium.open(attempt.headers, added(*(attempt.uploads[NAMES[part]] for part in parts)))


def test_the_sum_of_an_earlier_attempt_is_refused(consortium):
    earlier = consortium.uploaded(0)
    attempt = consortium.uploaded(1)
    with pytest.raises(AggregateTagMismatch):
        consortium.open(attempt.headers, earlier.aggregate)


# -- what it tells different members -------------------------------------------------------------------------


def test_different_sums_to_different_participants_open_nothing():
    consortium = Consortium(QUORUM)
    attempt = consortium.uploaded()
    other = unpack_coefficients(attempt.aggregate[0])
    other[0] ^= np.uint64(1)  # decrypts to the same sum: the tag alone would not tell
    changed = [pack_coefficients(other)]
    shown = {name: attempt.aggregate if name in NAMES[:2] else changed for name in NAMES}
    releases = [consortium.machines[name].answer(attempt.headers, shown[name]) for name in NAMES]
    for name in NAMES:
        own = [data for data in releases if shown[Envelope.decode(data).sender] == shown[name]]
        with pytest.raises(RosterEquivocation):
            consortium.machines[name].unmask(releases)
        with pytest.raises(NotEnoughShares):
            consortium.machines[name].unmask(own)


def test_two_sums_over_one_model_state_are_never_released():
    consortium = Consortium(QUORUM)
    attempt = consortium.uploaded()
    for name in NAMES:
        consortium.machines[name].answer(attempt.headers, attempt.aggregate)
    with pytest.raises(AlreadyReleased):
        consortium.begin(1, NAMES[:3])


def test_quorum_with_three_members_is_refused():
    with pytest.raises(CohortTooSmall):
        Terms(participants=3, mode=QUORUM)


# -- limits --------------------------------------------------------------------------------------------------


def test_limit_a_coordinator_with_the_keys_of_a_member_can_add_known_numbers_to_the_sum(consortium):
    attempt, layout = consortium.uploaded(), consortium.terms.layout
    keys = consortium.epochs[NAMES[0]]
    change = np.zeros(consortium.count, dtype=np.int64)
    change[7] = 40
    shift = pack(np.zeros(consortium.count, dtype=np.int64), layout)
    delta = (pack(change, layout).astype(np.int64) - shift.astype(np.int64)).astype(np.uint64)
    tags = SumTag(keys.group_key, attempt.cohort)._linear(delta)
    ciphertext = keys.he_key.encrypt(np.concatenate([delta, np.array(tags, dtype=np.uint64)]))
    for total in consortium.open(attempt.headers, added(*attempt.uploads.values(), ciphertext)):
        np.testing.assert_array_equal(total, attempt.total + change)


def test_limit_one_member_that_masks_wrongly_spoils_the_sum_for_all_and_is_not_named(consortium):
    attempt = consortium.uploaded(wrongly=NAMES[3])
    with pytest.raises(AggregateTagMismatch) as caught:
        consortium.open(attempt.headers, attempt.aggregate)
    assert not any(name in caught.value.message for name in NAMES)


def test_after_a_failed_sum_the_model_state_is_spent_and_t_voids_lead_to_the_next_one():
    consortium = Consortium(QUORUM)
    attempt = consortium.uploaded(wrongly=NAMES[3])
    with pytest.raises(AggregateTagMismatch):
        consortium.open(attempt.headers, attempt.aggregate)
    with pytest.raises(AlreadyReleased):
        consortium.begin(1, NAMES[:3])
    voids = []
    for name in NAMES[:3]:  # the one that masked wrongly need not sign
        if name != NAMES[0]:
            releases = [consortium.machines[other].release for other in NAMES]
            with pytest.raises(AggregateTagMismatch):
                consortium.machines[name].unmask(releases)
        voids.append(consortium.machines[name].void(1, 0, transcript=HISTORY))
    machine = consortium.machines[NAMES[0]]
    with pytest.raises(NotEnoughConsents):
        machine.skip(1, 0, voids[:2], transcript=HISTORY)
    assert machine.skip(1, 0, voids, transcript=HISTORY) != HISTORY


def test_limit_who_colludes_opens_the_true_sum_of_a_round_that_the_others_leave_behind():
    consortium = Consortium(QUORUM)
    attempt = consortium.uploaded()
    false = added(*list(attempt.uploads.values())[:3])
    releases = [consortium.machines[name].answer(attempt.headers, false) for name in NAMES]
    for name in NAMES:
        with pytest.raises(AggregateTagMismatch):
            consortium.machines[name].unmask(releases)
    colluder = consortium.machines[NAMES[0]]
    view = dataclasses.replace(colluder._view, aggregate=attempt.aggregate)  # what the coordinator kept
    opened = unmask(colluder._epoch, colluder._attempt, view, consortium.count, releases)
    np.testing.assert_array_equal(opened.total, attempt.total)


def test_limit_a_store_that_was_put_back_is_not_noticed_where_newer_packages_are_hidden():
    consortium = Consortium(QUORUM)
    victim, others = NAMES[0], NAMES[1:]
    first, _ = consortium.machines[victim].packages()[0]
    copy = MemoryStore()
    copy._values = dict(consortium.stores[victim]._values)
    attempt = consortium.uploaded()
    for name in others:
        for signed, blobs in consortium.machines[name].packages(consortium.board.handed_out(name)):
            consortium.board.accept(signed, blobs)
    packages, shares = consortium.board.take(NAMES)
    shown = [first if Envelope.decode(data).sender == victim else data for data in packages]
    for name in others:  # every honest member notices
        with pytest.raises(PackageReuse):
            consortium.machines[name].start(1, 1, shown, shares[name], model_hash=MODEL, transcript=HISTORY)
    machine = RoundMachine(epoch=consortium.epochs[victim], identity=IDENTITIES[victim], store=copy)
    machine.verify_not_rolled_back(shown)
    machine.start(1, 1, shown, shares[victim], model_hash=MODEL, transcript=HISTORY)
    header, _ = machine.protect(np.zeros(consortium.count, dtype=np.int64))
    assert header not in attempt.headers  # a second upload with the secrets of one package


def test_limit_a_sum_with_other_noise_is_opened_so_a_round_answers_one_bit_about_the_key(consortium):
    attempt = consortium.uploaded()
    coefficients = unpack_coefficients(attempt.aggregate[0])
    coefficients[0] ^= np.uint64(1)
    changed = [pack_coefficients(coefficients)]
    assert changed != attempt.aggregate
    for total in consortium.open(attempt.headers, changed):
        np.testing.assert_array_equal(total, attempt.total)
    with pytest.raises(RosterEquivocation):  # and only one
        consortium.open(attempt.headers, attempt.aggregate)


# -- the document's numbers ----------------------------------------------------------------------------------


def test_the_thresholds_of_the_threat_model_are_those_of_the_code():
    text = (Path(__file__).parents[2] / "docs" / "threat-model.md").read_text()
    section = text.split("### Who may vanish, who may collude")[1]
    rows = re.findall(r"^\| (\d+) \| (quorum|strict) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", section, re.M)
    assert len(rows) >= 8
    for participants, mode, *numbers in rows:
        terms = Terms(participants=int(participants), mode=mode)
        curious = min(terms.threshold - 1, terms.participants - 2)
        stated = [terms.threshold, terms.dropouts, terms.colluders, curious]
        assert [int(number) for number in numbers] == stated


def test_the_tag_has_the_strength_that_the_threat_model_states():
    assert TAG_SLOTS * 16 == 128
