"""Rings that nobody may miss."""

import threading
import time

from hansa.coordinator.doorbell import Doorbell


def test_at_first_a_message_may_be_there_and_after_none_was_found_only_a_ring_says_so():
    bell = Doorbell()
    assert bell.expects(7)
    bell.fetched(7, bell.announced(7), message=False)
    assert not bell.expects(7)
    bell.ring(7)
    assert bell.expects(7)
    assert bell.expects(8)
    bell.fetched(7, bell.announced(7), message=True)
    assert not bell.expects(7)


def test_a_ring_while_the_superlink_is_asked_is_not_lost():
    bell = Doorbell()
    announced = bell.announced(7)
    bell.ring(7)  # after the SuperLink said that there is nothing, before that is noted
    bell.fetched(7, announced, message=False)
    assert bell.expects(7)


def test_so_many_messages_are_expected_as_were_announced():
    bell = Doorbell()
    bell.fetched(7, bell.announced(7), message=False)
    for _ in range(3):
        bell.ring(7)
    for left in (True, True, False):
        bell.fetched(7, bell.announced(7), message=True)
        assert bell.expects(7) is left
    bell.fetched(7, bell.announced(7), message=True)  # one that nobody announced
    bell.ring(7)
    assert bell.expects(7)


def test_listeners_are_woken_until_they_stop():
    bell, woken = Doorbell(), []
    wake = lambda: woken.append(1)  # noqa: E731
    bell.listen(7, wake)
    bell.ring(7)
    bell.ring(8)
    bell.release(7)
    assert (len(woken), bell.releases(7)) == (2, 1)
    bell.stop_listening(7, wake)
    bell.ring(7)
    assert len(woken) == 2


def test_a_reply_wakes_whoever_waits_and_one_that_came_before_is_not_waited_for():
    bell = Doorbell()
    began = time.monotonic()
    threading.Timer(0.1, bell.reply_came).start()
    seen = bell.wait_for_reply(0, 5.0)
    assert seen == 1
    assert time.monotonic() - began < 4.0
    bell.reply_came()
    assert bell.wait_for_reply(seen, 5.0) == 2
    assert bell.wait_for_reply(2, 0.05) == 2
