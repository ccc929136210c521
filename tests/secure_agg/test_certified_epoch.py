"""Certificates on the way into an epoch: who checks them, when, and what gets past no member and no relay."""

from dataclasses import replace
from datetime import timedelta

import pytest

from hansa.errors import (
    BadSignature,
    CertificateRejected,
    CohortMismatch,
    DuplicateMessage,
    UnknownSender,
)
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import RevocationList
from hansa.secure_agg.epoch import manifest_hash
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.messages import Deal, Envelope, Join, sign_message
from hansa.secure_agg.relay import EpochRelay
from hansa.secure_agg.store import MemoryStore

DAY = timedelta(days=1)


@pytest.fixture
def members(house, authority):
    return house(4, authority=authority)


@pytest.fixture
def now(members):
    return members.setup("bank-000")._now()


def issue(authority, now, name, identity, days=(-1, 1)):
    window = {"not_before": now + days[0] * DAY, "not_after": now + days[1] * DAY}
    return authority.issue(identity.request_certificate(name), participant=name, **window)


def revocations(authority, now, *certificates):
    found = RevocationList(authority.certificate)
    window = {"this_update": now - DAY, "next_update": now + DAY}
    found.update(authority.revocation_list(certificates, number=1, **window), now)
    return found


def resigned(identity, data, **changes):
    return sign_message(identity, replace(Join.decode(Envelope.decode(data).body), **changes))


def joined(members):
    setups = {name: members.setup(name) for name in members.names}
    return setups, [setup.join() for setup in setups.values()]


def relay_of(members, now, **named):
    return EpochRelay(members.roster, members.number + 1, now=lambda: now, **named)


def assert_refused_by_all(error, members, setups, joins, wrong, now, revoked=None):
    """The last join is replaced by the wrong one: neither dealer, voter nor relay takes it."""
    shown = [*joins[:3], wrong]
    deal = setups["bank-001"].deal(joins)
    for setup in (setups["bank-000"], setups["bank-002"]):
        setup._revoked = revoked
        with pytest.raises(error):
            setup.vote(shown, deal)
    dealer = members.setup("bank-001", revoked=revoked)
    with pytest.raises(error):
        dealer.deal(shown)
    with pytest.raises(error):
        relay_of(members, now, revoked=revoked).accept_join(wrong)


def test_an_epoch_with_certificates_is_entered_and_rounds_are_played(members):
    joins = joined(members)[1]
    for name, join in zip(members.names, joins, strict=True):
        assert Join.decode(Envelope.decode(join).body).certificate == members.certificates[name]
    members.play(1)
    members.new_epoch()
    members.play(2)


def test_a_member_whose_own_certificate_would_be_refused_says_so_before_it_joins(members, authority, now):
    identity = members.identities["bank-000"]
    other = CertificateAuthority.create("consortium", not_before=now - 9 * DAY, not_after=now + 9 * DAY)
    mine = members.certificates["bank-000"]
    for changes in (
        {"certificate": b""},
        {"certificate": members.certificates["bank-001"]},
        {"certificate": issue(authority, now, "bank-000", identity, (-2, -1))},
        {"certificate": issue(authority, now, "bank-000", identity, (1, 2))},
        {"certificate": issue(other, now, "bank-000", identity)},
        {"certificate": mine + bytes(2048)},
        {"now": lambda: now + 365 * DAY},
        {"revoked": revocations(authority, now, mine)},
        {"roster": replace(members.roster, authority=b"")},
    ):
        store = MemoryStore()
        with pytest.raises(CertificateRejected, match="cannot join: ") as caught:
            members.setup("bank-000", store=store, **changes).join()
        assert "new request" in caught.value.hint
        assert store.keys("") == []
    members.setup("bank-000", revoked=revocations(authority, now)).join()


def test_a_join_with_a_certificate_that_is_none_of_its_sender_is_refused_by_all(members, authority, now):
    setups, joins = joined(members)
    identity = members.identities["bank-003"]
    other = CertificateAuthority.create("consortium", not_before=now - 9 * DAY, not_after=now + 9 * DAY)
    for certificate in (
        b"",
        b"\x30\x03\x02\x01\x00",
        authority.certificate,
        members.certificates["bank-002"],
        issue(other, now, "bank-003", identity),
        issue(authority, now, "bank-003", identity, (-2, -1)),
        issue(authority, now, "bank-003", identity, (1, 2)),
        issue(authority, now, "bank-003", Identity.generate()),
        issue(authority, now, "bank-999", identity),
    ):
        wrong = resigned(identity, joins[3], certificate=certificate)
        assert_refused_by_all(CertificateRejected, members, setups, joins, wrong, now)


