"""Tree heads of the members' privacy ledgers, as their upload headers carry them: a size and a root, opaque here.

Every header is signed and shown to all, so a member that later shows another history of what it spent is contradicted by its own
signature. What a head means is the ledger's matter; this room only sees that a member's heads never go back.

    head    size, 8 bytes big-endian, then the RFC 6962 root over so many entries, 32 bytes; all zero: no ledger
"""

from collections.abc import Mapping

from hansa.errors import LedgerRewound, MalformedMessage
from hansa.secure_agg.messages import LEDGER_HEAD_BYTES, UploadHeader

ROOT_BYTES = 32
NO_LEDGER = bytes(LEDGER_HEAD_BYTES)


def encode_head(size: int, root: bytes) -> bytes:
    """Put a tree head into the form of an upload header.

    Raises:
        MalformedMessage: The root has not 32 bytes, or the size does not fit 8.
    """
    if len(root) != ROOT_BYTES or not 0 <= size < 2**64:
        raise MalformedMessage(f"a ledger head of size {size} has a root of {len(root)} bytes")
    return size.to_bytes(8, "big") + root


def decode_head(head: bytes) -> tuple[int, bytes]:
    """Read size and root of a tree head."""
    return int.from_bytes(head[:8], "big"), head[8:]


class LedgerHeads:
    """The longest ledger head that each member has signed.

    Args:
        latest: Heads known from before, by member.

    Guarantees:
        - A head of a smaller size than an earlier one of its member is refused, and so is one of the same size with another root.
        - What is refused changes nothing, and no other member's heads count.
    """

    def __init__(self, latest: Mapping[str, bytes] | None = None) -> None:
        self._latest = dict(latest or {})

    def verify(self, header: UploadHeader) -> None:
        """Check that a header's ledger head continues those before it.

        Raises:
            LedgerRewound: It does not.
        """
        before, now = self._latest.get(header.sender, NO_LEDGER), header.ledger_head
        (earlier, _), (size, _) = decode_head(before), decode_head(now)
        if size < earlier:
            raise LedgerRewound(f"the ledger of {header.sender!r} has {size} entries, and had {earlier}")
        if size == earlier and now != before:
            raise LedgerRewound(f"the ledger of {header.sender!r} has {size} entries, and had others before")

    def latest(self) -> dict[str, bytes]:
        """Give the longest head of each member, to go on from."""
        return dict(self._latest)

    def take(self, header: UploadHeader) -> None:
        """Keep the head of an upload that was accepted."""
        before = self._latest.get(header.sender, NO_LEDGER)
        self._latest[header.sender] = max(before, header.ledger_head, key=lambda head: decode_head(head)[0])
