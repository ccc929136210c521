"""The round loop: what it asks, whose answers it takes, and how it stops."""

import threading
import time

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app import Error as FlowerError

from hansa.coordinator import attempts
from hansa.errors import (
    BadSignature,
    CohortMismatch,
    Error,
    MalformedMessage,
    OutOfOrder,
    ParticipantLost,
    StaleRound,
)
from hansa.local_grid import LocalGrid, from_bytes, to_bytes

EPOCH = {
    "query.join": ("join",),
    "query.deal": ("deal",),
    "query.vote": ("vote",),
    "query.enter": ("packages", "shares"),
}
OPENED = ("packages", "shares", "result")
QUORUM = {
    "train": ("header",),
    "query.answer": ("answer",),
    "query.unmask": OPENED,
    "query.close": ("closed",),
}
STRICT = {"train": ("header",), "query.open": OPENED, "query.close": ("closed",)}
DEALER = "bank-2"  # of epoch 1


def edited(house, name, kind, edit):
    """Let a member's reply to one kind of message pass through `edit`, which gets and returns a Message."""
    original = house.grid._handlers[node_of(house, name)]

    def handler(data):
        message, answer = from_bytes(data), original(data)
        if message.metadata.message_type != kind:
            return answer
        return to_bytes(edit(message, from_bytes(answer)))

    house.grid._handlers[node_of(house, name)] = handler


def node_of(house, name):
    return {member: node for node, member in zip(house.grid.get_node_ids(), house.nodes, strict=True)}[name]


def reply_with(**values):
    def edit(message, _):
        return Message(RecordDict({"reply": ConfigRecord(values)}), reply_to=message)

    return edit


def signed_of(house, kind):
    """What members gave to one kind of exchange so far, in the order of their answers."""
    replies = [from_bytes(data) for direction, data in house.grid_bytes if direction == "from node"]
    return [dict(r.content.config_records["reply"]) for r in replies if r.metadata.message_type == kind]


REQUESTS = {
    "query.deal": {"joins"},
    "query.vote": {"joins", "deal"},
    "query.enter": {"votes"},
    "train": {"packages", "shares"},
    "query.unmask": {"releases"},
    "query.close": {"results"},
}


def asked_of(house):
    return [from_bytes(data) for direction, data in house.grid_bytes if direction == "to node"]


def test_a_round_is_four_exchanges_with_every_member_and_the_messages_hold_no_more_than_they_need(house):
    summaries = []
    house.run(summaries.append)
    asked = asked_of(house)
    exchanges = [(kind, 1, 1 if kind == "query.deal" else 4) for kind in EPOCH]
    exchanges += [(kind, number, 4) for number in (1, 2) for kind in QUORUM]
    assert [(m.metadata.message_type, m.metadata.group_id) for m in asked] == [
        (kind, str(number)) for kind, number, members in exchanges for _ in range(members)
    ]
    for message in asked:
        assert set(message.content.keys()) == {"request"}
        request = dict(message.content.config_records["request"])
        assert (request.pop("round"), request.pop("attempt")) == (int(message.metadata.group_id), 0)
        assert set(request) == REQUESTS.get(message.metadata.message_type, set())
        assert message.metadata.ttl == pytest.approx(60.0, abs=1.0)
    # Everybody is shown the same, but for the shares that were sealed to each.
    for kind, fields in REQUESTS.items():
        for number in (1, 2):
            shown = [
                message.content.config_records["request"]
                for message in asked
                if (message.metadata.message_type, message.metadata.group_id) == (kind, str(number))
            ]
            for field in fields - {"shares"}:
                assert len({tuple(request[field]) for request in shown}) == len(shown[:1])
    answers = {kind: signed_of(house, kind) for kind in QUORUM}
    for number in (1, 2):
        own = slice(4 * (number - 1), 4 * number)
        first = {
            m.metadata.message_type: m.content.config_records["request"]
            for m in asked
            if m.metadata.group_id == str(number)
        }
        assert first["query.unmask"]["releases"] == [r["answer"] for r in answers["query.answer"][own]]
        assert first["query.close"]["results"] == [r["result"] for r in answers["query.unmask"][own]]
    assert [summary.round for summary in summaries] == [1, 2]
    assert all(summary.seconds > 0 for summary in summaries)
    assert all(summary.contributors == summary.finished == house.names for summary in summaries)


