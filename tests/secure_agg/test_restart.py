"""Crashes at every write, equivocation in every split, and a random walk of drops, retries and replays."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hansa.errors import (
    Error,
    NotEnoughConsents,
    OutOfOrder,
    OwnUploadMissing,
    RosterTooSmall,
    StateRollback,
    UploadReuse,
)
from hansa.secure_agg import uploading
from hansa.secure_agg.attempt import UPLOAD, UPLOAD_CIPHERTEXTS, load
from hansa.secure_agg.messages import Envelope
from hansa.secure_agg.store import MemoryStore

VICTIM = "bank-000"


class Killed(BaseException):
    """The process is gone; nothing but the store is left."""


class MortalStore(MemoryStore):
    """A store whose process dies before or after its k-th write."""

    def __init__(self, values, writes, *, after):
        super().__init__()
        self._values, self._left, self._after = values, writes, after

    def put(self, key, value):
        self._left -= 1
        if self._left == 0 and not self._after:
            raise Killed
        super().put(key, value)
        if self._left == 0:
            raise Killed


def _victim_acts(members, round_, sent):
    """The victim's whole round; what leaves it is noted before the next write can fail."""
    machine = members.machines[VICTIM]
    if machine.entered < (round_.number, round_.attempt):
        members.start(VICTIM, round_)
    sent["upload"].append(machine.upload or machine.protect(round_.levels[VICTIM]))
    round_.aggregator.accept(*sent["upload"][-1])
    headers, aggregate = round_.aggregator.close()
    answer = machine.answer(headers, aggregate)
    sent[Envelope.decode(answer).type].append(answer)
    others = [name for name in round_.aggregator.contributors if name != VICTIM]
    consents = [answer, *(members.machines[name].answer(headers, aggregate) for name in others)]
    if Envelope.decode(answer).type == "consent":
        sent["release"].append(machine.consents(consents))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("full", [True, False])
def test_killed_at_any_write_a_round_ends_in_the_exact_sum_or_a_named_error(house, full, after, monkeypatch):
    masks = []
    real = uploading.net_mask
    monkeypatch.setattr(uploading, "net_mask", lambda *a: masks.append(real(*a)) or masks[-1])
    outcomes = set()
    members = house(5)
    for write in range(1, 9):
        before = len(masks)
        round_ = members.begin(write, 0)
        round_.levels = members.levels(20, seed=write)
        for name in members.names[1:]:
            members.start(name, round_)
            if full or name != "bank-004":
                round_.aggregator.accept(*members.machines[name].protect(round_.levels[name]))
        sent = {"upload": [], "consent": [], "release": []}
        mortal = MortalStore(members.stores[VICTIM]._values, write, after=after)
        members.machines[VICTIM] = members.machine(VICTIM, mortal)
        try:
            _victim_acts(members, round_, sent)
            outcomes.add("no write left to die at")
            members.restart(VICTIM)
        except Killed:
            members.restart(VICTIM)
            try:
                if round_.aggregator.contributors.count(VICTIM):  # it had left: R2 comes again
                    headers, aggregate = round_.aggregator.close()
                    answer = members.machines[VICTIM].answer(headers, aggregate)
                    sent[Envelope.decode(answer).type].append(answer)
                    outcomes.add("answered again")
                else:
                    _victim_acts(members, round_, sent)
                    outcomes.add("went on")
            except UploadReuse:
                outcomes.add("abandoned")
        assert all(len(set(map(str, messages))) <= 1 for messages in sent.values())  # never two versions
        own_masks = len(masks) - before - (4 if full else 3)
        assert own_masks <= 1, "a mask was drawn twice"
        try:
            releases = members.released(round_)
            for name in members.names:
                opened = members.catch_up(name, round_)
                np.testing.assert_array_equal(opened.total, round_.expected())
                members.finish(name, round_, opened)
        except RosterTooSmall:
            outcomes.add("too few for this attempt")
            for name in members.names:
                members.machines[name].finish(round_.number, 0)
        else:
            assert len(releases) >= 4
    assert {"abandoned", "answered again", "no write left to die at"} <= outcomes


@pytest.mark.parametrize("write", [2, 3])  # the ciphertexts, then the record that stands for the upload
def test_a_store_that_fails_once_never_lets_a_second_upload_out(house, write):
    members = house(4)
    round_ = members.begin()
    mortal = MortalStore(members.stores[VICTIM]._values, write, after=False)
    members.machines[VICTIM] = members.machine(VICTIM, mortal)
    members.start(VICTIM, round_)
    with pytest.raises(Killed):
        members.machines[VICTIM].protect(np.array([1]))
    with pytest.raises(UploadReuse):  # the same object, had it survived
        members.machines[VICTIM].protect(np.array([1]))
    with pytest.raises(UploadReuse):
        members.restart(VICTIM).protect(np.array([1]))
    assert members.machines[VICTIM].upload is None


