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
    MessageTooLarge,
    ModelDivergence,
    NotEnoughShares,
    NotInCohort,
    OutOfOrder,
    RosterEquivocation,
    StaleRound,
    StateRollback,
    StoreNotWritable,
    TranscriptDivergence,
    UnknownSender,
    UploadTooSlow,
    WrongEpoch,
    WrongSession,
)
from hansa.secure_agg import bfv
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES
from hansa.secure_agg.cohort import ciphertext_list_hash
from hansa.secure_agg.expected import ExpectedHeader
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.messages import Consent, Envelope, UploadHeader, sign_message
from hansa.secure_agg.parameters import Terms


def _aggregator(members, **changes):
    arguments = {"roster": members.roster, "terms": members.terms, "epoch": 0, "round_index": 1, "attempt": 0}
    return RoundAggregator(**(arguments | changes))


def test_an_upload_that_is_refused_leaves_the_aggregator_as_it_was(house):
    members = house(4)
    round_ = members.uploaded(count=members.terms.layout.capacity(1) + 10)
    uploads = round_.uploads
    header, ciphertexts = uploads["bank-001"]
    body = UploadHeader.decode(Envelope.decode(header).body)
    expected, _ = ExpectedHeader().leading([body])
    aggregator = _aggregator(members, cohort=members.names[:3], expected=expected)
    aggregator.accept(*uploads["bank-000"])

    def resigned(**changes):
        return sign_message(members.identities["bank-001"], replace(body, **changes))

    def state():
        kept = aggregator.contributors, aggregator.refused, aggregator.uplink_bytes, aggregator._arriving
        return list(aggregator._sums.totals()), repr(kept)

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
        (MessageTooLarge, (header + bytes(4096), ciphertexts)),
        (TranscriptDivergence, (resigned(previous_transcript=b"x" * 32), ciphertexts)),
        (ModelDivergence, (resigned(state_tag=bytes(32)), ciphertexts)),
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
    with pytest.raises(NotInCohort):
        aggregator.accept(*uploads["bank-003"])
    assert aggregator.uplink_bytes == sum(len(uploads[n][0]) + 2 * 30784 for n in members.names[:3])


class Noted:
    """Sums that note what they are asked."""

    def __init__(self):
        self.asked, self.refuse = [], None

    def open(self, count):
        self.asked.append(("open", count))
        return self

    def write(self, ciphertext):
        self.asked.append(("write", ciphertext))

    def commit(self):
        self.asked.append(("commit",))
        if self.refuse is not None:
            raise self.refuse

    def discard(self):
        self.asked.append(("discard",))

    def totals(self):
        return iter([b"sum"])


def test_ciphertexts_go_one_by_one_to_whoever_keeps_the_sums_and_are_never_parsed_here(house, monkeypatch):
    members = house(4)
    round_ = members.uploaded(count=members.terms.layout.capacity(2))
    monkeypatch.setattr(bfv, "parse_seeded", lambda _: pytest.fail("the aggregator has parsed"))
    noted = Noted()
    expected, _ = ExpectedHeader().leading([_body(round_.uploads["bank-000"][0])])
    aggregator = _aggregator(members, sums=noted, expected=expected)
    header, ciphertexts = round_.uploads["bank-000"]
    read = []

    def stream():
        for ciphertext in ciphertexts:
            assert noted.asked[1:] == [("write", data) for data in read]  # the one before has gone on
            read.append(ciphertext)
            yield ciphertext

    aggregator.accept(header, stream())
    assert noted.asked == [("open", 2), *(("write", data) for data in ciphertexts), ("commit",)]
    noted.asked.clear()
    noted.refuse = MalformedCiphertext("no ciphertext")
    header, ciphertexts = round_.uploads["bank-001"]
    with pytest.raises(MalformedCiphertext):
        aggregator.accept(header, ciphertexts)
    assert noted.asked[-2:] == [("commit",), ("discard",)]
    assert aggregator.contributors == ("bank-000",)
    # Bytes that are not the signed ones are given back without a commit.
    noted.asked.clear()
    with pytest.raises(AggregateHashMismatch):
        aggregator.accept(header, [ciphertexts[1], ciphertexts[0]])
    assert ("commit",) not in noted.asked
    assert noted.asked[-1] == ("discard",)
    # So they are when their source fails.
    noted.asked.clear()
    with pytest.raises(ConnectionError):
        aggregator.accept(header, _broken(ciphertexts))
    assert noted.asked == [("open", 2), ("write", ciphertexts[0]), ("discard",)]
    noted.refuse = None
    aggregator.accept(header, ciphertexts)


def _broken(ciphertexts):
    yield ciphertexts[0]
    raise ConnectionError("the connection was lost")


def _body(signed):
    return UploadHeader.decode(Envelope.decode(signed).body)


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
        running = round_.aggregator._sums.running
        assert len(running) == 2
        assert {one.terms for one in running._sums} == {participants}
        assert not round_.aggregator._arriving
        assert not round_.aggregator._waiting
        kept = [value for value in vars(round_.aggregator).values() if isinstance(value, dict)]
        assert sum(len(signed) for values in kept for signed in values.values()) < 1000 * participants