def test_a_strict_round_is_three_exchanges_with_every_member(strict_house):
    strict_house.run()
    kinds = [message.metadata.message_type for message in asked_of(strict_house)]
    assert kinds[13:] == [kind for _ in (1, 2) for kind in STRICT for _ in range(4)]
    assert len(strict_house.digests()) == 1


@pytest.mark.parametrize("mode", ["quorum", "strict"])
def test_hashes_are_compared_in_every_round(house, strict_house, monkeypatch, mode):
    compared, verify = [], attempts.verify_results

    def verify_and_note(results, roster, epoch, round_index, attempt, minimum):
        verify(results, roster, epoch, round_index, attempt, minimum)
        compared.append((epoch, round_index, len(results), minimum))

    monkeypatch.setattr(attempts, "verify_results", verify_and_note)
    (house if mode == "quorum" else strict_house).run()
    minimum = 3 if mode == "quorum" else 4
    assert compared == [(1, 1, 4, minimum), (1, 2, 4, minimum)]


def test_a_roster_that_is_not_on_the_grid_is_refused_before_anything_is_sent(house):
    nodes = dict(house.node_ids)
    nodes["bank-3"] = 999
    with pytest.raises(CohortMismatch):
        house.run(nodes=nodes)
    del nodes["bank-3"]
    with pytest.raises(CohortMismatch):
        house.run(nodes=nodes)
    assert house.grid_bytes == []


# -- members that fail -----------------------------------------------------------------------------------------


def modes(*, epoch=True):
    """Each exchange of each mode."""
    cases = [("quorum", kind) for kind in (EPOCH if epoch else ())]
    return cases + [("quorum", kind) for kind in QUORUM] + [("strict", kind) for kind in STRICT]


def of(mode, house, strict_house):
    return house if mode == "quorum" else strict_house


def run_and_lose(house, mode, kind, words, error=ParticipantLost):
    """Run a study whose bank-2 fails at one exchange: it ends where all must answer, and goes on where T suffice."""
    summaries = []
    if mode == "strict" or kind in EPOCH:
        with pytest.raises(error if kind in EPOCH else ParticipantLost, match=words):
            house.run(summaries.append)
        assert summaries == []
        return
    house.run(summaries.append)
    assert [summary.round for summary in summaries] == [1, 2]
    assert "bank-2" not in {name for summary in summaries for name in summary.finished}


@pytest.mark.parametrize(("mode", "kind"), modes())
def test_a_member_that_fails_in_an_exchange_is_lost_in_quorum_and_ends_a_strict_run_with_its_name(
    house, strict_house, mode, kind
):
    house = of(mode, house, strict_house)

    def fail(*_):
        raise RuntimeError("client 4711")

    edited(house, "bank-2", kind, fail)
    if kind == "query.deal":  # the next set-up has another dealer
        summaries = []
        house.run(summaries.append)
        assert [(summary.epoch, summary.round) for summary in summaries] == [(2, 1), (2, 2)]
        return
    run_and_lose(house, mode, kind, r"bank-2 failed with Flower error 2$")
    others = {house.nodes[name].state.round for name in house.names if name != "bank-2"}
    if mode == "quorum":
        assert others == {0 if kind in EPOCH else 2}
    else:
        assert others == {0 if kind == "train" else 1}


@pytest.mark.parametrize(("mode", "kind"), modes())
def test_a_member_that_answers_with_an_error_code_is_lost_too(house, strict_house, mode, kind):
    house = of(mode, house, strict_house)
    edited(house, "bank-2", kind, reply_with(error="budget_exhausted"))
    run_and_lose(house, mode, kind, r"bank-2 refused: budget_exhausted$")


def test_of_what_a_member_calls_an_error_only_the_beginning_is_shown(house):
    edited(house, "bank-1", "query.join", reply_with(error="x" * 100_000))
    with pytest.raises(ParticipantLost, match=r"^bank-1 refused: x{64}$"):
        house.run()


