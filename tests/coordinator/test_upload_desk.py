"""Uploads that outlive their streams, without a network."""

import pytest

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.spool_quota import SpoolQuota
from hansa.coordinator.upload_desk import Announced, UploadDesk
from hansa.errors import (
    AggregateHashMismatch,
    BadSignature,
    CiphertextSizeMismatch,
    DuplicateMessage,
    MalformedMessage,
    MessageTooLarge,
    OutOfOrder,
    SpoolQuotaExceeded,
    StaleRound,
    StoreNotWritable,
    UnknownSender,
    UploadTooSlow,
)
from hansa.federation.transfer import header_hash
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES

AT = (1, 0)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


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
    made.begin(1, *AT, members.names, members.expected(3))
    return made


def desk_of(service, *, member_bytes=1 << 30, total_bytes=1 << 30):
    quota = SpoolQuota(member_bytes, total_bytes)
    return UploadDesk(
        service,
        lambda member, size: quota.reserve(member, "s", size),
        lambda member: quota.release(member, "s"),
    )


@pytest.fixture
def desk(service):
    return desk_of(service)


def announced(header, *, count=3, first=0, at=AT, size=None):
    return Announced(
        at=at,
        signed_header=header,
        ciphertext_count=count,
        ciphertext_bytes=count * SEEDED_BYTES if size is None else size,
        first_index=first,
    )


def send(desk, members, name, upload):
    stream = desk.begin(name, announced(members.header(name, upload)))
    stream.write(0, b"".join(upload))
    return stream.finish()


def test_uploads_that_came_in_streams_of_any_cut_give_the_sums(desk, service, members, adding, uploads):
    for name, upload, cut in zip(members.names, uploads, (0, 1, 2, 3, 1), strict=False):
        header = members.header(name, upload)
        desk.begin(name, announced(header)).write(0, b"".join(upload[:cut])) if cut else None
        assert desk.status(name, AT, header_hash(header)) == (cut, False)
        stream = desk.begin(name, announced(header, first=cut))
        for index in range(cut, 3):
            stream.write(index, upload[index])
        assert stream.finish() == 3
        assert desk.status(name, AT, header_hash(header)) == (3, True)
    service.close()
    assert service.download(*AT)[1] == adding.sums_of(uploads[:5])


def test_a_stream_goes_on_exactly_where_the_last_one_ended(desk, members, uploads):
    name, upload = members.names[0], uploads[0]
    header = members.header(name, upload)
    desk.begin(name, announced(header)).write(0, upload[0])
    for first in (0, 2, 3):
        with pytest.raises(OutOfOrder):
            desk.begin(name, announced(header, first=first))
    stream = desk.begin(name, announced(header, first=1))
    for index in (0, 2, 3):
        with pytest.raises(OutOfOrder, match="1 is the next one"):
            stream.write(index, upload[1])
    stream.write(1, b"".join(upload[1:]))
    assert stream.finish() == 3


def test_chunks_of_another_size_are_refused_and_what_came_is_kept(desk, members, uploads):
    name, upload = members.names[0], uploads[0]
    header = members.header(name, upload)
    stream = desk.begin(name, announced(header))
    stream.write(0, upload[0])
    for bad, error in (
        (b"", CiphertextSizeMismatch),
        (upload[1][:-1], CiphertextSizeMismatch),
        (upload[1] * 33, MessageTooLarge),
    ):
        with pytest.raises(error):
            stream.write(1, bad)
    with pytest.raises(OutOfOrder, match="ended after 1 of 3"):
        stream.finish()
    assert desk.status(name, AT, header_hash(header)) == (1, False)


def test_a_later_stream_or_question_ends_the_earlier_stream(desk, members, uploads):
    name, upload = members.names[0], uploads[0]
    header = members.header(name, upload)
    first = desk.begin(name, announced(header))
    first.write(0, upload[0])
    second = desk.begin(name, announced(header, first=1))
    with pytest.raises(OutOfOrder, match="taken over"):
        first.write(1, upload[1])
    second.write(1, upload[1])
    assert desk.status(name, AT, header_hash(header)) == (2, False)
    for ended in (first, second):
        with pytest.raises(OutOfOrder, match="taken over"):
            ended.write(2, upload[2])
        with pytest.raises(OutOfOrder, match="taken over"):
            ended.finish()
    third = desk.begin(name, announced(header, first=2))
    third.write(2, upload[2])
    assert third.finish() == 3


def test_an_upload_goes_on_only_under_the_header_with_which_it_began(desk, members, uploads):
    name, upload = members.names[0], uploads[0]
    header, other = members.header(name, upload), members.header(name, uploads[1])
    desk.begin(name, announced(header)).write(0, upload[0])
    assert desk.status(name, AT, header_hash(other)) == (0, False)
    for first in (0, 1):
        with pytest.raises(DuplicateMessage):
            desk.begin(name, announced(other, first=first))
    assert desk.status(name, AT, header_hash(header)) == (1, False)


def test_an_upload_that_came_whole_is_not_taken_again(desk, members, uploads):
    name, upload = members.names[0], uploads[0]
    send(desk, members, name, upload)
    header = members.header(name, upload)
    for first in (0, 3):
        with pytest.raises(DuplicateMessage):
            desk.begin(name, announced(header, first=first))
    with pytest.raises(DuplicateMessage):
        desk.begin(name, announced(members.header(name, uploads[1])))


