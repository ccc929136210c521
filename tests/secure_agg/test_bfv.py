import os
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenseal import sealapi

from hansa.errors import (
    AggregateHashMismatch,
    CiphertextSizeMismatch,
    HeParameterMismatch,
    MalformedCiphertext,
    OutOfOrder,
    UpdateOutOfRange,
    UpdateShapeMismatch,
)
from hansa.secure_agg import bfv
from hansa.secure_agg.bfv import CiphertextSum, HeKey
from hansa.secure_agg.ciphertext_format import (
    EXPANDED_BYTES,
    SEED_BYTES,
    SEEDED_BYTES,
    pack_coefficients,
    seeded_from_seal,
    unpack_coefficients,
)
from hansa.secure_agg.parameters import PLAIN_MODULUS

Q = 1152921504606830593  # the data prime


@pytest.fixture(autouse=True)
def _silent(capfd):
    """SEAL and TenSEAL print in places; nothing here may."""
    yield
    assert capfd.readouterr() == ("", "")


def _slots(seed, rows=1):
    return np.random.default_rng(seed).integers(0, PLAIN_MODULUS, (rows, 4096)).astype(np.uint64)


def _sum(ciphertexts):
    total = CiphertextSum()
    for ciphertext in ciphertexts:
        total.add(ciphertext)
    return total.serialise()


def _expanded(c0, c1):
    return pack_coefficients(np.concatenate([c0, c1]).astype(np.uint64))


def test_the_forms_have_the_documented_size(he_key):
    upload = he_key.encrypt(_slots(0)[0])
    assert (len(upload), len(_sum([upload]))) == (SEEDED_BYTES, EXPANDED_BYTES) == (30784, 61440)
    assert SEEDED_BYTES / (4 * 4096) < 1.88  # bytes up for one entry with four lanes


