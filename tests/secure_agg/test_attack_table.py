"""Attacks of the table in docs/protocol.md that the files beside this one do not carry out."""

from dataclasses import replace

import numpy as np
import pytest

from hansa.errors import (
    AggregateTagMismatch,
    AlreadyReleased,
    BadSignature,
    CohortMismatch,
    DuplicateMessage,
    Error,
    MalformedCiphertext,
    MessageTooLarge,
    RosterNotSubset,
    WrongEpoch,
    WrongSession,
)
from hansa.secure_agg import packages
from hansa.secure_agg.attempt import verify_results
from hansa.secure_agg.bfv import CiphertextSum
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.messages import (
    ENVELOPE_BYTES,
    Consent,
    Deal,
    Envelope,
    Join,
    Package,
    Release,
    RoundResult,
    UploadHeader,
    Void,
    Vote,
    open_signed,
    sign_message,
)
from hansa.secure_agg.relay import EpochRelay
from hansa.secure_agg.shamir import FIELD_PRIME
from hansa.secure_agg.store import MemoryStore

VICTIM = "bank-000"
KINDS = (Join, Deal, Vote, Package, UploadHeader, Consent, Release, RoundResult, Void)


def _joined(members, **changes):
    setups = {
        name: members.setup(name, **({"store": members.stores[name].copy()} | changes))
        for name in members.names
    }
    return setups, [setup.join() for setup in setups.values()]


# -- the epoch --------------------------------------------------------------------------------------------


def test_a_key_that_is_swapped_in_a_join_breaks_its_signature(house):
    members = house(4)
    setups, joins = _joined(members)
    deal = setups["bank-001"].deal(joins)
    envelope = Envelope.decode(joins[3])
    body = Join.decode(envelope.body)
    other = Join.decode(Envelope.decode(joins[2]).body)
    for changes in (
        {"kem_key": bytes(1216)},
        {"kem_key": other.kem_key},
        {"channel_key": other.channel_key},
        {"certificate": b"c"},
    ):
        wrong = replace(envelope, body=replace(body, **changes).encode()).encode()
        for act in (
            lambda wrong=wrong: setups[VICTIM].vote([*joins[:3], wrong], deal),
            lambda wrong=wrong: EpochRelay(members.roster, 1).accept_join(wrong),
        ):
            with pytest.raises(BadSignature):
                act()


def test_a_join_that_was_sent_elsewhere_is_no_join_here(house):
    """The very bytes that a member signed: in another session, another study, another epoch."""
    members = house(4)
    setups, joins = _joined(members)
    deal = setups["bank-001"].deal(joins)
    fresh = MemoryStore()
    elsewhere = [
        (WrongSession, {"roster": replace(members.roster, session_id=b"X" * 16)}),
        (WrongSession, {"roster": replace(members.roster, study_id=b"X" * 32)}),
        (WrongEpoch, {"epoch": 0}),
        (WrongEpoch, {"epoch": 2}),
    ]
    for error, changes in elsewhere:
        replayed = members.setup("bank-003", **({"store": fresh} | changes)).join()
        with pytest.raises(error):
            setups[VICTIM].vote([*joins[:3], replayed], deal)
        with pytest.raises(error):
            EpochRelay(members.roster, 1).accept_join(replayed)


def test_members_cannot_be_split_into_two_smaller_epochs(house):
    """Three of four pin a roster without the fourth: the fourth's own does not fit, nor do theirs fit it."""
    members = house(4)
    smaller = Roster(
        session_id=members.roster.session_id,
        study_id=members.roster.study_id,
        members=members.roster.members[:3],
    )
    terms = replace(members.terms, participants=3, mode="strict")
    theirs = {
        name: members.setup(name, roster=smaller, terms=terms, store=MemoryStore())
        for name in members.names[:3]
    }
    joins = [setup.join() for setup in theirs.values()]
    deal = theirs["bank-001"].deal(joins)
    votes = [setup.vote(joins, deal) for setup in theirs.values()]
    for setup in theirs.values():
        setup.enter(votes)
    left = members.setup("bank-003")
    with pytest.raises(CohortMismatch):
        left.vote([*joins, left.join()][1:], deal)
    with pytest.raises(Error):  # their deal has three envelopes, none for it
        left.vote([*joins, left.join()], deal)


# -- the round --------------------------------------------------------------------------------------------


