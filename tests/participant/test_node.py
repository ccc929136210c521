"""A participant inside the whole path: exact sums, equal states, secret randomness."""

import random

import numpy as np
import pytest
import torch

import hansa.participant.local_update as node_module
from hansa import errors
from hansa.participant.shared_state import SharedState
from hansa.privacy.noise import SecretRandom
from hansa.secure_agg.bfv import HeKey
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES
from hansa.secure_agg.parameters import layout_for
from hansa.study import parse_study

# -- the sum ------------------------------------------------------------------------------------------------


def test_the_decrypted_sum_is_the_sum_of_the_quantised_updates_integer_for_integer(house, tiny, monkeypatch):
    levels, sums = [], []
    quantise, dequantise = node_module.quantise, node_module.dequantise_sum

    def quantise_and_note(*values):
        levels.append(quantise(*values))
        return levels[-1].copy()

    def note_and_dequantise(total, *values):
        sums.append(total.copy())
        return dequantise(total, *values)

    monkeypatch.setattr(node_module, "quantise", quantise_and_note)
    monkeypatch.setattr(node_module, "dequantise_sum", note_and_dequantise)
    house.run()
    people = len(tiny.NAMES)
    assert len(levels) == len(sums) == people * house.study.training.rounds
    for start in range(0, len(levels), people):
        plain = np.sum(levels[start : start + people], axis=0)
        assert plain.dtype == np.int64
        assert np.count_nonzero(plain) > plain.size // 2
        for total in sums[start : start + people]:
            np.testing.assert_array_equal(total, plain)
        # Unlike updates went in: the sum is not a multiple of one of them.
        assert len({one.tobytes() for one in levels[start : start + people]}) == people


def test_all_states_are_bit_identical_after_every_round_and_every_round_moves_them(house):
    seen = [house.digests()]
    house.run(lambda _: seen.append(house.digests()))
    assert [len(digests) for digests in seen] == [1, 1, 1]
    assert len(set.union(*seen)) == 3
    assert len({node.state.values.tobytes() for node in house.nodes.values()}) == 1
    assert len({node.state.transcript for node in house.nodes.values()}) == 1


def test_a_round_moves_its_support_only_and_the_support_fills_whole_ciphertexts(
    houses, tiny, tiny_bases, monkeypatch
):
    supports, select = [], node_module.select_support

    def select_and_note(*values, **named):
        supports.append(select(*values, **named))
        return supports[-1]

    monkeypatch.setattr(node_module, "select_support", select_and_note)
    text = tiny.TINY_STUDY.replace("dim = 8", "dim = 16", 1).replace("experts = 8", "experts = 128")
    study = parse_study(text.replace("expert_dim = 4\nshared", "expert_dim = 8\nshared", 1))
    house = houses(study, tiny_bases(study))
    before = house.base.layout.gather(house.base.model())
    entries_per_ciphertext = layout_for(len(tiny.NAMES)).capacity(1)  # beside the tag
    assert 0.3 * before.size < entries_per_ciphertext < before.size
    house.close()
    moved = np.flatnonzero(house.nodes["bank-1"].state.values != before)
    # 0.3 of the entries was agreed on; one ciphertext has room for more. (A few sums of levels are zero.)
    assert entries_per_ciphertext * 0.95 < moved.size <= entries_per_ciphertext
    support = {support.tobytes() for support in supports}
    assert len(support) == 1
    chosen = np.frombuffer(support.pop(), dtype=np.int64)
    assert chosen.size == entries_per_ciphertext
    assert set(moved) <= set(chosen)
    assert set(house.base.layout.positions(study.compression.always)) <= set(chosen)
    for wire in house.wires.values():
        assert [len(part) for part in wire.sent[1:]] == [SEEDED_BYTES]


# -- divergence ---------------------------------------------------------------------------------------------


def disturb(monkeypatch, state, round_index, part):
    """Let the last bit of one entry of a state come out otherwise in a round."""
    apply = SharedState.apply

    def apply_wrongly(self, *values):
        apply(self, *values)
        if self is state and self.round == round_index:
            vector = getattr(self, part)
            vector[5] = np.nextafter(vector[5], np.inf)

    monkeypatch.setattr(SharedState, "apply", apply_wrongly)


@pytest.mark.parametrize("part", ["values", "first", "second", "decay_first", "decay_second"])
@pytest.mark.parametrize("round_index", [1, 2])
def test_a_state_that_comes_out_otherwise_is_found_by_the_coordinator_in_the_same_round(
    house, monkeypatch, part, round_index
):
    finished = []
    disturb(monkeypatch, house.nodes["bank-3"].state, round_index, part)
    with pytest.raises(errors.ModelDivergence, match=f"results of round {round_index}$"):
        house.run(lambda summary: finished.append(summary.round))
    assert finished == list(range(1, round_index))


def test_a_state_that_comes_out_otherwise_is_found_by_every_member_and_nobody_goes_on(house, monkeypatch):
    disturb(monkeypatch, house.nodes["bank-3"].state, 1, "values")
    results = house.open()
    packages, shares = house.begin(2)
    for name, node in house.nodes.items():
        offered = packages, shares[name]
        with pytest.raises(errors.ModelDivergence):
            node.close(1, 0, results)
        with pytest.raises(errors.OutOfOrder, match="held different states"):
            node.train(2, 0, *offered)


