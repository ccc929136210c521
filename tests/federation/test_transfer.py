"""Chunks: taken apart as they were put together, and nothing else."""

import pytest

from hansa.errors import CiphertextSizeMismatch, MessageTooLarge
from hansa.federation.aggregator_pb2 import DownloadChunk, DownloadPart, UploadChunk, UploadPart
from hansa.federation.transfer import (
    DOWNLOAD_CHUNK,
    MESSAGE_BYTES,
    UPLOAD_CHUNK,
    header_hash,
    in_chunks,
    split,
    split_download,
    split_upload,
)
from hansa.secure_agg.ciphertext_format import EXPANDED_BYTES, SEEDED_BYTES


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_chunks_give_the_ciphertexts_again_in_order(count):
    ciphertexts = [bytes([number]) * 10 for number in range(count)]
    chunks = list(in_chunks(iter(ciphertexts), 3))
    assert [found for chunk in chunks for found in split(chunk, 10, 3)] == ciphertexts
    assert len(chunks) == -(-count // 3)


def test_no_ciphertexts_are_no_chunk():
    assert list(in_chunks([], 3)) == []


@pytest.mark.parametrize("length", [0, 1, 9, 11, 25])
def test_a_chunk_of_another_length_is_refused(length):
    with pytest.raises(CiphertextSizeMismatch):
        split(bytes(length), 10, 3)


def test_a_chunk_of_too_many_ciphertexts_is_refused():
    assert len(list(split(bytes(30), 10, 3))) == 3
    with pytest.raises(MessageTooLarge):
        split(bytes(40), 10, 3)


def test_the_largest_chunks_fit_into_a_message():
    up = UploadChunk(first_index=2**32 - 1, ciphertexts=bytes(UPLOAD_CHUNK * SEEDED_BYTES))
    down = DownloadChunk(first_index=2**32 - 1, ciphertexts=bytes(DOWNLOAD_CHUNK * EXPANDED_BYTES))
    assert len(list(split_upload(up.ciphertexts))) == UPLOAD_CHUNK
    assert len(list(split_download(down.ciphertexts))) == DOWNLOAD_CHUNK
    assert UploadPart(chunk=up).ByteSize() <= MESSAGE_BYTES
    assert DownloadPart(chunk=down).ByteSize() <= MESSAGE_BYTES


def test_headers_that_differ_have_other_hashes():
    assert header_hash(b"a") != header_hash(b"b")
    assert len(header_hash(b"")) == 32
