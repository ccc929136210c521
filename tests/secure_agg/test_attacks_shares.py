"""Dealers of wrong shares, holders that release wrong ones, and a coordinator that lies about which were dealt."""

from dataclasses import replace

import numpy as np
import pytest

from hansa.errors import (
    NotEnoughShares,
    PackageHashMismatch,
    PackageLeavesMissing,
    ShareCommitmentMismatch,
    ShareHashMismatch,
    ShareOpenFailed,
)
from hansa.secure_agg import uploading
from hansa.secure_agg.leaves import leaf_of, leaf_tree
from hansa.secure_agg.messages import Envelope, Package, Release, sign_message
from hansa.secure_agg.packages import make_package
from hansa.secure_agg.sealing import release_key, seal, share_key, unseal

VICTIM, DEALER = "bank-000", "bank-001"


class Leaves:
    """The way to the leaves; notes whose were asked for."""

    def __init__(self, leaves):
        self.leaves, self.asked = leaves, []

    def __call__(self, dealer):
        self.asked.append(dealer)
        return self.leaves[dealer]


# -- wrong shares are dealt --------------------------------------------------------------------------------


def _wrong_share(members, package_id, kind, index, name, posted):
    """Return what a dishonest dealer posts for a holder."""
    epoch = members.epochs[DEALER]
    key = share_key(epoch.pair_keys[name], package_id, DEALER, name)
    shares = unseal(key, posted[:80], epoch.manifest_hash)
    wrong = bytes([index]) * 31 + bytes(1)
    if kind == "closed":
        return bytes(80) + leaf_of(package_id, index, bytes(80), shares[:32], shares[32:])
    blob = seal(key, wrong + shares[32:], epoch.manifest_hash)
    named = wrong if kind == "off polynomial" else shares[:32]
    return blob + leaf_of(package_id, index, blob, named, shares[32:])


def _bad_dealer(members, monkeypatch, kind):
    """Let bank-001 make packages whose shares do not open, do not match their leaf, or lie on no polynomial."""

    def dishonest(*arguments, **keywords):
        honest = make_package(*arguments, **keywords)
        body = Package.decode(Envelope.decode(honest.signed).body)
        posted = [
            share if name == DEALER else _wrong_share(members, body.package_id, kind, index, name, share)
            for index, (name, share) in enumerate(zip(members.names, honest.posted, strict=True))
        ]
        root, _ = leaf_tree(body.package_id, [share[-48:] for share in posted])
        signed = sign_message(members.identities[DEALER], replace(body, leaf_root=root))
        return replace(honest, posted=tuple(posted), signed=signed)

    with monkeypatch.context() as patched:
        patched.setattr(uploading, "make_package", dishonest)
        members.post([DEALER])


@pytest.mark.parametrize(
    ("kind", "error"), [("closed", ShareOpenFailed), ("other shares", ShareHashMismatch)]
)
def test_shares_that_do_not_open_or_match_are_refused_and_their_dealer_named(house, monkeypatch, kind, error):
    members = house(4)
    _bad_dealer(members, monkeypatch, kind)
    round_ = members.begin()
    with pytest.raises(error, match=DEALER):
        members.start(VICTIM, round_)


def test_a_dealer_of_shares_off_the_polynomial_is_named_when_they_are_used(house, monkeypatch):
    members = house(5)
    _bad_dealer(members, monkeypatch, "off polynomial")
    round_ = members.uploaded()
    releases, leaves = members.released(round_), Leaves(round_.leaves)
    with pytest.raises(ShareCommitmentMismatch, match=DEALER):
        members.machines[VICTIM].unmask(releases[1:], leaves)
    assert leaves.asked == [DEALER]


def test_a_delivered_share_of_another_holder_or_package_is_refused_before_it_is_opened(house):
    members = house(5)
    round_ = members.begin()
    right = round_.shares[VICTIM]
    _, later = members.board.take(members.names)
    for wrong in (
        round_.shares["bank-002"][1],
        later[VICTIM][1],
        right[2],
        right[1][:-32],
        right[1] + bytes(32),
        right[1][:128] + right[2][128:],
        right[2][:80] + right[1][80:],
        b"",
    ):
        with pytest.raises(PackageHashMismatch, match=DEALER):
            members.start(VICTIM, round_, blobs=[right[0], wrong, *right[2:]])
    members.start(VICTIM, round_)


# -- wrong shares are released -----------------------------------------------------------------------------


def _lied(members, data, places=range(5), share=bytes(32)):
    """The release with another share at some places, sealed and signed by its sender."""
    body = Release.decode(Envelope.decode(data).body)
    key = release_key(members.epochs[VICTIM].group_key, body.roster_hash, body.sender)
    shares = unseal(key, body.sealed_shares, body.cohort_hash)
    for place in places:
        shares = shares[: 32 * place] + share + shares[32 * (place + 1) :]
    changed = replace(body, sealed_shares=seal(key, shares, body.cohort_hash))
    return sign_message(members.identities[body.sender], changed)