@pytest.mark.parametrize("terms", [1, 3, 16, 258])
def test_the_decrypted_sum_is_the_sum_modulo_t(he_key, terms):
    rows = _slots(terms, terms)
    rows[:, :4] = np.array([0, 1, PLAIN_MODULUS - 1, PLAIN_MODULUS // 2], dtype=np.uint64)
    decrypted = he_key.decrypt(_sum([he_key.encrypt(row) for row in rows]))
    assert decrypted.dtype == np.uint64
    np.testing.assert_array_equal(decrypted, rows.sum(axis=0) % np.uint64(PLAIN_MODULUS))


def test_two_encryptions_of_one_plaintext_differ_in_seed_and_everywhere_else(he_key):
    row = _slots(1)[0]
    one, two = he_key.encrypt(row), he_key.encrypt(row)
    assert one[:SEED_BYTES] != two[:SEED_BYTES]
    equal = unpack_coefficients(one[SEED_BYTES:]) == unpack_coefficients(two[SEED_BYTES:])
    assert np.count_nonzero(equal) < 3


def test_only_slots_below_t_are_encrypted(he_key):
    row = _slots(2)[0]
    for wrong in (row[:-1], row.reshape(2, -1), row.astype(np.int64), row.astype(float)):
        with pytest.raises(UpdateShapeMismatch):
            he_key.encrypt(wrong)
    row[17] = PLAIN_MODULUS
    with pytest.raises(UpdateOutOfRange):
        he_key.encrypt(row)


def test_a_key_travels_by_export_and_load_only(he_key):
    row = _slots(3)[0]
    copy = HeKey.load(he_key.export())
    assert copy.key_id == he_key.key_id
    np.testing.assert_array_equal(copy.decrypt(_sum([he_key.encrypt(row)])), row)
    assert HeKey.generate().key_id != he_key.key_id
    assert len(he_key.key_id) == 32
    with pytest.raises(TypeError):
        pickle.dumps(he_key)
    secret = he_key.export()
    assert secret[40:48].hex() not in repr(he_key)
    assert he_key.key_id.hex()[:16] in repr(he_key)
    for wrong in (b"", secret[:-1], bytes(len(secret)), secret[:-15] + b"\xff" * 15, b"\xff" * len(secret)):
        with pytest.raises(HeParameterMismatch):
            HeKey.load(wrong)


def test_another_key_decrypts_to_noise(he_key):
    row = np.zeros(4096, dtype=np.uint64)
    decrypted = HeKey.generate().decrypt(_sum([he_key.encrypt(row)]))
    assert np.count_nonzero(decrypted) > 4000


def test_a_sum_holds_no_key_and_cannot_decrypt(he_key):
    total = CiphertextSum()
    with pytest.raises(OutOfOrder):
        total.serialise()
    total.add(he_key.encrypt(_slots(4)[0]))
    assert not hasattr(total, "decrypt")
    assert set(CiphertextSum.__slots__) == {"_total", "terms"}
    assert type(total._total) is bfv.sealapi.Ciphertext
    native = {type(value) for value in vars(bfv._scheme()).values()}
    secret = {getattr(bfv.sealapi, name) for name in ("SecretKey", "KeyGenerator", "Encryptor", "Decryptor")}
    assert not native & secret


def test_coefficients_are_packed_two_in_fifteen_bytes():
    values = np.random.default_rng(0).integers(0, 2**60, 4096).astype(np.uint64)
    values[:4] = [0, 2**60 - 1, 1, 2**59]
    packed = pack_coefficients(values)
    assert len(packed) == 4096 * 15 // 2
    first = sum(int(value) << (60 * place) for place, value in enumerate(values[:2]))
    assert packed[:15] == first.to_bytes(15, "little")
    np.testing.assert_array_equal(unpack_coefficients(packed), values)


@settings(max_examples=30, deadline=None)
@given(pairs=st.integers(1, 50), seed=st.integers(0, 2**32))
def test_packed_coefficients_are_their_definition(pairs, seed):
    values = np.random.default_rng(seed).integers(0, 2**60, 2 * pairs, dtype=np.uint64)
    before = values.copy()
    packed = b"".join(
        (int(low) | int(high) << 60).to_bytes(15, "little") for low, high in values.reshape(-1, 2)
    )
    assert pack_coefficients(values) == packed
    np.testing.assert_array_equal(values, before)
    for data in (packed, bytearray(packed), memoryview(b"0" + packed)[1:]):
        np.testing.assert_array_equal(unpack_coefficients(data), values)


def test_a_short_object_is_not_completed_by_what_a_longer_one_left_in_the_file(he_key):
    upload = he_key.encrypt(_slots(20)[0])
    aggregate = _sum([upload])
    scheme = bfv._scheme()
    whole = bfv.seal_from_expanded(scheme.ring, aggregate)
    bfv._load(sealapi.Ciphertext(scheme.context), whole)
    with pytest.raises(ValueError, match="size"):
        bfv._load(sealapi.Ciphertext(scheme.context), whole[:-8])
    np.testing.assert_array_equal(he_key.decrypt(aggregate), _slots(20)[0])


def test_threads_do_not_read_each_others_ciphertexts(he_key):
    slots = _slots(21, 4)
    failures = []

    def work(own):
        for _ in range(20):
            total = CiphertextSum()
            total.add(he_key.encrypt(own))
            if not np.array_equal(he_key.decrypt(total.serialise()), own):
                failures.append(own)

    threads = [threading.Thread(target=work, args=(own,)) for own in slots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_forked_process_has_a_file_of_its_own(he_key):
    one, other = _slots(22, 2)
    he_key.encrypt(one)  # this process has its file
    before = os.fstat(bfv._thread_file.file._descriptor).st_ino
    child = os.fork()
    if child == 0:
        right = all(np.array_equal(he_key.decrypt(_sum([he_key.encrypt(other)])), other) for _ in range(20))
        os._exit(0 if right and os.fstat(bfv._thread_file.file._descriptor).st_ino != before else 1)
    assert all(np.array_equal(he_key.decrypt(_sum([he_key.encrypt(one)])), one) for _ in range(20))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_file_keeps_a_key():
    key = HeKey.generate()
    held = os.pread(bfv._thread_file.file._descriptor, 1 << 20, 0)
    assert unpack_coefficients(key.export())[:64].tobytes() not in held


def test_a_wrong_length_is_refused_before_anything_is_read(he_key):
    upload = he_key.encrypt(_slots(5)[0])
    aggregate = _sum([upload])
    for wrong in (b"", upload[:-1], upload + b"\x00", aggregate, upload * 2):
        with pytest.raises(CiphertextSizeMismatch):
            CiphertextSum().add(wrong)
    for wrong in (b"", aggregate[:-1], aggregate + b"\x00", upload):
        with pytest.raises(CiphertextSizeMismatch):
            he_key.decrypt(wrong)


def test_a_coefficient_must_be_below_q(he_key):
    upload = he_key.encrypt(_slots(6)[0])
    coefficients = unpack_coefficients(upload[SEED_BYTES:])
    coefficients[4095] = Q - 1
    CiphertextSum().add(upload[:SEED_BYTES] + pack_coefficients(coefficients))
    coefficients[4095] = Q
    with pytest.raises(MalformedCiphertext, match="bound"):
        CiphertextSum().add(upload[:SEED_BYTES] + pack_coefficients(coefficients))
    ones = np.ones(4096, dtype=np.uint64)
    with pytest.raises(MalformedCiphertext, match="bound"):
        he_key.decrypt(_expanded(ones, ones * np.uint64(Q)))


def test_a_transparent_ciphertext_is_refused(he_key):
    zeros = np.zeros(4096, dtype=np.uint64)
    for c0 in (zeros, _slots(7)[0]):
        with pytest.raises(MalformedCiphertext):
            he_key.decrypt(_expanded(c0, zeros))


def test_a_refused_ciphertext_leaves_the_sum_as_it_was(he_key):
    total = CiphertextSum()
    total.add(he_key.encrypt(_slots(8)[0]))
    before = total.serialise()
    for wrong in (b"", b"\xff" * SEEDED_BYTES):
        with pytest.raises((CiphertextSizeMismatch, MalformedCiphertext)):
            total.add(wrong)
    assert (total.serialise(), total.terms) == (before, 1)


def test_a_native_exception_becomes_malformed_ciphertext(monkeypatch, he_key):
    aggregate = _sum([he_key.encrypt(_slots(9)[0])])
    build = bfv.seal_from_expanded

    def broken(ring, data):
        return build(ring, data)[:-8]  # a truncated stream in front of SEAL's own parser

    monkeypatch.setattr(bfv, "seal_from_expanded", broken)
    with pytest.raises(MalformedCiphertext, match="SEAL"):
        he_key.decrypt(aggregate)


def test_an_unknown_form_of_seal_is_refused(monkeypatch, he_key):
    save = bfv._save
    changes = {
        "version": lambda data: data[:4] + b"\x05" + data[5:],
        "frame": lambda data: data[:16] + b"\x00" + data[17:],
        "scale": lambda data: data[:80] + b"\x01" + data[81:],
        "length": lambda data: data[:-1],
        "generator": lambda data: data[:-65] + b"\x02" + data[-64:],
    }
    for change in changes.values():
        monkeypatch.setattr(bfv, "_save", lambda native, change=change: change(save(native)))
        with pytest.raises(HeParameterMismatch):
            he_key.encrypt(_slots(10)[0])
    monkeypatch.undo()
    total = CiphertextSum()
    total.add(he_key.encrypt(_slots(10)[0]))
    with pytest.raises(HeParameterMismatch):
        seeded_from_seal(bfv._scheme().ring, save(total._total))


def _mutations(data, count, seed):
    generator = np.random.default_rng(seed)
    for index in range(count):
        changed = bytearray(data)
        start, length = int(generator.integers(len(data))), int(generator.integers(1, 200))
        kind = index % 6
        if kind == 0:
            changed[start] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            changed[start : start + length] = bytes(len(changed[start : start + length]))
        elif kind == 2:
            changed[start : start + length] = b"\xff" * len(changed[start : start + length])
        elif kind == 3:
            del changed[start : start + length]
        elif kind == 4:
            changed[start:start] = generator.bytes(length)
        else:
            changed[:length] = generator.bytes(length)
        if changed != data:
            yield bytes(changed)


def test_mutated_ciphertexts_end_in_an_error_or_in_numbers_never_in_a_crash(he_key):
    upload = he_key.encrypt(_slots(11)[0])
    aggregate = _sum([upload])
    refused = 0
    for mutated in _mutations(upload, 150, 1):
        try:
            CiphertextSum().add(mutated)
        except (CiphertextSizeMismatch, MalformedCiphertext):
            refused += 1
    for mutated in _mutations(aggregate, 150, 2):
        try:
            slots = he_key.decrypt(mutated)
        except (CiphertextSizeMismatch, MalformedCiphertext):
            refused += 1
        else:
            assert slots.shape == (4096,)
            assert int(slots.max()) < PLAIN_MODULUS
    assert refused > 100


def test_mutated_uploads_never_change_a_sum_under_a_signed_header(house):
    members = house(3)
    round_ = members.begin()
    round_.levels = members.levels(100)
    for name in members.names:
        members.start(name, round_)
        round_.uploads[name] = members.machines[name].protect(round_.levels[name])
    (first, rest), *others = round_.uploads.values()
    aggregator = round_.aggregator
    for mutated in _mutations(rest[0], 240, 3):
        with pytest.raises((CiphertextSizeMismatch, AggregateHashMismatch)):
            aggregator.accept(first, [mutated])
        assert aggregator.contributors == ()
        assert aggregator._sums.terms == 0
        assert aggregator.uplink_bytes == 0
    for header, ciphertexts in ((first, rest), *others):
        aggregator.accept(header, ciphertexts)
    opened = members.machines["bank-000"].open(*aggregator.close())
    np.testing.assert_array_equal(opened.total, round_.expected())
