"""Whole rounds: exact sums whoever vanishes, and what members of a coalition can compute."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from hansa.errors import (
    CohortMismatch,
    CohortTooSmall,
    DuplicateMessage,
    InvalidValue,
    ModelDivergence,
    NotEnoughConsents,
    NotEnoughShares,
    OutOfOrder,
    OwnKeyMismatch,
    RosterTooSmall,
    StaleRound,
    StateRollback,
)
from hansa.secure_agg.attempt import verify_results
from hansa.secure_agg.bfv import CiphertextSum
from hansa.secure_agg.packing import pack
from hansa.secure_agg.parameters import PLAIN_MODULUS, Terms
from hansa.secure_agg.tag import SumTag

TABLE = {
    3: (3, 0, 1),
    4: (3, 1, 1),
    5: (4, 1, 2),
    8: (6, 2, 3),
    16: (11, 5, 5),
    32: (22, 10, 11),
    64: (43, 21, 21),
    100: (67, 33, 33),
}


@pytest.mark.parametrize(("participants", "row"), TABLE.items())
def test_threshold_dropouts_and_colluders_are_those_of_the_published_table(participants, row):
    terms = Terms(participants=participants)
    assert (terms.threshold, terms.dropouts, terms.colluders) == row
    assert terms.strict == (participants == 3)


def test_terms_out_of_bounds_are_refused():
    with pytest.raises(CohortTooSmall):
        Terms(participants=3, mode="quorum")
    with pytest.raises(CohortTooSmall):
        Terms(participants=2)
    with pytest.raises(InvalidValue):
        Terms(participants=5, mode="majority")
    assert Terms(participants=5, mode="strict").threshold == 5
    hashes = {
        Terms(participants=n, mode=m, bits=b).hash
        for n in (4, 5)
        for m in ("quorum", "strict")
        for b in (8, 9)
    }
    assert len(hashes) == 8


@pytest.mark.parametrize(("participants", "mode"), [(3, ""), (5, "strict"), (4, ""), (5, ""), (17, "")])
def test_three_rounds_without_dropouts_are_exact(house, participants, mode):
    members = house(participants, mode)
    for number in (1, 2, 3):
        round_ = members.play(number, count=members.terms.layout.capacity(1) + (number - 2))
        assert round_.aggregator.complete
        assert len(round_.aggregator.close()[1]) == (2 if number == 3 else 1)


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("sign", [-1, 1])
def test_all_extreme_updates_add_up_exactly(house, bits, sign):
    members = house(4, "", bits)
    value = sign * members.terms.layout.maximum_level
    round_ = members.begin()
    for name in members.names:
        members.start(name, round_)
        round_.aggregator.accept(*members.machines[name].protect(np.full(5000, value)))
    releases = members.released(round_)
    assert set(members.machines["bank-002"].unmask(releases).total.tolist()) == {4 * value}


def test_masks_cancel_for_every_survivor_set(house):
    members = house(6)
    number = 0
    for size in range(members.terms.threshold, 7):
        for here in itertools.combinations(members.names, size):
            number += 1
            gone = tuple(set(members.names) - set(here))
            assert members.play(number, gone=gone, count=9).aggregator.contributors == here
    assert number == 1 + 6  # T = 5


def test_whoever_vanishes_at_whatever_stage_the_sum_of_the_roster_is_exact(house):
    members = house(8)
    names = members.names
    # Down before the start: not in the cohort, or in it and silent.
    round_ = members.begin(1, cohort=names[:7])
    round_.levels = members.levels(40)
    for name in names[1:7]:  # names[0] is asked and never answers
        members.start(name, round_)
        round_.aggregator.accept(*members.machines[name].protect(round_.levels[name]))
    releases = members.released(round_)
    for name in names:
        opened = (
            members.machines[name].unmask(releases) if name in names[1:7] else members.catch_up(name, round_)
        )
        np.testing.assert_array_equal(opened.total, round_.expected())
        members.finish(name, round_, opened)
    # After the upload, after the consent, after the release.
    for number, after in ((2, "upload"), (3, "consent"), (4, "release")):
        round_ = members.uploaded(number, gone=(names[3],))
        headers, aggregate = round_.aggregator.close()
        lost = names[5]
        for name in round_.aggregator.contributors:
            if name != lost or after != "upload":
                round_.aggregator.accept_answer(members.machines[name].answer(headers, aggregate))
        for name in round_.aggregator.contributors:
            if name != lost or after == "release":
                consents = round_.aggregator.consents()
                round_.aggregator.accept_answer(members.machines[name].consents(consents))
        for name in names:
            opened = members.catch_up(name, round_)
            np.testing.assert_array_equal(opened.total, round_.expected())
            assert lost in opened.contributors
            members.finish(name, round_, opened)
    members.play(5)


def test_a_full_roster_needs_any_t_releases(house):
    members = house(5)
    round_ = members.uploaded()
    releases = members.released(round_)
    for subset in itertools.combinations(releases, 4):
        np.testing.assert_array_equal(members.machines["bank-000"].unmask(subset).total, round_.expected())
    for subset in itertools.combinations(releases, 3):
        with pytest.raises(NotEnoughShares):
            members.machines["bank-000"].unmask(subset)


def test_below_the_threshold_nothing_is_opened_and_another_attempt_is(house):
    members = house(5)
    round_ = members.uploaded(1, 0, gone=("bank-001", "bank-002"))
    with pytest.raises(RosterTooSmall):
        round_.aggregator.close()
    with pytest.raises(OutOfOrder):
        round_.aggregator.accept_answer(b"")
    # The attempt is abandoned; a smaller cohort with fresh packages succeeds, the same model state.
    again = members.uploaded(1, 1, cohort=["bank-000", "bank-002", "bank-003", "bank-004"])
    with pytest.raises(NotEnoughConsents):
        again.aggregator.consents()
    with pytest.raises(NotEnoughShares):
        again.aggregator.releases()
    releases = members.released(again)
    np.testing.assert_array_equal(members.machines["bank-003"].unmask(releases).total, again.expected())
    np.testing.assert_array_equal(members.catch_up("bank-001", again).total, again.expected())


def test_inputs_that_no_honest_caller_gives_are_refused(house):
    members = house(4)
    round_ = members.begin()
    for wrong in ({"model_hash": b""}, {"transcript": b""}, {"attempt": 2**16}):
        with pytest.raises(InvalidValue):
            members.start("bank-000", round_, **wrong)
    members.identities["bank-001"], own = members.identities["bank-000"], members.identities["bank-001"]
    with pytest.raises(OwnKeyMismatch):
        members.machine("bank-001")
    members.identities["bank-001"] = own
    round_ = members.play()
    members.state["bank-000"] = (b"x" * 32, bytes(32))
    with pytest.raises(CohortTooSmall):
        members.catch_up("bank-000", round_, packages=round_.packages[:2])


def test_a_hundred_members_with_33_dropouts_are_exact(house):
    members = house(100)
    gone = tuple(members.names[index] for index in range(1, 100, 3))
    assert len(gone) == 33 == members.terms.dropouts
    round_ = members.uploaded(1, gone=gone, count=200)
    releases = members.released(round_)
    assert len(releases) == 67
    np.testing.assert_array_equal(members.machines["bank-000"].unmask(releases).total, round_.expected())
    np.testing.assert_array_equal(members.catch_up(gone[0], round_).total, round_.expected())


def test_results_and_transcripts_bind_history_and_need_the_group_key(house):
    members = house(4)
    round_ = members.uploaded()
    releases = members.released(round_)
    opened = {name: members.machines[name].unmask(releases) for name in members.names}
    assert len({result.transcript for result in opened.values()}) == 1
    results = [members.machines[name].confirm(opened[name], b"n" * 32) for name in members.names]
    verify_results(results, members.roster, 0, 1, 0, 3)
    verify_results(results[1:], members.roster, 0, 1, 0, 3)
    other = members.machines["bank-003"].confirm(opened["bank-003"], b"o" * 32)
    for error, wrong in (
        (ModelDivergence, [*results[:3], other]),
        (CohortMismatch, results[:2]),
        (DuplicateMessage, [*results, results[0]]),
    ):
        with pytest.raises(error):
            verify_results(wrong, members.roster, 0, 1, 0, 3)
    for number, error in ((2, StaleRound), (0, StateRollback)):
        with pytest.raises(error):
            verify_results(results, members.roster, 0, number, 0, 3)
    from hansa.secure_agg.cohort import transcript_link

    one = opened["bank-000"]
    arguments = [members.epochs["bank-000"].group_key, bytes(32), one.roster_hash, b"a" * 32, one.total]
    changed = [b"g" * 32, b"p" * 32, bytes(32), b"b" * 32, one.total + 1]
    links = {transcript_link(*arguments)}
    for place, value in enumerate(changed):
        links.add(transcript_link(*arguments[:place], value, *arguments[place + 1 :]))
    assert len(links) == 6


# -- what a coalition sees ---------------------------------------------------------------------------------


def _uniformity(slots):
    """Smallest p value of chi-square tests on high bits, low digits and a lane of slots modulo t."""
    values = slots.reshape(-1).astype(np.float64)
    high = np.bincount((values / PLAIN_MODULUS * 64).astype(int), minlength=64)
    low = np.bincount((values % 61).astype(int), minlength=61)
    return min(chisquare(counts).pvalue for counts in (high, low))


def _decrypt_alone(he_key, ciphertexts):
    slots = []
    for ciphertext in ciphertexts:
        alone = CiphertextSum()
        alone.add(ciphertext)
        slots.append(he_key.decrypt(alone.serialise()))
    return np.concatenate(slots)


def _pair_masks(members, round_, victim, colluders):
    """What colluders with all their own secrets can take off the victim's upload."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from hansa.secure_agg.masks import net_mask, pair_seed, pair_sign

    attempt = members.machines[victim]._attempt
    keys = {name: body.mask_key for name, body in attempt.opened_packages().items()}
    seeds = []
    for name in colluders:
        private = X25519PrivateKey.from_private_bytes(members.stolen[name].mask_private)
        seed = pair_seed(
            private,
            keys[victim],
            attempt.cohort_hash,
            participant=name,
            peer=victim,
            round_index=1,
            attempt=0,
        )
        seeds.append((pair_sign(victim, name), seed))
    return net_mask(seeds, _decrypt_alone(members.epochs[victim].he_key, round_.uploads[victim][1]).size)


