"""A participant takes steps in their order, each once, with the signed messages of its own roster and round."""

import dataclasses

import pytest

from hansa import errors
from hansa.secure_agg.identity import Identity
from hansa.secure_agg.messages import RoundKey, RoundResult, open_signed, sign_message


def test_steps_come_in_their_order_and_each_once(house, tiny):
    node = house.nodes["bank-1"]

    def refused(kind, step, *values):
        state, ledger, sent = (
            node.state.digest("00"),
            tiny.kinds(house.ledgers["bank-1"]),
            len(house.wires["bank-1"].sent),
        )
        with pytest.raises(kind):
            getattr(node, step)(*values)
        assert (state, ledger) == (node.state.digest("00"), tiny.kinds(house.ledgers["bank-1"]))
        assert sent == len(house.wires["bank-1"].sent)

    for step, values in (("train", [[b"key"]]), ("open", []), ("close", [[b"result"]])):
        refused(errors.OutOfOrder, step, 1, 0, *values)
    for wrong, kind in ((0, errors.StaleRound), (2, errors.OutOfOrder), (3, errors.OutOfOrder)):
        refused(kind, "advertise", wrong, 0)
    keys = house.advertise()
    refused(errors.PackageReuse, "advertise", 1, 0)
    refused(errors.OutOfOrder, "open", 1, 0)
    refused(errors.OutOfOrder, "close", 1, 0, [b"result"])
    for at in ((2, 0), (1, 1), (0, 0)):
        refused(errors.OutOfOrder, "train", *at, keys)
    for other in house.nodes.values():
        other.train(1, 0, keys)
    refused(errors.PackageReuse, "train", 1, 0, keys)
    refused(errors.PackageReuse, "advertise", 1, 0)
    refused(errors.OutOfOrder, "open", 2, 0)
    refused(errors.OutOfOrder, "close", 1, 0, [b"result"])
    results = [other.open(1, 0) for other in house.nodes.values()]
    refused(errors.OutOfOrder, "open", 1, 0)
    refused(errors.PackageReuse, "train", 1, 0, keys)
    refused(errors.StaleRound, "advertise", 1, 0)
    refused(errors.StaleRound, "advertise", 1, 1)
    refused(errors.OutOfOrder, "advertise", 2, 0)
    refused(errors.OutOfOrder, "close", 2, 0, results)
    for other in house.nodes.values():
        other.close(1, 0, results)
    refused(errors.OutOfOrder, "close", 1, 0, results)
    house.close(2)
    refused(errors.OutOfOrder, "advertise", 3, 0)  # the study has two rounds
    assert len(house.digests()) == 1


def test_no_attempt_is_entered_after_a_later_one(house):
    house.advertise(1, 4)
    for attempt in (0, 3):
        with pytest.raises(errors.StaleRound):
            house.nodes["bank-1"].advertise(1, attempt)


# -- what the coordinator relays ----------------------------------------------------------------------------


def key_of(house, name, identity=None, **changes):
    values = {
        "session": house.roster.session_id,
        "study": house.roster.study_id,
        "round": 1,
        "attempt": 0,
        "sender": name,
        "public_key": bytes(range(32)),
    }
    return sign_message(identity or house.identities[name], RoundKey(**(values | changes)))


def key_cases(house, keys):
    own, second, third, fourth = keys
    return [
        (errors.CohortMismatch, [own, second, third]),
        (errors.CohortMismatch, [own]),
        (errors.DuplicateMember, [own, second, third, fourth, second]),
        (errors.BadSignature, [own, second, third, key_of(house, "bank-4", Identity.generate())]),
        (errors.BadSignature, [own, second, third, fourth[:-1] + bytes([fourth[-1] ^ 1])]),
        (errors.UnknownSender, [*keys, key_of(house, "bank-5", house.identities["bank-4"])]),
        (errors.WrongSession, [own, second, third, key_of(house, "bank-4", session=bytes(16))]),
        (errors.WrongSession, [own, second, third, key_of(house, "bank-4", study=bytes(32))]),
        (errors.StaleRound, [own, second, third, key_of(house, "bank-4", round=2)]),
        (errors.StaleRound, [own, second, third, key_of(house, "bank-4", attempt=1)]),
        (errors.OwnKeyMismatch, [key_of(house, "bank-1"), second, third, fourth]),
        (errors.PackageReuse, [own, second, key_of(house, "bank-3"), key_of(house, "bank-4")]),
        (errors.MalformedMessage, [own, second, third, b"key"]),
        (errors.MalformedMessage, [own, second, third, bytes(1 << 20)]),
        (errors.MalformedMessage, [own, second, third, b""]),
    ]


