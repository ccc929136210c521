"""The aggregation service: one running sum for the round that runs, and the sealed result of every round that is over.

A member that missed a round downloads its headers and aggregate later, together with the certificate that the round loop keeps.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from hansa.coordinator.results import KEPT_ROUNDS, RoundResults
from hansa.errors import PackageLeavesMissing, StaleRound
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.arriving import ArrivingUpload
from hansa.secure_agg.expected import ExpectedHeader
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.ledger_heads import LedgerHeads
from hansa.secure_agg.parameters import Terms
from hansa.secure_agg.sums import Sums, SumsInProcess

UPLOAD_SECONDS = 600.0
NewSums = Callable[[int], Sums]


class AggregationService:
    """Receives uploads and serves aggregates, to any number of threads.

    Args:
        roster: Members and their public identity keys.
        terms: Mode and threshold.
        new_sums: Makes the sums of an attempt for so many uploads, such as `CiphertextAdder.begin`, which parses in a
            process of its own, whose crash costs one upload and nothing else. Where it is not given this process parses.
        results_folder: Where the results of finished rounds lie; see `RoundResults`.
        kept_rounds: Rounds whose result is kept for members that come late.
        upload_seconds: Longest time from the header of an upload to its last ciphertext.
        clock: Seconds, never going back.

    Guarantees:
        - While a round runs, memory grows by one running sum and, for each upload that arrives, one ciphertext.
        - No upload waits for the bytes of another one. One that is too slow is given up at the first byte after its
          time, when its member begins again, or when the roster is closed, whichever is first.
        - What a member that stays away costs is bounded: results lie on disk, and the oldest is removed.
        - A service that is made anew on the same folder serves what was closed before.
        - It holds no secret: what it adds it cannot read.
    """

    def __init__(
        self,
        roster: Roster,
        terms: Terms,
        *,
        new_sums: NewSums | None = None,
        results_folder: Path | None = None,
        kept_rounds: int = KEPT_ROUNDS,
        upload_seconds: float = UPLOAD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roster, self._terms = roster, terms
        self._new_sums: NewSums = new_sums or (lambda _: SumsInProcess())
        self._results = RoundResults(results_folder, kept_rounds)
        self._upload_seconds, self._clock = upload_seconds, clock
        self._heads = LedgerHeads()
        self._lock = threading.Lock()  # of the attributes below; never held while bytes come or are added
        self._running: RoundAggregator | None = None
        self._at = (0, 0)
        self._leaves: dict[tuple[int, int], dict[str, bytes]] = {}
        self._earlier_uplink_bytes = self.downlink_bytes = 0

    @property
    def uplink_bytes(self) -> int:
        """Bytes of all uploads that came whole and as signed."""
        with self._lock:
            running = self._running.uplink_bytes if self._running is not None else 0
            return self._earlier_uplink_bytes + running

    def begin(
        self,
        epoch: int,
        round_index: int,
        attempt: int,
        cohort: Collection[str],
        expected: ExpectedHeader | None = None,
    ) -> RoundAggregator:
        """Accept uploads for an attempt from now on; the round loop drives the aggregator that is returned.

        Args:
            epoch: Number of the epoch.
            round_index: Round number.
            attempt: Attempt number.
            cohort: Ids whose packages serve the attempt.
            expected: What headers must say, as far as it is known; T members decide the rest.
        """
        aggregator = RoundAggregator(
            roster=self._roster,
            terms=self._terms,
            epoch=epoch,
            round_index=round_index,
            attempt=attempt,
            cohort=cohort,
            sums=self._new_sums(len(cohort)),
            expected=expected,
            heads=self._heads,
        )
        with self._lock:
            if self._running is not None:
                self._earlier_uplink_bytes += self._running.uplink_bytes
            self._at, self._running = (round_index, attempt), aggregator
            return aggregator

    def resume(self, epoch: int, round_index: int, attempt: int, cohort: Collection[str]) -> RoundAggregator:
        """Stand after `close` again, from the result that a process before this one kept; arguments as for `begin`.

        Raises:
            StaleRound, ResultExpired, StoreDamaged: The result is not there, or not whole.
            See `RoundAggregator.reseal` for everything else.
        """
        at = (round_index, attempt)
        aggregator = RoundAggregator(
            roster=self._roster,
            terms=self._terms,
            epoch=epoch,
            round_index=round_index,
            attempt=attempt,
            cohort=cohort,
        )
        aggregator.reseal(self._results.headers(at), self._results.ciphertexts(at))
        with self._lock:
            self._at, self._running = at, aggregator
            return aggregator

    def ledger_heads(self) -> dict[str, bytes]:
        """Give the longest ledger head that each member has signed."""
        return self._heads.latest()

    def restore_heads(self, latest: Mapping[str, bytes]) -> None:
        """Go on from heads that a process before this one knew."""
        self._heads = LedgerHeads(latest)

    def begin_upload(self, round_index: int, attempt: int, header: bytes) -> ArrivingUpload:
        """Begin one member's upload for whoever brings its ciphertexts one by one; see `upload`."""
        started = self._clock()
        return self._running_at(round_index, attempt).begin_upload(
            header, is_late=lambda: self._clock() - started > self._upload_seconds
        )

    def upload(self, round_index: int, attempt: int, header: bytes, ciphertexts: Iterable[bytes]) -> None:
        """Add one member's upload.

        Raises:
            StaleRound: Another round runs.
            UploadTooSlow: The ciphertexts did not come in time.
            See `RoundAggregator.accept` for everything else.
        """
        self.begin_upload(round_index, attempt, header).take_all(ciphertexts)

    def close(self) -> None:
        """Take no more uploads and serve the aggregate.

        Raises:
            StaleRound: No round runs.
            StoreNotWritable: The aggregate cannot be kept; it can be tried again.
            See `RoundAggregator.seal` for everything else.
        """
        with self._lock:
            at, running = self._at, self._running
        if running is None:
            raise StaleRound("no round is running")
        self._results.keep(at, running.seal)

    def forget(self, before_round: int) -> None:
        """Drop the results of rounds that every member has applied."""
        self._results.forget(before_round)
        with self._lock:
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
        """Give the signed headers and the aggregate of an attempt, whole; see `stream`."""
        headers, sums = self.stream(round_index, attempt)
        return headers, list(sums)

    def stream(
        self, round_index: int, attempt: int, first_index: int = 0
    ) -> tuple[list[bytes], Iterator[bytes]]:
        """Give the signed headers of an attempt, and the ciphertexts of its aggregate one at a time, from an index on.

        Raises:
            StaleRound: Its roster is not closed.
            ResultExpired: The round is older than those that are kept.
        """
        headers = self._results.headers((round_index, attempt))
        self._count_down(sum(map(len, headers)))
        return headers, self._counted(self._results.ciphertexts((round_index, attempt), first_index))

    def result_count(self, round_index: int, attempt: int) -> int:
        """Return the number of ciphertexts of an attempt's aggregate; raises as `stream`."""
        return self._results.count((round_index, attempt))

    @property
    def running_at(self) -> tuple[int, int] | None:
        """Round and attempt that uploads are taken for; None before the first one."""
        with self._lock:
            return None if self._running is None else self._at

    def has_upload(self, round_index: int, attempt: int, participant: str) -> bool:
        """Whether the upload of a member came whole in an attempt that runs; raises StaleRound if it does not."""
        return participant in self._running_at(round_index, attempt).contributors

    def _counted(self, ciphertexts: Iterator[bytes]) -> Iterator[bytes]:
        for ciphertext in ciphertexts:
            self._count_down(len(ciphertext))
            yield ciphertext

    def _count_down(self, sent_bytes: int) -> None:
        with self._lock:
            self.downlink_bytes += sent_bytes

    def _running_at(self, round_index: int, attempt: int) -> RoundAggregator:
        with self._lock:
            if self._running is None or self._at != (round_index, attempt):
                raise StaleRound(f"round {round_index} attempt {attempt} is not running")
            return self._running
