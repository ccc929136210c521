"""The aggregator: what it refuses, and that it knows nothing."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from hansa.errors import (
    AggregateHashMismatch,
    BadSignature,
    CiphertextSizeMismatch,
    CohortMismatch,
    DuplicateMember,
    HeParameterMismatch,
    MalformedCiphertext,
    MalformedMessage,
    OutOfOrder,
    StaleRound,
    UnknownSender,
    WrongSession,
)
from hansa.secure_agg import bfv
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.bfv import CiphertextSum, HeKey
from hansa.secure_agg.cohort import ciphertext_list_hash
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.masks import RoundSecret
from hansa.secure_agg.messages import Envelope, UploadHeader, open_signed, sign_message


def test_an_upload_that_is_refused_leaves_the_aggregator_as_it_was(consortium, seeded_bytes):
    house = consortium()
    levels = house.levels(house.layout.entries_per_ciphertext + 10)
    members, uploads = house.protected(levels)
    aggregator = RoundAggregator(house.roster, 1, 0)
    aggregator.accept(*uploads["bank-000"])
    before = ([s.serialise() for s in aggregator._sums], aggregator.headers(), aggregator.uplink_bytes)
    header, ciphertexts = uploads["bank-001"]
    body = open_signed(header, UploadHeader, house.roster)
    mallory = house.identities["bank-001"]

    def resigned(**changes):
        return sign_message(mallory, replace(body, **changes))

    above_q = ciphertexts[1][:-15] + b"\xff" * 15
    lied = [ciphertexts[0], above_q]
    envelope = Envelope.decode(header)
    sybil = sign_message(Identity.generate(seeded_bytes("sybil")), replace(body, sender="bank-999"))
    cases = [
        (DuplicateMember, uploads["bank-000"]),
        (BadSignature, (replace(envelope, sender="bank-002").encode(), ciphertexts)),
        (UnknownSender, (sybil, ciphertexts)),
        (WrongSession, (resigned(session=bytes(16)), ciphertexts)),
        (StaleRound, (resigned(round=2), ciphertexts)),
        (StaleRound, (resigned(attempt=1), ciphertexts)),
        (MalformedMessage, (header + b"\x00", ciphertexts)),
        (CohortMismatch, (resigned(cohort_hash=bytes(32)), ciphertexts)),
        (HeParameterMismatch, (resigned(he_key_id=bytes(32)), ciphertexts)),
        (CiphertextSizeMismatch, (resigned(ciphertext_count=1), ciphertexts[:1])),
        (CiphertextSizeMismatch, (header, ciphertexts[:1])),
        (CiphertextSizeMismatch, (header, ciphertexts * 2)),
        (CiphertextSizeMismatch, (header, [ciphertexts[0], ciphertexts[1][:-1]])),
        (AggregateHashMismatch, (header, ciphertexts[::-1])),
        (AggregateHashMismatch, (header, [ciphertexts[0], uploads["bank-000"][1][1]])),
        (MalformedCiphertext, (resigned(ciphertext_list_hash=ciphertext_list_hash(lied)), lied)),
    ]
    for error, (signed, sent) in cases:
        with pytest.raises(error):
            aggregator.accept(signed, sent)
        after = ([s.serialise() for s in aggregator._sums], aggregator.headers(), aggregator.uplink_bytes)
        assert after == before
    with pytest.raises(OutOfOrder, match="1 of 3"):
        aggregator.aggregate()
    assert not aggregator.complete
    for name in ("bank-001", "bank-002"):
        aggregator.accept(*uploads[name])
    assert aggregator.complete
    total = members["bank-002"].open(aggregator.headers(), aggregator.aggregate())
    np.testing.assert_array_equal(total, sum(levels.values()))


def test_an_endless_upload_is_read_one_ciphertext_too_far(consortium):
    house = consortium()
    _, uploads = house.protected(house.levels(100))
    header, (ciphertext,) = uploads["bank-000"]
    stream = itertools.count()
    endless = (ciphertext for _ in stream)
    with pytest.raises(CiphertextSizeMismatch, match="more"):
        RoundAggregator(house.roster, 1, 0).accept(header, endless)
    assert next(stream) == 2


def test_there_is_no_secret_behind_an_aggregator(consortium):
    house = consortium()
    members, uploads = house.protected(house.levels(100))
    aggregator = house.aggregator(uploads)
    aggregator.aggregate()
    objects, texts = _reachable(aggregator)
    native = [getattr(bfv.sealapi, name) for name in ("SecretKey", "KeyGenerator", "Encryptor", "Decryptor")]
    forbidden = (HeKey, Identity, RoundSecret, type(members["bank-000"]), *native)
    assert not [value for value in objects if isinstance(value, forbidden)]
    assert any(isinstance(value, CiphertextSum) for value in objects)
    assert any(isinstance(value, Roster) for value in objects)
    secrets = [house.he_key.export()[40:72], *(identity.export() for identity in house.identities.values())]
    assert not [secret for secret in secrets for text in texts if secret in text]


def _reachable(root):
    """Every object that attributes, slots, lists and dicts lead to, and every byte string among them."""
    found, texts, queue = {}, [], [root]
    while queue:
        value = queue.pop()
        if id(value) in found or isinstance(value, type):
            continue
        found[id(value)] = value
        if isinstance(value, bytes):
            texts.append(value)
        elif isinstance(value, dict):
            queue += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            queue += list(value)
        elif type(value).__module__.startswith("hansa"):
            names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
            queue += [getattr(value, name) for name in names if hasattr(value, name)]
    return list(found.values()), texts
