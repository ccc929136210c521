"""Every way to cheat up to the upload (R0, R1) that the threat model lists, each with the error that stops it."""

from dataclasses import replace

import numpy as np
import pytest

from hansa.errors import (
    AlreadyReleased,
    BadSignature,
    CiphertextSizeMismatch,
    CohortMismatch,
    CohortTooSmall,
    DuplicateMember,
    MalformedMessage,
    MessageTooLarge,
    ModelDivergence,
    NotInCohort,
    OutOfOrder,
    OwnKeyMismatch,
    PackageHashMismatch,
    PackageReuse,
    StaleRound,
    StateRollback,
    UnknownSender,
    UpdateOutOfRange,
    UpdateShapeMismatch,
    UploadReuse,
    WrongEpoch,
    WrongSession,
)
from hansa.secure_agg import uploading
from hansa.secure_agg.bfv import CiphertextSum
from hansa.secure_agg.identity import Identity
from hansa.secure_agg.messages import (
    Envelope,
    Package,
    open_signed,
    sign_message,
)

VICTIM = "bank-000"


def _resigned(members, kind, data, signer=None, **changes):
    """The message with other contents, signed by its sender or by somebody else's key."""
    body = kind.decode(Envelope.decode(data).body)
    identity = members.identities[body.sender] if signer is None else signer
    return sign_message(identity, replace(body, **changes))


# -- R0: the cohort -----------------------------------------------------------------------------------------


def test_a_cohort_that_is_not_one_is_refused_and_leaves_everything_as_it_was(house, seeded_bytes):
    members = house(5)
    round_ = members.begin()
    signed, blobs = round_.packages, round_.shares[VICTIM]
    mallory, stranger = members.identities["bank-001"], Identity.generate(seeded_bytes("stranger"))
    body = open_signed(signed[1], Package, members.roster, 0)
    envelope = Envelope.decode(signed[1])
    swapped = replace(envelope, body=replace(body, mask_key=b"k" * 32).encode()).encode()
    other = replace(body, sender="bank-002").encode()
    renamed = replace(envelope, body=other, signature=mallory.sign("package", other)).encode()
    own_key = open_signed(signed[0], Package, members.roster, 0).mask_key
    two = [blobs[0], blobs[2], blobs[1], *blobs[3:]]

    def second(data):
        return {"packages": [signed[0], data, *signed[2:]]}

    def changed(**values):
        return second(_resigned(members, Package, signed[1], **values))

    cases = [
        (BadSignature, second(swapped)),  # a round key swapped on the way
        (BadSignature, second(_resigned(members, Package, signed[1], signer=stranger))),  # a sybil as a member
        (UnknownSender, second(_resigned(members, Package, signed[1], signer=stranger, sender="bank-999"))),
        (BadSignature, second(_resigned(members, Package, signed[1], signer=mallory, sender="bank-002"))),
        (MalformedMessage, second(renamed)),
        (WrongSession, changed(session=bytes(16))),
        (WrongEpoch, changed(epoch=1)),
        (DuplicateMember, {"packages": [*signed, signed[1]], "blobs": [*blobs, blobs[1]]}),
        (CohortTooSmall, {"packages": signed[:3], "blobs": blobs[:3]}),
        (NotInCohort, {"packages": signed[1:], "blobs": blobs[1:]}),
        (PackageReuse, changed(mask_key=own_key)),
        (StateRollback, changed(round=2)),
        (MalformedMessage, changed(leaf_root=b"")),
        (PackageHashMismatch, changed(leaf_root=bytes(32))),
        (MessageTooLarge, second(signed[1] + bytes(100_000))),
        (PackageHashMismatch, {"blobs": two}),  # shares swapped between dealers
        (PackageHashMismatch, {"blobs": [*blobs[:4], bytes(80)]}),
        (CiphertextSizeMismatch, {"blobs": blobs[:4]}),
        (OwnKeyMismatch, {"packages": [_resigned(members, Package, signed[0], mask_key=b"k" * 32), *signed[1:]]}),
        (OwnKeyMismatch, {"packages": [_resigned(members, Package, signed[0], number=9), *signed[1:]]}),
        (StaleRound, {"round_index": 0, "attempt": -1}),
    ]  # fmt: skip
    before = members.stores[VICTIM].copy()
    for error, wrong in cases:
        with pytest.raises(error):
            members.start(VICTIM, round_, **wrong)
        assert members.stores[VICTIM]._values == before._values
    members.start(VICTIM, round_)


