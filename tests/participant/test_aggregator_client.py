"""A participant's client: when it tries again, when it does not, and what it takes from a coordinator that lies."""

import itertools
import threading
import time

import grpc
import pytest

from hansa.coordinator.grpc_server import GrpcServer
from hansa.errors import (
    CiphertextSizeMismatch,
    CoordinatorUnreachable,
    MalformedMessage,
    MessageTooLarge,
    StaleRound,
    StoreNotWritable,
    TransportError,
)
from hansa.federation.aggregator_pb2 import (
    DownloadBegin,
    DownloadChunk,
    DownloadPart,
    PackageLeavesReply,
    UploadReceipt,
    UploadStatusReply,
)
from hansa.federation.aggregator_pb2_grpc import add_AggregatorServicer_to_server
from hansa.federation.error_status import CODE_KEY
from hansa.participant.aggregator_client import GrpcAggregatorClient
from hansa.participant.coordinator_channel import CoordinatorChannel, Patience
from hansa.secure_agg.ciphertext_format import EXPANDED_BYTES, SEEDED_BYTES

SESSION = b"S" * 16
UPLOAD = [bytes([number]) * SEEDED_BYTES for number in range(3)]
SUM = bytes(EXPANDED_BYTES)


class Liar:
    """A coordinator that answers what the test says."""

    def __init__(self):
        self.status, self.receipt = UploadStatusReply(), UploadReceipt(ciphertext_count=3)
        self.parts, self.downloads, self.uploads = [], [], []

    def UploadStatus(self, request, context):
        return self.status

    def Upload(self, parts, context):
        self.uploads.append(list(parts))
        return self.receipt

    def Download(self, request, context):
        self.downloads.append(request.first_index)
        yield from self.parts

    def PackageLeaves(self, request, context):
        return PackageLeavesReply(leaves=request.dealer.encode())


@pytest.fixture(scope="module")
def served(network, tmp_path_factory):
    """A liar, and the channel to it."""
    pki, liar = network.Pki(tmp_path_factory.mktemp("pki")), Liar()
    server = GrpcServer(host="127.0.0.1", port=0, tls=pki.source("coordinator", hosts=["127.0.0.1"]))
    server.add("hansa.v1.Aggregator", add_AggregatorServicer_to_server, liar)
    with server:
        channel = CoordinatorChannel(
            f"127.0.0.1:{server.bound.port}",
            tls=pki.source("bank-1"),
            participant="bank-1",
            patience=Patience(deadline_seconds=5.0, first_pause_seconds=0.01, longest_pause_seconds=0.05),
        )
        yield liar, channel
        channel.close()


@pytest.fixture
def liar(served):
    served[0].__init__()
    return served[0]


@pytest.fixture
def client(served, liar):
    return GrpcAggregatorClient(served[1], SESSION, most_ciphertexts=5)


def begin(count, headers=(b"header",)):
    return DownloadPart(begin=DownloadBegin(signed_headers=headers, ciphertext_count=count))


def chunk(first, data):
    return DownloadPart(chunk=DownloadChunk(first_index=first, ciphertexts=data))


def test_headers_and_aggregate_are_taken_in_order(liar, client):
    liar.parts = [begin(3, [b"a", b"b"]), chunk(0, SUM * 2), chunk(2, SUM)]
    assert client.download(1, 0) == ([b"a", b"b"], [SUM] * 3)
    assert client.package_leaves(1, 0, "bank-2") == b"bank-2"


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([begin(6)], MessageTooLarge),
        ([begin(2**32 - 1)], MessageTooLarge),
        ([begin(1, [b"x"] * 300)], MessageTooLarge),
        ([begin(2), chunk(0, SUM)], CiphertextSizeMismatch),
        ([begin(1), chunk(0, SUM * 2)], MessageTooLarge),
        ([begin(2), chunk(1, SUM)], MalformedMessage),
        ([begin(2), chunk(0, SUM), chunk(0, SUM)], MalformedMessage),
        ([begin(1), chunk(0, SUM[:-1])], CiphertextSizeMismatch),
        ([begin(1), chunk(0, b"")], CiphertextSizeMismatch),
        ([begin(1), begin(1)], CiphertextSizeMismatch),
        ([chunk(0, SUM)], MalformedMessage),
        ([], MalformedMessage),
    ],
)
def test_what_is_no_answer_is_refused_before_it_is_kept(liar, client, parts, error):
    liar.parts = parts
    with pytest.raises(error):
        client.download(1, 0)
    assert liar.downloads == [0]  # a lie is not asked for again


def test_an_answer_without_end_is_cut(liar, client):
    liar.parts = itertools.chain([begin(5)], (chunk(number, SUM) for number in itertools.count()))
    with pytest.raises(MessageTooLarge):
        client.download(1, 0)
    assert next(liar.parts).chunk.first_index < 200  # not more than a window was read


