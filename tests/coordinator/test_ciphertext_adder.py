"""Sums in a process of their own: exact, whatever is refused in between, and nothing of a peer is parsed here."""

import os
import threading

import pytest

from hansa.coordinator.ciphertext_adder import CiphertextAdder
from hansa.errors import CiphertextSizeMismatch, MalformedCiphertext, OutOfOrder
from hansa.secure_agg import bfv
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES


def too_large(data):
    return data[:64] + b"\xff" * 15 + data[79:]


def test_the_sums_are_those_of_the_uploads_byte_for_byte(adders, adding, uploads):
    adder = adders()
    sums = adder.begin(6)
    with pytest.raises(OutOfOrder):
        sums.totals()
    for upload in uploads:
        adding.send(sums, upload)
    assert list(sums.totals()) == adding.sums_of(uploads)
    assert list(sums.totals()) == adding.sums_of(uploads)
    assert (adder.terms, adder.starts) == (6, 1)


def test_this_process_never_parses_what_came_from_a_peer(adders, adding, uploads, monkeypatch):
    expected = adding.sums_of(uploads)
    for name in ("parse_seeded", "parse_expanded", "_load"):
        monkeypatch.setattr(bfv, name, lambda *_: pytest.fail("a peer's bytes were parsed in this process"))
    sums = adders().begin(7)
    for upload in uploads:
        adding.send(sums, upload)
    with pytest.raises(MalformedCiphertext):
        adding.send(sums, [uploads[0][0], uploads[0][1], too_large(uploads[0][2])])
    assert list(sums.totals()) == expected


def test_begin_forgets_and_a_round_may_have_another_count(adders, adding, uploads):
    adder = adders()
    adding.send(adder.begin(2), uploads[0])
    sums = adder.begin(3)
    with pytest.raises(OutOfOrder):
        sums.totals()
    for upload in uploads[1:3]:
        adding.send(sums, upload[:2])
    assert list(sums.totals()) == adding.sums_of([upload[:2] for upload in uploads[1:3]])
    assert adder.starts == 1


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda upload: upload[:2], CiphertextSizeMismatch),
        (lambda upload: [*upload, upload[0]], CiphertextSizeMismatch),
        (lambda upload: [], CiphertextSizeMismatch),
        (lambda upload: [upload[0], upload[1], upload[2][:-1]], CiphertextSizeMismatch),
        (lambda upload: [upload[0], upload[1], upload[2] + b"\x00"], CiphertextSizeMismatch),
        (lambda upload: [too_large(upload[0]), upload[1], upload[2]], MalformedCiphertext),
        (lambda upload: [upload[0], upload[1], too_large(upload[2])], MalformedCiphertext),
    ],
)
def test_a_refused_upload_leaves_the_sums_as_they_were(adders, adding, uploads, spoil, error):
    adder = adders()
    sums = adder.begin(3)
    adding.send(sums, uploads[0])
    with pytest.raises(error):
        adding.send(sums, spoil(uploads[1]))
    assert list(sums.totals()) == adding.sums_of(uploads[:1])
    adding.send(sums, uploads[2])
    assert list(sums.totals()) == adding.sums_of([uploads[0], uploads[2]])
    assert adder.starts == 1


@pytest.mark.parametrize("count", [1, 2, 4])
def test_fewer_or_more_ciphertexts_than_were_said_are_refused(adders, adding, uploads, count):
    sums = adders().begin(2)
    with pytest.raises(CiphertextSizeMismatch):
        adding.send(sums, uploads[0], count)
    adding.send(sums, uploads[1])
    assert list(sums.totals()) == adding.sums_of(uploads[1:2])


def test_a_first_upload_that_fails_in_its_last_ciphertext_leaves_nothing(adders, adding, uploads):
    adder = adders()
    sums = adder.begin(3)
    with pytest.raises(MalformedCiphertext):
        adding.send(sums, [uploads[0][0], uploads[0][1], too_large(uploads[0][2])])
    assert (adder.terms, adder.starts) == (0, 1)
    adding.send(sums, uploads[1][:2])
    assert list(sums.totals()) == adding.sums_of([uploads[1][:2]])


def test_uploads_arrive_at_the_same_time_each_in_its_own_place(adders, adding, uploads):
    """Ciphertext by ciphertext in turn; one of them is given up in the middle and its place used again."""
    sums = adders().begin(4)
    arriving = [sums.open(3) for _ in range(4)]
    with pytest.raises(OutOfOrder, match="more uploads than members"):
        sums.open(3)
    for place in range(2):
        for upload, incoming in zip(uploads, arriving, strict=False):
            incoming.write(upload[place])
    arriving[1].discard()
    again = sums.open(3)
    for ciphertext in uploads[4]:
        again.write(ciphertext)
    for index in (0, 2, 3):
        arriving[index].write(uploads[index][2])
    for incoming in (arriving[3], again, arriving[0], arriving[2]):
        incoming.commit()
    assert list(sums.totals()) == adding.sums_of([uploads[index] for index in (0, 2, 3, 4)])
    with pytest.raises(OutOfOrder):
        arriving[1].write(uploads[1][2])
    with pytest.raises(OutOfOrder):
        again.commit()
    again.discard()  # it is in the sums, and stays
    assert list(sums.totals()) == adding.sums_of([uploads[index] for index in (0, 2, 3, 4)])


def test_uploads_from_several_threads_add_up(adders, adding, uploads):
    sums = adders().begin(6)
    threads = [threading.Thread(target=adding.send, args=(sums, upload)) for upload in uploads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(sums.totals()) == adding.sums_of(uploads)


def test_an_attempt_that_is_over_takes_and_gives_nothing(adders, adding, uploads):
    """Its late bytes must not land in the place of an upload of the next attempt."""
    adder = adders()
    old = adder.begin(2)
    adding.send(old, uploads[0])
    late = old.open(3)
    late.write(uploads[1][0])
    totals = old.totals()
    new = adder.begin(2)
    arriving = new.open(3)
    for ciphertext in uploads[2]:
        arriving.write(ciphertext)
        with pytest.raises(OutOfOrder):
            late.write(uploads[1][1])
    arriving.commit()
    for act in (late.commit, lambda: old.open(3), old.totals, lambda: next(totals)):
        with pytest.raises(OutOfOrder):
            act()
    assert list(new.totals()) == adding.sums_of([uploads[2]])


def resident(process_id):
    with open(f"/proc/{process_id}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def test_memory_does_not_grow_with_the_number_of_uploads(adders, adding, uploads):
    adder = adders()
    sums = adder.begin(33)
    upload = [data for upload in uploads for data in upload]
    for _ in range(3):
        adding.send(sums, upload)
    before = resident(adder.process_id), resident(os.getpid())
    for _ in range(30):
        adding.send(sums, upload)
    grown = resident(adder.process_id) - before[0], resident(os.getpid()) - before[1]
    assert max(grown) < 5 * len(upload) * SEEDED_BYTES


def test_the_spool_has_no_name_and_close_ends_the_worker(adders, adding, uploads, tmp_path):
    adder = adders()
    adding.send(adder.begin(1), uploads[0])
    assert list(tmp_path.iterdir()) == []
    worker = adder.process_id
    adder.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    with CiphertextAdder(spool_folder=tmp_path) as other:
        adding.send(other.begin(1), uploads[0])
        worker = other.process_id
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