def test_ciphertexts_lie_apart_from_the_header_and_neither_outlives_the_round(house):
    members = house(4)
    round_ = members.uploaded(count=40_000)
    store, ciphertexts = members.stores[VICTIM], round_.uploads[VICTIM][1]
    assert len(ciphertexts) == 3
    assert load(store, UPLOAD_CIPHERTEXTS) == {"ciphertexts": ciphertexts}
    assert len(store.get(UPLOAD)) < 1000
    assert members.restart(VICTIM).upload == round_.uploads[VICTIM]
    members.machines[VICTIM].finish(1, 0)
    assert store.get(UPLOAD) is store.get(UPLOAD_CIPHERTEXTS) is None


@pytest.mark.parametrize("full", [True, False])
def test_after_a_restart_at_any_step_the_same_bytes_are_sent_and_the_round_is_exact(house, full):
    members = house(5)
    gone = () if full else ("bank-004",)
    for number in (1, 2):
        round_ = members.uploaded(number, gone=gone)
        headers, aggregate = round_.aggregator.close()
        here = round_.aggregator.contributors
        answers = {}
        for name in here:
            upload = members.machines[name].upload
            assert members.restart(name).upload == upload == round_.uploads[name]
            answers[name] = members.machines[name].answer(headers, aggregate)
            members.restart(name)
            assert members.machines[name].answer(headers, aggregate) == answers[name]
        releases = list(answers.values())
        if not full:
            for name in here:
                members.restart(name)
                with pytest.raises(OutOfOrder):
                    members.machines[name].consents(releases)
                members.machines[name].answer(headers, aggregate)
            releases = [members.machines[name].consents(list(answers.values())) for name in here]
        for index, name in enumerate(here):
            assert members.restart(name).release == releases[index]
            assert members.machines[name]._attempt.shares == {}  # of no member both kinds are left
            with pytest.raises(OutOfOrder):
                members.machines[name].unmask(releases)
            again = members.machines[name].answer(headers, aggregate)
            if full:
                assert again == releases[index]
            np.testing.assert_array_equal(members.machines[name].unmask(releases).total, round_.expected())
        for answer in releases:
            round_.aggregator.accept_answer(answer)
        for name in members.names:
            opened = members.catch_up(name, round_)
            members.finish(name, round_, opened)
            assert members.restart(name).entered == (number, 0)
            assert members.stores[name].get("upload") is None


def test_a_package_that_this_store_never_made_is_a_rollback(house):
    members = house(4)
    assert [len(blobs) for _, blobs in members.machines[VICTIM].packages()] == [4, 4]
    first = members.machines[VICTIM].packages()
    assert members.restart(VICTIM).packages() == first
    with pytest.raises(StateRollback):
        members.machines[VICTIM].packages(3)
    assert members.machines[VICTIM].packages(1)[0] == first[1]
    assert members.machines[VICTIM].packages(3)[0] not in first


def test_what_packages_say_is_kept_in_memory_only_and_read_again_after_a_restart(house):
    members = house(4)
    members.uploaded()
    running = members.machines[VICTIM]._attempt
    assert sorted(running.bodies) == members.names
    again = members.restart(VICTIM)._attempt
    assert again.bodies == {}
    assert again.opened_packages() == running.opened_packages() == running.bodies


# -- equivocation: every split of the honest members -----------------------------------------------------------


def _both_kinds_reachable(members, round_, colluders, shown_full):
    """Whether T shares of both secrets of the victim are reachable if `shown_full` see the whole roster."""
    headers, aggregate = round_.aggregator.close()
    threshold = members.terms.threshold
    without = [h for h in headers if Envelope.decode(h).sender != VICTIM]
    honest = [name for name in members.names if name not in colluders]
    copies = {name: members.machine(name, members.stores[name].copy()) for name in members.names}
    seeds = masks = len(colluders)
    consents = [copies[name].answer(without, aggregate) for name in colluders]
    for name in honest:
        if name in shown_full:
            copies[name].answer(headers, aggregate)
            seeds += 1
        elif name == VICTIM:
            with pytest.raises(OwnUploadMissing):
                copies[name].answer(without, aggregate)
        else:
            consents.append(copies[name].answer(without, aggregate))
    for name in honest:
        if name not in shown_full and name != VICTIM:
            try:
                copies[name].consents(consents)
                masks += 1
            except NotEnoughConsents:
                pass
    for name in honest:  # nobody can be brought to release the other kind as well
        if name in shown_full:
            with pytest.raises(Error):
                copies[name].answer(without, aggregate)
    return seeds >= threshold and masks >= threshold


