"""Every way to cheat between roster and release (R2 to R5), each with the error that stops it."""

from dataclasses import replace

import numpy as np
import pytest

from hansa.errors import (
    BadSignature,
    CiphertextSizeMismatch,
    CohortMismatch,
    DuplicateMessage,
    GroupSealInvalid,
    HeParameterMismatch,
    MalformedMessage,
    ModelDivergence,
    NotEnoughConsents,
    NotEnoughShares,
    OutOfOrder,
    OwnUploadAltered,
    OwnUploadMissing,
    RosterEquivocation,
    RosterNotSubset,
    RosterTooSmall,
    StaleRound,
    StateRollback,
    TranscriptDivergence,
    UnknownSender,
    WrongEpoch,
    WrongSession,
)
from hansa.secure_agg.identity import Identity
from hansa.secure_agg.messages import (
    Consent,
    Envelope,
    Release,
    UploadHeader,
    sign_message,
)
from hansa.secure_agg.relay import PackageBoard

VICTIM = "bank-000"


def _as_sender(members, kind, data, sender):
    """The message as somebody else would have signed it."""
    return _resigned(members, kind, data, signer=members.identities[sender], sender=sender)


def _resigned(members, kind, data, signer=None, **changes):
    """The message with other contents, signed by its sender or by somebody else's key."""
    body = kind.decode(Envelope.decode(data).body)
    identity = members.identities[body.sender] if signer is None else signer
    return sign_message(identity, replace(body, **changes))


# -- R2: roster and aggregate -------------------------------------------------------------------------------


def test_a_roster_that_is_not_one_is_refused_before_anything_is_released(house):
    members = house(5)
    round_ = members.uploaded(1, 0, cohort=members.names[:4])
    headers, aggregate = round_.aggregator.close()
    outsider = _resigned(
        members, UploadHeader, headers[1], signer=members.identities["bank-004"], sender="bank-004"
    )
    second = headers[1]
    altered = _resigned(members, UploadHeader, headers[0], ciphertext_list_hash=bytes(32))
    forged = replace(
        Envelope.decode(second), body=Envelope.decode(second).body.replace(b"eround\x01", b"eround\x02")
    )

    def changed(**values):
        return [headers[0], _resigned(members, UploadHeader, second, **values), *headers[2:]], aggregate

    cases = [
        (RosterNotSubset, ([*headers, outsider], aggregate)),
        (RosterTooSmall, (headers[:3], aggregate)),
        (OwnUploadAltered, ([altered, *headers[1:]], aggregate)),
        (BadSignature, ([headers[0], forged.encode(), *headers[2:]], aggregate)),
        (DuplicateMessage, ([*headers, second], aggregate)),
        (StateRollback, changed(round=2)),
        (StaleRound, changed(round=0)),
        (StaleRound, changed(attempt=1)),
        (WrongSession, changed(study=bytes(32))),
        (WrongEpoch, changed(epoch=7)),
        (CohortMismatch, changed(cohort_hash=bytes(32))),
        (HeParameterMismatch, changed(he_key_id=bytes(32))),
        (ModelDivergence, changed(state_tag=bytes(32))),
        (TranscriptDivergence, changed(previous_transcript=b"f" * 32)),
        (CiphertextSizeMismatch, changed(ciphertext_count=2)),
        (CiphertextSizeMismatch, (headers, [])),
        (CiphertextSizeMismatch, (headers, aggregate * 2)),
        (CiphertextSizeMismatch, (headers, [aggregate[0][:-1]])),
    ]  # fmt: skip
    machine = members.machines[VICTIM]
    for error, (wrong, ciphertexts) in cases:
        with pytest.raises(error):
            machine.answer(wrong, ciphertexts)
    assert machine.release is None
    assert members.stores[VICTIM].get("lock") is None
    machine.answer(headers, aggregate)
    assert machine.release is not None


def test_a_roster_that_leaves_the_own_upload_out_is_refused(house):
    members = house(5)
    round_ = members.uploaded()
    headers, aggregate = round_.aggregator.close()
    with pytest.raises(OwnUploadMissing):
        members.machines[VICTIM].answer(headers[1:], aggregate)


def test_one_roster_an_attempt(house):
    members = house(5)
    round_ = members.uploaded()
    headers, aggregate = round_.aggregator.close()
    machine = members.machines[VICTIM]
    consent = machine.answer(headers[:4], aggregate)
    assert Envelope.decode(consent).type == "consent"
    for _ in range(2):
        assert machine.answer(headers[:4], aggregate) == consent
        with pytest.raises(RosterEquivocation):
            machine.answer(headers, aggregate)
        with pytest.raises(RosterEquivocation):
            machine.answer(headers[:4], [aggregate[0][:-15] + bytes(15)])
        machine = members.restart(VICTIM)


def test_steps_out_of_order_are_refused(house):
    members = house(5)
    round_ = members.uploaded(1, 0, gone=("bank-004",))
    headers, aggregate = round_.aggregator.close()
    late = members.machines["bank-004"]
    with pytest.raises(OutOfOrder):
        late.answer(headers, aggregate)
    machine = members.machines[VICTIM]
    with pytest.raises(OutOfOrder):
        machine.consents([])
    with pytest.raises(OutOfOrder):
        machine.unmask([])
    with pytest.raises(OutOfOrder):
        machine.open(headers, aggregate)
    machine.answer(headers, aggregate)
    with pytest.raises(OutOfOrder):
        machine.unmask([])
    strict = house(3)
    uploaded = strict.uploaded()
    with pytest.raises(OutOfOrder):
        strict.machines[VICTIM].answer(*uploaded.aggregator.close())
    with pytest.raises(OutOfOrder):
        strict.machines[VICTIM].catch_up(
            1, 0, [], [], [], [], count=1, model_hash=bytes(32), transcript=bytes(32)
        )