def test_an_honest_round_needs_no_leaves_and_any_t_releases_open_it(house):
    members = house(7)
    round_ = members.uploaded(gone=("bank-006",))
    releases, leaves = members.released(round_), Leaves(round_.leaves)
    for left_out in range(6):
        opened = members.machines[VICTIM].unmask(releases[:left_out] + releases[left_out + 1 :], leaves)
        np.testing.assert_array_equal(opened.total, round_.expected())
    assert members.machines[VICTIM].unmask(releases).faulty_holders == ()
    assert leaves.asked == []


@pytest.mark.parametrize("share", [bytes(32), b"\xff" * 32], ids=["another element", "no element"])
@pytest.mark.parametrize("gone", [(), ("bank-006",)], ids=["all there", "one gone"])
@pytest.mark.parametrize("liar", [0, 2, 4])
def test_a_wrong_share_among_those_used_is_laid_to_its_holder_and_the_sum_is_exact(house, liar, gone, share):
    members = house(7)  # T = 5
    round_ = members.uploaded(gone=gone)
    releases = members.released(round_)
    for places, asked in (
        (range(7), ["bank-000"]),  # asked for once: whoever lied is not used again
        ([3], ["bank-003"]),
        ([6], ["bank-006"]),  # who is gone, a share of its mask key
    ):
        leaves = Leaves(round_.leaves)
        shown = list(releases)
        shown[liar] = _lied(members, releases[liar], places, share)
        opened = members.machines[VICTIM].unmask(shown, leaves)
        np.testing.assert_array_equal(opened.total, round_.expected())
        assert opened.faulty_holders == (members.names[liar],)
        assert leaves.asked == asked


def test_two_holders_that_lie_about_different_members_are_both_named(house):
    members = house(8)  # T = 6
    round_ = members.uploaded()
    releases, leaves = members.released(round_), Leaves(round_.leaves)
    shown = [_lied(members, releases[0], [2]), _lied(members, releases[1], [5]), *releases[2:]]
    opened = members.machines[VICTIM].unmask(shown, leaves)
    np.testing.assert_array_equal(opened.total, round_.expected())
    assert opened.faulty_holders == ("bank-000", "bank-001")
    assert leaves.asked == ["bank-002", "bank-005"]


def test_a_wrong_share_beyond_those_used_is_not_noticed(house):
    members = house(5)  # T = 4
    round_ = members.uploaded()
    releases, leaves = members.released(round_), Leaves(round_.leaves)
    opened = members.machines[VICTIM].unmask([*releases[:4], _lied(members, releases[4])], leaves)
    np.testing.assert_array_equal(opened.total, round_.expected())
    assert (opened.faulty_holders, leaves.asked) == ((), [])


def test_fewer_than_t_good_shares_open_nothing(house):
    members = house(5)
    round_ = members.uploaded()
    releases, leaves = members.released(round_), Leaves(round_.leaves)
    for shown in (
        [_lied(members, releases[0]), _lied(members, releases[1]), *releases[2:]],
        [_lied(members, releases[0], [4]), *releases[1:4]],
    ):
        with pytest.raises(NotEnoughShares, match="3 good shares"):
            members.machines[VICTIM].unmask(shown, leaves)
    np.testing.assert_array_equal(members.machines[VICTIM].unmask(releases).total, round_.expected())


def test_without_leaves_or_with_others_nothing_is_opened_and_with_the_true_ones_the_sum_is_exact(house):
    members = house(5)
    round_ = members.uploaded()
    releases = members.released(round_)
    shown, machine = [_lied(members, releases[0], [3]), *releases[1:]], members.machines[VICTIM]
    with pytest.raises(PackageLeavesMissing, match="leaves of the package of 'bank-003'"):
        machine.unmask(shown)
    true, other = round_.leaves["bank-003"], round_.leaves["bank-002"]
    claimed = leaf_of(b"p" * 16, 0, b"", bytes(32), bytes(32)) + true[48:]  # as if the lie had been dealt
    for wrong in (other, claimed, true[:-1], true + bytes(48), true[48:] + true[:48], b""):
        with pytest.raises(PackageHashMismatch, match="bank-003"):
            machine.unmask(shown, {"bank-003": wrong}.__getitem__)
    opened = machine.unmask(shown, {"bank-003": true}.__getitem__)
    np.testing.assert_array_equal(opened.total, round_.expected())
    assert opened.faulty_holders == (VICTIM,)


def test_a_late_member_opens_a_round_in_which_a_holder_lied(house):
    members = house(5)
    round_ = members.uploaded()
    releases = members.released(round_)
    shown = [_lied(members, releases[0]), *releases[1:]]
    with pytest.raises(PackageLeavesMissing):
        members.catch_up("bank-004", round_, releases=shown, leaves=None)
    opened = members.catch_up("bank-004", round_, releases=shown)
    np.testing.assert_array_equal(opened.total, round_.expected())
    assert opened.faulty_holders == (VICTIM,)
