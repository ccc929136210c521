"""A sum that cannot be opened: T members say so, leave the round behind, and the keys do not serve a third one."""

from dataclasses import asdict

import numpy as np
import pytest

from hansa.errors import (
    AggregateTagMismatch,
    AlreadyReleased,
    BadSignature,
    CohortMismatch,
    DuplicateMessage,
    KeyRotationDue,
    NotEnoughConsents,
    OutOfOrder,
    RosterEquivocation,
    StaleRound,
    StateRollback,
    TranscriptDivergence,
)
from hansa.secure_agg import voiding
from hansa.secure_agg.cohort import void_link
from hansa.secure_agg.messages import Void, open_signed, sign_message

VICTIM = "bank-000"


def spoilt(members, number, attempt=0):
    """Play a round whose aggregate is not the sum, to the point where everybody has failed to open it."""
    round_ = members.uploaded(number, attempt)
    headers, _ = round_.aggregator.close()
    other = members.epochs[VICTIM].he_key.encrypt(np.arange(4096, dtype=np.uint64))
    total = members.sum_of([other])
    for name in members.names:
        members.machines[name].answer(headers, total)
    releases = [members.machines[name].release for name in members.names]
    for name in members.names:
        with pytest.raises(AggregateTagMismatch):
            members.machines[name].unmask(releases)
    return round_, headers, total, releases


def left_behind(members, round_):
    """T members declare the round void, and all leave it behind."""
    at = round_.number, round_.attempt
    voids = [members.void(name, *at) for name in members.names[: members.terms.threshold]]
    for name in members.names:
        transcript = members.state[name][1]
        link = members.machines[name].skip(round_.number, round_.attempt, voids, transcript=transcript)
        members.state[name] = (bytes(31) + bytes([round_.number]), link)
        members.machines[name].finish(round_.number, round_.attempt)
    assert len(set(members.state.values())) == 1
    return voids


def test_t_members_leave_a_round_behind_and_the_next_one_is_exact(house):
    members = house(4)
    round_, *_ = spoilt(members, 1)
    with pytest.raises(AlreadyReleased):  # the model state is spent
        members.start(VICTIM, members.begin(1, 1))
    before = members.state[VICTIM][1]
    voids = left_behind(members, round_)
    body = open_signed(voids[0], Void, members.roster, members.number)
    assert body.transcript == void_link(members.epochs[VICTIM].group_key, before, body.roster_hash)
    members.play(2)  # exact, and the same state for everybody


def test_a_void_is_signed_only_for_a_sum_that_failed_here(house):
    members = house(4)
    with pytest.raises(OutOfOrder):
        members.void(VICTIM)
    round_ = members.uploaded()
    with pytest.raises(OutOfOrder):
        members.void(VICTIM)
    releases = members.released(round_)
    with pytest.raises(OutOfOrder):
        members.void(VICTIM)
    members.machines[VICTIM].unmask(releases)
    with pytest.raises(OutOfOrder):
        members.void(VICTIM)


def test_a_member_that_was_away_and_finds_out_later_signs_the_void_too(house):
    """One spoils the sum, one is away at the upload: the three that are left are T."""
    members = house(4)
    round_ = members.uploaded(gone=("bank-003",))
    headers, _ = round_.aggregator.close()
    total = members.sum_of([members.epochs[VICTIM].he_key.encrypt(np.arange(4096, dtype=np.uint64))])
    here = members.names[:3]
    consents = [members.machines[name].answer(headers, total) for name in here]
    releases = [members.machines[name].consents(consents) for name in here]
    for name in here:
        with pytest.raises(AggregateTagMismatch):
            members.machines[name].unmask(releases)
    with pytest.raises(OutOfOrder):
        members.void("bank-003")
    with pytest.raises(AggregateTagMismatch):
        members.machines["bank-003"].catch_up(
            1, 0, round_.packages, headers, total, releases,
            count=50, model_hash=members.state["bank-003"][0], transcript=members.state["bank-003"][1],
        )  # fmt: skip
    voids = [members.void(name) for name in ("bank-000", "bank-002", "bank-003")]  # the spoiler says nothing
    for name in members.names:
        link = members.machines[name].skip(1, 0, voids, transcript=members.state[name][1])
        assert link == open_signed(voids[0], Void, members.roster, members.number).transcript


