"""An upload's way through a worker's pipe to the aggregation service, one ciphertext a frame.

The pipe stands for the network: as over a network, the service has of an upload that is on its way one ciphertext in
memory, and not the whole.
"""

from collections.abc import Callable, Iterable

from hansa.coordinator.aggregator import AggregationService
from hansa.errors import OutOfOrder
from hansa.local_host import Parent, Service
from hansa.secure_agg.arriving import ArrivingUpload


def send_upload(
    parent: Parent, round_index: int, attempt: int, header: bytes, ciphertexts: Iterable[bytes]
) -> None:
    """Send one upload from a worker; raises what the aggregation service raises."""
    parent.call("begin_upload", round_index, attempt, header)
    for ciphertext in ciphertexts:
        parent.call("write_upload", ciphertext)
    parent.call("finish_upload")


class UploadServices:
    """The parent's side, for one worker, which sends one upload after another.

    Args:
        service: Gives the aggregation service, or raises.

    Guarantees:
        - An upload that its worker did not finish is given up when the next one begins.
    """

    def __init__(self, service: Callable[[], AggregationService]) -> None:
        self._service = service
        self._arriving: ArrivingUpload | None = None

    def services(self) -> dict[str, Service]:
        """Give what the worker may call."""
        return {"begin_upload": self.begin, "write_upload": self.write, "finish_upload": self.finish}

    def begin(self, round_index: int, attempt: int, header: bytes) -> None:
        """Take the header."""
        if self._arriving is not None:
            self._arriving.discard()
        self._arriving = None
        self._arriving = self._service().begin_upload(round_index, attempt, header)

    def write(self, ciphertext: bytes) -> None:
        """Take the next ciphertext."""
        self._begun().write(ciphertext)

    def finish(self) -> None:
        """Let the upload be added."""
        arriving, self._arriving = self._begun(), None
        arriving.finish()

    def _begun(self) -> ArrivingUpload:
        if self._arriving is None:
            raise OutOfOrder("ciphertexts came before the header of their upload")
        return self._arriving