@pytest.mark.parametrize(("participants", "threshold"), [(4, 3), (5, 4), (6, 4), (7, 5), (8, 6)])
def test_both_secrets_of_a_member_are_reachable_exactly_beyond_the_bound(
    house, monkeypatch, participants, threshold
):
    from hansa.secure_agg.parameters import Terms

    monkeypatch.setattr(Terms, "threshold", property(lambda _: threshold))
    members = house(participants)
    round_ = members.uploaded()
    bound = 2 * threshold - participants - 1
    assert members.terms.colluders == min(bound, participants - 2)
    for count in (bound, bound + 1):
        colluders = members.names[participants - count :]
        others = [name for name in members.names[1:] if name not in colluders]
        reached = any(
            _both_kinds_reachable(members, round_, colluders, {VICTIM, *shown})
            for size in range(len(others) + 1)
            for shown in itertools.combinations(others, size)
        )
        # With n - 1 colluders there is nobody left to protect, and no split.
        assert reached == (count > bound and count < participants - 1 and bool(others))


# -- a random walk ---------------------------------------------------------------------------------------------


class Consortium(RuleBasedStateMachine):
    """Members start, upload, answer, crash and replay in any order; the coordinator retries as it likes."""

    House = None

    @initialize()
    def set_up(self):
        self.house = Consortium.House(4)
        self.number, self.attempt = 1, -1
        self.round = None
        self.masks, self.released, self.sent = set(), {}, {}
        self.answers = {}

    @rule(missing=st.sampled_from([None, 0, 1, 2, 3]))
    def begin(self, missing):
        self.attempt += 1
        cohort = [name for index, name in enumerate(self.house.names) if index != missing]
        self.round = self.house.begin(self.number, self.attempt, cohort)
        self.round.levels = self.house.levels(7, seed=self.number)
        self.answers = {}

    @precondition(lambda self: self.round is not None)
    @rule(index=st.integers(0, 3))
    def upload(self, index):
        name = self.house.names[index]
        machine = self.house.machines[name]
        try:
            self.house.start(name, self.round)
            upload = machine.protect(self.round.levels[name])
        except Error:
            upload = machine.upload
        if upload is None:
            return
        key = (name, self.number, self.attempt)
        if machine.entered == (self.number, self.attempt):
            assert self.sent.setdefault(key, upload) == upload  # I3
        try:
            self.round.aggregator.accept(*upload)
        except Error:
            return

    @rule(index=st.integers(0, 3))
    def crash(self, index):
        self.house.restart(self.house.names[index])

    @precondition(lambda self: self.round is not None)
    @rule(index=st.integers(0, 3))
    def answer(self, index):
        name = self.house.names[index]
        try:
            answer = self.house.machines[name].answer(*self.round.aggregator.close())
            self.round.aggregator.accept_answer(answer)
        except Error:
            return
        self.answers[name] = answer
        self._note(name, answer)

    @precondition(lambda self: self.round is not None)
    @rule(index=st.integers(0, 3), order=st.permutations(range(4)))
    def consents(self, index, order):
        name = self.house.names[index]
        known = [
            self.answers[self.house.names[place]]
            for place in order
            if self.house.names[place] in self.answers
        ]
        try:
            release = self.house.machines[name].consents(known)
            self.round.aggregator.accept_answer(release)
        except Error:
            return
        self._note(name, release)

    def _note(self, name, signed):
        if Envelope.decode(signed).type == "release":
            key = (name, self.house.state[name][0])
            assert self.released.setdefault(key, signed) == signed  # I2

    @precondition(lambda self: self.round is not None)
    @rule()
    def close(self):
        """With T releases everybody ends with the exact sum of the roster; otherwise nothing happens."""
        try:
            self.round.aggregator.releases()
        except Error:
            return
        for name in self.house.names:
            opened = self.house.catch_up(name, self.round)
            np.testing.assert_array_equal(opened.total, self.round.expected())
            self.house.finish(name, self.round, opened)
        assert len(set(self.house.state.values())) == 1
        self.number, self.attempt, self.round = self.number + 1, -1, None

    @invariant()
    def no_store_holds_both_kinds_after_a_release(self):
        for name in getattr(self, "house", None).names if hasattr(self, "house") else ():
            machine = self.house.machines[name]
            if machine.release is not None:
                assert not machine._attempt.shares


def test_a_random_walk_never_breaks_an_invariant(house):
    Consortium.House = house
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Consortium,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
