"""The quota of the spool: a member's and everybody's."""

import threading

import pytest

from hansa.coordinator.spool_quota import SpoolQuota
from hansa.errors import SpoolQuotaExceeded, StoreNotWritable


def test_a_member_and_all_members_together_have_a_bound():
    quota = SpoolQuota(member_bytes=10, total_bytes=25)
    quota.reserve("bank-1", "s", 10)
    with pytest.raises(SpoolQuotaExceeded, match="of 'bank-1', 10"):
        quota.reserve("bank-1", "other", 1)
    quota.reserve("bank-2", "s", 10)
    with pytest.raises(SpoolQuotaExceeded, match="of all members, 25"):
        quota.reserve("bank-3", "s", 6)
    quota.reserve("bank-3", "s", 5)


def test_a_promise_takes_the_place_of_the_one_before_and_can_be_given_back():
    quota = SpoolQuota(member_bytes=10, total_bytes=10)
    quota.reserve("bank-1", "s", 10)
    quota.reserve("bank-1", "s", 9)
    with pytest.raises(SpoolQuotaExceeded):
        quota.reserve("bank-1", "s", 11)
    with pytest.raises(SpoolQuotaExceeded):
        quota.reserve("bank-2", "s", 2)
    quota.release("bank-1", "s")
    quota.release("bank-1", "s")
    quota.reserve("bank-2", "s", 10)


def test_the_bounds_hold_from_many_threads():
    quota, promised = SpoolQuota(member_bytes=5, total_bytes=50), []

    def ask(number):
        for session in range(20):
            try:
                quota.reserve(f"bank-{number}", session, 1)
                promised.append(number)
            except SpoolQuotaExceeded:
                pass

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(promised) == 50
    assert max(promised.count(number) for number in range(16)) <= 5


def test_no_room_is_an_error_of_the_store_that_can_be_tried_again():
    error = SpoolQuotaExceeded("x")
    assert isinstance(error, StoreNotWritable)
    assert error.exit_status == 75
