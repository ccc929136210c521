"""The aggregation service: one round at a time, traffic counted byte for byte."""

import threading

import pytest

from hansa.coordinator.aggregator import AggregationService
from hansa.errors import (
    AggregateHashMismatch,
    DuplicateMessage,
    PackageLeavesMissing,
    RosterTooSmall,
    StaleRound,
)
from hansa.secure_agg.ciphertext_format import EXPANDED_BYTES, SEEDED_BYTES
from hansa.secure_agg.leaves import leaf_tree
from hansa.secure_agg.messages import Package, open_signed
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


def train(house, *names):
    packages, shares = house.packages, house.shares
    for name in names or house.names:
        house.nodes[name].train(1, 0, packages, shares[name])


def test_a_refused_upload_is_not_counted_and_does_not_stop_the_round(house):
    house.begin()
    train(house)
    before = house.service.uplink_bytes
    header, ciphertext = house.wires["bank-1"].sent
    with pytest.raises(DuplicateMessage):
        house.service.upload(1, 0, header, [ciphertext])
    assert house.service.uplink_bytes == before
    house.service.close()
    releases = [node.answer(1, 0) for node in house.nodes.values()]
    results = [node.unmask(1, 0, releases)[0] for node in house.nodes.values()]
    for node in house.nodes.values():
        node.close(1, 0, results)


def test_ciphertexts_other_than_the_signed_ones_are_refused(house):
    house.begin()
    wire = house.wires["bank-1"]
    upload, wire.service = wire.service.upload, None
    with pytest.raises(AttributeError):
        train(house, "bank-1")  # nothing arrives
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
    service = AggregationService(house.roster, house.terms)
    with pytest.raises(StaleRound):
        service.upload(1, 0, b"", [])
    with pytest.raises(StaleRound):
        service.download(1, 0)
    with pytest.raises(StaleRound):
        service.close()
    assert (service.uplink_bytes, service.downlink_bytes) == (0, 0)


def test_no_sum_is_given_before_the_threshold_is_reached_and_the_roster_is_closed(house):
    house.begin()
    for name in ("bank-1", "bank-2"):
        train(house, name)
        with pytest.raises(RosterTooSmall, match="of 4 members have uploaded"):
            house.service.close()
    train(house, "bank-3")
    with pytest.raises(StaleRound, match="has no result"):
        house.service.download(1, 0)
    assert house.service.downlink_bytes == 0
    house.service.close()
    headers, aggregate = house.service.download(1, 0)
    assert (len(headers), len(aggregate)) == (3, 1)


def test_results_are_served_until_every_member_has_applied_them(house):
    house.close(1)
    first = house.service.download(1, 0)
    house.train(2)
    assert house.service.download(1, 0) == first
    house.service.forget(1)
    assert house.service.download(1, 0) == first
    house.service.forget(2)
    with pytest.raises(StaleRound):
        house.service.download(1, 0)
    assert len(house.service.download(2, 0)[0]) == 4
    house.service.forget(3)
    assert len(house.service._results) == 0


def test_after_a_study_no_result_and_no_leaf_is_kept(house):
    house.run()
    assert (len(house.service._results), house.service._leaves) == (0, {})


def test_leaves_are_served_and_counted_for_as_long_as_the_result(house):
    house.close(1)
    house.train(2)
    for dealer, place in (("bank-1", 0), ("bank-4", 3)):
        leaves = house.service.package_leaves(1, 0, dealer)
        assert len(leaves) == 4 * 48
        body = open_signed(house.packages[place], Package, house.roster, 1)
        current = house.service.package_leaves(2, 0, dealer)
        assert current != leaves
        pieces = [current[start : start + 48] for start in range(0, len(current), 48)]
        assert leaf_tree(body.package_id, pieces)[0] == body.leaf_root
    before = house.service.downlink_bytes
    house.service.package_leaves(2, 0, "bank-1")
    assert house.service.downlink_bytes == before + 4 * 48
    for at in ((2, 0, "bank-9"), (2, 1, "bank-1"), (3, 0, "bank-1")):
        with pytest.raises(PackageLeavesMissing, match=f"round {at[0]} attempt {at[1]}"):
            house.service.package_leaves(*at)
    house.service.forget(2)
    with pytest.raises(PackageLeavesMissing):
        house.service.package_leaves(1, 0, "bank-1")
    assert house.service.package_leaves(2, 0, "bank-1")


def test_strict_mode_has_no_leaves(strict_house):
    strict_house.train()
    with pytest.raises(PackageLeavesMissing):
        strict_house.service.package_leaves(1, 0, "bank-1")


def test_what_one_member_does_with_its_download_does_not_reach_the_next(house):
    house.train()
    headers, aggregate = house.service.download(1, 0)
    expected = list(headers), list(aggregate)
    headers.clear()
    aggregate[0] = b"other"
    assert house.service.download(1, 0) == expected


def test_uploads_from_several_threads_add_up(house, tiny):
    house.begin()
    failures = []

    def upload(name):
        try:
            train(house, name)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=upload, args=(name,)) for name in house.names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    house.service.close()
    releases = [node.answer(1, 0) for node in house.nodes.values()]
    results = [node.unmask(1, 0, releases)[0] for node in house.nodes.values()]
    house.nodes["bank-1"].close(1, 0, results)
    assert len(house.digests()) == 1
