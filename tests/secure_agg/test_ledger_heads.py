"""Ledger heads of members go forward only, whatever they are heads of."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from hansa.errors import LedgerRewound, MalformedMessage
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.ledger_heads import NO_LEDGER, LedgerHeads, decode_head, encode_head
from hansa.secure_agg.messages import Envelope, UploadHeader, sign_message

A, B = b"a" * 32, b"b" * 32


def header(sender, head):
    return SimpleNamespace(sender=sender, ledger_head=head)


def test_a_head_is_eight_bytes_of_size_and_the_root():
    assert encode_head(258, A) == bytes(6) + b"\x01\x02" + A
    assert decode_head(encode_head(2**64 - 1, B)) == (2**64 - 1, B)
    assert decode_head(NO_LEDGER) == (0, bytes(32))
    for size, root in ((-1, A), (2**64, A), (1, A[1:])):
        with pytest.raises(MalformedMessage):
            encode_head(size, root)


def test_a_head_never_goes_back_and_another_members_does_not_count():
    heads = LedgerHeads({"bank-1": encode_head(5, A)})
    for head in (encode_head(4, A), encode_head(4, B), encode_head(5, B), NO_LEDGER):
        with pytest.raises(LedgerRewound, match="bank-1"):
            heads.verify(header("bank-1", head))
    heads.verify(header("bank-1", encode_head(5, A)))
    heads.verify(header("bank-2", encode_head(1, B)))
    heads.take(header("bank-1", encode_head(7, B)))
    with pytest.raises(LedgerRewound, match="has 6 entries, and had 7"):
        heads.verify(header("bank-1", encode_head(6, B)))
    heads.take(header("bank-1", encode_head(2, B)))  # nothing that is taken forgets a longer one
    with pytest.raises(LedgerRewound):
        heads.verify(header("bank-1", encode_head(6, B)))


def test_a_member_without_a_ledger_may_open_one_and_not_lose_it():
    heads = LedgerHeads()
    heads.take(header("bank-1", NO_LEDGER))
    heads.take(header("bank-1", encode_head(2, A)))
    with pytest.raises(LedgerRewound):
        heads.verify(header("bank-1", NO_LEDGER))


def test_the_head_that_is_handed_in_is_the_one_that_is_signed(house):
    members = house(4)
    round_ = members.begin()
    members.start("bank-000", round_)
    head = encode_head(9, A)
    signed, _ = members.machines["bank-000"].protect(np.zeros(5, np.int64), head)
    assert UploadHeader.decode(Envelope.decode(signed).body).ledger_head == head


def test_an_upload_whose_ledger_went_back_costs_its_sender_only(house):
    members = house(4)
    round_ = members.uploaded()
    heads = LedgerHeads({"bank-001": encode_head(3, A)})
    aggregator = RoundAggregator(
        roster=members.roster, terms=members.terms, epoch=0, round_index=1, attempt=0, heads=heads
    )
    with pytest.raises(LedgerRewound, match="has 0 entries, and had 3"):
        aggregator.accept(*round_.uploads["bank-001"])
    for name in ("bank-000", "bank-002", "bank-003"):
        aggregator.accept(*round_.uploads[name])
    assert aggregator.contributors == ("bank-000", "bank-002", "bank-003")
    header, ciphertexts = round_.uploads["bank-001"]
    body = replace(UploadHeader.decode(Envelope.decode(header).body), ledger_head=encode_head(4, B))
    aggregator.accept(sign_message(members.identities["bank-001"], body), ciphertexts)
    with pytest.raises(LedgerRewound):  # what was accepted counts from now on
        heads.verify(replace(body, ledger_head=encode_head(3, A)))