def test_a_member_that_was_shown_a_smaller_cohort_adds_to_no_sum(house):
    members = house(5)  # T = 4
    round_ = members.begin()
    round_.levels = members.levels(20)
    partial = [0, 1, 2, 4]
    for name in members.names:
        shown = {}
        if name == "bank-004":
            blobs = round_.shares[name]
            shown = {
                "packages": [round_.packages[i] for i in partial],
                "blobs": [blobs[i] for i in partial],
            }
        members.start(name, round_, **shown)
        round_.uploads[name] = members.machines[name].protect(round_.levels[name])
    headers = [round_.uploads[name][0] for name in members.names]
    total = CiphertextSum()
    for name in members.names:
        total.add(round_.uploads[name][1][0])
    aggregate = [total.serialise()]
    for name in members.names[:4]:
        with pytest.raises(CohortMismatch):
            members.machines[name].answer(headers, aggregate)
    apart = members.machines["bank-004"]
    with pytest.raises(RosterNotSubset):
        apart.answer(headers, aggregate)
    with pytest.raises(CohortMismatch):
        apart.answer([headers[i] for i in partial], aggregate)
    # The coordinator does not take its upload either; without it the others open the exact sum of four.
    for name in members.names[:4]:
        round_.aggregator.accept(*round_.uploads[name])
    with pytest.raises(CohortMismatch):
        round_.aggregator.accept(*round_.uploads["bank-004"])
    releases = members.released(round_)
    np.testing.assert_array_equal(members.machines[VICTIM].unmask(releases).total, round_.expected())


def test_garbage_of_the_right_length_is_no_aggregate(house):
    for error, garbage in (
        (MalformedCiphertext, b"\xff" * 61440),
        (MalformedCiphertext, bytes(61440)),
        (AggregateTagMismatch, bytes(range(240)) * 256),  # in the form of a ciphertext
    ):
        members = house(3)
        headers, _ = members.uploaded().aggregator.close()
        with pytest.raises(error):
            members.machines[VICTIM].open(headers, [garbage])


def test_a_members_second_different_release_is_not_kept(house):
    members = house(4)
    round_ = members.uploaded()
    headers, aggregate = round_.aggregator.close()
    release = members.machines[VICTIM].answer(headers, aggregate)
    round_.aggregator.accept_answer(release)
    body = Release.decode(Envelope.decode(release).body)
    other = replace(body, sealed_shares=bytes(len(body.sealed_shares)))
    with pytest.raises(DuplicateMessage):
        round_.aggregator.accept_answer(sign_message(members.identities[VICTIM], other))
    for name in members.names[1:]:
        round_.aggregator.accept_answer(members.machines[name].answer(headers, aggregate))
    assert release in round_.aggregator.releases()


def test_two_processes_on_one_store_release_once_for_a_model_state(house):
    """The older one still holds an attempt that the newer one left for a later one."""
    members = house(5)
    first = members.uploaded(1, 0, gone=())
    older = members.machines[VICTIM]
    headers, aggregate = first.aggregator.close()
    consents = [members.machines[name].answer(headers[:4], aggregate) for name in members.names[:4]]
    members.restart(VICTIM)
    members.released(members.uploaded(1, 1))
    assert members.machines[VICTIM].release is not None
    with pytest.raises(AlreadyReleased):
        older.consents(consents)


# -- sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_longer_than_any_of_its_kind_is_not_decoded(house, kind, monkeypatch):
    members = house(4)
    monkeypatch.setattr(Envelope, "decode", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(MessageTooLarge):
        open_signed(bytes(ENVELOPE_BYTES + kind.MAXIMUM_BYTES + 1), kind, members.roster, 0)


def test_a_message_that_is_too_long_is_refused_wherever_one_comes_in(house):
    members, large = house(5), bytes(1 << 20)
    round_ = members.uploaded(gone=("bank-004",))
    headers, aggregate = round_.aggregator.close()
    machine = members.machines[VICTIM]
    setup = members.setup("bank-001")
    setup.join()
    relay = EpochRelay(members.roster, 1)
    machine.answer(headers, aggregate)
    late = members.machines["bank-004"]
    for act in (
        lambda: relay.accept_join(large),
        lambda: relay.accept_deal(large),
        lambda: relay.accept_vote(large),
        lambda: setup.deal([large]),
        lambda: setup.vote([large], large),
        lambda: members.board.accept(large, []),
        lambda: members.start("bank-001", round_, attempt=1, packages=[large] * 5),
        lambda: members.begin(1, 1).aggregator.accept(large, []),
        lambda: round_.aggregator.accept_answer(large),
        lambda: late.catch_up(1, 0, [large], headers, aggregate, [], count=1, model_hash=b"m" * 32, transcript=bytes(32)),
        lambda: machine.consents([large]),
        lambda: verify_results([large], members.roster, 0, 1, 0, 4),
    ):  # fmt: skip
        with pytest.raises(MessageTooLarge):
            act()
    machine.consents([members.machines[name].answer(headers, aggregate) for name in members.names[:4]])
    with pytest.raises(MessageTooLarge):
        machine.unmask([large])


# -- secrets ----------------------------------------------------------------------------------------------


def test_a_mask_key_that_has_no_share_is_drawn_again():
    """Clamping leaves 2^255 − 8, which is not an element of the field of shares."""
    draws = [b"\xff" * 32, b"\x07" * 32]
    scalar = packages._mask_private(lambda _: draws.pop(0))
    assert draws == []
    assert int.from_bytes(scalar, "little") < FIELD_PRIME
    assert scalar == b"\x00" + b"\x07" * 30 + b"\x47"