def test_a_header_that_another_member_shows_begins_nothing_and_ends_nothing(desk, members, uploads):
    victim, thief = members.names[:2]
    header = members.header(victim, uploads[0])
    desk.begin(victim, announced(header)).write(0, uploads[0][0])
    with pytest.raises(UnknownSender, match="shows a header of"):
        desk.begin(thief, announced(header))
    assert desk.status(thief, AT, header_hash(header)) == (0, False)
    assert desk.status(victim, AT, header_hash(header)) == (1, False)
    forged = header.replace(victim.encode(), thief.encode())
    with pytest.raises((BadSignature, MalformedMessage)):
        desk.begin(thief, announced(forged))


def test_what_is_announced_must_be_what_the_header_says(desk, members, uploads):
    name = members.names[0]
    header = members.header(name, uploads[0])
    for wrong in (
        announced(header, count=2),
        announced(header, count=4),
        announced(header, size=3 * SEEDED_BYTES + 1),
        announced(header, count=0),
    ):
        with pytest.raises(CiphertextSizeMismatch):
            desk.begin(name, wrong)
    with pytest.raises(MalformedMessage):
        desk.begin(name, announced(b"no header"))
    assert send(desk, members, name, uploads[0]) == 3


def test_an_upload_that_is_not_the_signed_one_begins_again(desk, members, uploads):
    name = members.names[0]
    header = members.header(name, uploads[0])
    stream = desk.begin(name, announced(header))
    stream.write(0, b"".join(uploads[1]))
    with pytest.raises(AggregateHashMismatch):
        stream.finish()
    assert desk.status(name, AT, header_hash(header)) == (0, False)
    assert send(desk, members, name, uploads[0]) == 3


def test_an_upload_that_takes_too_long_begins_again(desk, members, uploads, clock):
    name = members.names[0]
    header = members.header(name, uploads[0])
    stream = desk.begin(name, announced(header))
    stream.write(0, uploads[0][0])
    clock.now += 10.5
    with pytest.raises(UploadTooSlow):
        stream.write(1, uploads[0][1])
    desk.begin(name, announced(header)).write(0, uploads[0][0])
    clock.now += 10.5
    assert desk.status(name, AT, header_hash(header)) == (0, False)
    assert send(desk, members, name, uploads[0]) == 3


def test_another_attempt_begins_from_nothing(desk, service, members, uploads):
    name = members.names[0]
    header = members.header(name, uploads[0])
    stream = desk.begin(name, announced(header))
    stream.write(0, uploads[0][0])
    service.begin(1, 1, 1, members.names, members.expected(3))
    with pytest.raises(OutOfOrder):
        stream.write(1, uploads[0][1])
    for ask in (
        lambda: desk.status(name, AT, header_hash(header)),
        lambda: desk.begin(name, announced(header)),
    ):
        with pytest.raises(StaleRound):
            ask()
    assert desk.status(name, (1, 1), header_hash(header)) == (0, False)


def test_a_closed_roster_takes_nothing_more(desk, service, members, uploads):
    for name, upload in zip(members.names[:4], uploads, strict=False):
        send(desk, members, name, upload)
    late = desk.begin(members.names[4], announced(members.header(members.names[4], uploads[4])))
    late.write(0, uploads[4][0])
    service.close()
    with pytest.raises(OutOfOrder):
        late.write(1, uploads[4][1])


def test_a_full_disk_refuses_one_upload_which_can_be_sent_again(desk, members, uploads, monkeypatch, service):
    from hansa.coordinator import spool

    name, real = members.names[0], spool.os.pwrite
    full = OSError(28, "No space left on device")

    def pwrite(*_):
        raise full

    header = members.header(name, uploads[0])
    stream = desk.begin(name, announced(header))
    stream.write(0, uploads[0][0])
    monkeypatch.setattr(spool.os, "pwrite", pwrite)
    with pytest.raises(StoreNotWritable, match="No space left"):
        stream.write(1, uploads[0][1])
    monkeypatch.setattr(spool.os, "pwrite", real)
    assert desk.status(name, AT, header_hash(header)) == (0, False)
    assert send(desk, members, name, uploads[0]) == 3


def test_the_quota_is_asked_before_and_given_back_after_a_failure(service, members, uploads):
    size = 3 * SEEDED_BYTES
    desk = desk_of(service, total_bytes=2 * size)
    for name in members.names[:2]:
        send(desk, members, name, uploads[0])
    third = members.names[2]
    with pytest.raises(SpoolQuotaExceeded):
        send(desk, members, third, uploads[0])
    service.begin(1, 1, 1, members.names, members.expected(3))
    desk.sweep()
    for _ in range(3):  # a failure of any kind holds no room
        header = members.header(third, uploads[0], attempt=1)
        stream = desk.begin(third, announced(header, at=(1, 1)))
        stream.write(0, b"".join(uploads[1]))
        with pytest.raises(AggregateHashMismatch):
            stream.finish()
        with pytest.raises(BadSignature):
            desk.begin(third, announced(header[:-1] + bytes([header[-1] ^ 1]), at=(1, 1)))
    for name in members.names[:2]:
        header = members.header(name, uploads[0], attempt=1)
        stream = desk.begin(name, announced(header, at=(1, 1)))
        stream.write(0, b"".join(uploads[0]))
        stream.finish()


def test_one_member_cannot_take_the_others_room(service, members, uploads):
    desk = desk_of(service, member_bytes=3 * SEEDED_BYTES - 1)
    with pytest.raises(SpoolQuotaExceeded, match="of 'bank-000'"):
        send(desk, members, members.names[0], uploads[0])
