"""A member that releases wrong shares in a whole study, and the leaves that the others fetch to leave it out."""

import dataclasses

import pytest

from hansa import errors
from hansa.participant.node import ParticipantNode
from hansa.secure_agg.participant import RoundMachine

LEAVES = 4 * 48


@pytest.fixture
def opened(monkeypatch):
    """(round, member) -> who released a wrong share, as the member saw it."""
    found, apply = {}, ParticipantNode._apply

    def note_and_apply(node, round_index, result):
        found[round_index, node.name] = result.faulty_holders
        apply(node, round_index, result)

    monkeypatch.setattr(ParticipantNode, "_apply", note_and_apply)
    return found


@pytest.fixture
def liar(monkeypatch):
    """Let bank-1 release a wrong share of everybody, in every round."""
    release = RoundMachine._release

    def lying(machine, attempt, view):
        if machine._epoch.participant == "bank-1":
            attempt = dataclasses.replace(attempt, shares=dict.fromkeys(attempt.shares, bytes(64)))
        return release(machine, attempt, view)

    monkeypatch.setattr(RoundMachine, "_release", lying)


def leaves_received(house, name):
    return [len(part) for part in house.wires[name].received if len(part) == LEAVES]


def test_a_study_without_wrong_shares_fetches_no_leaves(house, opened):
    house.run()
    assert set(opened.values()) == {()}
    assert not any(leaves_received(house, name) for name in house.names)


def test_a_member_that_lies_in_every_round_costs_each_of_the_others_one_list_of_leaves_a_round(
    house, liar, opened
):
    summaries = []
    house.run(summaries.append)
    assert [summary.finished for summary in summaries] == [house.names] * 2
    assert opened == dict.fromkeys([(number, name) for number in (1, 2) for name in house.names], ("bank-1",))
    assert [leaves_received(house, name) for name in house.names] == [[LEAVES] * 2] * 4
    received = sum(len(part) for wire in house.wires.values() for part in wire.received)
    assert house.service.downlink_bytes == received
    assert len({node.state.digest(house.study.id) for node in house.nodes.values()}) == 1


def test_a_member_that_catches_up_with_a_round_of_a_liar_fetches_them_too(house, liar, opened):
    node = house.node_ids["bank-3"]
    handler, asked = house.grid._handlers[node], []

    def vanish_once(data):
        asked.append(b"query.unmask" in data)
        if asked[-1] and sum(asked) == 1:
            raise ConnectionError("vanished")
        return handler(data)

    house.grid._handlers[node] = vanish_once
    house.run()
    assert opened[1, "bank-3"] == ("bank-1",)
    assert leaves_received(house, "bank-3") == [LEAVES] * 2
    assert len({node.state.digest(house.study.id) for node in house.nodes.values()}) == 1


@pytest.mark.parametrize(
    ("served", "error"),
    [
        (lambda true: true[48:] + true[:48], errors.PackageHashMismatch),
        (lambda true: b"", errors.PackageHashMismatch),
        (lambda true: errors.PackageLeavesMissing("gone"), errors.PackageLeavesMissing),
    ],
    ids=["others", "nothing", "refused"],
)
def test_a_coordinator_that_serves_other_leaves_or_none_ends_the_round_and_nothing_is_opened(
    house, liar, opened, monkeypatch, served, error
):
    true = house.service.package_leaves

    def package_leaves(*at):
        answer = served(true(*at))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(house.service, "package_leaves", package_leaves)
    with pytest.raises(errors.ParticipantLost):
        house.run()
    assert {type(found[0]) for found in house.errors.values()} == {error}
    assert opened == {}
    assert {node.state.round for node in house.nodes.values()} == {0}
