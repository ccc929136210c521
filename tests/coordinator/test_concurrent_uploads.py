"""Uploads, broken ones among them, that race each other and the end of the roster: the sum is that of the roster, always."""

import random
import threading
import time

import pytest

from hansa.coordinator.aggregator import AggregationService
from hansa.errors import AggregateHashMismatch, MalformedCiphertext, OutOfOrder, RosterTooSmall, StaleRound
from hansa.secure_agg.messages import Envelope

ATTEMPTS = 12


class Gone(Exception):
    """The connection of a member was lost."""


def stream(upload, way, draws):
    for place, ciphertext in enumerate(upload):
        time.sleep(draws.random() / 400)
        if way == "breaks off" and place == 1:
            raise Gone
        yield ciphertext[::-1] if way == "other bytes" and place == 2 else ciphertext


@pytest.mark.parametrize("known", [True, False])
def test_whatever_races_the_aggregate_is_the_sum_of_the_roster(
    senders, adders, adding, uploads, tmp_path, known
):
    members, draws = senders(8), random.Random(7)  # T = 6
    service = AggregationService(
        members.roster, members.terms, new_sums=adders().begin, results_folder=tmp_path
    )
    sizes = set()
    for attempt in range(ATTEMPTS):
        service.begin(1, 1, attempt, members.names, members.expected(3) if known else None)
        sent, strange = {}, []

        def send(name, ways, attempt=attempt, sent=sent, strange=strange):
            draws = random.Random(f"{name}{attempt}")
            for way in ways:
                upload = sent[name]
                signed = [upload[0][:-15] + b"\xff" * 15, *upload[1:]] if way == "malformed" else upload
                try:
                    header = members.header(name, signed, attempt=attempt)
                    service.upload(1, attempt, header, stream(signed, way, draws))
                except (Gone, AggregateHashMismatch, MalformedCiphertext, OutOfOrder, StaleRound):
                    continue
                except Exception as error:
                    strange.append(error)

        threads = []
        for name in members.names:
            sent[name] = uploads[draws.randrange(len(uploads))]
            ways = draws.choices(["breaks off", "other bytes", "malformed"], k=draws.randrange(3))
            if not known:  # what waits is read later: a malformed upload may have been taken before
                ways = [way for way in ways if way != "malformed"]
            threads.append(threading.Thread(target=send, args=(name, [*ways, "right"])))
        for thread in threads:
            thread.start()
        while True:
            try:
                service.close()
                break
            except RosterTooSmall:
                time.sleep(0.001)
        headers, aggregate = service.download(1, attempt)
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert strange == []
        roster = [Envelope.decode(header).sender for header in headers]
        assert aggregate == adding.sums_of([sent[name] for name in roster])
        assert service.download(1, attempt) == (headers, aggregate)
        sizes.add(len(roster))
    assert min(sizes) >= 6
