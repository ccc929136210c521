"""Step R1.3 at the coordinator: one upload on its way, from its checked header to its last ciphertext."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from hansa.errors import AggregateHashMismatch, CiphertextSizeMismatch, UploadTooSlow
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES, verify_wire_length
from hansa.secure_agg.cohort import CiphertextListHash
from hansa.secure_agg.messages import UploadHeader
from hansa.secure_agg.sums import IncomingUpload

if TYPE_CHECKING:
    from hansa.secure_agg.aggregator import RoundAggregator

IsLate = Callable[[], bool]


def never_late() -> bool:
    """Say of an upload that it may take its time."""
    return False


class ArrivingUpload:
    """One member's upload while its ciphertexts come; made by `RoundAggregator.begin_upload`.

    Attributes:
        header: The checked header.
        signed: Its signed bytes.
        is_late: Whether the upload has taken longer than it may.

    Guarantees:
        - A ciphertext is measured, hashed and handed on; none is held here and none is parsed.
        - After any error of `write` or `finish` the upload is discarded and its member may begin again.
        - Writing waits for no other upload.
    """

    def __init__(
        self,
        aggregator: "RoundAggregator",
        header: UploadHeader,
        signed: bytes,
        place: IncomingUpload,
        is_late: IsLate,
    ) -> None:
        self.header, self.signed, self.is_late = header, signed, is_late
        self._aggregator, self._place = aggregator, place
        self._hash, self._received = CiphertextListHash(), 0

    @property
    def upload_bytes(self) -> int:
        """Bytes of header and ciphertexts so far."""
        return len(self.signed) + self._received * SEEDED_BYTES

    def write(self, ciphertext: bytes) -> None:
        """Take the next ciphertext, untrusted.

        Raises:
            UploadTooSlow: The time of the upload is over.
            CiphertextSizeMismatch: It has not the length of its form, or is one more than the header says.
            StoreNotWritable: There is no room for it.
            OutOfOrder: The roster was closed, or the upload was given up.
        """
        try:
            self._verify_in_time()
            if self._received == self.header.ciphertext_count:
                raise CiphertextSizeMismatch(
                    f"more ciphertexts came than the {self.header.ciphertext_count} of the header"
                )
            verify_wire_length(ciphertext, SEEDED_BYTES)
            self._place.write(ciphertext)
            self._hash.update(ciphertext)
            self._received += 1
        except BaseException:
            self.discard()
            raise

    def finish(self) -> None:
        """Check that all ciphertexts are those that the header was signed for, and hand the upload over.

        Raises:
            UploadTooSlow: The time of the upload is over.
            CiphertextSizeMismatch: Fewer came than the header says.
            AggregateHashMismatch: They are not those that the header was signed for.
            See `RoundAggregator.accept` for everything else.
        """
        try:
            self._verify_in_time()
            if self._received != self.header.ciphertext_count:
                raise CiphertextSizeMismatch(
                    f"{self._received} ciphertexts came, the header says {self.header.ciphertext_count}"
                )
            if self._hash.digest() != self.header.ciphertext_list_hash:
                raise AggregateHashMismatch(
                    f"the ciphertexts of {self.header.sender!r} are not those that it signed"
                )
            self._aggregator.take(self)
        except BaseException:
            self.discard()
            raise

    def take_all(self, ciphertexts: Iterable[bytes]) -> None:
        """Take all ciphertexts from where they come, and hand the upload over; raises as `write` and `finish` do.

        What comes is read no further than one ciphertext beyond the header's count.
        """
        try:
            for ciphertext in ciphertexts:
                self.write(ciphertext)
        except BaseException:
            self.discard()  # where the ciphertexts come from can fail too
            raise
        self.finish()

    def commit(self) -> None:
        """Let the ciphertexts be parsed and added; raises as `sums.IncomingUpload.commit` does."""
        self._place.commit()

    def discard(self) -> None:
        """Give the upload up; nothing of it was added."""
        self._aggregator.drop(self)
        self._place.discard()

    def _verify_in_time(self) -> None:
        if self.is_late():
            raise UploadTooSlow(
                f"{self._received} of {self.header.ciphertext_count} ciphertexts of {self.header.sender!r} came in time"
            )
