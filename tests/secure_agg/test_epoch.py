"""Setting up an epoch, and the ways to cheat in it."""

from dataclasses import replace

import pytest

from hansa.errors import (
    BadSignature,
    CohortMismatch,
    DuplicateMember,
    DuplicateMessage,
    HeKeyMismatch,
    MalformedMessage,
    NotInCohort,
    OutOfOrder,
    OwnKeyMismatch,
    PackageHashMismatch,
    PackageReuse,
    UnknownSender,
    WrongEpoch,
    WrongSession,
)
from hansa.secure_agg import epoch as epoch_module
from hansa.secure_agg.bfv import HeKey
from hansa.secure_agg.epoch import dealer_of, load_epoch
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.messages import Deal, Envelope, Join, Vote, sign_message
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.relay import EpochRelay, PackageBoard
from hansa.secure_agg.store import MemoryStore


def _resigned(identity, kind, data, **changes):
    return sign_message(identity, replace(kind.decode(Envelope.decode(data).body), **changes))


@pytest.fixture
def joining(house):
    """(members, setups, joins) on the way into epoch 1; bank-001 deals."""
    members = house(4)
    setups = {name: members.setup(name) for name in members.names}
    return members, setups, [setup.join() for setup in setups.values()]


def test_all_members_hold_the_same_keys_and_nobody_elses_channel(house):
    members = house(4)
    epochs = list(members.epochs.values())
    assert len({e.manifest_hash for e in epochs}) == len({e.group_key for e in epochs}) == 1
    assert len({e.he_key.export() for e in epochs}) == 1
    for a in epochs:
        for b in epochs:
            if a is not b:
                assert a.pair_keys[b.participant] == b.pair_keys[a.participant]
    assert len({key for e in epochs for key in e.pair_keys.values()}) == 6
    for name, epoch in members.epochs.items():
        loaded = load_epoch(members.stores[name], name, members.roster, members.terms)
        assert loaded.pair_keys == epoch.pair_keys
        assert loaded.he_key.key_id == epoch.he_key.key_id
        assert members.stores[name].keys("joining") == members.stores[name].keys("voted") == []


def test_keys_rotate_and_so_does_the_dealer(house):
    members = house(4)
    before = members.epochs["bank-000"]
    members.play(1)
    members.new_epoch()
    after = members.epochs["bank-000"]
    assert (before.number, after.number) == (0, 1)
    assert before.group_key != after.group_key
    assert before.he_key.key_id != after.he_key.key_id
    assert [dealer_of(members.roster, number) for number in range(5)] == [*members.names, "bank-000"]
    members.play(2)
    for name in members.names:
        with pytest.raises(WrongEpoch):
            members.setup(name, 1)


def test_a_member_needs_its_own_roster_terms_and_store(house):
    members = house(4)
    with pytest.raises(UnknownSender):
        members.setup("bank-999", identity=members.identities["bank-000"], store=MemoryStore())
    with pytest.raises(OwnKeyMismatch):
        members.setup("bank-000", identity=Identity.generate())
    with pytest.raises(CohortMismatch):
        members.setup("bank-000", terms=Terms(participants=5))
    with pytest.raises(WrongSession):
        members.setup("bank-000", terms=Terms(participants=4, mode="strict"))
    with pytest.raises(WrongSession):
        members.setup("bank-000", roster=replace(members.roster, session_id=b"X" * 16))


def test_joins_that_are_not_those_of_the_pinned_roster_are_refused(joining):
    members, setups, joins = joining
    mallory, stranger = members.identities["bank-002"], Identity.generate()
    deal = setups["bank-001"].deal(joins)
    swapped = replace(
        Envelope.decode(joins[2]),
        body=replace(Join.decode(Envelope.decode(joins[2]).body), channel_key=b"k" * 32).encode(),
    )
    first = Join.decode(Envelope.decode(joins[0]).body)
    cases = [
        (BadSignature, [*joins[:2], swapped.encode(), joins[3]]),
        (BadSignature, [*joins[:2], _resigned(stranger, Join, joins[2]), joins[3]]),
        (UnknownSender, [*joins, _resigned(stranger, Join, joins[2], sender="bank-999")]),  # sybil
        (CohortMismatch, joins[:3]),  # partition
        (WrongSession, [*joins[:2], _resigned(mallory, Join, joins[2], session=bytes(16)), joins[3]]),
        (WrongEpoch, [*joins[:2], _resigned(mallory, Join, joins[2], epoch=0), joins[3]]),
        (DuplicateMember, [*joins, joins[2]]),
        (DuplicateMember, [*joins[:2], _resigned(mallory, Join, joins[2], kem_key=first.kem_key), joins[3]]),
        (OwnKeyMismatch, [_resigned(members.identities["bank-000"], Join, joins[0], channel_key=b"k" * 32), *joins[1:]]),
    ]  # fmt: skip
    for error, wrong in cases:
        with pytest.raises(error):
            setups["bank-000"].vote(wrong, deal)
    with pytest.raises(OutOfOrder):
        setups["bank-000"].deal(joins)
    with pytest.raises(OutOfOrder):
        setups["bank-000"].enter([])
    with pytest.raises(OutOfOrder):
        members.setup("bank-000", store=MemoryStore()).vote(joins, deal)