def test_a_second_upload_of_a_member_waits_for_no_first_one_that_is_late(house):
    members = house(4)
    round_ = members.uploaded()
    aggregator, late = _aggregator(members), [False]
    header, (ciphertext,) = round_.uploads["bank-000"]
    first = aggregator.begin_upload(header, is_late=lambda: late[0])
    with pytest.raises(DuplicateMessage, match="on its way"):
        aggregator.accept(header, [ciphertext])
    late[0] = True
    aggregator.accept(header, [ciphertext])
    with pytest.raises(UploadTooSlow):
        first.write(ciphertext)
    with pytest.raises(DuplicateMessage, match="uploaded already"):
        aggregator.accept(header, [ciphertext])
    assert aggregator.uplink_bytes == len(header) + SEEDED_BYTES


def test_closing_gives_up_what_is_on_its_way(house):
    members = house(4)
    round_ = members.uploaded()
    aggregator = _aggregator(members)
    for name in members.names[:3]:
        aggregator.accept(*round_.uploads[name])
    header, (ciphertext,) = round_.uploads["bank-003"]
    arriving = aggregator.begin_upload(header)
    headers, aggregate = aggregator.close()
    for act in (lambda: arriving.write(ciphertext), arriving.finish, lambda: aggregator.begin_upload(header)):
        with pytest.raises((OutOfOrder, CiphertextSizeMismatch)):
            act()
    assert aggregator.close() == (headers, aggregate)
    assert aggregator.contributors == tuple(members.names[:3])


def test_a_round_whose_aggregate_cannot_be_kept_stays_open(house):
    members = house(4)
    round_ = members.uploaded()
    aggregator = _aggregator(members)
    for name in members.names[:3]:
        aggregator.accept(*round_.uploads[name])

    def full(_):
        raise StoreNotWritable("no space left")

    with pytest.raises(StoreNotWritable):
        aggregator.seal(full)
    aggregator.accept(*round_.uploads["bank-003"])
    assert aggregator.close() == round_.aggregator.close()


def test_an_upload_that_was_given_up_for_another_one_is_never_added(house):
    """Not even if its sums would take it: its place is given back before the next one is made."""
    members = house(4)
    header, (ciphertext,) = members.uploaded().uploads["bank-000"]
    noted, late = Noted(), [False]
    expected, _ = ExpectedHeader().leading([_body(header)])
    aggregator = _aggregator(members, sums=noted, expected=expected)
    first = aggregator.begin_upload(header, is_late=lambda: late[0])
    first.write(ciphertext)
    late[0] = True
    second = aggregator.begin_upload(header)
    assert noted.asked == [("open", 1), ("write", ciphertext), ("discard",), ("open", 1)]
    late[0] = False  # a clock that goes back changes nothing
    with pytest.raises(OutOfOrder, match="given up"):
        first.finish()
    assert ("commit",) not in noted.asked
    second.take_all([ciphertext])
    assert aggregator.contributors == ("bank-000",)


def test_what_t_members_decide_while_an_upload_arrives_holds_for_it(house):
    members = house(5)
    round_ = members.uploaded()
    header, (ciphertext,) = round_.uploads["bank-000"]
    foreign = sign_message(members.identities["bank-000"], replace(_body(header), cohort_hash=bytes(32)))
    aggregator = _aggregator(members)
    arriving = aggregator.begin_upload(foreign)
    arriving.write(ciphertext)
    for name in members.names[1:]:
        aggregator.accept(*round_.uploads[name])
    with pytest.raises(CohortMismatch):
        arriving.finish()
    assert aggregator.contributors == tuple(members.names[1:])
    aggregator.accept(header, [ciphertext])
    assert aggregator.close() == round_.aggregator.close()


@pytest.mark.parametrize(
    ("members", "relayed"), [(4, 4), (48, 48), (49, 49), (50, 50), (51, 51), (100, 83), (258, 189)]
)
def test_as_many_releases_are_relayed_as_open_a_round_and_sixteen_more(seeded_bytes, members, relayed):
    keys = [(f"bank-{index:03d}", seeded_bytes(f"{index}")(32)) for index in range(members)]
    roster = Roster(session_id=bytes(16), study_id=bytes(32), members=tuple(keys))
    terms = Terms(participants=members)
    aggregator = RoundAggregator(roster=roster, terms=terms, epoch=0, round_index=1, attempt=0)
    aggregator._releases = {name: name.encode() for name, _ in reversed(keys)}
    assert aggregator.releases() == [name.encode() for name, _ in keys[:relayed]]
    aggregator._releases = {name: b"" for name, _ in keys[: terms.threshold]}
    assert len(aggregator.releases()) == terms.threshold
    del aggregator._releases["bank-000"]
    with pytest.raises(NotEnoughShares):
        aggregator.releases()