def test_a_package_serves_one_cohort(house):
    members = house(5)
    round_ = members.uploaded(1, 0, gone=("bank-003", "bank-004"))
    for name in members.names:  # would expose both secrets of bank-003: its mask key now, its seed before
        with pytest.raises(PackageReuse):
            members.start(name, round_, attempt=1)
        members.restart(name)
        with pytest.raises(PackageReuse):
            members.start(name, round_, attempt=1)
        with pytest.raises(StaleRound):
            members.start(name, round_)
    again = members.uploaded(1, 1)
    with pytest.raises(PackageReuse):  # an older one than the last used
        members.start(VICTIM, again, attempt=2, packages=[again.packages[0], *round_.packages[1:]])
    releases = members.released(again)
    np.testing.assert_array_equal(members.machines[VICTIM].unmask(releases).total, again.expected())


@pytest.mark.parametrize(("number", "attempt"), [(1, 1), (2, 0)])
def test_a_retry_without_a_member_after_a_release_is_refused(house, number, attempt):
    members = house(5)
    round_ = members.uploaded()
    members.released(round_)  # the coordinator claims that it failed, and wants the sum without bank-004
    smaller = members.begin(number, attempt, members.names[:4])
    for name in members.names[:4]:
        with pytest.raises(AlreadyReleased):
            members.start(name, smaller)
        members.restart(name)
        with pytest.raises(AlreadyReleased):
            members.start(name, smaller)
    # Another epoch, other keys: the same model state all the same.
    state = members.state
    members.new_epoch()
    other = members.begin(3, 0, members.names[:4])
    assert members.state is state
    with pytest.raises(AlreadyReleased):
        members.start(VICTIM, other)


def test_a_release_in_an_older_attempt_does_not_follow_one_in_a_later_one(house):
    members = house(5)
    members.uploaded(1, 0, gone=("bank-004",))
    later = members.uploaded(1, 1)
    members.released(later)
    assert members.machines[VICTIM].release is not None
    earlier = members.stores[VICTIM].copy()
    assert len(earlier.keys("release/")) == 1
    with pytest.raises(StaleRound):
        members.catch_up(VICTIM, later, round_index=1, attempt=0)


def test_replayed_rounds_are_stale(house):
    members = house(4)
    first = members.play(1)
    members.play(2)
    for name in members.names:
        with pytest.raises(StaleRound):
            members.start(name, first)
        with pytest.raises(StaleRound):
            members.machines[name].finish(1, 0)


def test_different_models_histories_or_cohorts_give_unrelated_masks_and_are_found(house):
    for error, state in (
        (CohortMismatch, (b"m" * 32, b"x" * 32)),
        (ModelDivergence, (b"x" * 32, bytes(32))),
    ):
        members = house(4)
        members.state["bank-003"] = state
        round_ = members.begin()
        headers = []
        total = CiphertextSum()
        for name in members.names:
            members.start(name, round_)
            header, (ciphertext,) = members.machines[name].protect(np.zeros(9, np.int64))
            headers.append(header)
            total.add(ciphertext)
        aggregate = [total.serialise()]
        with pytest.raises(error):
            members.machines[VICTIM].answer(headers, aggregate)


# -- R1: the upload -----------------------------------------------------------------------------------------


def test_a_wrong_update_is_refused_before_anything_is_masked_and_masks_serve_one_upload(house, monkeypatch):
    members = house(4)
    round_ = members.begin()
    with pytest.raises(OutOfOrder):
        members.machines[VICTIM].protect(np.zeros(5, np.int64))
    members.start(VICTIM, round_)
    machine = members.machines[VICTIM]
    for level in (128, -128, 2**63 - 1):
        with pytest.raises(UpdateOutOfRange):
            machine.protect(np.array([level]))
    for wrong in (np.array([1.0]), np.array([np.nan]), np.zeros((2, 2), np.int64), np.zeros(0, np.int64)):
        with pytest.raises(UpdateShapeMismatch):
            machine.protect(wrong)
    first = machine.protect(np.array([5]))
    with pytest.raises(UploadReuse):
        machine.protect(np.array([6]))
    assert machine.upload == first
    assert members.restart(VICTIM).upload == first
    with pytest.raises(UploadReuse):
        members.machines[VICTIM].protect(np.array([6]))
    # An upload that fails after its secrets were taken is not tried again under the same masks either.
    members.start("bank-001", round_)
    other = members.machines["bank-001"]
    with monkeypatch.context() as patched:
        patched.setattr(uploading, "net_mask", lambda *_: (_ for _ in ()).throw(MalformedMessage("x")))
        with pytest.raises(MalformedMessage):
            other.protect(np.array([5]))
    with pytest.raises(UploadReuse):
        other.protect(np.array([5]))
    assert other.upload is None


def test_a_peer_with_a_low_order_key_gets_no_upload(house):
    members = house(3)
    round_ = members.begin()
    round_.packages[1] = _resigned(members, Package, round_.packages[1], mask_key=bytes(32))
    members.start(VICTIM, round_)
    with pytest.raises(MalformedMessage, match="bank-001"):
        members.machines[VICTIM].protect(np.array([5]))
