"""The coordinator's metrics: an allow-list of names and labels, and what they count."""

from hansa.coordinator.metrics import NAMES, CoordinatorMetrics
from hansa.coordinator.rounds import RoundSummary

LABELS = frozenset(
    {"version", "study", "outcome", "state", "phase", "direction", "name", "door", "reason", "le"}
)


def summary(**changes):
    values = {
        "round": 2, "attempt": 1, "epoch": 1, "seconds": 3.5,
        "contributors": ("a", "b", "c"), "finished": ("a", "b"),
    }  # fmt: skip
    return RoundSummary(**(values | changes))


def everything():
    metrics = CoordinatorMetrics("1.2.3")
    metrics.study_begins("risk", planned=5, done=1)
    metrics.round_ended("risk", summary(), participants=4, now=100.0)
    metrics.round_ended("risk", summary(void=True), participants=4, now=101.0)
    metrics.study_failed("risk")
    metrics.traffic(up_bytes=10, down_bytes=20)
    metrics.members({"enrolled": 4, "revoked": 1})
    metrics.studies({"running": 1})
    metrics.certificate_ends("server", 1e9)
    metrics.superlink_restarted()
    metrics.refused("fleet", "certificate_rejected")
    return metrics.registry


def test_names_and_labels_are_those_of_the_allow_list_and_no_others():
    names, labels = set(), set()
    for family in everything().collect():
        names |= {family.name if family.type != "counter" else f"{family.name}_total"}
        labels |= {label for sample in family.samples for label in sample.labels}
    assert names == NAMES
    assert labels <= LABELS
    forbidden = ("loss", "gradient", "norm", "records", "rows", "accuracy", "epsilon")
    assert not [name for name in names for word in forbidden if word in name]


def test_rounds_dropouts_and_bytes_are_counted():
    registry = everything()

    def value(name, **labels):
        return registry.get_sample_value(name, labels)

    assert value("hansa_rounds_total", study="risk", outcome="applied") == 1
    assert value("hansa_rounds_total", study="risk", outcome="void") == 1
    assert value("hansa_rounds_total", study="risk", outcome="failed") == 1
    assert value("hansa_round_attempts_total", study="risk") == 2
    assert value("hansa_secure_agg_dropouts_total", study="risk", phase="upload") == 2
    assert value("hansa_secure_agg_dropouts_total", study="risk", phase="confirm") == 2
    assert value("hansa_update_bytes_total", direction="up") == 10
    assert value("hansa_rounds_done", study="risk") == 2
    assert value("hansa_last_round_timestamp_seconds", study="risk") == 101.0
    assert value("hansa_round_duration_seconds_sum", study="risk") == 7.0


def test_a_state_that_nobody_is_in_any_more_counts_zero():
    metrics = CoordinatorMetrics("1.2.3")
    metrics.studies({"running": 1})
    metrics.studies({"finished": 1})
    metrics.members({"invited": 2})
    metrics.members({"enrolled": 2})
    value = metrics.registry.get_sample_value
    assert value("hansa_studies", {"state": "running"}) == 0
    assert value("hansa_studies", {"state": "finished"}) == 1
    assert value("hansa_participants", {"state": "invited"}) == 0
    assert value("hansa_participants", {"state": "enrolled"}) == 2