def test_a_kem_key_that_is_none_stops_the_dealer(joining):
    members, setups, joins = joining
    joins[2] = _resigned(members.identities["bank-002"], Join, joins[2], kem_key=b"\xff" * 1216)
    with pytest.raises(MalformedMessage):
        setups["bank-001"].deal(joins)


def test_a_deal_that_does_not_open_or_match_is_refused(joining, monkeypatch):
    members, setups, joins = joining
    dealer = members.identities["bank-001"]
    deal = setups["bank-001"].deal(joins)
    body = Deal.decode(Envelope.decode(deal).body)
    assert setups["bank-001"].deal(joins) == deal == members.setup("bank-001", 1).deal(joins)
    cases = [
        (BadSignature, _resigned(members.identities["bank-002"], Deal, deal, sender="bank-002")),
        (HeKeyMismatch, _resigned(dealer, Deal, deal, he_key_id=bytes(32))),
        (HeKeyMismatch, _resigned(dealer, Deal, deal, group_commitment=bytes(32))),
        (HeKeyMismatch, _resigned(dealer, Deal, deal, envelopes=body.envelopes[1168:])),
        (HeKeyMismatch, _resigned(dealer, Deal, deal, envelopes=body.envelopes[1168:] + body.envelopes[:1168])),
        (HeKeyMismatch, _resigned(dealer, Deal, deal, sealed_he_key=bytes(61456))),
        (WrongEpoch, _resigned(dealer, Deal, deal, epoch=2)),
    ]  # fmt: skip
    for error, wrong in cases:
        with pytest.raises(error):
            setups["bank-000"].vote(joins, wrong)
    # A key whose hash is not the one committed to, and bytes that are no key at all, honestly sealed.
    for sealed in (HeKey.generate().export(), b"\xff" * 61440):
        fresh = members.setup("bank-001", store=MemoryStore())
        others = [joins[0], fresh.join(), *joins[2:]]
        with monkeypatch.context() as patched:
            real = epoch_module.seal
            patched.setattr(
                epoch_module,
                "seal",
                lambda key, plain, associated, real=real, sealed=sealed: real(key, sealed, associated),
            )
            lying = fresh.deal(others)
        with pytest.raises(HeKeyMismatch):
            setups["bank-000"].vote(others, lying)


@pytest.mark.parametrize("what", ["terms", "deal", "joins"])
def test_whoever_was_shown_something_else_signs_another_manifest(joining, what):
    members, setups, joins = joining
    deal = setups["bank-001"].deal(joins)
    shown, other_deal = list(joins), deal
    if what == "terms":  # such as a lower threshold
        setups["bank-003"]._terms = Terms(participants=4, mode="strict")
    elif what == "deal":
        members.stores["bank-001"].delete("dealt")
        other_deal = setups["bank-001"].deal(joins)
    else:
        shown[0] = _resigned(members.identities["bank-000"], Join, joins[0], channel_key=b"k" * 32)
    votes = [setups[name].vote(joins, deal) for name in members.names[:3]]
    votes.append(setups["bank-003"].vote(shown, other_deal))
    for setup in setups.values():
        with pytest.raises(BadSignature):
            setup.enter(votes)
    with pytest.raises(CohortMismatch):
        setups["bank-000"].enter(votes[:3])
    with pytest.raises(DuplicateMember):
        setups["bank-000"].enter([*votes, votes[0]])
    with pytest.raises(BadSignature):
        setups["bank-000"].enter([*votes[:3], _resigned(Identity.generate(), Vote, votes[3])])
    assert members.stores["bank-000"].get("epoch") is not None  # the old one, still
    assert load_epoch(members.stores["bank-000"], "bank-000", members.roster, members.terms).number == 0


