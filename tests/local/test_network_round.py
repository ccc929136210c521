"""A whole study whose uploads and downloads go over gRPC: byte for byte what the embedded form gives."""

import pytest

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.data_plane import DataPlane
from hansa.participant.aggregator_client import GrpcAggregatorClient
from hansa.participant.coordinator_channel import CoordinatorChannel


class Both:
    """A member's way to two services, one over the network and one beside it; what comes back must be the same."""

    def __init__(self, client, plain):
        self.client, self.plain, self.downloads = client, plain, 0

    def upload(self, round_index, attempt, header, ciphertexts):
        self.client.upload(round_index, attempt, header, ciphertexts)
        self.plain.upload(round_index, attempt, header, ciphertexts)

    def download(self, round_index, attempt):
        found = self.client.download(round_index, attempt)
        assert found == self.plain.download(round_index, attempt)
        self.downloads += 1
        return found

    def package_leaves(self, round_index, attempt, dealer):
        return self.client.package_leaves(round_index, attempt, dealer)


@pytest.fixture
def house(houses, network, tmp_path, monkeypatch):
    made = houses()
    pki = network.Pki(tmp_path / "pki")
    plain = AggregationService(made.roster, made.terms)
    for name in ("begin", "close"):
        original, beside = getattr(made.service, name), getattr(plain, name)
        monkeypatch.setattr(
            made.service, name, lambda *a, original=original, beside=beside: (beside(*a), original(*a))[1]
        )
    plane = DataPlane(
        host="127.0.0.1",
        port=0,
        tls=pki.source("coordinator", hosts=["127.0.0.1"]),
        revoked=lambda: None,
        report=lambda error: pytest.fail(repr(error)),
    )
    plane.aggregator.open_session(made.service, made.roster)
    channels = []
    with plane:
        for name in made.names:
            channels.append(
                CoordinatorChannel(
                    f"127.0.0.1:{plane.server.bound.port}", tls=pki.source(name), participant=name
                )
            )
            client = GrpcAggregatorClient(channels[-1], made.roster.session_id)
            made.wires[name].service = Both(client, plain)
        yield made
        for channel in channels:
            channel.close()


def test_a_study_over_the_network_is_the_study_without_it(house):
    summaries = []
    house.run(summaries.append)
    assert [summary.contributors for summary in summaries] == [house.names] * 2
    assert len(house.digests()) == 1
    assert [house.wires[name].service.downloads for name in house.names] == [2] * 4
    assert house.errors == {name: [] for name in house.names}
    # Each byte that a member gave or was given went over the network.
    sent = sum(len(data) for name in house.names for data in house.wires[name].sent)
    received = sum(len(data) for name in house.names for data in house.wires[name].received)
    assert (house.service.uplink_bytes, house.service.downlink_bytes) == (sent, received)
