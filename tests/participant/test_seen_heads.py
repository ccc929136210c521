"""Every upload carries the head of its member's ledger, the others keep it, and an auditor holds the ledger to it."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from hansa import errors
from hansa.cli_audit import app
from hansa.participant.seen_heads import (
    heads_apart,
    keep_heads,
    kept_heads,
    seen_head_as_json,
    seen_head_of_json,
)
from hansa.privacy.audit import audit_folder
from hansa.privacy.ledger import read_ledger
from hansa.secure_agg.ledger_heads import encode_head
from hansa.secure_agg.messages import Envelope, UploadHeader, sign_message
from hansa.secure_agg.store import MemoryStore


def body_of(signed):
    return UploadHeader.decode(Envelope.decode(signed).body)


def headers_of(wire):
    return [part for part in wire.sent if len(part) < 1024]


def test_a_header_carries_the_ledgers_head_with_the_reservation_of_its_round(house):
    house.run()
    for name in house.names:
        history = read_ledger(house.ledgers[name]).history
        for signed in headers_of(house.wires[name]):
            body = body_of(signed)
            size = 2 * body.round  # opening, and reserve and commit of each round
            assert body.ledger_head == encode_head(size, history.roots[size - 1])
            last = json.loads(history.encoded[size - 1])
            assert (last["kind"], last["round"]) == ("reserve", body.round)


@pytest.mark.parametrize("strict", [False, True], ids=["quorum", "strict"])
def test_every_member_keeps_the_longest_head_of_every_other(houses, strict_study, tiny_bases, strict):
    house = houses(strict_study, tiny_bases(strict_study)) if strict else houses()
    house.run()
    last = {name: headers_of(house.wires[name])[-1] for name in house.names}
    for name in house.names:
        assert kept_heads(house.stores[name]) == last
        assert house.nodes[name].rewound_ledgers == ()
    heads = [seen_head_of_json(found) for found in house.restart("bank-1").seen_heads()]
    folder = next(iter(house.directories.values())).parent
    assert [finding.error for finding in audit_folder(folder, heads=heads)] == [None] * len(house.names)


def test_a_ledger_that_was_cut_or_replaced_is_found_by_a_head_that_another_member_saw(house, tmp_path):
    house.run()
    (seen,) = [found for found in house.nodes["bank-2"].seen_heads() if found["participant"] == "bank-1"]
    file, ledger = tmp_path / "seen.json", house.ledgers["bank-1"]
    file.write_text(json.dumps(seen))
    whole = ledger.read_bytes()

    def verified():
        return CliRunner().invoke(app, ["verify", str(ledger.parent), "--head", str(file)])

    assert verified().exit_code == 0
    lines = whole.splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:3]))  # holds by itself, and is shorter than what was seen
    assert audit_folder(ledger.parent)[0].error is None
    assert isinstance(verified().exception, errors.HistoryForked)
    ledger.write_bytes(whole)
    other = house.ledgers["bank-3"].read_bytes()  # another ledger, of another key
    ledger.write_bytes(other)
    assert isinstance(verified().exception, errors.HistoryForked)


def test_a_member_that_puts_its_ledger_back_is_left_out_by_name_and_the_others_go_on(house, tiny):
    contributors = []

    def after_round(summary):
        contributors.append(summary.contributors)
        if summary.round == 1:
            house.ledgers["bank-1"].write_bytes(b"")  # an owner who begins anew,
            house.stores["bank-1"].delete("node/heads")  # and makes its own program forget
            house.restart("bank-1")

    house.run(after_round)
    assert contributors == [house.names, house.names[1:]]
    assert errors.LedgerRewound in [type(error) for error in house.errors["bank-1"]]


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_a_ledger_that_was_put_back_is_refused_by_its_own_node_before_it_spends(house, lines):
    house.run()
    ledger = house.ledgers["bank-1"]
    whole = ledger.read_bytes()
    older = b"".join(whole.splitlines(keepends=True)[:lines])
    ledger.write_bytes(older)
    with pytest.raises(errors.LedgerDamaged, match="does not continue the 4 entries"):
        house.restart("bank-1")
    assert ledger.read_bytes() == older
    ledger.write_bytes(whole)
    house.restart("bank-1")


def test_heads_that_contradict_each_other_are_kept_as_evidence(house):
    house.run()
    store, identity = MemoryStore(), house.identities["bank-1"]
    first, last = headers_of(house.wires["bank-1"])
    keep_heads(store, [last])
    keep_heads(store, [first])
    assert kept_heads(store) == {"bank-1": last}
    assert heads_apart(store) == {"bank-1": (last, first)}
    other = sign_message(
        identity, replace(body_of(last), ledger_head=body_of(last).ledger_head[:8] + b"x" * 32)
    )
    keep_heads(store, [other])
    assert heads_apart(store) == {"bank-1": (last, first)}  # the first pair is enough
    fresh = MemoryStore()
    keep_heads(fresh, [last])
    keep_heads(fresh, [other])
    assert heads_apart(fresh) == {"bank-1": (last, other)}


def test_a_head_that_nobody_signed_is_refused(house):
    house.run()
    signed = headers_of(house.wires["bank-1"])[-1]
    key = house.identities["bank-1"].public
    found = seen_head_as_json(signed, key)
    assert seen_head_of_json(found).size == found["size"]
    without = sign_message(house.identities["bank-1"], replace(body_of(signed), ledger_head=bytes(40)))
    for wrong in (
        {},
        found | {"public_key": house.identities["bank-2"].public.hex()},
        found | {"header": signed[:-1].hex()},
        found | {"header": 7},
        found | {"public_key": "00"},
        seen_head_as_json(without, key),
    ):
        with pytest.raises(errors.ProofInvalid):
            seen_head_of_json(wrong)
    # what stands beside the header is for the reader; what counts is what was signed
    assert seen_head_of_json(found | {"size": 1, "root": "00"}).size == found["size"]
