"""Uploads that trickle, stall or never end: they cost their sender, and nobody waits for them."""

import itertools
import threading
import tracemalloc
from contextlib import contextmanager

import pytest

from hansa.coordinator.aggregator import AggregationService
from hansa.errors import (
    CiphertextSizeMismatch,
    DuplicateMessage,
    MessageTooLarge,
    OutOfOrder,
    StaleRound,
    StoreNotWritable,
    UploadTooSlow,
)
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES

WAIT_SECONDS = 20  # of a test that fails; none waits when it passes


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Stalled:
    """Ciphertexts of which the rest comes when the test says so."""

    def __init__(self, ciphertexts, first=1):
        self._ciphertexts, self._first = ciphertexts, first
        self.stalled, self.go_on = threading.Event(), threading.Event()

    def __iter__(self):
        yield from self._ciphertexts[: self._first]
        self.stalled.set()
        assert self.go_on.wait(WAIT_SECONDS)
        yield from self._ciphertexts[self._first :]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def members(senders):
    return senders(5)  # T = 4


@pytest.fixture
def service(members, adders, clock, tmp_path):
    made = AggregationService(
        members.roster,
        members.terms,
        new_sums=adders().begin,
        results_folder=tmp_path,
        upload_seconds=10.0,
        clock=clock,
    )
    made.begin(1, 1, 0, members.names, members.expected(3))
    return made


@contextmanager
def uploading(service, members, name, ciphertexts, stream):
    """Upload in a thread; gives where its error will stand, and waits for it at the end."""
    outcome = []

    def run():
        try:
            service.upload(1, 0, members.header(name, ciphertexts), stream)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert stream.stalled.wait(WAIT_SECONDS)
        yield outcome
    finally:
        stream.go_on.set()
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()


def send(service, members, name, ciphertexts):
    service.upload(1, 0, members.header(name, ciphertexts), ciphertexts)


def test_a_member_that_stalls_delays_nobody_and_ends_in_a_named_error(
    service, members, adding, uploads, clock
):
    name, stream = members.names[0], Stalled(uploads[0])
    with uploading(service, members, name, uploads[0], stream) as outcome:
        for other, upload in zip(members.names[1:], uploads[1:5], strict=True):
            send(service, members, other, upload)
        clock.now += 10.5
    (error,) = outcome
    assert isinstance(error, UploadTooSlow)
    assert (error.code, bool(error.hint)) == ("upload_too_slow", True)
    assert "2 of 3" in error.message or "1 of 3" in error.message
    # Its place is free again: within its time it is a contributor like the others.
    send(service, members, name, uploads[0])
    service.close()
    assert service.download(1, 0)[1] == adding.sums_of(uploads[:5])


def test_the_roster_is_closed_while_uploads_stall(service, members, adding, uploads):
    stream = Stalled(uploads[4])
    with uploading(service, members, members.names[4], uploads[4], stream) as outcome:
        for name, upload in zip(members.names, uploads[:4], strict=False):
            send(service, members, name, upload)
        service.close()
        headers, aggregate = service.download(1, 0)
    assert isinstance(outcome[0], OutOfOrder)
    assert len(headers) == 4
    assert aggregate == adding.sums_of(uploads[:4])
    assert service.uplink_bytes == sum(len(header) + 3 * SEEDED_BYTES for header in headers)


def test_the_next_attempt_begins_while_uploads_of_the_last_one_stall(service, members, adding, uploads):
    stream = Stalled(uploads[0])
    with uploading(service, members, members.names[0], uploads[0], stream) as outcome:
        service.begin(1, 1, 1, members.names, members.expected(3))
        with pytest.raises(StaleRound):
            send(service, members, members.names[1], uploads[1])
        for name, upload in zip(members.names, uploads[1:], strict=False):
            service.upload(1, 1, members.header(name, upload, attempt=1), upload)
    assert isinstance(outcome[0], OutOfOrder)
    service.close()
    assert service.download(1, 1)[1] == adding.sums_of(uploads[1:6])


