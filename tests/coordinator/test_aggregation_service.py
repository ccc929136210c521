"""The aggregation service: one round at a time, traffic counted byte for byte."""

import threading

import pytest

from hansa.coordinator.aggregator import AggregationService
from hansa.errors import AggregateHashMismatch, DuplicateMember, OutOfOrder, StaleRound
from hansa.secure_agg.ciphertext_format import EXPANDED_BYTES, SEEDED_BYTES
from hansa.secure_agg.parameters import layout_for


def test_traffic_is_counted_byte_for_byte(house):
    counted = []

    def on_round(_):
        sent = sum(len(part) for wire in house.wires.values() for part in wire.sent)
        received = sum(len(part) for wire in house.wires.values() for part in wire.received)
        assert (house.service.uplink_bytes, house.service.downlink_bytes) == (sent, received)
        counted.append(sent)

    house.run(on_round)
    assert counted[1] == pytest.approx(2 * counted[0], rel=0.01)
    # 969 entries were to move; whole ciphertexts travel.
    kept, layout = house.base.layout.size, layout_for(4)
    assert layout.ciphertexts_for(kept) == 1
    for wire in house.wires.values():
        header, ciphertext, *_ = wire.sent
        assert len(ciphertext) == SEEDED_BYTES
        assert len(header) < 1024
        assert [len(part) == EXPANDED_BYTES for part in wire.received] == 2 * [*4 * [False], True]


def test_a_refused_upload_is_not_counted_and_does_not_stop_the_round(house):
    keys = house.advertise()
    for node in house.nodes.values():
        node.train(1, 0, keys)
    before = house.service.uplink_bytes
    header, ciphertext = house.wires["bank-1"].sent
    with pytest.raises(DuplicateMember):
        house.service.upload(1, 0, header, [ciphertext])
    assert house.service.uplink_bytes == before
    results = [node.open(1, 0) for node in house.nodes.values()]
    for node in house.nodes.values():
        node.close(1, 0, results)


def test_ciphertexts_other_than_the_signed_ones_are_refused(house):
    keys = house.advertise()
    wire = house.wires["bank-1"]
    upload, wire.service = wire.service.upload, None
    with pytest.raises(AttributeError):
        house.nodes["bank-1"].train(1, 0, keys)  # nothing arrives
    header, ciphertext = wire.sent
    with pytest.raises(AggregateHashMismatch):
        upload(1, 0, header, [ciphertext[:-1] + bytes([ciphertext[-1] ^ 1])])
    assert house.service.uplink_bytes == 0
    upload(1, 0, header, [ciphertext])
    assert house.service.uplink_bytes == len(header) + len(ciphertext)


@pytest.mark.parametrize("at", [(0, 0), (1, 1), (2, 0)])
def test_only_the_running_attempt_is_served(house, at):
    house.train()
    header, ciphertext = house.wires["bank-1"].sent
    with pytest.raises(StaleRound, match=f"round {at[0]} attempt {at[1]} is not running"):
        house.service.upload(*at, header, [ciphertext])
    with pytest.raises(StaleRound):
        house.service.download(*at)


def test_nothing_is_served_before_a_round_begins(house):
    service = AggregationService(house.roster)
    with pytest.raises(StaleRound):
        service.upload(1, 0, b"", [])
    with pytest.raises(StaleRound):
        service.download(1, 0)
    assert (service.uplink_bytes, service.downlink_bytes) == (0, 0)


def test_no_sum_is_given_before_every_member_is_in_it(house):
    keys = house.advertise()
    for name in ("bank-1", "bank-2", "bank-3"):
        house.nodes[name].train(1, 0, keys)
        with pytest.raises(OutOfOrder, match="of 4 members have uploaded"):
            house.service.download(1, 0)
    assert house.service.downlink_bytes == 0
    house.nodes["bank-4"].train(1, 0, keys)
    headers, aggregate = house.service.download(1, 0)
    assert (len(headers), len(aggregate)) == (4, 1)


def test_a_new_round_forgets_the_last_one(house):
    house.train()
    house.service.download(1, 0)
    house.service.begin(2, 0)
    with pytest.raises(OutOfOrder):
        house.service.download(2, 0)
    assert house.service._sums == []


def test_what_one_member_does_with_its_download_does_not_reach_the_next(house):
    house.train()
    headers, aggregate = house.service.download(1, 0)
    expected = list(headers), list(aggregate)
    headers.clear()
    aggregate[0] = b"other"
    assert house.service.download(1, 0) == expected


def test_uploads_from_several_threads_add_up(house, tiny):
    keys = house.advertise()
    failures = []

    def train(node):
        try:
            node.train(1, 0, keys)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=train, args=(node,)) for node in house.nodes.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    results = [node.open(1, 0) for node in house.nodes.values()]
    house.nodes["bank-1"].close(1, 0, results)
    assert len(house.digests()) == 1
