"""A participant whose noise is a share of the sum's: exact sums, too small a roster, dropouts, crashes, other keys."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from hansa import errors
from hansa.coordinator.aggregator import AggregationService
from hansa.participant import local_update
from hansa.participant.distributed_update import DistributedUpdates
from hansa.participant.node_state import TrainedUpdate, load_update, save_update
from hansa.participant.policy import Policy
from hansa.privacy.audit import audit_ledger
from hansa.privacy.noise import SecretRandom
from hansa.privacy.spending import Spending, total_epsilon
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.store import MemoryStore
from hansa.study import parse_study


@pytest.fixture(scope="module")
def shared_text(tiny):
    """The tiny study with noise of three members at least, of whom one may tell it."""
    text = tiny.TINY_STUDY.replace(
        "[privacy]", '[privacy]\nmode = "distributed"\nnoise_contributors = 3\ncolluders = 1'
    )
    return text.replace("[compression]", "[compression]\nbits = 16")


@pytest.fixture
def shared_houses(houses, tiny, tiny_bases, shared_text):
    def make(contributors=3, mode="quorum", **replaced):
        text = shared_text.replace("noise_contributors = 3", f"noise_contributors = {contributors}")
        study = parse_study(text.replace('"quorum"', f'"{mode}"'))
        policy = Policy(studies=frozenset({study.id}), epsilon_limit=8.0, noise_contributors_least=3)
        policies = dict.fromkeys(tiny.NAMES, policy) | replaced.pop("policies", {})
        return houses(study, tiny_bases(study), policies=policies, **replaced)

    return make


@pytest.fixture
def shared_house(shared_houses):
    return shared_houses()


def plan(house):
    return house.nodes["bank-1"].updates._distributed.plan


def epsilon(house, *arrived):
    """ε of rounds with so many members each."""
    steps = {}
    for members in arrived:
        key = (plan(house).noise.arrived(members).noise_multiplier, house.study.privacy.sample_rate)
        steps[key] = steps.get(key, 0) + 1
    return total_epsilon(steps, house.study.privacy.delta)


def contributors(house, tiny, name):
    return [entry["distributed"]["contributors"] for entry in tiny.entries(house.ledgers[name])]


# -- sums -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["quorum", "strict"])
def test_all_states_are_bit_identical_and_sums_are_those_of_the_integers(
    shared_houses, tiny, monkeypatch, mode
):
    house = shared_houses(4 if mode == "strict" else 3, mode)
    sent, opened, train, apply = [], [], DistributedUpdates.train, local_update.LocalUpdates.apply

    def train_and_note(self, *values):
        sent.append(train(self, *values))
        return sent[-1].copy()

    def apply_and_note(self, state, round_index, found, key):
        opened.append(found.total.copy())
        return apply(self, state, round_index, found, key)

    monkeypatch.setattr(DistributedUpdates, "train", train_and_note)
    monkeypatch.setattr(local_update.LocalUpdates, "apply", apply_and_note)
    seen = [house.digests()]
    house.run(lambda _: seen.append(house.digests()))
    assert [len(digests) for digests in seen] == [1, 1, 1]
    assert len(set.union(*seen)) == 3
    for start in (0, 4):
        total = sum(sent[start : start + 4])
        for found in opened[start : start + 4]:
            np.testing.assert_array_equal(found, total)
    assert plan(house).wrap_chance() < 1e-50
    # each member's share of the noise is half of what it would add alone, but for rounding
    noise, target = plan(house).noise, house.nodes["bank-1"].noise_multiplier
    alone = target * noise.sensitivity
    assert math.sqrt(noise.variance * noise.honest) == pytest.approx(alone, rel=1e-3)
    assert {tuple(tiny.kinds(house.ledgers[name])) for name in tiny.NAMES} == {("reserve", "commit") * 2}
    assert epsilon(house, 4, 4) == house.nodes["bank-1"].budget.epsilon() < house.study.privacy.epsilon


def test_messages_have_the_same_length_whatever_the_data_are(shared_houses, tiny, tiny_tables):
    """Rows a thousand times as many or as large neither clamp nor lengthen anything."""
    lengths = []
    for rows in (
        tiny_tables["bank-1"].rows,
        type(tiny_tables["bank-1"].rows)(
            features=tiny_tables["bank-1"].rows.features.repeat(8, 1, 1),
            labels=tiny_tables["bank-1"].rows.labels.repeat(8),
        ),
    ):
        house = shared_houses(rows={"bank-1": rows})
        house.train()
        lengths.append([len(part) for part in house.wires["bank-1"].sent])
        store = house.stores["bank-1"]
        lengths[-1].append(len(store.get("node/update")))
    assert lengths[0] == lengths[1]


def test_a_dropout_leaves_an_exact_sum_and_the_noise_of_those_who_were_there(shared_house, tiny):
    house = shared_house
    lose_uploads(house, "bank-4", times=1000)
    summaries = []
    house.run(summaries.append)
    assert [summary.contributors for summary in summaries] == [house.names[:3]] * 2
    assert len(house.digests()) == 1
    for name in tiny.NAMES[:3]:
        assert contributors(house, tiny, name) == [3, 3, 3, 3]
        assert house.nodes[name].budget.epsilon() == epsilon(house, 3, 3) <= 8.0
    assert house.nodes["bank-4"].budget.epsilon() == 0.0


# -- too little noise -------------------------------------------------------------------------------------


def without_noise_rule(house):
    """A coordinator that closes a roster of T, whatever the study says of noise."""
    terms = Terms(participants=4, mode="quorum", bits=16)
    service = AggregationService(house.roster, terms)
    house.service = service
    for wire in house.wires.values():
        wire.service = service
    return service


def test_a_roster_of_fewer_members_is_refused_before_anything_is_released(shared_houses, tiny):
    house = shared_houses(contributors=4)
    without_noise_rule(house)
    house.begin()
    for name in tiny.NAMES[:3]:
        house.nodes[name].train(1, 0, house.packages, house.shares[name])
    house.service.close()
    for name in tiny.NAMES[:3]:
        node, machine = house.nodes[name], house.nodes[name].membership.entered[1]
        with pytest.raises(
            errors.TooLittleNoise, match=r"a sum of 3 updates has too little noise.*4 members"
        ):
            node.answer(1, 0)
        assert machine.release is None
        assert not machine.locked
        assert house.stores[name].keys("release/") == []
        assert tiny.kinds(house.ledgers[name]) == ["reserve"]  # spent, and nothing more
        assert node.budget.epsilon() == epsilon(house, 4)
    kept = {name: load_update(house.stores[name]).levels for name in tiny.NAMES[:3]}
    # With everybody back, another attempt sends the same update and spends nothing.
    house.close(1, 1)
    assert len(house.digests()) == 1
    assert tiny.kinds(house.ledgers["bank-1"]) == ["reserve", "commit"]
    assert len(kept) == 3


def test_nobody_opens_such_a_sum_by_a_certificate_either(shared_houses, tiny):
    house = shared_houses(contributors=4)
    without_noise_rule(house)
    house.begin()
    for name in tiny.NAMES[:3]:
        house.nodes[name].train(1, 0, house.packages, house.shares[name])
    house.service.close()
    with pytest.raises(errors.TooLittleNoise):
        house.nodes["bank-4"].catch_up(1, 0, house.packages, [b"release"])


def test_a_cohort_of_fewer_members_is_refused_before_anything_is_read_or_spent(shared_houses, tiny):
    house = shared_houses(contributors=4, rows=dict.fromkeys(tiny.NAMES, tiny.Untouchable()))
    without_noise_rule(house)
    house.begin(cohort=tiny.NAMES[:3])
    node = house.nodes["bank-1"]
    with pytest.raises(errors.TooLittleNoise):
        node.train(1, 0, house.packages, house.shares["bank-1"])
    assert not house.ledgers["bank-1"].exists()
    assert not house.wires["bank-1"].sent


def lose_uploads(house, name, times):
    """Let a member fail when it is asked to train; a node that fails is asked once more each time."""
    handler, failed = house.apps[name], []

    def lost(message, context):
        if message.metadata.message_type == "train" and len(failed) < times:
            failed.append(True)
            raise RuntimeError("gone")
        return handler(message, context)

    house.apps[name] = lost


def test_an_honest_coordinator_waits_for_enough_noise(shared_houses, tiny):
    house, summaries = shared_houses(contributors=4), []
    lose_uploads(house, "bank-4", times=2)
    house.run(summaries.append)
    assert [(one.attempt, one.contributors) for one in summaries] == [(1, house.names), (0, house.names)]
    assert contributors(house, tiny, "bank-1") == [4, 4, 4, 4]
    assert len(house.digests()) == 1


def test_a_study_without_enough_noise_ends_and_spends_no_more_than_its_reservations(shared_houses, tiny):
    house = shared_houses(contributors=4)
    lose_uploads(house, "bank-4", times=1000)
    with pytest.raises(errors.ParticipantLost, match=r"round 1 has 3 members left, below the threshold 4"):
        house.run()
    assert all(tiny.kinds(house.ledgers[name]) == ["reserve"] for name in tiny.NAMES[:3])
    assert {node.state.round for node in house.nodes.values()} == {0}


def test_a_refusal_for_lack_of_noise_leaves_as_its_code(shared_houses, tiny):
    house = shared_houses(contributors=4)
    without_noise_rule(house)
    house.begin()
    for name in tiny.NAMES[:3]:
        house.nodes[name].train(1, 0, house.packages, house.shares[name])
    house.service.close()
    assert house.ask("bank-1", "query.answer", round=1, attempt=0) == {"error": "too_little_noise"}


# -- policy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("least", "words"),
    [
        (None, "sets no noise_contributors_least"),
        (4, "noise of 3 members, below this participant's least, 4"),
    ],
)
def test_an_owner_that_did_not_ask_for_it_takes_no_part(shared_houses, tiny, least, words):
    study = shared_houses().study
    policy = Policy(studies=frozenset({study.id}), epsilon_limit=8.0, noise_contributors_least=least)
    house = shared_houses(rows={"bank-1": tiny.Untouchable()}, policies={"bank-1": policy})
    with pytest.raises(errors.ParticipantLost, match=r"^bank-1 refused: too_little_noise$"):
        house.run()
    assert words in house.errors["bank-1"][0].message
    assert not house.ledgers["bank-1"].exists()


def test_a_study_that_counts_every_members_noise_is_refused_unless_the_owner_says_so(shared_text):
    # Each member knows its own share: with none left uncounted epsilon does not hold towards the others.
    study = parse_study(shared_text.replace("colluders = 1", "colluders = 0"))
    policy = Policy(studies=frozenset({study.id}), epsilon_limit=8.0, noise_contributors_least=3)
    with pytest.raises(
        errors.TooLittleNoise, match="0 colluders uncounted, below this participant's least, 1"
    ):
        policy.verify_study(study)
    replace(policy, colluders_least=0).verify_study(study)


def test_an_owner_can_require_that_its_own_noise_suffices(shared_houses, tiny_study):
    study = shared_houses().study
    policy = Policy(
        studies=frozenset({study.id, tiny_study.id}),
        epsilon_limit=8.0,
        noise_contributors_least=3,
        required_layers=frozenset({"own_noise_suffices"}),
    )
    policy.verify_study(tiny_study)
    with pytest.raises(errors.LayerMissing, match="own_noise_suffices"):
        policy.verify_study(study)


# -- crashes ----------------------------------------------------------------------------------------------


def test_a_crash_before_the_round_is_applied_leaves_the_worst_case(shared_house, tiny):
    house = shared_house
    releases = house.answer()
    node = house.restart("bank-1")
    assert node.budget.epsilon() == epsilon(house, 3) > epsilon(house, 4)
    assert audit_ledger(house.ledgers["bank-1"]).epsilon == epsilon(house, 3)
    node.answer(1, 0)
    node.unmask(1, 0, releases)
    assert contributors(house, tiny, "bank-1") == [3, 4]
    assert house.restart("bank-1").budget.epsilon() == epsilon(house, 4)
    assert audit_ledger(house.ledgers["bank-1"]).epsilon == epsilon(house, 4)


def test_a_crash_between_the_new_state_and_the_commit_commits_what_arrived_afterwards(
    shared_house, tiny, monkeypatch
):
    house = shared_house
    releases = house.answer()

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(house.nodes["bank-1"].budget, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            house.nodes["bank-1"].unmask(1, 0, releases)
    assert contributors(house, tiny, "bank-1") == [3]
    house.restart("bank-1")
    assert contributors(house, tiny, "bank-1") == [3, 4]


def test_a_member_whose_upload_is_not_in_the_sum_claims_no_noise_that_arrived(shared_house, tiny):
    """It trained and reserved; its upload came too late, and it catches up with the round of the others."""
    house = shared_house
    house.begin()
    for name in tiny.NAMES[:3]:
        house.nodes[name].train(1, 0, house.packages, house.shares[name])
    house.service.close()
    with pytest.raises(errors.ProtocolError):
        house.nodes["bank-4"].train(1, 0, house.packages, house.shares["bank-4"])
    for name in tiny.NAMES[:3]:
        house.aggregator.accept_answer(house.nodes[name].answer(1, 0))
    consents = house.aggregator.consents()
    for name in tiny.NAMES[:3]:
        house.aggregator.accept_answer(house.nodes[name].consents(1, 0, consents))
    releases = house.aggregator.releases()
    for name in tiny.NAMES[:3]:
        house.nodes[name].unmask(1, 0, releases)
    house.nodes["bank-4"].catch_up(1, 0, house.packages, releases)
    assert len(house.digests()) == 1
    assert contributors(house, tiny, "bank-4") == [3, 3]
    assert house.nodes["bank-4"].budget.epsilon() == epsilon(house, 3)
    # however many they are: its data are in no sum, and what it reserved is not made cheaper by a sum of others
    opened = SimpleNamespace(contributors=(*tiny.NAMES[:3], "bank-5"))
    assert house.nodes["bank-4"]._contributors(opened) == 0
    assert house.nodes["bank-1"]._contributors(opened) == 4


def test_the_kept_update_survives_the_store_with_entries_beyond_32_bits():
    noise = {"contributors": 11, "colluders": 1, "variance": 10**6, "clip_levels": 3000, "entries": 2}
    spending = Spending.of_fields(
        {"study": "a", "round": 1, "attempt": 0, "noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 1}
        | {"distributed": noise}
    )
    levels = np.array([2**40, -(2**40)])
    store, support = MemoryStore(), np.array([1, 5])
    save_update(store, TrainedUpdate(model_hash=b"m" * 32, support=support, levels=levels, spending=spending))
    found = load_update(store)
    np.testing.assert_array_equal(found.levels, levels)
    assert found.spending == spending


# -- other keys, other entries ----------------------------------------------------------------------------


@pytest.fixture
def updates(shared_text):
    return DistributedUpdates(parse_study(shared_text), 400, SecretRandom(bytes(32)))


def kept_on(support):
    spending = Spending(
        study="a", round=1, attempt=0, noise_multiplier=1.0, sample_rate=0.1, steps=1, distributed=None
    )
    return TrainedUpdate(
        model_hash=b"m" * 32, support=support, levels=10**9 + np.arange(support.size), spending=spending
    )


def test_on_another_support_trained_entries_stay_and_all_others_carry_noise(updates):
    before, after = np.arange(0, 800, 2), np.arange(0, 1200, 3)
    kept = kept_on(before)
    moved = updates.moved(kept, after)
    common = np.isin(after, before)
    np.testing.assert_array_equal(moved.levels[common], 10**9 + after[common] // 2)
    fresh = moved.levels[~common]
    assert fresh.size > 200
    deviation = math.sqrt(updates.plan.noise.variance)
    assert 0.8 < fresh.std() / deviation < 1.2  # a whole share of noise, and no data
    assert abs(fresh.mean()) < 4 * deviation / math.sqrt(fresh.size)
    assert updates.moved(kept, before) is kept
    assert not np.array_equal(updates.moved(kept, after).levels, moved.levels)  # so it has to be kept


def test_what_was_moved_is_kept_before_it_is_given_out(shared_house, monkeypatch):
    house = shared_house
    house.train()
    node, store = house.nodes["bank-1"], house.stores["bank-1"]
    select = local_update.select_support
    size = node.state.values.size

    def other(*values, **named):
        chosen = select(*values, **named)
        return np.sort((chosen[: chosen.size - 1] + 1) % size) if chosen.size < size else chosen[::-1].copy()

    before = load_update(store)
    monkeypatch.setattr(local_update, "select_support", other)
    monkeypatch.setattr(node.updates, "_trainer", None)  # nothing is read again
    gate = house.nodes["bank-1"]._policy.verify_round
    levels = node.updates.levels(node.state, 1, 1, b"k" * 32, gate)
    np.testing.assert_array_equal(load_update(store).levels, levels)
    np.testing.assert_array_equal(node.updates.levels(node.state, 1, 1, b"k" * 32, gate), levels)
    assert load_update(store).spending == before.spending