def test_a_coordinator_that_claims_to_hold_too_much_or_took_too_little_is_refused(liar, client):
    liar.status = UploadStatusReply(ciphertexts_held=4)
    with pytest.raises(MalformedMessage):
        client.upload(1, 0, b"header", UPLOAD)
    assert liar.uploads == []
    liar.status, liar.receipt = UploadStatusReply(), UploadReceipt(ciphertext_count=2)
    with pytest.raises(CiphertextSizeMismatch):
        client.upload(1, 0, b"header", UPLOAD)
    assert len(liar.uploads) == 1


@pytest.mark.parametrize("held", [0, 1, 2, 3])
def test_only_what_is_not_there_is_sent(liar, client, held):
    liar.status = UploadStatusReply(ciphertexts_held=held)
    client.upload(1, 0, b"header", UPLOAD)
    first, *chunks = liar.uploads[0]
    assert (first.begin.first_index, first.begin.ciphertext_count) == (held, 3)
    assert b"".join(part.chunk.ciphertexts for part in chunks) == b"".join(UPLOAD[held:])
    liar.status = UploadStatusReply(ciphertexts_held=3, accepted=True)
    client.upload(1, 0, b"header", UPLOAD)
    assert len(liar.uploads) == 1


# -- trying again ----------------------------------------------------------------------------------------------


class Failed(grpc.RpcError):
    """Stands for a failed call."""

    def __init__(self, status, code=None):
        self._status, self._code = status, code

    def code(self):
        return self._status

    def details(self):
        return "words"

    def trailing_metadata(self):
        return ((CODE_KEY, self._code),) if self._code else ()


@pytest.fixture
def paused():
    return []


@pytest.fixture
def channel(network, tmp_path, paused):
    made = CoordinatorChannel(
        "127.0.0.1:1",
        tls=network.Pki(tmp_path).source("bank-1"),
        participant="bank-1",
        patience=Patience(deadline_seconds=100.0, first_pause_seconds=1.0, longest_pause_seconds=8.0),
        sleep=paused.append,
    )
    yield made
    made.close()


def failing(times, error):
    left = [error] * times

    def step(_channel, _seconds):
        if left:
            raise left.pop()
        return "done"

    return step


def test_a_call_is_made_again_with_pauses_that_grow_and_are_bounded(channel, paused):
    assert channel.call(failing(8, Failed(grpc.StatusCode.UNAVAILABLE))) == "done"
    for pause, most in zip(paused, (1, 2, 4, 8, 8, 8, 8, 8), strict=True):
        assert most / 2 <= pause <= most


def test_after_it_was_given_up_no_call_lasts(network, tmp_path):
    made = CoordinatorChannel(
        "127.0.0.1:1", tls=network.Pki(tmp_path).source("bank-1"), participant="bank-1", patience=Patience()
    )
    calling, ended, began = threading.Event(), [], time.monotonic()

    def step(_channel, _seconds):
        calling.set()
        raise Failed(grpc.StatusCode.UNAVAILABLE)

    def call():
        with pytest.raises(CoordinatorUnreachable, match="about to end") as found:
            made.call(step)
        ended.append(found.value)

    thread = threading.Thread(target=call)
    thread.start()
    assert calling.wait(10)
    made.give_up()
    thread.join(10)
    assert len(ended) == 1
    calling.clear()
    call()  # and none is made any more
    assert not calling.is_set()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "code", ["store_not_writable", "too_many_calls", "worker_failed", "internal_failure"]
)
def test_what_may_pass_by_itself_is_tried_again(channel, paused, code):
    assert channel.call(failing(2, Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, code))) == "done"
    assert len(paused) == 2


def test_an_answer_is_not_asked_for_again(channel, paused):
    with pytest.raises(StaleRound):
        channel.call(failing(1, Failed(grpc.StatusCode.FAILED_PRECONDITION, "stale_round")))
    with pytest.raises(TransportError):
        channel.call(failing(1, Failed(grpc.StatusCode.UNIMPLEMENTED)))
    assert paused == []


def test_the_deadline_ends_trying(channel, monkeypatch, paused):
    now = itertools.count(0, 30)
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with pytest.raises(CoordinatorUnreachable) as caught:
        channel.call(failing(99, Failed(grpc.StatusCode.UNAVAILABLE)))
    assert caught.value.exit_status == 69
    assert len(paused) < 5


def test_a_deadline_in_the_middle_of_a_try_does_not_hide_why_the_ones_before_it_failed(
    channel, monkeypatch, paused
):
    now = itertools.count(0, 30)
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    failures = [Failed(grpc.StatusCode.DEADLINE_EXCEEDED)] * 9
    failures.append(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "store_not_writable"))

    def step(_channel, _seconds):
        raise failures.pop()

    with pytest.raises(StoreNotWritable):
        channel.call(step)


def test_the_same_channel_serves_all_calls_until_it_is_closed(channel):
    found = [channel.call(lambda used, _: used) for _ in range(3)]
    assert found[0] is found[1] is found[2]
    channel.close()
    assert channel.call(lambda used, _: used) is not found[0]