# -- R3, R4, R5: consents and releases -----------------------------------------------------------------------


def test_a_roster_with_dropouts_needs_t_consents_to_the_very_same(house):
    members = house(5)
    round_ = members.uploaded(1, 0, gone=("bank-004",))
    headers, aggregate = round_.aggregator.close()
    here = members.names[:4]
    consents = [members.machines[name].answer(headers, aggregate) for name in here]
    machine = members.machines[VICTIM]
    stranger = Identity.generate()
    cases = [
        (NotEnoughConsents, consents[:3]),
        (NotEnoughConsents, [*consents[:3], _resigned(members, Consent, consents[3], roster_hash=bytes(32))]),
        (NotEnoughConsents, [*consents[:3], _resigned(members, Consent, consents[3], cohort_hash=bytes(32))]),
        (NotEnoughConsents, [*consents[:3], _as_sender(members, Consent, consents[3], "bank-004")]),
        (DuplicateMessage, [*consents[:3], consents[2]]),
        (BadSignature, [*consents[:3], _resigned(members, Consent, consents[3], signer=stranger)]),
        (UnknownSender, [*consents[:3], _resigned(members, Consent, consents[3], signer=stranger, sender="x")]),
        (StaleRound, [*consents[:3], _resigned(members, Consent, consents[3], attempt=9)]),
    ]  # fmt: skip
    for error, wrong in cases:
        with pytest.raises(error):
            machine.consents(wrong)
        assert machine.release is None
    assert machine.consents(consents) == machine.release


def test_different_dropout_sets_to_different_participants_release_nothing(house):
    members = house(6)  # T = 5
    round_ = members.uploaded()
    headers, aggregate = round_.aggregator.close()
    answers = []
    for index, name in enumerate(members.names[:4]):
        gone = headers[5] if index % 2 else headers[4]
        answers.append(members.machines[name].answer([h for h in headers if h != gone], aggregate))
    for name in members.names[:4]:
        with pytest.raises(NotEnoughConsents):
            members.machines[name].consents(answers)


def test_releases_that_are_not_those_of_the_roster_are_refused(house):
    members = house(5)
    round_ = members.uploaded(1, 0, gone=("bank-004",))
    releases = members.released(round_)
    machine = members.machines[VICTIM]
    body = Release.decode(Envelope.decode(releases[3]).body)
    broken = replace(
        Envelope.decode(releases[3]),
        body=body.encode().replace(body.sealed_shares, bytes(len(body.sealed_shares))),
    ).encode()
    cases = [
        (NotEnoughShares, releases[:3]),
        (DuplicateMessage, [*releases[:3], releases[2]]),
        (BadSignature, [*releases[:3], broken]),
        (GroupSealInvalid, [*releases[:3], _resigned(members, Release, releases[3], sealed_shares=bytes(176))]),
        (RosterEquivocation, [*releases[:3], _resigned(members, Release, releases[3], roster_hash=bytes(32))]),
        (CohortMismatch, [*releases[:3], _resigned(members, Release, releases[3], cohort_hash=bytes(32))]),
        (RosterNotSubset, [*releases[:3], _as_sender(members, Release, releases[3], "bank-004")]),
        (WrongEpoch, [*releases[:3], _resigned(members, Release, releases[3], epoch=3)]),
        (MalformedMessage, [*releases[:3], b""]),
    ]  # fmt: skip
    for error, wrong in cases:
        with pytest.raises(error):
            machine.unmask(wrong)
    np.testing.assert_array_equal(machine.unmask(releases).total, round_.expected())


@pytest.mark.parametrize("sealed", [176, 144], ids=["of its length", "of another"])
def test_a_release_that_does_not_open_is_left_out_while_t_others_do(house, sealed):
    """Its holder would otherwise keep everybody from the sum, after all shares were released for it."""
    members = house(5)
    round_ = members.uploaded()
    releases = members.released(round_)
    broken = _resigned(members, Release, releases[1], sealed_shares=bytes(sealed))
    opened = members.machines[VICTIM].unmask([releases[0], broken, *releases[2:]])
    np.testing.assert_array_equal(opened.total, round_.expected())
    assert opened.faulty_holders == ("bank-001",)
    with pytest.raises(GroupSealInvalid):
        members.machines[VICTIM].unmask([releases[0], broken, *releases[2:4]])


def test_an_upload_that_the_store_does_not_know_is_a_rollback(house):
    members = house(5)
    backup = members.stores[VICTIM].copy()
    round_ = members.uploaded()
    members.released(round_)
    members.machines[VICTIM] = members.machine(VICTIM, backup)  # a restored snapshot
    with pytest.raises(StateRollback):
        members.catch_up(VICTIM, round_)
    members.board = PackageBoard(members.roster, members.terms, 0)
    # Peers made their packages later than the round that is asked for.
    others = members.names[1:]
    for name in others:
        members.machines[name].finish(5, 0)
        for key in members.stores[name].keys("package/"):
            members.stores[name].delete(key)
    with pytest.raises(StateRollback):
        members.start(VICTIM, members.begin(1, 1))
