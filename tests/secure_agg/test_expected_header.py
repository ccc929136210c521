"""What headers must say is known or decided by T members, never by whoever uploads first."""

from dataclasses import replace

import pytest

from hansa.errors import (
    CiphertextSizeMismatch,
    CohortMismatch,
    DuplicateMessage,
    HeParameterMismatch,
    MalformedCiphertext,
    ModelDivergence,
    RosterTooSmall,
    TranscriptDivergence,
)
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.cohort import ciphertext_list_hash
from hansa.secure_agg.expected import ExpectedHeader
from hansa.secure_agg.messages import Envelope, UploadHeader, sign_message

MALLORY = "bank-000"
FOREIGN = {
    "cohort_hash": (b"f" * 32, CohortMismatch),
    "he_key_id": (b"f" * 32, HeParameterMismatch),
    "previous_transcript": (b"f" * 32, TranscriptDivergence),
    "state_tag": (b"f" * 32, ModelDivergence),
    "ciphertext_count": (3, CiphertextSizeMismatch),
}


@pytest.fixture
def members(house):
    return house(5)  # T = 4


@pytest.fixture
def round_(members):
    return members.uploaded(count=members.terms.layout.capacity(2))


def aggregator_of(members, **changes):
    arguments = {"roster": members.roster, "terms": members.terms, "epoch": 0, "round_index": 1, "attempt": 0}
    return RoundAggregator(**(arguments | changes))


def body_of(signed):
    return UploadHeader.decode(Envelope.decode(signed).body)


def known(round_, *left_out):
    expected, _ = ExpectedHeader().leading([body_of(round_.uploads[MALLORY][0])])
    return replace(expected, **dict.fromkeys(left_out))


def foreign(members, round_, field, name=MALLORY):
    """An upload that is right in all but one field, and signed as it is."""
    header, ciphertexts = round_.uploads[name]
    value, error = FOREIGN[field]
    changes = {field: value}
    if field == "ciphertext_count":
        ciphertexts = [*ciphertexts, ciphertexts[0]]
        changes["ciphertext_list_hash"] = ciphertext_list_hash(ciphertexts)
    return (sign_message(members.identities[name], replace(body_of(header), **changes)), ciphertexts), error


@pytest.mark.parametrize("field", FOREIGN)
def test_a_foreign_header_that_comes_first_costs_only_its_sender(members, round_, field):
    """The attack: whoever came first used to decide, and everybody else was refused."""
    upload, error = foreign(members, round_, field)
    aggregator = aggregator_of(members, expected=known(round_))
    with pytest.raises(error, match=MALLORY):
        aggregator.accept(*upload)
    for name in members.names[1:]:
        aggregator.accept(*round_.uploads[name])
    headers, aggregate = aggregator.close()
    assert aggregator.contributors == tuple(members.names[1:])
    assert len(headers) == 4
    assert len(aggregate) == 2
    assert opens_to_the_sum(members, aggregator, round_)


def opens_to_the_sum(members, aggregator, round_):
    """Whether the members that are in the roster open it."""
    round_.aggregator = aggregator
    releases = members.released(round_)
    total = members.machines["bank-001"].unmask(releases).total
    return (total == round_.expected()).all()


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("field", FOREIGN)
def test_where_nothing_is_known_t_headers_decide_wherever_the_foreign_one_comes(
    members, round_, field, place
):
    upload, error = foreign(members, round_, field)
    aggregator = aggregator_of(members)
    order = members.names[1:]
    order.insert(place, MALLORY)
    for name in order:
        if name == MALLORY and place == 4:
            with pytest.raises(error, match=MALLORY):
                aggregator.accept(*upload)
        else:
            aggregator.accept(*(upload if name == MALLORY else round_.uploads[name]))
    assert aggregator.contributors == tuple(members.names[1:])
    if place < 4:
        assert {name: type(why) for name, why in aggregator.refused.items()} == {MALLORY: error}
    aggregator.close()
    assert aggregator.needs_consents


def test_a_member_that_was_refused_by_the_others_may_send_the_right_upload(members, round_):
    upload, _ = foreign(members, round_, "cohort_hash")
    aggregator = aggregator_of(members)
    aggregator.accept(*upload)
    with pytest.raises(DuplicateMessage):
        aggregator.accept(*round_.uploads[MALLORY])
    for name in members.names[1:]:
        aggregator.accept(*round_.uploads[name])
    assert MALLORY in aggregator.refused
    aggregator.accept(*round_.uploads[MALLORY])
    assert aggregator.refused == {}
    assert aggregator.close() == round_.aggregator.close()


def test_only_what_is_not_known_waits_for_the_others(members, round_):
    aggregator = aggregator_of(members, expected=known(round_, "ciphertext_count"))
    upload, error = foreign(members, round_, "cohort_hash")
    with pytest.raises(error):
        aggregator.accept(*upload)
    long_one, error = foreign(members, round_, "ciphertext_count")
    aggregator.accept(*long_one)
    for name in members.names[1:4]:
        aggregator.accept(*round_.uploads[name])
        assert aggregator._sums.terms == 0
    aggregator.accept(*round_.uploads["bank-004"])
    assert aggregator._sums.terms == 4
    assert isinstance(aggregator.refused[MALLORY], error)


def test_t_minus_one_foreign_members_decide_nothing(members, round_):
    aggregator = aggregator_of(members)
    for name in members.names[:3]:
        upload, _ = foreign(members, round_, "state_tag", name)
        aggregator.accept(*upload)
    for name in members.names[3:]:
        aggregator.accept(*round_.uploads[name])
    assert aggregator._sums.terms == 0
    with pytest.raises(RosterTooSmall, match="bank-003, bank-004 do not agree with the others"):
        aggregator.close()


def test_an_upload_that_waits_and_is_no_ciphertext_is_refused_by_name_when_it_is_read(members, round_):
    header, ciphertexts = round_.uploads[MALLORY]
    lied = [ciphertexts[0], ciphertexts[1][:-15] + b"\xff" * 15]
    body = replace(body_of(header), ciphertext_list_hash=ciphertext_list_hash(lied))
    aggregator = aggregator_of(members)
    aggregator.accept(sign_message(members.identities[MALLORY], body), lied)
    for name in members.names[1:]:
        aggregator.accept(*round_.uploads[name])
    assert isinstance(aggregator.refused[MALLORY], MalformedCiphertext)
    assert aggregator.contributors == tuple(members.names[1:])
    assert aggregator._sums.terms == 4


def test_the_order_of_uploads_does_not_change_the_aggregate(members, round_):
    aggregators = [aggregator_of(members), aggregator_of(members, expected=known(round_))]
    for name in reversed(members.names):
        for aggregator in aggregators:
            aggregator.accept(*round_.uploads[name])
    assert {repr(aggregator.close()) for aggregator in aggregators} == {repr(round_.aggregator.close())}


def test_an_expectation_is_complete_only_with_every_field(round_):
    assert known(round_).complete
    for field in FOREIGN:
        assert not known(round_, field).complete
    assert not ExpectedHeader().complete
    assert ExpectedHeader().leading([]) == (ExpectedHeader(), 0)
