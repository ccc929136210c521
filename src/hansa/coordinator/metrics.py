"""The coordinator's metrics for Prometheus: what it may know anyway, and nothing of any participant's data.

There is no loss, no gradient norm, no number of records and no ε by participant here: the coordinator does not have them, and a
metric is an output channel. `NAMES` is the allow-list; a test holds it, the dashboards and the alert rules together.
"""

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from hansa.coordinator.members import State as MemberState
from hansa.coordinator.rounds import RoundSummary
from hansa.coordinator.study_states import State as StudyState

NAMES = frozenset(
    {
        "hansa_build_info",
        "hansa_rounds_total",
        "hansa_round_duration_seconds",
        "hansa_round_attempts_total",
        "hansa_last_round_timestamp_seconds",
        "hansa_rounds_planned",
        "hansa_rounds_done",
        "hansa_participants",
        "hansa_secure_agg_dropouts_total",
        "hansa_update_bytes_total",
        "hansa_studies",
        "hansa_certificate_expiry_timestamp_seconds",
        "hansa_superlink_restarts_total",
        "hansa_refused_connections_total",
    }
)
_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)


class CoordinatorMetrics:
    """All metrics of a coordinator.

    Args:
        version: Version of hansa.

    Attributes:
        registry: What a status page shows.

    Guarantees:
        - Names and labels are those of the allow-list.
        - A state that nobody is in any more counts zero.
    """

    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        Gauge("hansa_build_info", "Version that runs", ["version"], registry=registry).labels(version).set(1)
        self._rounds = Counter("hansa_rounds", "Rounds that ended", ["study", "outcome"], registry=registry)
        self._duration = Histogram(
            "hansa_round_duration_seconds",
            "Wall time of a round",
            ["study"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._attempts = Counter(
            "hansa_round_attempts", "Attempts beyond the first of a round", ["study"], registry=registry
        )
        self._last = Gauge(
            "hansa_last_round_timestamp_seconds", "When the last round ended", ["study"], registry=registry
        )
        self._planned = Gauge("hansa_rounds_planned", "Rounds of the study", ["study"], registry=registry)
        self._done = Gauge("hansa_rounds_done", "Rounds that are over", ["study"], registry=registry)
        self._participants = Gauge(
            "hansa_participants", "Members by state of their enrolment", ["state"], registry=registry
        )
        self._dropouts = Counter(
            "hansa_secure_agg_dropouts", "Members missing from a round", ["study", "phase"], registry=registry
        )
        self._bytes = Counter(
            "hansa_update_bytes", "Ciphertext and headers of all members", ["direction"], registry=registry
        )
        self._studies = Gauge("hansa_studies", "Studies by state", ["state"], registry=registry)
        self._expiry = Gauge(
            "hansa_certificate_expiry_timestamp_seconds", "End of a certificate", ["name"], registry=registry
        )
        self._restarts = Counter("hansa_superlink_restarts", "Restarts of the SuperLink", registry=registry)
        self._refused = Counter(
            "hansa_refused_connections", "Calls refused at a door", ["door", "reason"], registry=registry
        )

    def round_ended(self, study: str, summary: RoundSummary, *, participants: int, now: float) -> None:
        """Count a round."""
        self._rounds.labels(study, "void" if summary.void else "applied").inc()
        self._duration.labels(study).observe(summary.seconds)
        self._attempts.labels(study).inc(summary.attempt)
        self._last.labels(study).set(now)
        self._done.labels(study).set(summary.round)
        contributors = len(summary.contributors)
        self._dropouts.labels(study, "upload").inc(participants - contributors)
        self._dropouts.labels(study, "confirm").inc(max(0, contributors - len(summary.finished)))

    def study_begins(self, study: str, *, planned: int, done: int) -> None:
        """Note how far a study is when its loop begins."""
        self._planned.labels(study).set(planned)
        self._done.labels(study).set(done)

    def study_failed(self, study: str) -> None:
        """Count a round that did not end."""
        self._rounds.labels(study, "failed").inc()

    def traffic(self, *, up_bytes: int, down_bytes: int) -> None:
        """Count bytes since the last call."""
        self._bytes.labels("up").inc(up_bytes)
        self._bytes.labels("down").inc(down_bytes)

    def members(self, by_state: dict[str, int]) -> None:
        """Set the number of members by state; states that are not named have none."""
        for state in get_args(MemberState):
            self._participants.labels(state).set(by_state.get(state, 0))

    def studies(self, by_state: dict[str, int]) -> None:
        """Set the number of studies by state; states that are not named have none."""
        for state in get_args(StudyState):
            self._studies.labels(state).set(by_state.get(state, 0))

    def certificate_ends(self, name: str, at: float) -> None:
        """Set the end of a certificate, seconds since 1970."""
        self._expiry.labels(name).set(at)

    def superlink_restarted(self) -> None:
        """Count a restart of the SuperLink."""
        self._restarts.inc()

    def refused(self, door: str, reason: str, count: int = 1) -> None:
        """Count calls that were refused: which door, and the code of the error."""
        self._refused.labels(door, reason).inc(count)
