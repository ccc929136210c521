"""Sums that are kept in this process: exact, and after any refusal what they were."""

import itertools
import threading

import numpy as np
import pytest

from hansa.errors import CiphertextSizeMismatch, MalformedCiphertext, OutOfOrder
from hansa.secure_agg.bfv import CiphertextSum
from hansa.secure_agg.parameters import PLAIN_MODULUS, SLOTS
from hansa.secure_agg.sums import CiphertextSums, SumsInProcess


@pytest.fixture(scope="module")
def uploads(he_key):
    """Four uploads of three ciphertexts."""
    generator = np.random.default_rng(4)
    return [
        [he_key.encrypt(generator.integers(0, PLAIN_MODULUS, SLOTS, dtype=np.uint64)) for _ in range(3)]
        for _ in range(4)
    ]


def expected(uploads):
    sums = [CiphertextSum() for _ in uploads[0]]
    for upload in uploads:
        for running, ciphertext in zip(sums, upload, strict=True):
            running.add(ciphertext)
    return [running.serialise() for running in sums]


def send(sums, upload, count=None):
    incoming = sums.open(len(upload) if count is None else count)
    for ciphertext in upload:
        incoming.write(ciphertext)
    incoming.commit()


def too_large(data):
    return data[:64] + b"\xff" * 15 + data[79:]


def spoilt(upload, place):
    return [too_large(data) if index == place else data for index, data in enumerate(upload)]


def test_the_sums_are_those_of_the_uploads_byte_for_byte(uploads):
    sums = SumsInProcess()
    with pytest.raises(OutOfOrder):
        sums.totals()
    for upload in uploads:
        send(sums, upload)
    assert list(sums.totals()) == list(sums.totals()) == expected(uploads)
    assert sums.terms == 4


@pytest.mark.parametrize(("before", "place"), [*itertools.product(range(3), repeat=2)])
def test_a_failure_in_the_middle_of_adding_leaves_the_sums_exactly_as_they_were(uploads, before, place):
    sums = SumsInProcess()
    for upload in uploads[:before]:
        send(sums, upload)
    with pytest.raises(MalformedCiphertext):
        send(sums, spoilt(uploads[3], place))
    assert sums.terms == before
    if before:
        assert list(sums.totals()) == expected(uploads[:before])
    send(sums, uploads[2])
    assert list(sums.totals()) == expected([*uploads[:before], uploads[2]])


def test_after_a_first_upload_that_failed_the_next_one_may_have_another_count(uploads):
    sums = SumsInProcess()
    with pytest.raises(MalformedCiphertext):
        send(sums, spoilt(uploads[0], 2))
    send(sums, uploads[1][:2])
    assert list(sums.totals()) == expected([uploads[1][:2]])
    with pytest.raises(CiphertextSizeMismatch):
        send(sums, uploads[2])


def test_an_upload_is_read_once_unless_it_fails(uploads):
    sums, read = CiphertextSums(), []

    def reader(upload):
        return lambda place: read.append(place) or upload[place]

    sums.add(3, reader(uploads[0]))
    assert read == [0, 1, 2]
    read.clear()
    with pytest.raises(MalformedCiphertext):
        sums.add(3, reader(spoilt(uploads[1], 2)))
    assert read == [0, 1, 2, 0, 1]  # the two that were added are taken out again


def test_what_was_added_can_be_taken_out_bit_for_bit(uploads):
    running = CiphertextSum()
    running.add(uploads[0][0])
    before = running.serialise()
    running.add(uploads[1][0])
    running.subtract(uploads[1][0])
    assert (running.serialise(), running.terms) == (before, 1)
    running.subtract(uploads[0][0])
    assert running.terms == 0
    with pytest.raises(OutOfOrder):
        running.serialise()
    running.add(uploads[2][0])
    assert running.serialise() == expected([uploads[2][:1]])[0]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_another_number_of_ciphertexts_than_was_said_is_refused(uploads, count):
    sums = SumsInProcess()
    with pytest.raises(CiphertextSizeMismatch):
        send(sums, uploads[0], count)
    assert sums.terms == 0


def test_an_upload_is_added_once_and_a_discarded_one_not_at_all(uploads):
    sums = SumsInProcess()
    added, discarded = sums.open(3), sums.open(3)
    for upload in (added, discarded):
        for ciphertext in uploads[0]:
            upload.write(ciphertext)
    added.commit()
    added.discard()
    discarded.discard()
    for upload in (added, discarded):
        with pytest.raises(OutOfOrder):
            upload.commit()
        with pytest.raises(OutOfOrder):
            upload.write(uploads[0][0])
    assert list(sums.totals()) == expected(uploads[:1])


def test_uploads_from_several_threads_add_up(uploads):
    sums = SumsInProcess()
    threads = [threading.Thread(target=send, args=(sums, upload)) for upload in uploads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(sums.totals()) == expected(uploads)


@pytest.mark.parametrize("most_sums", [0, 1, 2, 3, 9])
def test_sums_beyond_those_in_memory_are_the_same_byte_for_byte(uploads, most_sums):
    sums = CiphertextSums(most_sums)
    for upload in uploads[:3]:
        sums.add(3, upload.__getitem__)
    for place in range(3):
        with pytest.raises(MalformedCiphertext):
            sums.add(3, spoilt(uploads[3], place).__getitem__)
    with pytest.raises(CiphertextSizeMismatch):
        sums.add(2, uploads[3].__getitem__)
    sums.add(3, uploads[3].__getitem__)
    assert (len(sums), sums.terms) == (3, 4)
    assert [sums.total(place) for place in range(3)] == expected(uploads)
    assert len(sums._sums) == min(most_sums, 3)