@pytest.mark.parametrize("level", [-127, 127])
@pytest.mark.parametrize(("participants", "mode"), [(5, ""), (4, "strict")])
def test_coordinator_and_colluders_with_all_their_secrets_see_uniform_slots(house, participants, mode, level):
    members = house(participants, mode)
    count = members.terms.layout.capacity(3)
    round_ = members.begin()
    members.stolen = {}
    for name in members.names:
        members.start(name, round_)
        members.stolen[name] = members.machines[name]._own
        round_.uploads[name] = members.machines[name].protect(np.full(count, level))
    victim = "bank-000"
    # T - 1 colluders; in strict mode n - 2 of them, for n - 1 simply subtract.
    colluders = members.names[1 : 1 + (members.terms.threshold - 1 - members.terms.strict)]
    assert len(colluders) == min(members.terms.threshold - 1, participants - 2 + (not mode))
    slots = _decrypt_alone(members.epochs[victim].he_key, round_.uploads[victim][1])
    mask = _pair_masks(members, round_, victim, colluders)
    left = (slots + np.uint64(PLAIN_MODULUS) - mask) % np.uint64(PLAIN_MODULUS)
    assert _uniformity(slots) > 1e-4
    assert _uniformity(left) > 1e-4
    # The test sees an update without its masks at once.
    bare = SumTag(members.epochs[victim].group_key, b"c" * 32).append(
        pack(np.full(count, level), members.terms.layout)
    )
    assert _uniformity(bare) < 1e-100


