"""What the coordinator expects of headers: as much as T members have said, and no member alone."""

import dataclasses

import pytest

from hansa.coordinator.expectations import Expectations
from hansa.errors import (
    BadSignature,
    CohortMismatch,
    DuplicateMember,
    HeParameterMismatch,
    ModelDivergence,
    TranscriptDivergence,
)
from hansa.secure_agg.cohort import cohort_hash
from hansa.secure_agg.expected import ExpectedHeader
from hansa.secure_agg.messages import Envelope, RoundResult, UploadHeader, Vote, sign_message

REFUSED = {
    "cohort_hash": CohortMismatch,
    "he_key_id": HeParameterMismatch,
    "previous_transcript": TranscriptDivergence,
    "state_tag": ModelDivergence,
}


def body_of(kind, signed):
    return kind.decode(Envelope.decode(signed).body)


@pytest.fixture
def expected_of(house, monkeypatch):
    """What the service was told to expect, attempt by attempt."""
    noted, begin = [], house.service.begin

    def note_and_begin(epoch, round_index, attempt, cohort, expected=None):
        noted.append(expected)
        return begin(epoch, round_index, attempt, cohort, expected)

    monkeypatch.setattr(house.service, "begin", note_and_begin)
    return noted


def headers_of(house, round_index):
    signed = [part for wire in house.wires.values() for part in wire.sent if len(part) < 1024]
    bodies = [body_of(UploadHeader, part) for part in signed]
    return [body for body in bodies if body.round == round_index]


@pytest.mark.parametrize("count", [None, 1])
def test_a_coordinator_knows_all_of_the_next_headers_but_the_first_state(house, expected_of, count):
    house.run(ciphertext_count=count)
    first, second = expected_of
    full, votes = ExpectedHeader().leading(headers_of(house, 1))
    assert votes == 4
    assert first == dataclasses.replace(full, state_tag=None, ciphertext_count=count)
    full, votes = ExpectedHeader().leading(headers_of(house, 2))
    assert votes == 4
    assert second == dataclasses.replace(full, ciphertext_count=count)


@pytest.mark.parametrize("field", ["cohort_hash", "he_key_id", "previous_transcript", "state_tag"])
def test_a_member_that_uploads_first_with_a_foreign_header_costs_only_itself(house, field):
    """The attack over the whole round loop; bank-1 is asked first and uploads first."""
    wire = house.wires["bank-1"]
    upload, seen = wire.upload, []

    def forged(round_index, attempt, header, ciphertexts):
        body = dataclasses.replace(body_of(UploadHeader, header), **{field: b"f" * 32})
        seen.append(round_index)
        upload(round_index, attempt, sign_message(house.identities["bank-1"], body), ciphertexts)

    wire.upload = forged
    summaries = []
    house.run(summaries.append, ciphertext_count=1)
    assert seen[0] == 1
    assert [summary.contributors for summary in summaries] == [house.names[1:]] * 2
    # Only the state before the first round is not known beforehand, and is decided by the three others.
    (error, *_) = house.errors["bank-1"]
    assert isinstance(error, REFUSED[field])
    assert len({house.nodes[name].state.digest(house.study.id) for name in house.names[1:]}) == 1


@pytest.fixture
def epoch(house):
    votes = house.voted()
    return house, house.relay.deal(), votes


def test_the_manifest_is_what_t_votes_say(epoch):
    house, deal, votes = epoch
    body = body_of(Vote, votes[0])
    other = sign_message(house.identities[body.sender], dataclasses.replace(body, manifest_hash=b"f" * 32))
    packages, _ = house.begin()
    for shown, known in ((votes, True), ([other, *votes[1:]], True), ([other, *votes[2:]], False)):
        expectations = Expectations(house.roster, house.terms)
        expectations.epoch_entered(1, deal, shown)
        found = expectations.of(1, 0, packages)
        named = dict(zip(house.names, packages, strict=True))
        right = cohort_hash(body_of(Vote, votes[1]).manifest_hash, 1, 0, named, bytes(32))
        assert found.cohort_hash == (right if known else None)
        assert found.previous_transcript == bytes(32)
    for error, wrong in ((DuplicateMember, [*votes, other]), (BadSignature, [votes[0][:-1] + b"\x00"])):
        with pytest.raises(error):
            Expectations(house.roster, house.terms).epoch_entered(1, deal, wrong)


def test_history_and_state_are_what_t_results_say_and_otherwise_unknown(house):
    results = house.open()
    body = body_of(RoundResult, results[0])
    assert body.transcript == house.nodes["bank-1"].state.transcript
    expectations = Expectations(house.roster, house.terms, ciphertext_count=1)
    expectations.epoch_entered(1, house.relay.deal(), house.relay.votes())
    packages = house.packages

    def lying(*names, **changes):
        return [
            sign_message(house.identities[name], dataclasses.replace(body, sender=name, **changes))
            if name in names
            else signed
            for name, signed in zip(house.names, results, strict=True)
        ]

    for shown, known in (
        (results, True),
        (lying("bank-1", transcript=b"f" * 32), True),
        (lying("bank-1", "bank-2", transcript=b"f" * 32), False),
        (lying("bank-1", "bank-2", state_tag=b"f" * 32), False),
        ([b"nothing"], False),
        (results[:2], False),
    ):
        expectations.round_confirmed(shown)
        found = expectations.of(2, 0, packages)
        assert found.previous_transcript == (body.transcript if known else None)
        assert found.state_tag == (body.state_tag if known else None)
        assert (found.cohort_hash is not None) == known
        assert found.ciphertext_count == 1
    expectations.round_confirmed(results)
    assert expectations.of(3, 0, packages).cohort_hash is None  # a round was not confirmed
    expectations.round_confirmed(results)
    expectations.history_unknown()
    assert expectations.of(2, 0, packages).cohort_hash is None
    # A new epoch has another group key and tags the same state otherwise; the history goes on.
    expectations.round_confirmed(results)
    expectations.epoch_entered(1, house.relay.deal(), house.relay.votes())
    found = expectations.of(2, 0, packages)
    assert (found.previous_transcript, found.state_tag) == (body.transcript, None)
