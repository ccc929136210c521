"""The aggregation service: it keeps one running sum a round and hands it out when every member has uploaded."""

import threading
from collections.abc import Iterable

from hansa.errors import StaleRound
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.identity import Roster


class AggregationService:
    """Receives uploads and serves the aggregate of the running round.

    Args:
        roster: Members and their public identity keys.

    Guarantees:
        - Memory is one running sum and one upload, whatever the number of members.
        - It holds no secret: what it adds it cannot read.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._lock = threading.Lock()
        self._running: tuple[int, int] | None = None
        self._aggregator: RoundAggregator | None = None
        self._sums: list[bytes] = []
        self.uplink_bytes = 0
        self.downlink_bytes = 0

    def begin(self, round_index: int, attempt: int) -> None:
        """Forget the last round and accept uploads for this one."""
        with self._lock:
            self._running = (round_index, attempt)
            self._aggregator = RoundAggregator(self._roster, round_index, attempt)
            self._sums = []

    def upload(self, round_index: int, attempt: int, header: bytes, ciphertexts: Iterable[bytes]) -> None:
        """Add one member's upload; raises as `RoundAggregator.accept` does, and StaleRound for another round."""
        with self._lock:
            running = self._of(round_index, attempt)
            before = running.uplink_bytes
            running.accept(header, ciphertexts)
            self.uplink_bytes += running.uplink_bytes - before

    def download(self, round_index: int, attempt: int) -> tuple[list[bytes], list[bytes]]:
        """Give the signed headers and the aggregate; OutOfOrder until every member has uploaded."""
        with self._lock:
            running = self._of(round_index, attempt)
            self._sums = self._sums or running.aggregate()
            headers = running.headers()
            self.downlink_bytes += sum(map(len, headers)) + sum(map(len, self._sums))
            return headers, list(self._sums)

    def _of(self, round_index: int, attempt: int) -> RoundAggregator:
        if self._aggregator is None or self._running != (round_index, attempt):
            raise StaleRound(f"round {round_index} attempt {attempt} is not running")
        return self._aggregator
