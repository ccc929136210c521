"""A node that is made anew on its store goes on where it was: same bytes, same state, nothing spent twice."""

import numpy as np
import pytest

from hansa import errors
from hansa.participant import local_update, node_core
from hansa.participant.node_state import Progress, load_state, load_update, save_state
from hansa.participant.shared_state import SharedState
from hansa.secure_agg.store import MemoryStore

VICTIM = "bank-1"


def test_a_study_with_a_restart_before_every_step_of_a_member_ends_in_the_same_state(house, tiny):
    house.enter()
    for number in (1, 2):
        packages, shares = house.begin(number)
        headers = {}
        for name in house.names:
            node = house.restart(name) if name == VICTIM else house.nodes[name]
            headers[name] = node.train(number, 0, packages, shares[name])
        house.wires[VICTIM].sent, sent = [], house.wires[VICTIM].sent
        again = house.restart(VICTIM)
        assert again.train(number, 0, packages, shares[VICTIM]) == headers[VICTIM]
        assert house.wires[VICTIM].sent == sent
        house.wires[VICTIM].sent = []
        house.service.close()
        releases = []
        for name in house.names:
            node = house.restart(name) if name == VICTIM else house.nodes[name]
            releases.append(node.answer(number, 0))
        assert house.restart(VICTIM).answer(number, 0) == releases[0]
        results = []
        for name in house.names:
            node = house.restart(name) if name == VICTIM else house.nodes[name]
            result, made = node.unmask(number, 0, releases)
            house.post(made)
            results.append(result)
        for name in house.names:
            node = house.restart(name) if name == VICTIM else house.nodes[name]
            node.close(number, 0, results)
        assert len(house.digests()) == 1
        assert tiny.kinds(house.ledgers[VICTIM]) == ["reserve", "commit"] * number


def test_a_restart_forgets_neither_that_a_round_waits_for_its_end_nor_that_members_differ(house):
    results = house.open()
    node = house.restart(VICTIM)
    with pytest.raises(errors.OutOfOrder, match="before round 1 was closed"):
        node.train(2, 0, [b"signed"], [b""])
    house.nodes["bank-2"].state.values[0] += 1
    false = (
        house.nodes["bank-2"]
        .membership.entered[1]
        .confirm(_opened(house, results), house.nodes["bank-2"]._model_hash())
    )
    with pytest.raises(errors.ModelDivergence):
        node.close(1, 0, [results[0], false, *results[2:]])
    with pytest.raises(errors.OutOfOrder, match="held different states"):
        house.restart(VICTIM).train(2, 0, [b"signed"], [b""])


def _opened(house, results):
    """What `confirm` needs of an opened round, out of a confirmation."""
    from types import SimpleNamespace

    from hansa.secure_agg.messages import RoundResult, open_signed

    body = open_signed(results[1], RoundResult, house.roster, 1)
    machine = house.nodes["bank-2"].membership.entered[1]
    machine._attempt = machine._attempt.__class__(
        **{name: getattr(machine._attempt, name) for name in machine._attempt.__slots__ if name != "closed"}
        | {"cohort_hash": body.cohort_hash}
    )
    return SimpleNamespace(roster_hash=body.roster_hash, transcript=getattr(body, "transcript", bytes(32)))


@pytest.mark.parametrize("point", ["save_state", "finish", "commit", "drop_update"])
def test_a_crash_while_a_round_is_applied_leaves_the_old_state_or_the_new_one(
    house, monkeypatch, point, tiny
):
    releases = house.answer()
    node, before = house.nodes[VICTIM], house.nodes[VICTIM].state.digest("00")

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if point == "finish":
            patched.setattr(type(node.membership.entered[1]), "finish", die)
        elif point == "commit":
            patched.setattr(node.budget, "commit", die)
        else:
            patched.setattr(local_update if point == "drop_update" else node_core, point, die)
        with pytest.raises(KeyboardInterrupt):
            node.unmask(1, 0, releases)
    opened = [house.nodes[name].unmask(1, 0, releases) for name in house.names if name != VICTIM]
    node = house.restart(VICTIM)
    assert tiny.kinds(house.ledgers[VICTIM])[0] == "reserve"
    if point == "save_state":
        assert node.state.digest("00") == before
        opened.append(node.unmask(1, 0, releases))
    else:
        # The round is applied and closed; the answer was lost, so the coordinator lets it catch up.
        assert node.catch_up(1, 0, house.packages, releases)
    assert len(house.digests()) == 1
    assert tiny.kinds(house.ledgers[VICTIM]) == ["reserve", "commit"]
    assert load_update(house.stores[VICTIM]) is None
    for _, made in opened:
        house.post(made)
    packages = house.nodes[VICTIM].packages(1)
    house.post(packages)
    node.catch_up(1, 0, house.packages, releases)
    for name in house.names[1:]:
        house.nodes[name].close(1, 0, [result for result, _ in opened])
    house.close(2)
    assert len(house.digests()) == 1


