"""How much of the coordinator's disk uploads may take: each member, and all members of all sessions together."""

import threading
from collections.abc import Hashable

from hansa.errors import SpoolQuotaExceeded


class SpoolQuota:
    """Bytes that uploads were promised.

    Args:
        member_bytes: Most for one member in all its sessions.
        total_bytes: Most for all members.

    Guarantees:
        - What is promised never exceeds either bound, from however many threads.
    """

    def __init__(self, member_bytes: int, total_bytes: int) -> None:
        self._member_bytes, self._total_bytes = member_bytes, total_bytes
        self._lock = threading.Lock()
        self._promised: dict[tuple[str, Hashable], int] = {}

    def reserve(self, member: str, session: Hashable, upload_bytes: int) -> None:
        """Promise room for a member's upload in a session, in place of what it was promised there before.

        Raises:
            SpoolQuotaExceeded: There is not so much left.
        """
        with self._lock:
            others = {key: size for key, size in self._promised.items() if key != (member, session)}
            own = sum(size for (name, _), size in others.items() if name == member)
            for what, taken, bound in (
                (f"of {member!r}", own, self._member_bytes),
                ("of all members", sum(others.values()), self._total_bytes),
            ):
                if taken + upload_bytes > bound:
                    raise SpoolQuotaExceeded(
                        f"an upload of {upload_bytes} bytes beside {taken} bytes exceeds the quota {what}, {bound} bytes"
                    )
            self._promised[member, session] = upload_bytes

    def release(self, member: str, session: Hashable) -> None:
        """Give back what a member was promised in a session."""
        with self._lock:
            self._promised.pop((member, session), None)
