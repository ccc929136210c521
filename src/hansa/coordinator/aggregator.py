"""The aggregation service: one running sum for the round that runs, and the sealed result of every round that is over.

A member that missed a round downloads its headers and aggregate later, together with the certificate that the round loop keeps.
"""

import threading
from collections.abc import Collection, Iterable, Mapping

from hansa.errors import PackageLeavesMissing, StaleRound
from hansa.secure_agg.aggregator import CheckCiphertexts, RoundAggregator
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.parameters import Terms


class AggregationService:
    """Receives uploads and serves aggregates.

    Args:
        roster: Members and their public identity keys.
        terms: Mode and threshold.
        check_ciphertexts: Looks at an upload's ciphertexts before this process parses them, such as
            `CiphertextChecker.check` in a process of its own, whose crash costs that upload and nothing else.

    Guarantees:
        - While a round runs, memory grows by one running sum and one upload, whatever the number of members.
        - It holds no secret: what it adds it cannot read.
    """

    def __init__(
        self, roster: Roster, terms: Terms, *, check_ciphertexts: CheckCiphertexts | None = None
    ) -> None:
        self._roster, self._terms, self._check = roster, terms, check_ciphertexts
        self._lock = threading.Lock()
        self._running: RoundAggregator | None = None
        self._at = (0, 0)
        self._results: dict[tuple[int, int], tuple[list[bytes], list[bytes]]] = {}
        self._leaves: dict[tuple[int, int], dict[str, bytes]] = {}
        self.uplink_bytes = 0
        self.downlink_bytes = 0

    def begin(self, epoch: int, round_index: int, attempt: int, cohort: Collection[str]) -> RoundAggregator:
        """Accept uploads for an attempt from now on; the round loop drives the aggregator that is returned."""
        with self._lock:
            self._at = (round_index, attempt)
            self._running = RoundAggregator(
                roster=self._roster,
                terms=self._terms,
                epoch=epoch,
                round_index=round_index,
                attempt=attempt,
                cohort=cohort,
                check_ciphertexts=self._check,
            )
            return self._running

    def upload(self, round_index: int, attempt: int, header: bytes, ciphertexts: Iterable[bytes]) -> None:
        """Add one member's upload; raises as `RoundAggregator.accept` does, and StaleRound for another round."""
        with self._lock:
            if self._running is None or self._at != (round_index, attempt):
                raise StaleRound(f"round {round_index} attempt {attempt} is not running")
            before = self._running.uplink_bytes
            self._running.accept(header, ciphertexts)
            self.uplink_bytes += self._running.uplink_bytes - before

    def close(self) -> None:
        """Take no more uploads and serve the aggregate; raises as `RoundAggregator.close` does."""
        with self._lock:
            if self._running is None:
                raise StaleRound("no round is running")
            self._results[self._at] = self._running.close()

    def forget(self, before_round: int) -> None:
        """Drop the results of rounds that every member has applied."""
        with self._lock:
            self._results = {at: result for at, result in self._results.items() if at[0] >= before_round}
            self._leaves = {at: leaves for at, leaves in self._leaves.items() if at[0] >= before_round}

    def keep_leaves(self, round_index: int, attempt: int, leaves: Mapping[str, bytes]) -> None:
        """Keep the leaves of a cohort's packages, by dealer, for as long as the attempt's result may be asked for."""
        with self._lock:
            self._leaves[round_index, attempt] = dict(leaves)

    def package_leaves(self, round_index: int, attempt: int, dealer: str) -> bytes:
        """Give the leaves of a dealer's package to a member that was released a wrong share of it.

        Raises:
            PackageLeavesMissing: There are none of this dealer in this attempt, or no longer.
        """
        with self._lock:
            found = self._leaves.get((round_index, attempt), {}).get(dealer, b"")
            if not found:
                raise PackageLeavesMissing(
                    f"no leaves of {dealer!r} are kept for round {round_index} attempt {attempt}"
                )
            self.downlink_bytes += len(found)
            return found

    def download(self, round_index: int, attempt: int) -> tuple[list[bytes], list[bytes]]:
        """Give the signed headers and the aggregate of an attempt; StaleRound unless its roster is closed."""
        with self._lock:
            if (round_index, attempt) not in self._results:
                raise StaleRound(f"round {round_index} attempt {attempt} has no result")
            headers, sums = self._results[round_index, attempt]
            self.downlink_bytes += sum(map(len, headers)) + sum(map(len, sums))
            return list(headers), list(sums)
