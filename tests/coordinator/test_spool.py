"""The spool: a bounded file without a name, in which no upload takes another one's room."""

import errno
import os
import signal
from itertools import pairwise

import pytest

from hansa.coordinator.spool import Spool
from hansa.errors import OutOfOrder, StoreNotWritable
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES


@pytest.fixture
def spool(tmp_path):
    made = Spool(tmp_path, quota_bytes=10 * SEEDED_BYTES)
    yield made
    made.close()


def test_places_do_not_touch_and_a_free_one_is_used_again(spool):
    spool.begin(3)
    starts = [spool.open(3) for _ in range(3)]
    assert starts == sorted(starts)
    assert min(b - a for a, b in pairwise(starts)) >= 3 * SEEDED_BYTES
    with pytest.raises(OutOfOrder):
        spool.open(1)
    spool.free(starts[1])
    assert spool.open(3) == starts[1]


def test_an_upload_takes_its_share_of_the_quota_and_no_more(spool):
    """Otherwise one member's header could take the room of all others."""
    spool.begin(2)
    with pytest.raises(StoreNotWritable, match="larger than its share"):
        spool.open(6)
    assert [spool.open(5), spool.open(5)] == [0, 5 * SEEDED_BYTES]
    spool.begin(20)
    with pytest.raises(StoreNotWritable):
        spool.open(1)


def test_begin_gives_the_disk_back(spool):
    spool.begin(1)
    start = spool.open(10)
    for place in range(10):
        spool.write(start + place * SEEDED_BYTES, bytes(SEEDED_BYTES))
    assert os.fstat(spool.fileno()).st_size == 10 * SEEDED_BYTES
    spool.begin(1)
    assert os.fstat(spool.fileno()).st_size == 0


def test_the_quota_refuses_one_upload_and_nothing_is_lost(adders, adding, uploads):
    sums = adders(spool_bytes=3 * 3 * SEEDED_BYTES).begin(3)
    adding.send(sums, uploads[0])
    with pytest.raises(StoreNotWritable):
        sums.open(4)
    for upload in uploads[1:3]:
        adding.send(sums, upload)
    assert list(sums.totals()) == adding.sums_of(uploads[:3])


@pytest.mark.parametrize("short", [True, False])
def test_a_full_disk_is_a_clear_error_and_the_next_upload_is_served(
    adders, adding, uploads, monkeypatch, short
):
    adder = adders()
    sums = adder.begin(3)
    adding.send(sums, uploads[0])

    def full(descriptor, data, place):
        if short:
            return 100
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("hansa.coordinator.spool.os.pwrite", full)
        with pytest.raises(StoreNotWritable, match=r"(?i)no space left"):
            adding.send(sums, uploads[1])
    adding.send(sums, uploads[2])
    os.kill(adder.process_id, signal.SIGKILL)
    assert list(sums.totals()) == adding.sums_of([uploads[0], uploads[2]])
