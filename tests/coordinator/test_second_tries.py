"""Attempts, rounds that are left behind, and new keys: how the loop goes on after what went wrong."""

import dataclasses

import numpy as np
import pytest

from hansa import errors
from hansa.local_grid import from_bytes
from hansa.participant import local_update
from hansa.participant.trainer import Trainer
from hansa.secure_agg.messages import Void, open_signed, sign_message
from hansa.secure_agg.participant import RoundMachine
from hansa.study import parse_study


@pytest.fixture
def longer(houses, tiny_study, tiny_bases):
    """A house whose study has as many rounds as are wanted, with further changes to how it aggregates."""

    def make(rounds, **aggregation):
        study = tiny_study.with_changes(rounds=rounds)
        if aggregation:
            settings = study.aggregation.model_copy(update=aggregation)
            study = study.model_copy(update={"aggregation": settings})
        return houses(study, tiny_bases(study))

    return make


def spoil(rounds, monkeypatch, attempts=(0,)):
    """Let bank-2 mask its update wrongly in some rounds: the sum fails its tag at everybody."""
    seeds = RoundMachine._mask_seeds

    def wrong(self, attempt, own):
        found = seeds(self, attempt, own)
        spoils = attempt.round in rounds and attempt.attempt in attempts
        return found[1:] if spoils and self._epoch.participant == "bank-2" else found

    monkeypatch.setattr(RoundMachine, "_mask_seeds", wrong)


def fail_once(house, names, kind, rounds=(1,), *, acts=False):
    """Let the nodes of some members fail at one exchange until they were asked twice, as after a loss of messages.

    acts: They do what they are asked for, and the answers are lost.
    """
    for name in names:
        node = house.node_ids[name]
        original, failed = house.grid._handlers[node], []

        def handler(data, original=original, failed=failed):
            metadata = from_bytes(data).metadata
            if metadata.message_type == kind and int(metadata.group_id) in rounds and len(failed) < 2:
                failed.append(metadata.message_id)
                if acts:
                    original(data)
                raise ConnectionError("lost")
            return original(data)

        house.grid._handlers[node] = handler


def assert_alike(house, rounds):
    assert {node.state.round for node in house.nodes.values()} == {rounds}
    assert len(house.digests()) == 1


def test_below_the_threshold_a_round_gets_another_attempt_with_the_same_updates(longer, tiny):
    house, summaries = longer(2), []
    fail_once(house, house.names[:2], "train")
    house.run(summaries.append)
    assert [(summary.round, summary.attempt) for summary in summaries] == [(1, 1), (2, 0)]
    assert summaries[0].contributors == house.names
    assert_alike(house, 2)
    for name in house.names:  # whoever had trained has paid once
        assert tiny.kinds(house.ledgers[name]) == ["reserve", "commit"] * 2


@pytest.mark.parametrize("kind", ["query.answer", "query.consents"])
def test_releases_that_are_lost_are_asked_for_again_before_another_attempt(longer, kind):
    """Whoever has released for a model state serves no other attempt at it: the round would have no way on."""
    house, summaries = longer(2), []
    if kind == "query.consents":
        fail_once(house, ["bank-4"], "train")
    fail_once(house, house.names[:2], kind, acts=True)
    house.run(summaries.append)
    assert [(summary.round, summary.attempt) for summary in summaries] == [(1, 0), (2, 0)]
    assert_alike(house, 2)
    assert not any(
        type(error) is errors.AlreadyReleased for found in house.errors.values() for error in found
    )


def test_uploads_that_do_not_agree_cost_an_attempt(longer):
    """With a member away, one of another state is enough to leave fewer than T that say the same."""
    house, summaries = longer(2), []
    fail_once(house, ["bank-4"], "train")
    house.nodes["bank-2"].state.values[5] += 1e-9
    house.run(summaries.append)
    assert [(summary.round, summary.attempt) for summary in summaries] == [(1, 1), (2, 0)]
    assert summaries[0].contributors == ("bank-1", "bank-3", "bank-4")


def lose_one_answer(house, name, kinds):
    """Let a member do what it is asked, and its answer to each of some exchanges be lost once."""
    for kind in kinds:
        node, lost = house.node_ids[name], []
        original = house.grid._handlers[node]

        def handler(data, original=original, lost=lost, kind=kind):
            answer = original(data)
            if from_bytes(data).metadata.message_type == kind and not lost:
                lost.append(kind)
                raise ConnectionError("lost")
            return answer

        house.grid._handlers[node] = handler


def test_an_answer_that_is_lost_once_costs_nothing(longer):
    house, summaries = longer(2), []
    lose_one_answer(house, "bank-2", ("train", "query.answer", "query.unmask", "query.close", "query.enter"))
    house.run(summaries.append)
    assert [(summary.round, summary.attempt) for summary in summaries] == [(1, 0), (2, 0)]
    assert [summary.finished for summary in summaries] == [house.names] * 2
    assert summaries[0].contributors == house.names
    assert_alike(house, 2)


