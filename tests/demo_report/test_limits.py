"""What docs/threat-model.md says that one party can do to a whole study, done to a running one.

As in `test_threat_model.py`: when a test whose name begins with `test_limit` fails, the document must change with it.
"""

import pytest

from hansa import errors
from hansa.local_grid import from_bytes
from hansa.secure_agg.ciphertext_format import pack_coefficients, unpack_coefficients
from hansa.secure_agg.participant import RoundMachine
from hansa.secure_agg.sums import SumsInProcess

WRONG, AWAY = "bank-2", "bank-4"


@pytest.fixture
def longer(houses, tiny_study, tiny_bases):
    """A house whose study has as many rounds as are wanted, and so many of them under one set of keys."""

    def make(rounds, rounds_per_epoch=0):
        study = tiny_study.with_changes(rounds=rounds)
        settings = study.aggregation.model_copy(update={"rounds_per_epoch": rounds_per_epoch})
        study = study.model_copy(update={"aggregation": settings})
        return houses(study, tiny_bases(study))

    return make


def member_spoils(rounds, monkeypatch):
    """Let a member leave a mask out in some rounds."""
    seeds = RoundMachine._mask_seeds

    def wrong(self, attempt, own):
        found = seeds(self, attempt, own)
        return found[1:] if attempt.round in rounds and self._epoch.participant == WRONG else found

    monkeypatch.setattr(RoundMachine, "_mask_seeds", wrong)


def coordinator_spoils(monkeypatch):
    """Let the coordinator change one coefficient of every sum that it gives out."""
    true = SumsInProcess.totals

    def changed(self):
        for total in true(self):
            coefficients = unpack_coefficients(total)
            first = int(coefficients[0])
            coefficients[0] = first - (1 << 58) if first >= 1 << 59 else first + (1 << 58)
            yield pack_coefficients(coefficients)

    monkeypatch.setattr(SumsInProcess, "totals", changed)


def lose(house, name, loses):
    """Let a member's node fail at the requests (step, number of the round or epoch) that `loses` names."""
    node = house.node_ids[name]
    original = house.grid._handlers[node]

    def handler(data):
        metadata = from_bytes(data).metadata
        if loses(metadata.message_type, int(metadata.group_id)):
            raise ConnectionError("away")
        return original(data)

    house.grid._handlers[node] = handler


@pytest.mark.parametrize("who", ["member", "coordinator"])
def test_limit_one_party_can_make_every_round_void_and_all_members_pay_for_it(longer, monkeypatch, tiny, who):
    house, summaries = longer(3), []
    if who == "member":
        member_spoils({1, 2, 3}, monkeypatch)
    else:
        coordinator_spoils(monkeypatch)
    values = house.nodes["bank-1"].state.values.copy()
    house.run(summaries.append)
    assert [summary.void for summary in summaries] == [True] * 3
    assert len(house.digests()) == 1
    assert (house.nodes["bank-1"].state.values == values).all()  # no model
    for name in house.names:  # and the whole budget
        assert tiny.kinds(house.ledgers[name]) == ["reserve", "commit"] * 3
    told = {error.message for found in house.errors.values() for error in found}
    assert not any(name in message for message in told for name in house.names)  # nobody is named


def test_limit_a_sum_that_fails_ends_the_study_where_fewer_than_t_sign_the_void(longer, monkeypatch):
    house, summaries = longer(3), []
    member_spoils({2}, monkeypatch)
    lose(house, WRONG, lambda step, _: step == "query.void")
    lose(house, AWAY, lambda step, number: number == 2 and step in ("train", "query.catch_up", "query.void"))
    with pytest.raises(errors.ParticipantLost):
        house.run(summaries.append)
    assert [summary.void for summary in summaries] == [False]


def test_limit_one_member_ends_the_study_when_new_keys_are_due_and_it_does_not_join(longer, monkeypatch):
    house, summaries = longer(4), []
    member_spoils({1, 2}, monkeypatch)
    lose(house, WRONG, lambda step, number: step == "query.join" and number > 1)
    with pytest.raises(errors.ParticipantLost, match=WRONG):
        house.run(summaries.append)
    assert [summary.void for summary in summaries] == [True, True]


def test_limit_a_member_that_is_behind_when_the_keys_change_never_catches_up(longer):
    house, summaries, joined = longer(4, rounds_per_epoch=2), [], []

    def loses(step, number):
        if step == "query.join" and number == 2:
            joined.append(number)
        return number == 2 and (step == "train" or (step == "query.catch_up" and not joined))

    lose(house, AWAY, loses)
    house.run(summaries.append)
    assert [len(summary.contributors) for summary in summaries] == [4, 3, 3, 3]
    assert house.nodes[AWAY].state.round == 1
    assert {type(error) for error in house.errors[AWAY]} == {errors.WrongEpoch}
