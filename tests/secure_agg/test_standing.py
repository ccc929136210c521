"""What a machine says of where it stands, and what it takes as proof of a round that it has applied."""

import pytest

from hansa.errors import (
    DuplicateMessage,
    NotEnoughShares,
    RosterEquivocation,
    StaleRound,
    StateRollback,
)
from hansa.secure_agg.messages import Release, open_signed
from hansa.secure_agg.unmasking import verify_certificate

VICTIM = "bank-000"


def standing(machine):
    return machine.running, machine.locked, machine.answered


def test_a_machine_says_how_far_it_is_with_its_attempt_also_after_a_restart(house):
    members = house(4)
    assert standing(members.machines[VICTIM]) == (False, False, False)
    round_ = members.uploaded()
    assert standing(members.machines[VICTIM]) == (True, False, False)
    headers, aggregate = round_.aggregator.close()
    members.machines[VICTIM].answer(headers, aggregate)
    assert standing(members.machines[VICTIM]) == (True, True, True)
    assert standing(members.restart(VICTIM)) == (True, True, False)  # the roster has to be shown again
    members.machines[VICTIM].finish(1, 0)
    assert standing(members.machines[VICTIM]) == (False, False, False)
    members.state[VICTIM] = (b"n" * 32, bytes(32))  # the model moves on: shares for the old one are released
    members.start(VICTIM, members.begin(2))
    assert standing(members.machines[VICTIM]) == (True, False, False)


def test_an_attempt_of_an_earlier_epoch_does_not_run(house):
    members = house(4)
    members.uploaded()
    members.new_epoch()
    assert standing(members.machines[VICTIM]) == (False, False, False)


def test_an_own_package_that_the_store_does_not_know_is_a_rollback(house):
    members = house(4)
    first = members.begin()
    copy = members.stores[VICTIM].copy()
    members.machines[VICTIM].verify_not_rolled_back(first.packages)  # it knows these
    members.play(1, 1)
    later = members.begin(2)
    old = members.machine(VICTIM, copy)
    old.verify_not_rolled_back(first.packages)
    with pytest.raises(StateRollback, match="newer than its store"):
        old.verify_not_rolled_back(later.packages)
    # What it cannot read, and what others signed, proves nothing.
    others = [members.begin(3).packages[place] for place in (1, 2, 3)]
    old.verify_not_rolled_back([b"junk", *others])


def test_the_certificate_of_a_round_is_t_releases_for_its_roster(house):
    members = house(5)
    round_ = members.uploaded()
    releases = members.released(round_)
    epoch = members.epochs[VICTIM]
    roster = open_signed(releases[0], Release, members.roster, members.number).roster_hash
    verify_certificate(epoch, 1, 0, roster, releases[:4])
    for error, at, rosters, shown in (
        (NotEnoughShares, (1, 0), roster, releases[:3]),
        (RosterEquivocation, (1, 0), bytes(32), releases),
        (DuplicateMessage, (1, 0), roster, [releases[0], *releases]),
        (StaleRound, (2, 0), roster, releases),
        (StateRollback, (0, 0), roster, releases),
    ):
        with pytest.raises(error):
            verify_certificate(epoch, *at, rosters, shown)