def test_in_strict_mode_another_attempt_is_the_way_on(house):
    members = house(4, mode="strict")
    round_ = members.uploaded()
    headers, _ = round_.aggregator.close()
    total = members.sum_of([members.epochs[VICTIM].he_key.encrypt(np.arange(4096, dtype=np.uint64))])
    for name in members.names:
        with pytest.raises(AggregateTagMismatch):
            members.machines[name].open(headers, total)
        with pytest.raises(OutOfOrder):
            members.void(name)
    members.play(1, 1)


def test_the_same_void_after_a_restart_and_a_failure_counts_once(house):
    members = house(4)
    _, headers, total, releases = spoilt(members, 1)
    machine, store = members.machines[VICTIM], members.stores[VICTIM]
    assert voiding.failures(store, members.number) == 1
    with pytest.raises(AggregateTagMismatch):
        machine.unmask(releases)
    assert voiding.failures(store, members.number) == 1
    signed = members.void(VICTIM)
    again = members.restart(VICTIM)
    assert members.void(VICTIM) == signed
    assert again.answer(headers, total) == releases[0]
    assert voiding.failures(store, members.number) == 1


def test_a_failure_is_on_the_store_before_anybody_learns_of_it(house, monkeypatch):
    members = house(4)
    round_ = members.uploaded()
    headers, _ = round_.aggregator.close()
    total = members.sum_of([members.epochs[VICTIM].he_key.encrypt(np.arange(4096, dtype=np.uint64))])
    releases = [members.machines[name].answer(headers, total) for name in members.names]

    def full(key, _):
        raise OSError(f"no space for {key}")

    monkeypatch.setattr(members.stores[VICTIM], "put", full)
    with pytest.raises(OSError, match="no space for failed"):
        members.machines[VICTIM].unmask(releases)


def test_keys_that_failed_twice_are_not_used_a_third_time(house):
    members = house(4)
    for number in (1, 2):
        round_, *_ = spoilt(members, number)
        left_behind(members, round_)
    for name in members.names:
        with pytest.raises(KeyRotationDue):
            members.start(name, members.begin(3))
        members.restart(name)
        with pytest.raises(KeyRotationDue):  # a restart does not make them young
            members.start(name, members.begin(3, 1))
    old = members.epochs[VICTIM].he_key.key_id
    members.new_epoch()
    assert members.epochs[VICTIM].he_key.key_id != old
    members.play(3, 2)


def test_voids_that_do_not_leave_a_round_behind(house):
    members = house(5)
    spoilt(members, 1)
    machine, transcript = members.machines[VICTIM], members.state[VICTIM][1]
    voids = [members.void(name) for name in members.names]
    body = open_signed(voids[4], Void, members.roster, members.number)

    def resigned(**changes):
        values = asdict(body)
        return sign_message(members.identities["bank-004"], Void(**(values | changes)))

    for error, wrong in (
        (NotEnoughConsents, voids[:3]),
        (DuplicateMessage, [voids[0], *voids[:3]]),
        (RosterEquivocation, [*voids[:3], resigned(roster_hash=bytes(32))]),
        (RosterEquivocation, [*voids[:3], resigned(cohort_hash=bytes(32))]),
        (RosterEquivocation, [*voids[:3], resigned(transcript=bytes(32))]),
        (StaleRound, [*voids[:3], resigned(attempt=1)]),
        (StateRollback, [*voids[:3], resigned(round=2)]),
        (BadSignature, [*voids[:3], voids[4][:-1] + bytes([voids[4][-1] ^ 1])]),
    ):
        with pytest.raises(error):
            machine.skip(1, 0, wrong, transcript=transcript)
    with pytest.raises(TranscriptDivergence):
        machine.skip(1, 0, voids, transcript=b"x" * 32)
    with pytest.raises(StaleRound):
        machine.skip(0, 0, voids, transcript=transcript)
    assert machine.skip(1, 0, voids[:4], transcript=transcript) == body.transcript


def test_a_void_of_another_cohort_or_roster_than_the_own_one_is_refused(house):
    members = house(5)
    spoilt(members, 1)
    voids = [members.void(name) for name in members.names]

    def all_resigned(**changes):
        found = []
        for name, signed in zip(members.names, voids, strict=True):
            body = open_signed(signed, Void, members.roster, members.number)
            values = asdict(body) | changes
            found.append(sign_message(members.identities[name], Void(**values)))
        return found

    machine, transcript = members.machines[VICTIM], members.state[VICTIM][1]
    with pytest.raises(CohortMismatch):
        machine.skip(1, 0, all_resigned(cohort_hash=bytes(32)), transcript=transcript)
    with pytest.raises(RosterEquivocation):
        machine.skip(1, 0, all_resigned(roster_hash=bytes(32)), transcript=transcript)