def test_a_revoked_member_is_refused_by_all_that_know_the_list(members, authority, now):
    setups, joins = joined(members)
    revoked = revocations(authority, now, members.certificates["bank-003"])
    assert_refused_by_all(CertificateRejected, members, setups, joins, joins[3], now, revoked)
    renewed = issue(authority, now, "bank-003", members.identities["bank-003"])
    relay_of(members, now, revoked=revoked).accept_join(
        resigned(members.identities["bank-003"], joins[3], certificate=renewed)
    )


def test_a_certificate_that_ends_between_the_deal_and_the_vote_stops_the_vote(members, now):
    setups, joins = joined(members)
    deal = setups["bank-001"].deal(joins)
    setups["bank-000"]._now = lambda: now + 31 * DAY
    with pytest.raises(CertificateRejected, match="valid until"):
        setups["bank-000"].vote(joins, deal)
    assert members.stores["bank-000"].get("voted") is None


def test_a_sybil_with_a_valid_certificate_is_not_in_the_roster(members, authority, now):
    setups, joins = joined(members)
    sybil = Identity.generate()
    certificate = issue(authority, now, "bank-999", sybil)
    beside = resigned(sybil, joins[3], sender="bank-999", certificate=certificate)
    assert_refused_by_all(UnknownSender, members, setups, joins, beside, now)
    # Under a member's id it has a certificate of the authority, if that errs, and not the pinned key.
    erring = issue(authority, now, "bank-003", sybil)
    wrong = resigned(sybil, joins[3], certificate=erring)
    assert_refused_by_all(BadSignature, members, setups, joins, wrong, now)
    # In a roster of its own: members that pin another one sign another manifest, and it lacks three of ours.
    deal = setups["bank-001"].deal(joins)
    with pytest.raises(CohortMismatch):
        setups["bank-000"].vote(joins[:3], deal)


def test_a_roster_without_an_authority_takes_no_certificate(house, authority):
    plain = house(4)
    setups, joins = joined(plain)
    now = setups["bank-000"]._now()
    identity = plain.identities["bank-003"]
    wrong = resigned(identity, joins[3], certificate=issue(authority, now, "bank-003", identity))
    assert_refused_by_all(CertificateRejected, plain, setups, joins, wrong, now)


def test_the_manifest_covers_the_authority(members, now):
    setups, joins = joined(members)
    deal = Deal.decode(Envelope.decode(setups["bank-001"].deal(joins)).body)
    opened = {
        name: Join.decode(Envelope.decode(join).body) for name, join in zip(members.names, joins, strict=True)
    }
    other = CertificateAuthority.create("consortium", not_before=now, not_after=now + DAY)
    rosters = [members.roster, *(replace(members.roster, authority=a) for a in (b"", other.certificate))]
    found = {manifest_hash(roster, 1, members.terms, opened, deal) for roster in rosters}
    assert len(found) == 3


def test_a_roster_pins_only_what_is_an_authority(members):
    for wrong in (members.certificates["bank-000"], b"\x00"):
        with pytest.raises(CertificateRejected):
            Roster(session_id=bytes(16), study_id=bytes(32), members=members.roster.members, authority=wrong)


def test_a_renewed_certificate_takes_effect_in_the_next_epoch(members, authority, now):
    """A second join of one epoch would be two messages of one kind; the stored one stays what it was."""
    first = members.setup("bank-000").join()
    renewed = issue(authority, now, "bank-000", members.identities["bank-000"])
    again = members.setup("bank-000", certificate=renewed)
    assert again.join() == first
    relay = relay_of(members, now)
    relay.accept_join(first)
    with pytest.raises(DuplicateMessage):
        relay.accept_join(resigned(members.identities["bank-000"], first, certificate=renewed))
    later = members.setup("bank-000", members.number + 2, certificate=renewed).join()
    assert Join.decode(Envelope.decode(later).body).certificate == renewed