def test_t_minus_one_shares_fit_every_secret_and_t_give_the_one(house):
    from hansa.secure_agg.shamir import FIELD_PRIME, combine

    members = house(5)
    round_ = members.begin()
    for name in members.names:
        members.start(name, round_)
    victim = members.machines["bank-000"]._own
    shares = {
        index: members.machines[name]._attempt.shares["bank-000"] for index, name in enumerate(members.names)
    }
    for kind, secret in ((slice(0, 32), victim.seed), (slice(32, 64), victim.mask_private)):
        for chosen in itertools.combinations(range(1, 5), 4):
            assert combine({index: shares[index][kind] for index in chosen}, 4) == secret
        known = {index: shares[index][kind] for index in (1, 2, 3)}
        for guess in (0, 1, FIELD_PRIME - 1, int.from_bytes(secret, "little") ^ 1):
            # A fourth share exists that makes the three fit any guess: solve for it by linearity.
            zero = int.from_bytes(combine(known | {4: bytes(32)}, 4), "little")
            one = int.from_bytes(combine(known | {4: (1).to_bytes(32, "little")}, 4), "little")
            fourth = (guess - zero) * pow(one - zero, -1, FIELD_PRIME) % FIELD_PRIME
            assert int.from_bytes(combine(known | {4: fourth.to_bytes(32, "little")}, 4), "little") == guess


def test_two_attempts_with_the_same_update_have_unrelated_masks(house):
    members = house(4)
    slots = []
    for attempt in (0, 1):
        round_ = members.uploaded(1, attempt, count=members.terms.layout.capacity(3))
        round_.levels = dict.fromkeys(members.names, np.zeros(1))
        slots.append(_decrypt_alone(members.epochs["bank-000"].he_key, round_.uploads["bank-000"][1]))
    assert _uniformity((slots[0] + np.uint64(PLAIN_MODULUS) - slots[1]) % np.uint64(PLAIN_MODULUS)) > 1e-4


def test_machines_show_no_secret(house):
    members = house(4)
    round_ = members.begin()
    members.start("bank-000", round_)
    machine = members.machines["bank-000"]
    epoch = members.epochs["bank-000"]
    shown = [
        machine,
        machine._own,
        machine._attempt,
        epoch,
        members.stores["bank-000"],
        members.setup("bank-000"),
    ]
    text = " ".join(map(repr, shown))
    for secret in (
        machine._own.mask_private,
        machine._own.seed,
        epoch.group_key,
        epoch.he_key.export()[:64],
        b"m" * 32,
    ):
        assert secret.hex()[:8] not in text
        assert repr(secret)[2:10] not in text
    assert "bank-000" in text
    assert replace(machine._own, number=9).number == 9