def test_a_member_votes_for_one_manifest_an_epoch_and_joins_once(joining):
    members, setups, joins = joining
    deal = setups["bank-001"].deal(joins)
    vote = setups["bank-000"].vote(joins, deal)
    members.stores["bank-001"].delete("dealt")
    other = setups["bank-001"].deal(joins)
    again = members.setup("bank-000", 1)
    assert again.join() == joins[0]
    for setup in (setups["bank-000"], again):
        with pytest.raises(CohortMismatch, match="another manifest"):
            setup.vote(joins, other)
        assert setup.vote(joins, deal) == vote


def test_the_relay_keeps_one_verified_message_of_each_kind(joining):
    members, setups, joins = joining
    relay = EpochRelay(members.roster, 1)
    with pytest.raises(OutOfOrder):
        relay.joins()
    with pytest.raises(OutOfOrder):
        relay.deal()
    for join in (*joins, joins[0]):
        relay.accept_join(join)
    with pytest.raises(DuplicateMessage):
        relay.accept_join(_resigned(members.identities["bank-000"], Join, joins[0], channel_key=b"k" * 32))
    deal = setups["bank-001"].deal(relay.joins())
    with pytest.raises(UnknownSender):
        relay.accept_deal(_resigned(members.identities["bank-002"], Deal, deal, sender="bank-002"))
    relay.accept_deal(deal)
    relay.accept_deal(deal)
    with pytest.raises(DuplicateMessage):
        relay.accept_deal(_resigned(members.identities["bank-001"], Deal, deal, he_key_id=bytes(32)))
    with pytest.raises(WrongEpoch):
        EpochRelay(members.roster, 2).accept_deal(deal)
    with pytest.raises(OutOfOrder):
        relay.votes()


def test_the_board_takes_whole_packages_and_hands_each_out_once(house):
    members = house(4)
    (signed, blobs), (second, _) = members.machines["bank-000"].packages()
    board = PackageBoard(members.roster, members.terms, 0)
    with pytest.raises(NotInCohort):
        board.take(members.names)
    assert [len(share) for share in blobs] == [48, 128, 128, 128]
    for wrong in (
        blobs[:3],
        [*blobs[:3], bytes(128)],
        [*blobs[:3], b""],
        [blobs[1], *blobs[1:]],
        [bytes(48), *blobs[1:]],
        [blobs[0], blobs[2], blobs[1], blobs[3]],
        [*blobs[:3], bytes(80) + blobs[3][80:]],
        [*blobs[:3], blobs[3][:-1] + bytes([blobs[3][-1] ^ 1])],
    ):
        with pytest.raises(PackageHashMismatch):
            board.accept(signed, wrong)
    assert board.available() == ()
    with pytest.raises(BadSignature):
        board.accept(signed.replace(b"bank-000", b"bank-001"), blobs)
    board.accept(signed, blobs)
    board.accept(signed, blobs)
    from hansa.secure_agg.messages import Package

    with pytest.raises(PackageReuse):
        board.accept(_resigned(members.identities["bank-000"], Package, signed, mask_key=b"k" * 32), blobs)
    for name in members.names[1:]:
        board.accept(*members.machines[name].packages()[0])
    assert board.available() == tuple(members.names)
    packages, shares = board.take(members.names)
    assert packages[0] == signed
    assert shares["bank-002"][0][:128] == blobs[2]
    assert [len(share) for share in shares["bank-002"]] == [192, 192, 0, 192]  # a path of two
    assert board.leaves(["bank-000"]) == {"bank-000": b"".join(share[-48:] for share in blobs)}
    assert (board.available(), board.handed_out("bank-000")) == ((), 1)
    board.accept(signed, blobs)
    assert board.available() == ()
    assert second != signed


def test_there_is_no_secret_at_the_coordinator(house):
    members = house(4)
    round_ = members.uploaded()
    members.released(round_)
    texts = _texts([round_.aggregator, members.board])
    epoch = members.epochs["bank-000"]
    secrets = [epoch.group_key, epoch.he_key.export()[:64], *epoch.pair_keys.values()]
    secrets += [identity.export() for identity in members.identities.values()]
    assert len(texts) > 20
    assert not [secret for secret in secrets for text in texts if secret in text]


def _texts(roots):
    """Every byte string that attributes, slots, lists and dicts lead to."""
    seen, texts, queue = set(), [], list(roots)
    while queue:
        value = queue.pop()
        if id(value) in seen or isinstance(value, type):
            continue
        seen.add(id(value))
        assert not isinstance(value, (HeKey, Identity))
        if isinstance(value, bytes):
            texts.append(value)
        elif isinstance(value, dict):
            queue += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            queue += list(value)
        elif type(value).__module__.startswith("hansa"):
            names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
            queue += [getattr(value, name) for name in names if hasattr(value, name)]
    assert any(isinstance(value, Roster) for value in [roots[0]._roster])
    return texts
