"""Members that vanish at any stage of a round: exact sums of the others, and the same state for everybody in the end."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

import hansa.participant.local_update as node_module
from hansa import errors
from hansa.local_grid import from_bytes, to_bytes
from hansa.participant.node import ParticipantNode

STAGES = ("train", "query.answer", "query.consents", "query.unmask", "query.close")
SEVEN = tuple(f"bank-{number}" for number in range(1, 8))


def vanish(house, name, stage, *, acts, rounds=(1,)):
    """Let a member answer nothing from a stage of some rounds on, until it is asked to catch up.

    acts: It still does what that request asks for, and its answer is lost.
    """
    node = house.node_ids[name]
    original, gone, reached = house.grid._handlers[node], [], []

    def handler(data):
        metadata = from_bytes(data).metadata
        kind, number = metadata.message_type, int(metadata.group_id)
        if kind == "query.catch_up":
            gone.clear()
        if not gone and kind == stage and number in rounds:
            gone.append(number)
            reached.append(number)
            if acts:
                original(data)
        if gone:
            raise ConnectionError("vanished")
        return original(data)

    house.grid._handlers[node] = handler
    return reached


@pytest.fixture
def noted(monkeypatch):
    """Levels by (round, member) that go in, and (round, member) -> (sum, contributors) that come out."""
    levels, opened = {}, {}
    quantise, apply = node_module.quantise, ParticipantNode._apply

    def quantise_and_note(values, bound, bits, uniform):
        found = quantise(values, bound, bits, uniform)
        levels.setdefault(id(uniform.__self__), []).append(found.copy())
        return found

    def note_and_apply(self, round_index, result):
        opened[round_index, self.name] = (result.total.copy(), result.contributors)
        apply(self, round_index, result)

    monkeypatch.setattr(node_module, "quantise", quantise_and_note)
    monkeypatch.setattr(ParticipantNode, "_apply", note_and_apply)
    return levels, opened


def assert_exact(house, noted, summaries, trained):
    """Every member opened, in every round, the sum of exactly the contributors, integer for integer."""
    levels, opened = noted
    by_member = {name: iter(levels.get(id(node.updates._random), [])) for name, node in house.nodes.items()}
    assert sorted(opened) == [(number, name) for number in (1, 2) for name in house.names]
    for summary in summaries:
        went_in = {name: next(by_member[name]) for name in trained[summary.round]}
        plain = sum(went_in[name] for name in summary.contributors)
        assert np.count_nonzero(plain) > plain.size // 2
        for name in house.names:
            total, contributors = opened[summary.round, name]
            assert contributors == summary.contributors
            np.testing.assert_array_equal(total, plain)
    assert not any(list(rest) for rest in by_member.values())


def assert_alike(house):
    assert [node.state.round for node in house.nodes.values()] == [2] * len(house.names)
    assert len(house.digests()) == 1
    assert len({node.state.values.tobytes() for node in house.nodes.values()}) == 1
    assert len({node.state.transcript for node in house.nodes.values()}) == 1


@pytest.mark.parametrize("rounds", [(1,), (1, 2)], ids=["once", "twice"])
@pytest.mark.parametrize("acts", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "query.consents"])
def test_one_of_four_vanishes_and_comes_back(house, noted, tiny, stage, acts, rounds):
    summaries = []
    reached = vanish(house, "bank-3", stage, acts=acts, rounds=rounds)
    house.run(summaries.append)
    assert reached == list(rounds)
    others = ("bank-1", "bank-2", "bank-4")
    trained = dict.fromkeys((1, 2), house.names)
    for summary in summaries:
        gone = summary.round in rounds
        left_out = gone and stage == "train" and not acts
        trained[summary.round] = others if left_out else house.names
        assert summary.contributors == trained[summary.round]
        assert summary.finished == (others if gone else house.names)
    assert_exact(house, noted, summaries, trained)
    assert_alike(house)
    # What was reserved was spent where the update was made, and nothing was spent where it was not.
    in_rounds = [number for number in (1, 2) if "bank-3" in trained[number]]
    found = [(entry["kind"], entry["round"]) for entry in tiny.entries(house.ledgers["bank-3"])]
    assert found == [(kind, number) for number in in_rounds for kind in ("reserve", "commit")]


@pytest.mark.parametrize("acts", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("first", ["before", "after"])
def test_two_of_seven_vanish_one_of_them_at_the_consents(houses, tiny_study, tiny_bases, noted, acts, first):
    """Of seven, five must remain. The first one vanishes at its training, or else nobody would ask for consents."""
    study = tiny_study.with_changes(participants=7)
    house, summaries = houses(study, tiny_bases(study), names=SEVEN), []
    vanish(house, "bank-2", "train", acts=False, rounds=(1, 2))
    stage = "query.consents" if first == "before" else "query.unmask"
    reached = vanish(house, "bank-5", stage, acts=acts, rounds=(1, 2))
    house.run(summaries.append)
    assert reached == [1, 2]
    uploaded = tuple(name for name in SEVEN if name != "bank-2")
    assert [summary.contributors for summary in summaries] == [uploaded] * 2
    assert [summary.finished for summary in summaries] == [
        tuple(name for name in uploaded if name != "bank-5")
    ] * 2
    assert_exact(house, noted, summaries, dict.fromkeys((1, 2), uploaded))
    assert_alike(house)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("query.unmask", "query.close")])
def test_two_of_four_that_vanish_end_the_study_and_nobody_decrypts(house, monkeypatch, stage):
    opened = []
    monkeypatch.setattr(ParticipantNode, "_apply", lambda *_: opened.append(1))
    vanish(house, "bank-1", "train" if stage == "query.consents" else stage, acts=False)
    vanish(house, "bank-3", stage, acts=False)
    with pytest.raises(errors.ParticipantLost, match="has 2 members left, below the threshold 3"):
        house.run()
    assert opened == []
    assert {node.state.round for node in house.nodes.values()} == {0}


def test_once_t_have_released_a_round_has_its_result_whoever_vanishes_then(house):
    vanish(house, "bank-1", "query.unmask", acts=False)
    vanish(house, "bank-3", "query.unmask", acts=True)
    summaries = []
    house.run(summaries.append)
    assert [(summary.round, summary.attempt) for summary in summaries] == [(1, 0), (2, 0)]
    assert_alike(house)


@pytest.mark.parametrize("acts", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stage", ["train", "query.open", "query.close"])
@pytest.mark.parametrize("participants", [3, 4])
def test_in_strict_mode_any_loss_ends_the_study(
    houses, strict_study, tiny_bases, tiny, participants, stage, acts
):
    study = strict_study.with_changes(participants=participants)
    house, summaries = houses(study, tiny_bases(study), names=tiny.NAMES[:participants]), []
    vanish(house, "bank-2", stage, acts=acts)
    with pytest.raises(errors.ParticipantLost, match=f"below the threshold {participants}: bank-2 failed"):
        house.run(summaries.append)
    assert summaries == []
    if stage == "train":
        assert {node.state.round for node in house.nodes.values()} == {0}


@pytest.mark.parametrize("participants", [3, 4])
def test_a_strict_study_runs_when_nobody_is_lost(houses, strict_study, tiny_bases, tiny, noted, participants):
    study = strict_study.with_changes(participants=participants)
    house, summaries = houses(study, tiny_bases(study), names=tiny.NAMES[:participants]), []
    house.run(summaries.append)
    assert_exact(house, noted, summaries, dict.fromkeys((1, 2), house.names))
    assert_alike(house)


# -- certificates ----------------------------------------------------------------------------------------------


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


TAMPERED = [
    (lambda packages, releases: (packages, releases[:2]), errors.NotEnoughShares),
    (lambda packages, releases: (packages, [*releases[:2], releases[0]]), errors.DuplicateMessage),
    (lambda packages, releases: (packages, [*releases[:2], flip(releases[2])]), errors.BadSignature),
    (lambda packages, releases: (packages, [*releases[:2], packages[0]]), errors.MalformedMessage),
    (lambda packages, releases: (packages[:3], releases), errors.RosterNotSubset),
    (lambda packages, releases: (packages[:2], releases), errors.CohortTooSmall),
    (lambda packages, releases: ([*packages[:3], flip(packages[3])], releases), errors.BadSignature),
]


def tamper_with(house, name, tamper, times):
    """Show a member other packages and releases when it is asked to catch up; so many times."""
    node = house.node_ids[name]
    original, done = house.grid._handlers[node], []

    def handler(data):
        message = from_bytes(data)
        if message.metadata.message_type == "query.catch_up" and len(done) < times:
            done.append(1)
            request = dict(message.content.config_records["request"])
            request["packages"], request["releases"] = tamper(request["packages"], request["releases"])
            message.content = RecordDict({"request": ConfigRecord(request)})
            data = to_bytes(message)
        return original(data)

    house.grid._handlers[node] = handler


@pytest.mark.parametrize(("tamper", "kind"), TAMPERED)
def test_a_tampered_certificate_is_refused_by_the_member_that_gets_it_and_the_others_go_on(
    house, tamper, kind
):
    vanish(house, "bank-1", "train", acts=False)
    tamper_with(house, "bank-1", tamper, times=2)
    summaries = []
    house.run(summaries.append)
    # It is offered the same before the second round and after it.
    assert [type(error) for error in house.errors["bank-1"]] == [kind] * 2
    others = house.names[1:]
    assert [summary.finished for summary in summaries] == [others, others]
    assert [house.nodes[name].state.round for name in house.names] == [0, 2, 2, 2]
    assert len({house.nodes[name].state.digest(house.study.id) for name in others}) == 1
    assert not house.ledgers["bank-1"].exists()
    assert not any(house.errors[name] for name in others)


def test_a_member_that_was_shown_a_tampered_certificate_follows_the_true_one_afterwards(house, noted):
    vanish(house, "bank-1", "train", acts=False)
    tamper, kind = TAMPERED[0]
    tamper_with(house, "bank-1", tamper, times=1)
    summaries = []
    house.run(summaries.append)
    assert [type(error) for error in house.errors["bank-1"]] == [kind]
    assert_exact(house, noted, summaries, dict.fromkeys((1, 2), house.names[1:]))
    assert_alike(house)


def test_another_aggregate_than_the_certified_one_is_refused_at_the_catch_up(house):
    """The aggregation service serves a late member an altered sum."""
    vanish(house, "bank-1", "train", acts=False)
    wire = house.wires["bank-1"]
    download = wire.service.download

    class Liar:
        def download(self, round_index, attempt):
            headers, aggregate = download(round_index, attempt)
            return headers, [flip(aggregate[0])]

    wire.service = Liar()
    house.run()
    assert [type(error) for error in house.errors["bank-1"]] == [errors.RosterEquivocation] * 2
    assert [node.state.round for node in house.nodes.values()] == [0, 2, 2, 2]