def test_a_state_that_changes_between_rounds_is_found_at_the_headers_before_the_sum_is_opened(
    house, tiny, monkeypatch
):
    """By the aggregator, and by every member that is shown such a header all the same."""
    house.close(1)
    house.nodes["bank-3"].state.values[5] += 1e-9
    headers = house.train(2)
    assert house.aggregator.contributors == ("bank-1", "bank-2", "bank-4")
    assert type(house.aggregator.refused["bank-3"]) is errors.ModelDivergence
    shown, aggregate = house.service.download(2, 0)
    monkeypatch.setattr(house.service, "download", lambda *_: (headers, aggregate))
    monkeypatch.setattr(HeKey, "decrypt", None)  # a call of it would be a TypeError
    for name in tiny.NAMES:
        with pytest.raises(errors.ModelDivergence, match="belongs to another model state"):
            house.nodes[name].answer(2, 0)
        assert house.nodes[name].state.round == 1
        assert tiny.kinds(house.ledgers[name]) == ["reserve", "commit", "reserve"]
    assert len(shown) == 3


def test_results_that_agree_with_each_other_but_not_with_the_own_one_do_not_close_a_round(house, monkeypatch):
    """The coordinator shows a member the results of the three others only."""
    disturb(monkeypatch, house.nodes["bank-3"].state, 1, "values")
    results = house.open()
    with pytest.raises(errors.ModelDivergence):
        house.nodes["bank-3"].close(1, 0, [results[0], results[1], results[3]])
    house.nodes["bank-1"].close(1, 0, [results[0], results[1], results[3]])


def test_a_member_whose_model_state_changed_is_left_behind_and_the_others_go_on(house):
    def change(summary):
        contributors.append(summary.contributors)
        house.nodes["bank-3"].state.values[5] += 1e-9

    contributors = []
    house.run(change)
    assert contributors == [house.names, ("bank-1", "bank-2", "bank-4")]
    assert [node.state.round for node in house.nodes.values()] == [2, 2, 1, 2]
    assert {type(error) for error in house.errors["bank-3"]} == {errors.ModelDivergence}


def test_a_member_with_another_history_is_left_behind_and_the_others_go_on(house):
    def change(summary):
        contributors.append(summary.contributors)
        house.nodes["bank-3"].state.transcript = bytes([summary.round] * 32)

    contributors = []
    house.run(change)
    assert contributors == [house.names, ("bank-1", "bank-2", "bank-4")]
    assert [node.state.round for node in house.nodes.values()] == [2, 2, 1, 2]
    # Its upload fitted no other one, and the certificate of the round is for another history than its own.
    assert [type(error) for error in house.errors["bank-3"]] == [
        errors.TranscriptDivergence,
        errors.CohortMismatch,
    ]


# -- randomness ---------------------------------------------------------------------------------------------


def test_public_seeds_move_neither_noise_nor_sampling_nor_keys(houses, tiny_study, tiny_bases):
    outcomes, keys, starts = [], [], []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        house = houses(base=tiny_bases(tiny_study, seed=3))
        starts.append(house.nodes["bank-1"].state.values.copy())
        house.run()
        outcomes.append(house.nodes["bank-1"].state.values)
        keys.append(house.nodes["bank-1"].membership.entered[0])
    np.testing.assert_array_equal(starts[0], starts[1])
    assert np.count_nonzero(outcomes[0] == outcomes[1]) < 10
    assert keys[0].group_key != keys[1].group_key
    assert keys[0].he_key.export() != keys[1].he_key.export()
    assert set(keys[0].pair_keys.values()).isdisjoint(keys[1].pair_keys.values())


def test_a_node_takes_its_secret_randomness_from_the_argument_that_only_tests_give(houses, tiny):
    """The counterpart of the test above: with injected streams two runs end in the same vector."""
    outcomes = []
    for _ in range(2):
        streams = {name: SecretRandom(name.encode().ljust(32)) for name in tiny.NAMES}
        house = houses(random=streams)
        house.run()
        outcomes.append(house.nodes["bank-1"].state.values)
    np.testing.assert_array_equal(outcomes[0], outcomes[1])


# -- what a node shows --------------------------------------------------------------------------------------


def test_no_secret_is_in_a_repr(house):
    house.answer()
    node = house.nodes["bank-1"]
    shown = repr(node) + str(node.__dict__) + repr(node.membership.entered) + str(node.membership.__dict__)
    epoch = node.membership.entered[0]
    secrets = [
        epoch.group_key,
        epoch.he_key.export(),
        *epoch.pair_keys.values(),
        house.identities["bank-1"].export(),
    ]
    for secret in secrets:
        assert repr(secret) not in shown
        assert secret.hex() not in shown


def test_step_times_are_kept_for_every_step(house):
    house.run()
    seconds = house.nodes["bank-1"].step_seconds()
    assert {
        "reserve the budget",
        "train",
        "mask and encrypt",
        "upload",
        "download",
        "answer",
        "unmask and decrypt",
        "apply",
    } <= set(seconds)
    assert all(value >= 0 for value in seconds.values())


def test_every_member_leaves_the_same_share_of_the_way_from_the_base_and_the_state_stays(
    houses, tiny_study, tiny_bases
):
    training = tiny_study.training.model_copy(update={"result_share": 0.25})
    study = tiny_study.model_copy(update={"training": training})
    base = tiny_bases(study)
    house = houses(study, base)
    house.run()
    start = base.layout.gather(base.model())
    results = {node.result().tobytes() for node in house.nodes.values()}
    assert len(results) == len(house.digests()) == 1
    node = house.nodes["bank-1"]
    assert not np.array_equal(node.state.values, start)
    np.testing.assert_array_equal(node.result(), start + 0.25 * (node.state.values - start))
    again = house.restart("bank-1")  # the base is read anew, the state comes from the store
    assert again.result().tobytes() == results.pop()
