"""A participant's metrics for Prometheus: what the institution may see of its own agent, on its own loopback, and nothing else.

There is no loss, no gradient norm, no accuracy and no number of records here: a metric is an output channel outside the accountant.
ε is shown, spent and allowed, for it is what an owner must watch; it never goes to the coordinator. The page is off unless
participant.toml asks for it, and listens on loopback only. `NAMES` is the allow-list; a test holds it, dashboard and rules.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Gauge

NAMES = frozenset(
    {
        "hansa_build_info",
        "hansa_agent_connected",
        "hansa_agent_last_look_timestamp_seconds",
        "hansa_agent_rounds_planned",
        "hansa_agent_rounds_done",
        "hansa_agent_certificate_expiry_timestamp_seconds",
        "hansa_privacy_epsilon_spent",
        "hansa_privacy_epsilon_limit",
    }
)
Scope = Literal["for_ever", "study"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EpsilonStanding:
    """What a data set has spent and may spend.

    Attributes:
        scope: By all studies for ever, or by this one.
        spent: ε that is reserved on the ledger.
        limit: ε that the policy allows; infinite where it sets none.
    """

    scope: Scope
    spent: float
    limit: float


class ParticipantMetrics:
    """All metrics of a node agent.

    Args:
        version: Version of hansa.

    Attributes:
        registry: What a status page shows.

    Guarantees:
        - Names and labels are those of the allow-list.
    """

    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        Gauge("hansa_build_info", "Version that runs", ["version"], registry=registry).labels(version).set(1)
        self._connected = Gauge(
            "hansa_agent_connected", "Whether the coordinator has taken the node in", registry=registry
        )
        self._looked = Gauge(
            "hansa_agent_last_look_timestamp_seconds", "When it last had news", registry=registry
        )
        self._planned = Gauge("hansa_agent_rounds_planned", "Rounds planned", ["study"], registry=registry)
        self._done = Gauge("hansa_agent_rounds_done", "Rounds applied here", ["study"], registry=registry)
        self._expiry = Gauge(
            "hansa_agent_certificate_expiry_timestamp_seconds",
            "End of the own certificates",
            registry=registry,
        )
        self._spent = Gauge(
            "hansa_privacy_epsilon_spent",
            "Epsilon reserved on the data set of a study, by all studies or by this one",
            ["study", "scope"],
            registry=registry,
        )
        self._limit = Gauge(
            "hansa_privacy_epsilon_limit",
            "Epsilon that the owner's policy allows",
            ["study", "scope"],
            registry=registry,
        )

    def connected(self, is_connected: bool) -> None:
        """Set whether the agent is connected."""
        self._connected.set(is_connected)

    def looked(self, at: float) -> None:
        """Set when the agent last had news of the consortium, seconds since 1970."""
        self._looked.set(at)

    def certificates_end(self, at: float) -> None:
        """Set when the own certificates end, seconds since 1970."""
        self._expiry.set(at)

    def rounds(self, study: str, *, planned: int, done: int) -> None:
        """Set how far a study is here."""
        self._planned.labels(study).set(planned)
        self._done.labels(study).set(done)

    def epsilon(self, study: str, standings: Iterable[EpsilonStanding]) -> None:
        """Set what the data set of a study has spent and may spend."""
        for one in standings:
            self._spent.labels(study, one.scope).set(one.spent)
            self._limit.labels(study, one.scope).set(one.limit)
