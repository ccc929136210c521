"""Uploads through a worker's pipe: one ciphertext a frame, and none left over from an upload that broke off."""

import pytest

from hansa.errors import AggregateHashMismatch, OutOfOrder
from hansa.local_host import Host
from hansa.local_uplink import UploadServices, send_upload


class Arriving:
    """Notes what it is given; its last ciphertext may be refused."""

    def __init__(self, noted, refuse):
        self._noted, self._refuse = noted, refuse

    def write(self, ciphertext):
        self._noted.append(("write", ciphertext))

    def finish(self):
        if self._refuse:
            raise AggregateHashMismatch("not the signed ones")
        self._noted.append(("finish",))

    def discard(self):
        self._noted.append(("discard",))


class Service:
    """Stands for the aggregation service."""

    def __init__(self):
        self.noted, self.refuse = [], False

    def begin_upload(self, round_index, attempt, header):
        self.noted.append(("begin", round_index, attempt, header))
        return Arriving(self.noted, self.refuse)


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def host(service):
    def build(parent):
        def breaks_off():
            yield b"one"
            raise OutOfOrder("the participant stopped")

        return {
            "send": lambda *ciphertexts: send_upload(parent, 1, 0, b"header", ciphertexts),
            "break off": lambda: send_upload(parent, 1, 0, b"header", breaks_off()),
            "out of order": lambda: parent.call("write_upload", b"one"),
        }

    made = Host(build, UploadServices(lambda: service).services())
    yield made
    made.stop()


def test_each_ciphertext_is_a_frame_of_its_own_in_order(host, service):
    host.call("send", b"one", b"two")
    assert service.noted == [
        ("begin", 1, 0, b"header"),
        ("write", b"one"),
        ("write", b"two"),
        ("finish",),
    ]


def test_a_refusal_of_the_service_reaches_the_worker_as_what_it_is(host, service):
    service.refuse = True
    with pytest.raises(AggregateHashMismatch):
        host.call("send", b"one")
    service.refuse = False
    host.call("send", b"two")
    assert ("discard",) not in service.noted


def test_an_upload_that_broke_off_is_given_up_when_the_next_one_begins(host, service):
    with pytest.raises(OutOfOrder, match="the participant stopped"):
        host.call("break off")
    host.call("send", b"two")
    assert service.noted[2:] == [("discard",), ("begin", 1, 0, b"header"), ("write", b"two"), ("finish",)]


def test_a_ciphertext_without_a_header_is_a_named_error(host, service):
    with pytest.raises(OutOfOrder, match="before the header"):
        host.call("out of order")
    assert service.noted == []