def test_an_answer_that_is_lost_once_does_not_end_a_strict_study(strict_house):
    """There nobody may miss, so nothing could be caught up."""
    house, summaries = strict_house, []
    lose_one_answer(house, "bank-2", ("train", "query.open", "query.close", "query.enter"))
    house.run(summaries.append)
    assert [(summary.round, summary.attempt) for summary in summaries] == [(1, 0), (2, 0)]
    assert_alike(house, 2)
    # Only an epoch is not entered twice; another one was set up instead.
    assert [type(error) for error in house.errors["bank-2"]] == [errors.OutOfOrder]


def test_a_round_that_cannot_be_opened_is_left_behind_and_the_study_goes_on(longer, monkeypatch, tiny):
    house, summaries = longer(3), []
    spoil({2}, monkeypatch)
    states = []
    house.run(lambda s: (summaries.append(s), states.append(house.nodes["bank-1"].state.values.copy())))
    assert [summary.void for summary in summaries] == [False, True, False]
    assert {type(error) for found in house.errors.values() for error in found} == {
        errors.AggregateTagMismatch
    }
    np.testing.assert_array_equal(states[0], states[1])  # the model stays
    assert not np.array_equal(states[1], states[2])
    assert_alike(house, 3)
    for name in house.names:  # the round counts, and its updates have left
        assert tiny.kinds(house.ledgers[name]) == ["reserve", "commit"] * 3


def test_a_false_void_does_not_keep_the_others_from_leaving_a_round_behind(longer, monkeypatch):
    """Whoever spoilt the sum signs something else than T others do."""
    house, summaries = longer(3), []
    spoil({2}, monkeypatch)
    void = RoundMachine.void

    def false(self, *at, transcript):
        signed = void(self, *at, transcript=transcript)
        if self._epoch.participant != "bank-2":
            return signed
        body = open_signed(signed, Void, house.roster, 1)
        return sign_message(house.identities["bank-2"], dataclasses.replace(body, roster_hash=bytes(32)))

    monkeypatch.setattr(RoundMachine, "void", false)
    house.run(summaries.append)
    assert [summary.void for summary in summaries] == [False, True, False]
    assert_alike(house, 3)


def test_after_two_sums_that_cannot_be_opened_the_keys_are_new(longer, monkeypatch):
    house, summaries = longer(4), []
    spoil({1, 3}, monkeypatch)
    house.run(summaries.append)
    assert [(summary.epoch, summary.void) for summary in summaries] == [
        (1, True), (1, False), (1, True), (2, False),
    ]  # fmt: skip
    assert_alike(house, 4)


def test_keys_are_renewed_after_as_many_rounds_as_the_study_says(longer):
    house, summaries, keys = longer(5, rounds_per_epoch=2), [], []

    def note(summary):
        summaries.append(summary)
        keys.append(house.nodes["bank-1"].membership.entered[0].he_key.key_id)

    house.run(note)
    assert [summary.epoch for summary in summaries] == [1, 1, 2, 2, 3]
    assert [len(set(keys[:upto])) for upto in range(1, 6)] == [1, 1, 2, 2, 3]
    assert_alike(house, 5)


def test_a_member_that_returns_while_keys_are_renewed_catches_up_under_the_old_ones(longer):
    """The certificate of a round is of its epoch: whoever enters the next one first can never open it."""
    house, summaries = longer(2, rounds_per_epoch=1), []
    node, gone = house.node_ids["bank-4"], []
    original = house.grid._handlers[node]

    def handler(data):
        kind = from_bytes(data).metadata.message_type
        if kind == "train" and not summaries:
            gone.append(kind)
        if gone.count("query.join") == 2:  # it misses the first set-up
            gone.clear()
        if gone:
            gone.append(kind)
            raise ConnectionError("away")
        return original(data)

    house.grid._handlers[node] = handler
    house.run(summaries.append)
    assert [(summary.round, summary.epoch) for summary in summaries] == [(1, 1), (2, 3)]
    assert_alike(house, 2)


def test_members_refuse_keys_that_have_served_their_rounds(longer, monkeypatch):
    house, summaries = longer(3, rounds_per_epoch=2), []
    with pytest.raises(errors.ParticipantLost, match="refused: aborted"):
        house.run(summaries.append, rounds_per_epoch=0)  # a coordinator that forgets
    assert len(summaries) == 2
    assert type(house.errors["bank-1"][0]) is errors.KeyRotationDue