class FullDisk:
    """A store on which a record cannot be written, so many times."""

    def __init__(self, store, key, times=1):
        self._store, self._key, self._times = store, key, times

    def __getattr__(self, name):
        return getattr(self._store, name)

    def put(self, key, value):
        if key == self._key and self._times:
            self._times -= 1
            raise errors.StoreNotWritable("the disk is full")
        self._store.put(key, value)


def test_a_state_that_could_not_be_kept_was_not_applied(house):
    """The coordinator asks again when there is room: applied twice, the state would be another than everybody's."""
    releases = house.answer()
    node, before = house.nodes[VICTIM], house.digests()
    node._store = FullDisk(house.stores[VICTIM], "node/state")
    with pytest.raises(errors.StoreNotWritable):
        node.unmask(1, 0, releases)
    assert {node.state.digest(house.study.id)} == before
    results = [member.unmask(1, 0, releases)[0] for member in house.nodes.values()]
    assert len(house.digests()) == 1
    for member in house.nodes.values():
        member.close(1, 0, results)


def test_a_round_that_was_caught_up_and_not_kept_is_caught_up_again(house):
    releases = house.answer()
    node, before = house.nodes[VICTIM], house.digests()
    node._store = FullDisk(house.stores[VICTIM], "node/state")
    with pytest.raises(errors.StoreNotWritable):
        node.catch_up(1, 0, house.packages, releases)
    assert {node.state.digest(house.study.id)} == before
    node.catch_up(1, 0, house.packages, releases)
    kept, _ = load_state(house.stores[VICTIM], node.state)
    assert kept.digest(house.study.id) == node.state.digest(house.study.id)


def test_epoch_and_machine_change_together(house, monkeypatch):
    """The group key chooses a support and the machine opens its sum; the disk fails between the two."""
    votes = house.voted()
    node = house.nodes[VICTIM]
    with monkeypatch.context() as patched:
        patched.setattr(node.membership, "_machine_of", _disk_full)
        with pytest.raises(errors.StoreNotWritable):
            node.enter(votes)
    assert not node.membership.has_entered
    assert house.restart(VICTIM).membership.has_entered


def _disk_full(*_):
    raise errors.StoreNotWritable("the disk is full")


def test_only_the_certificate_of_the_round_that_was_applied_closes_it(house):
    releases = house.answer()
    for name in house.names:
        house.nodes[name].unmask(1, 0, releases)
    node = house.restart(VICTIM)
    with pytest.raises(errors.NotEnoughShares):
        node.catch_up(1, 0, house.packages, releases[:2])
    with pytest.raises(errors.DuplicateMessage):
        node.catch_up(1, 0, house.packages, [releases[0], *releases[:2]])
    node._progress.roster_hash = bytes(32)
    with pytest.raises(errors.RosterEquivocation):
        node.catch_up(1, 0, house.packages, releases)
    with pytest.raises(errors.OutOfOrder, match="before round 1 was closed"):
        node.train(2, 0, [b"signed"], [b""])


def test_state_and_progress_come_back_as_they_were_written():
    draws = np.random.default_rng(3)
    state = SharedState(values=draws.standard_normal(7), round=4, transcript=b"t" * 32)
    state.first, state.second = draws.standard_normal(7), draws.random(7)
    state.decay_first, state.decay_second = draws.random(7), draws.random(7)
    progress = Progress(
        result=b"r", roster_hash=b"h" * 32, awaits_close=(4, 1), diverged=True, epoch_rounds=2
    )
    store = MemoryStore()
    save_state(store, state, progress)
    found, found_progress = load_state(store, SharedState(values=np.zeros(7)))
    assert found.digest("00") == state.digest("00")
    assert found_progress == progress
    found.values[0] += 1  # not a read-only view of the record
    with pytest.raises(errors.StoreDamaged, match="7 entries, the study trains 8"):
        load_state(store, SharedState(values=np.zeros(8)))
    initial = SharedState(values=np.zeros(3))
    assert load_state(MemoryStore(), initial) == (initial, Progress())