@pytest.mark.parametrize("kind", QUORUM)
def test_below_the_threshold_the_run_ends_with_the_reasons(house, kind):
    edited(house, "bank-2", kind, reply_with(error="budget_exhausted"))
    edited(house, "bank-4", kind, reply_with(error="x"))
    # Who has not closed a round does not answer in the next one either, as far as anybody knows.
    edited(house, "bank-2", "query.catch_up", reply_with(error="x"))
    edited(house, "bank-4", "query.catch_up", reply_with(error="x"))
    round_index, why = (1, ": bank-2 refused: budget_exhausted; bank-4 refused: x")
    if kind == "query.close":
        round_index, why = 2, ""
    with pytest.raises(
        ParticipantLost, match=f"^round {round_index} has 2 members left, below the threshold 3{why}$"
    ):
        house.run()


@pytest.mark.parametrize(
    "kind",
    [
        kind
        if kind in ("query.join", "train", "query.unmask")
        else pytest.param(kind, marks=pytest.mark.slow)
        for kind in (*EPOCH, *QUORUM)
    ],
)
def test_members_that_never_answer_are_named_when_the_deadline_passes(house, tiny, kind):
    stuck = threading.Event()
    handlers = dict(house.grid._handlers)
    answered = dict(handlers)

    def wait(node):
        def handler(data):
            if from_bytes(data).metadata.message_type == kind:
                assert stuck.wait(30)
            return answered[node](data)

        return handler

    for name in ("bank-2", "bank-3"):
        handlers[house.node_ids[name]] = wait(house.node_ids[name])
    grid = LocalGrid(handlers, {node: node for node in handlers})
    started = time.monotonic()
    words = rf"no answer to {kind} within 1 s from bank-2"
    if kind in QUORUM:
        words = rf"^round 1 has 2 members left, .*: {words}; no answer to {kind} within 1 s from bank-3$"
    if kind == "query.close":  # the round is over then; the next one lacks them
        words = r"^round 2 has 2 members left, below the threshold 3$"
    try:
        with pytest.raises(ParticipantLost, match=words):
            house.server_app(deadline_seconds=1.0)(grid, tiny.context())
        assert time.monotonic() - started < 15
    finally:
        stuck.set()
        grid.close()


# -- members that answer something else ------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "kind"), modes())
@pytest.mark.parametrize(
    "values",
    [{}, {"closed": True, "loss": 0.5}, {"other": b"a"}, {"loss": 0.5}],
    ids=str,
)
def test_a_reply_that_does_not_hold_the_expected_fields_is_no_answer(house, strict_house, mode, kind, values):
    house = of(mode, house, strict_house)
    edited(house, "bank-2", kind, reply_with(**values))
    run_and_lose(house, mode, kind, "alone$", MalformedMessage)


@pytest.mark.parametrize(
    ("mode", "kind", "field"),
    [(mode, kind, field) for mode, kind in modes() for field in (EPOCH | QUORUM | STRICT)[kind]],
)
def test_a_field_of_another_type_is_no_answer(house, strict_house, mode, kind, field):
    house = of(mode, house, strict_house)
    wrong = {"packages": [1, 2], "shares": b"shares", "closed": False}

    def change(message, answer):
        values = dict(answer.content.config_records["reply"])
        if set(values) == {"error"}:
            return answer
        return reply_with(**values | {field: wrong.get(field, "text")})(message, answer)

    edited(house, "bank-2", kind, change)
    run_and_lose(house, mode, kind, "bank-2 is not of its type$", MalformedMessage)


@pytest.mark.parametrize(("mode", "kind"), modes())
def test_a_reply_that_holds_more_than_the_expected_fields_is_no_answer(house, strict_house, mode, kind):
    house = of(mode, house, strict_house)

    def more(message, answer):
        values = dict(answer.content.config_records["reply"]) | {"loss": 0.25}
        return reply_with(**values)(message, answer)

    edited(house, "bank-2", kind, more)
    run_and_lose(house, mode, kind, "alone$", MalformedMessage)


def test_a_reply_without_the_record_is_malformed(house):
    def without(message, _):
        return Message(RecordDict({"metrics": MetricRecord({"loss": 0.25})}), reply_to=message)

    edited(house, "bank-1", "query.join", without)
    with pytest.raises(MalformedMessage, match="holds no record 'reply'"):
        house.run()


def test_a_member_cannot_answer_for_another_one(house):
    """Its message names the request of another member as the one that it answers; the grid does not take it."""
    asked = []

    def note(message, answer):
        asked.append(message)
        return answer

    def forge(_, answer):
        return Message(answer.content, reply_to=asked[0])

    edited(house, "bank-1", "query.join", note)
    edited(house, "bank-2", "query.join", forge)
    with pytest.raises(ParticipantLost, match="bank-2 failed"):
        house.run()


