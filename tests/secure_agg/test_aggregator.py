"""The coordinator's round: what it refuses, and that a refusal changes nothing."""

import itertools
from dataclasses import replace

import pytest

from hansa.errors import (
    AggregateHashMismatch,
    BadSignature,
    CiphertextSizeMismatch,
    CohortMismatch,
    CohortTooSmall,
    DuplicateMessage,
    HeParameterMismatch,
    MalformedCiphertext,
    MalformedMessage,
    NotInCohort,
    OutOfOrder,
    RosterEquivocation,
    StaleRound,
    StateRollback,
    UnknownSender,
    WrongEpoch,
    WrongSession,
)
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.cohort import ciphertext_list_hash
from hansa.secure_agg.identity import Identity
from hansa.secure_agg.messages import Consent, Envelope, UploadHeader, sign_message


def _aggregator(members, **changes):
    arguments = {"roster": members.roster, "terms": members.terms, "epoch": 0, "round_index": 1, "attempt": 0}
    return RoundAggregator(**(arguments | changes))


def test_an_upload_that_is_refused_leaves_the_aggregator_as_it_was(house):
    members = house(4)
    round_ = members.uploaded(count=members.terms.layout.capacity(1) + 10)
    uploads = round_.uploads
    aggregator = _aggregator(members, cohort=members.names[:3])
    aggregator.accept(*uploads["bank-000"])
    header, ciphertexts = uploads["bank-001"]
    body = UploadHeader.decode(Envelope.decode(header).body)

    def resigned(**changes):
        return sign_message(members.identities["bank-001"], replace(body, **changes))

    def state():
        return [s.serialise() for s in aggregator._sums], aggregator.contributors, aggregator.uplink_bytes

    lied = [ciphertexts[0], ciphertexts[1][:-15] + b"\xff" * 15]
    sybil = sign_message(Identity.generate(), replace(body, sender="bank-999"))
    cases = [
        (DuplicateMessage, uploads["bank-000"]),
        (BadSignature, (replace(Envelope.decode(header), sender="bank-002").encode(), ciphertexts)),
        (UnknownSender, (sybil, ciphertexts)),
        (NotInCohort, uploads["bank-003"]),
        (WrongSession, (resigned(session=bytes(16)), ciphertexts)),
        (WrongEpoch, (resigned(epoch=1), ciphertexts)),
        (StateRollback, (resigned(round=2), ciphertexts)),
        (StaleRound, (resigned(attempt=1), ciphertexts)),
        (MalformedMessage, (header + b"\x00", ciphertexts)),
        (CohortMismatch, (resigned(cohort_hash=bytes(32)), ciphertexts)),
        (HeParameterMismatch, (resigned(he_key_id=bytes(32)), ciphertexts)),
        (CiphertextSizeMismatch, (resigned(ciphertext_count=1), ciphertexts[:1])),
        (CiphertextSizeMismatch, (header, ciphertexts[:1])),
        (CiphertextSizeMismatch, (header, ciphertexts * 2)),
        (CiphertextSizeMismatch, (header, [ciphertexts[0], ciphertexts[1][:-1]])),
        (AggregateHashMismatch, (header, ciphertexts[::-1])),
        (AggregateHashMismatch, (header, [ciphertexts[0], uploads["bank-000"][1][1]])),
        (MalformedCiphertext, (resigned(ciphertext_list_hash=ciphertext_list_hash(lied)), lied)),
    ]
    before = state()
    for error, (signed, sent) in cases:
        with pytest.raises(error):
            aggregator.accept(signed, sent)
        assert state() == before
    aggregator.accept(*uploads["bank-001"])
    assert not aggregator.complete
    aggregator.accept(*uploads["bank-002"])
    assert aggregator.complete
    headers, aggregate = aggregator.close()
    assert aggregator.close() == (headers, aggregate)
    with pytest.raises(OutOfOrder):
        aggregator.accept(*uploads["bank-003"])
    assert aggregator.uplink_bytes == sum(len(uploads[n][0]) + 2 * 30784 for n in members.names[:3])


def test_the_check_of_ciphertexts_comes_before_they_are_parsed(house, monkeypatch):
    members = house(4)
    round_ = members.uploaded()
    seen = []

    def refuse(ciphertexts):
        seen.append(list(ciphertexts))
        raise MalformedCiphertext("a ciphertext crashed its checker")

    aggregator = _aggregator(members, check_ciphertexts=refuse)
    monkeypatch.setattr(
        "hansa.secure_agg.aggregator.parse_seeded", lambda _: pytest.fail("parsed before the check")
    )
    with pytest.raises(MalformedCiphertext):
        aggregator.accept(*round_.uploads["bank-000"])
    assert seen == [round_.uploads["bank-000"][1]]
    assert aggregator.contributors == ()


def test_a_cohort_below_the_threshold_is_none(house):
    members = house(5)
    with pytest.raises(CohortTooSmall):
        _aggregator(members, cohort=members.names[:3])


def test_an_endless_upload_is_read_one_ciphertext_too_far(house):
    members = house(4)
    header, (ciphertext,) = members.uploaded().uploads["bank-000"]
    stream = itertools.count()
    with pytest.raises(CiphertextSizeMismatch, match="more"):
        _aggregator(members).accept(header, (ciphertext for _ in stream))
    assert next(stream) == 2


def test_answers_to_another_roster_from_strangers_or_twice_are_refused(house):
    members = house(5)
    round_ = members.uploaded(gone=("bank-004",))
    headers, aggregate = round_.aggregator.close()
    consent = members.machines["bank-000"].answer(headers, aggregate)
    body = Consent.decode(Envelope.decode(consent).body)

    def resigned(signer="bank-000", **changes):
        return sign_message(members.identities[signer], replace(body, **changes))

    second = sign_message(members.identities["bank-000"], body)
    assert second == consent  # Ed25519 is deterministic: the same answer is the same bytes
    for error, wrong in (
        (RosterEquivocation, resigned(roster_hash=bytes(32))),
        (RosterEquivocation, resigned(cohort_hash=bytes(32))),
        (NotInCohort, resigned("bank-004", sender="bank-004")),
        (StaleRound, resigned(attempt=1)),
        (BadSignature, resigned("bank-001")),
        (MalformedMessage, headers[0]),
    ):
        with pytest.raises(error):
            round_.aggregator.accept_answer(wrong)
    assert round_.aggregator.accept_answer(consent) == round_.aggregator.accept_answer(consent) == "bank-000"
    assert round_.aggregator.needs_consents


def test_memory_is_one_sum_a_ciphertext_whatever_the_members(house):
    for participants in (4, 9):
        members = house(participants)
        round_ = members.uploaded(count=members.terms.layout.capacity(2))
        assert len(round_.aggregator._sums) == 2
        assert {running.terms for running in round_.aggregator._sums} == {participants}
        kept = [value for value in vars(round_.aggregator).values() if isinstance(value, (bytes, list, dict))]
        assert (
            sum(len(v) for values in kept if isinstance(values, dict) for v in values.values())
            < 1000 * participants
        )