def test_round_keys_that_are_not_the_rosters_for_this_round_are_refused_before_data(
    houses, tiny_tables, tiny
):
    house = houses(rows={"bank-1": tiny.Untouchable()})
    node, keys = house.nodes["bank-1"], house.advertise()
    cases = key_cases(house, keys)
    for kind, shown in cases:
        with pytest.raises(kind):
            node.train(1, 0, shown)
    assert len({kind for kind, _ in cases}) == 9
    assert not house.ledgers["bank-1"].exists()
    assert not house.wires["bank-1"].sent
    # Nothing was used up: the right keys are taken, and only then the records are asked for.
    with pytest.raises(AssertionError, match="the records were touched"):
        node.train(1, 0, keys)
    assert tiny.kinds(house.ledgers["bank-1"]) == ["reserve"]


def test_a_member_with_a_substituted_key_gets_no_sum_and_its_upload_is_refused(house, tiny):
    """The coordinator shows bank-4 another key under the name of a member that it controls."""
    keys = house.advertise()
    shown = [*keys[:2], key_of(house, "bank-3"), keys[3]]
    for name in tiny.NAMES[:3]:
        house.nodes[name].train(1, 0, keys)
    with pytest.raises(errors.CohortMismatch, match="another cohort"):
        house.nodes["bank-4"].train(1, 0, shown)
    for node in house.nodes.values():
        with pytest.raises(errors.OutOfOrder):
            node.open(1, 0)
    assert all(node.state.round == 0 for node in house.nodes.values())


def test_results_that_are_not_the_rosters_for_this_round_do_not_close_it(house):
    results = house.open()
    body = open_signed(results[3], RoundResult, house.roster)
    node = house.nodes["bank-1"]

    def signed(identity=house.identities["bank-4"], **changes):
        return sign_message(identity, dataclasses.replace(body, **changes))

    for kind, last in (
        (errors.ModelDivergence, signed(state_tag=bytes(32))),
        (errors.ModelDivergence, signed(roster_hash=bytes(32))),
        (errors.ModelDivergence, signed(cohort_hash=bytes(32))),
        (errors.StaleRound, signed(round=2)),
        (errors.WrongSession, signed(session=bytes(16))),
        (errors.BadSignature, signed(Identity.generate())),
        (errors.DuplicateMember, results[0]),
        (errors.MalformedMessage, b"result"),
        (errors.MalformedMessage, house.service.download(1, 0)[0][3]),
    ):
        with pytest.raises(kind):
            node.close(1, 0, [*results[:3], last])
    with pytest.raises(errors.CohortMismatch):
        node.close(1, 0, results[:3])
    node.close(1, 0, results)


def test_after_a_sum_that_could_not_be_opened_nothing_more_is_entered(house):
    keys = house.advertise()
    for other in house.nodes.values():
        other.train(1, 0, keys)
    node = house.nodes["bank-1"]
    honest = node._aggregator
    node._aggregator = _Forger(honest)
    with pytest.raises(errors.ProtocolError):
        node.open(1, 0)
    node._aggregator = honest
    with pytest.raises(errors.OutOfOrder, match="could not be opened"):
        node.advertise(1, 1)
    assert house.nodes["bank-2"].open(1, 0)


class _Forger:
    """Hands out the true headers with a damaged aggregate."""

    def __init__(self, honest):
        self._honest = honest

    def download(self, round_index, attempt):
        headers, aggregate = self._honest.download(round_index, attempt)
        return headers, [aggregate[0][:-1], *aggregate[1:]]