@pytest.mark.parametrize("replayed", ["of another member", "of an earlier round", "nothing signed"])
def test_a_member_that_passes_on_an_answer_that_is_not_its_own_counts_as_lost(house, replayed):
    def swap(message, answer):
        own.append(answer.content.config_records["reply"]["answer"])
        others = [record["answer"] for record in signed_of(house, "query.answer") if "answer" in record]
        shown = {
            "of another member": others[-1],
            "of an earlier round": own[0],
            "nothing signed": b"answer",
        }
        return reply_with(answer=shown[replayed])(message, answer)

    own, summaries = [], []
    edited(house, "bank-3", "query.answer", swap)
    house.run(summaries.append)
    first = summaries[0].finished
    assert first == (house.names if replayed == "of an earlier round" else ("bank-1", "bank-2", "bank-4"))
    assert summaries[1].finished == ("bank-1", "bank-2", "bank-4")
    # Its update is in the sum, and it caught up with what the others made of it.
    assert summaries[1].contributors == house.names
    assert len(house.digests()) == 1


def test_an_answer_that_was_not_asked_for_is_refused(house, monkeypatch):
    pull = house.grid.pull_messages

    def twice(ids):
        found = list(pull(ids))
        return found + found

    monkeypatch.setattr(house.grid, "pull_messages", twice)
    with pytest.raises(MalformedMessage, match="was not asked for"):
        house.run()


def test_a_flower_error_in_place_of_an_answer_is_a_lost_participant(strict_house):
    house = strict_house
    edited(
        house, "bank-3", "query.open", lambda message, _: Message(FlowerError(0, "4711"), reply_to=message)
    )
    with pytest.raises(ParticipantLost, match=r"bank-3 failed with Flower error 0$"):
        house.run()


def damaged(own):
    return own[:-1] + bytes([own[-1] ^ 1])


@pytest.mark.parametrize(
    ("edit", "kind"),
    [
        (lambda own, _: damaged(own), "is not signed by its pinned key"),
        (lambda _, others: others[0]["result"], "bank-4 passed on the round-result of"),
        (lambda *_: b"\xa0", "Envelope has not exactly the keys"),
    ],
)
def test_a_member_whose_confirmation_is_not_its_own_counts_as_lost(strict_house, edit, kind):
    house = strict_house

    def result(message, answer):
        values = dict(answer.content.config_records["reply"])
        changed = edit(values["result"], signed_of(house, "query.open"))
        return reply_with(**values | {"result": changed})(message, answer)

    edited(house, "bank-4", "query.open", result)
    with pytest.raises(ParticipantLost, match=kind):
        house.run()


def test_a_confirmation_of_an_earlier_round_is_stale(strict_house):
    own = []

    def first(message, answer):
        values = dict(answer.content.config_records["reply"])
        own.append(values["result"])
        return reply_with(**values | {"result": own[0]})(message, answer)

    edited(strict_house, "bank-4", "query.open", first)
    with pytest.raises(StaleRound, match="is for round 1 attempt 0, this is round 2 attempt 0"):
        strict_house.run()


@pytest.mark.parametrize(("kind", "field"), [("query.join", "join"), ("query.vote", "vote")])
def test_the_message_of_one_member_under_the_name_of_another_ends_in_a_named_error(house, kind, field):
    others = []

    def swap(message, answer):
        others.append(answer.content.config_records["reply"][field])
        return reply_with(**{field: others[0]})(message, answer)

    for name in ("bank-1", "bank-2"):
        edited(house, name, kind, swap)
    with pytest.raises(OutOfOrder, match="3 of 4 members have"):
        house.run()
    assert all(isinstance(error, Error) for errors in house.errors.values() for error in errors)
    assert not any(ledger.exists() for ledger in house.ledgers.values())


def test_a_deal_that_is_not_the_dealers_is_refused(house):
    def damage(message, answer):
        return reply_with(deal=damaged(answer.content.config_records["reply"]["deal"]))(message, answer)

    edited(house, DEALER, "query.deal", damage)
    with pytest.raises(BadSignature):
        house.run()