def test_a_member_that_was_away_leaves_the_void_round_behind_when_it_returns(longer, monkeypatch):
    house, summaries = longer(3), []
    spoil({2}, monkeypatch)
    node, gone = house.node_ids["bank-4"], []
    original = house.grid._handlers[node]

    def handler(data):
        metadata = from_bytes(data).metadata
        if metadata.message_type == "train" and metadata.group_id == "2":
            gone.append(1)
        if metadata.message_type == "query.skip" and len(gone) < 4:
            gone.append(1)
            raise ConnectionError("away")
        if gone and metadata.message_type != "query.skip":
            raise ConnectionError("away")
        if metadata.message_type == "query.skip":
            gone.clear()
        return original(data)

    house.grid._handlers[node] = handler
    house.run(summaries.append)
    assert [summary.void for summary in summaries] == [False, True, False]
    assert summaries[1].finished == ("bank-1", "bank-2", "bank-3")
    assert_alike(house, 3)


def test_who_was_away_helps_to_leave_a_round_behind_that_a_spoiler_keeps_quiet_about(longer, monkeypatch):
    """With n = 4 the spoiler and one that was away are more than may vanish; three that can sign are there all the same."""
    house, summaries = longer(3), []
    spoil({2}, monkeypatch)
    for name, kind in (("bank-2", "query.void"), ("bank-4", "train")):
        node = house.node_ids[name]
        original = house.grid._handlers[node]

        def handler(data, original=original, kind=kind):
            metadata = from_bytes(data).metadata
            if (metadata.message_type, metadata.group_id) == (kind, "2"):
                raise ConnectionError("silent")
            return original(data)

        house.grid._handlers[node] = handler
    house.run(summaries.append)
    assert [(summary.attempt, summary.void) for summary in summaries] == [(0, False), (0, True), (0, False)]
    assert summaries[1].contributors == ("bank-1", "bank-2", "bank-3")
    assert_alike(house, 3)


def test_a_strict_round_whose_sum_is_false_is_tried_again_with_the_same_updates(
    strict_house, monkeypatch, tiny
):
    house, summaries = strict_house, []
    spoil({1}, monkeypatch)
    house.run(summaries.append)
    assert [(summary.round, summary.attempt, summary.epoch) for summary in summaries] == [
        (1, 1, 1),
        (2, 0, 1),
    ]
    assert_alike(house, 2)
    assert tiny.kinds(house.ledgers["bank-1"]) == ["reserve", "commit"] * 2


def test_a_refusal_by_policy_is_not_asked_for_again(longer, tiny_study):
    house, asked = longer(2), []
    for name in house.names[:2]:
        node = house.nodes[name]
        node._policy = dataclasses.replace(node._policy, epsilon_limit=0.0)
        node.budget.epsilon_limit = 0.0
    with pytest.raises(errors.ParticipantLost, match="bank-1 refused: budget_exhausted; bank-2 refused"):
        house.run()
    asked = [from_bytes(data).metadata.message_type for way, data in house.grid_bytes if way == "to node"]
    assert asked.count("train") == len(house.names)


def test_an_update_that_meets_the_keys_of_another_epoch_moves_to_their_support(
    houses, tiny, tiny_bases, monkeypatch
):
    """Two false sums of one round bring new keys, under which other entries are explored than it was trained on."""
    text = tiny.TINY_STUDY.replace('"quorum"', '"strict"').replace("dim = 8", "dim = 16", 1)
    text = text.replace("experts = 8", "experts = 128").replace("rounds = 2", "rounds = 1")
    study = parse_study(text.replace("expert_dim = 4\nshared", "expert_dim = 8\nshared", 1))
    house, summaries, trained, sums, applied = houses(study, tiny_bases(study)), [], [], [], []
    train, quantise, apply = Trainer.update, local_update.quantise, local_update.LocalUpdates.apply

    def note_and_train(self, values, support):
        trained.append([support])
        return train(self, values, support)

    def quantise_and_note(*values):
        trained[-1].append(quantise(*values))
        return trained[-1][1]

    def note_and_apply(self, state, round_index, opened, group_key):
        sums.append(opened.total)
        applied.append(self._support(state, round_index, group_key))
        apply(self, state, round_index, opened, group_key)

    monkeypatch.setattr(Trainer, "update", note_and_train)
    monkeypatch.setattr(local_update, "quantise", quantise_and_note)
    monkeypatch.setattr(local_update.LocalUpdates, "apply", note_and_apply)
    spoil({1}, monkeypatch, attempts=(0, 1))
    house.run(summaries.append)
    assert [(summary.round, summary.attempt, summary.epoch) for summary in summaries] == [(1, 2, 2)]
    plain = np.zeros(house.base.layout.size, dtype=np.int64)
    for support, levels in trained:
        plain[support] += levels
    before, after = trained[0][0], applied[0]
    assert len(trained) == len(house.names)  # nobody trained twice
    assert 0 < np.setdiff1d(after, before).size < after.size
    for total in sums:
        np.testing.assert_array_equal(total, plain[after])
    assert_alike(house, 1)
    for name in house.names:
        assert tiny.kinds(house.ledgers[name]) == ["reserve", "commit"]