def test_time_is_counted_from_the_header_to_the_last_ciphertext(service, members, uploads, clock):
    """A trickle in which no single ciphertext is late is late as a whole."""

    def trickle(seconds):
        for ciphertext in uploads[0]:
            clock.now += seconds
            yield ciphertext

    with pytest.raises(UploadTooSlow, match="2 of 3"):
        service.upload(1, 0, members.header(members.names[0], uploads[0]), trickle(4.0))
    service.upload(1, 0, members.header(members.names[0], uploads[0]), trickle(3.3))

    def late_end():
        yield from uploads[1]
        clock.now += 10.5

    with pytest.raises(UploadTooSlow, match="3 of 3"):
        service.upload(1, 0, members.header(members.names[1], uploads[1]), late_end())


def test_a_member_whose_old_stream_is_stuck_begins_again_when_its_time_is_over(
    service, members, adding, uploads, clock
):
    name, stream = members.names[0], Stalled(uploads[0])
    with uploading(service, members, name, uploads[0], stream) as outcome:
        with pytest.raises(DuplicateMessage, match="on its way"):
            send(service, members, name, uploads[0])
        clock.now += 11.0
        send(service, members, name, uploads[0])
    assert isinstance(outcome[0], UploadTooSlow)
    for other, upload in zip(members.names[1:4], uploads[1:4], strict=True):
        send(service, members, other, upload)
    service.close()
    assert service.download(1, 0)[1] == adding.sums_of(uploads[:4])


def test_all_members_stall_at_the_same_time_and_go_on(service, members, adding, uploads):
    streams = [Stalled(upload, first=2) for upload in uploads[:5]]
    with (
        uploading(service, members, members.names[0], uploads[0], streams[0]) as first,
        uploading(service, members, members.names[1], uploads[1], streams[1]) as second,
        uploading(service, members, members.names[2], uploads[2], streams[2]) as third,
        uploading(service, members, members.names[3], uploads[3], streams[3]) as fourth,
        uploading(service, members, members.names[4], uploads[4], streams[4]) as fifth,
    ):
        assert service.uplink_bytes == 0
    assert [first, second, third, fourth, fifth] == [[]] * 5
    service.close()
    assert service.download(1, 0)[1] == adding.sums_of(uploads[:5])


def test_a_stream_without_end_is_cut_one_ciphertext_after_its_header(service, members, uploads):
    read = itertools.count()
    endless = (uploads[0][next(read) % 3] for _ in itertools.count())
    with pytest.raises(CiphertextSizeMismatch, match="more ciphertexts came than the 3"):
        service.upload(1, 0, members.header(members.names[0], uploads[0]), endless)
    assert next(read) == 4
    for size in (0, 1, SEEDED_BYTES - 1, SEEDED_BYTES + 1, 1 << 22):
        with pytest.raises(CiphertextSizeMismatch):
            service.upload(1, 0, members.header(members.names[0], uploads[0]), iter([bytes(size)]))
    assert service.uplink_bytes == 0


def test_an_oversize_header_is_refused_before_it_is_read(service, members, uploads):
    header = members.header(members.names[0], uploads[0])
    with pytest.raises(MessageTooLarge):
        service.upload(1, 0, header + bytes(1 << 20), iter(()))


def test_a_full_spool_refuses_one_upload_and_loses_nothing(members, adders, adding, uploads, tmp_path):
    spool_bytes = 5 * 3 * SEEDED_BYTES
    service = AggregationService(
        members.roster,
        members.terms,
        new_sums=adders(spool_bytes=spool_bytes).begin,
        results_folder=tmp_path,
    )
    service.begin(1, 1, 0, members.names)  # the count is not known, so a header may say what it likes
    longer = [*uploads[0], uploads[0][0]]
    with pytest.raises(StoreNotWritable):
        send(service, members, members.names[0], longer)
    for name, upload in zip(members.names, uploads, strict=False):
        send(service, members, name, upload)
    service.close()
    assert service.download(1, 0)[1] == adding.sums_of(uploads[:5])


def test_no_upload_is_ever_in_memory(members, adders, uploads, tmp_path):
    count = 100
    service = AggregationService(
        members.roster, members.terms, new_sums=adders().begin, results_folder=tmp_path
    )
    service.begin(1, 1, 0, members.names, members.expected(count))
    originals = [data for upload in uploads for data in upload]
    sent = [originals[place % len(originals)] for place in range(count)]
    headers = [members.header(name, sent) for name in members.names]
    tracemalloc.start()
    try:
        for header in headers:
            service.upload(1, 0, header, (bytes(bytearray(data)) for data in sent))
        service.close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * SEEDED_BYTES
